"""Prepare a data set: survey the sources, plan, train the tokenizer, tokenize, write shards, merge.

Everything is made in `.<folder>.partial` beside the folder, in files named by what they were made from: a prepare that was
killed goes on where it was, and a whole set appears under its name in one rename. The result depends only on the recipe
and the texts, not on the number of workers or on interruptions.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.config import DataConfig
from data_pipeline.documents import digest_of, digest_of_file, rank_of
from data_pipeline.errors import DataError
from data_pipeline.files import link_or_copy, locked, write_text
from data_pipeline.manifest import (
    FORMAT,
    MANIFEST,
    SPLITS,
    Manifest,
    SourceManifest,
    Split,
    SplitManifest,
    TokenizerManifest,
    check,
    content_fields,
    split_folder,
)
from data_pipeline.plan import EXACT_DUPLICATE, HELD_OUT, NEAR_DUPLICATE, OVER_BUDGET, TRAIN, SourcePlan, make_plan
from data_pipeline.shards import INDEX, count_windows, merge_shards, windows_a_shard, write_shard
from data_pipeline.shingles import sample_threshold
from data_pipeline.sources import Part, list_parts, read_part
from data_pipeline.survey import Survey, survey_part
from data_pipeline.tasks import Runner, runner
from data_pipeline.tokenizer import Tokenizer, open_tokenizer
from data_pipeline.tokenizer_training import train_tokenizer
from data_pipeline.tokens import measure_overlap, token_count, token_type, tokenize_part

Progress = Callable[[str, int, int], None]

# Part files of an earlier version are not taken for this one's.
_VERSION = 1
_OVERLAP_SAMPLE = 1 << 20
_BYTES_A_WORD = 6
_FATES: dict[Split, int] = {"train": TRAIN, "held_out": HELD_OUT}


def prepare(config: DataConfig, folder: Path, on_progress: Progress | None = None, workers: int | None = None) -> Manifest:
    """Make the data set of a recipe in `folder`, or return the manifest of the one that is already there.

    `on_progress(stage, done, total)` is called in this process, with the stages survey, tokenizer, tokenize and shards.
    Tasks run on Ray: the cluster this process is connected to, else a local one of `workers` CPUs (default: all) for the
    time it takes; `workers=0` runs them in this process. Every machine of a cluster must see the sources and the folder.

    Raises:
        DataError: a source cannot be read or is too small, `folder` holds something else, or cannot be written.
    """
    folder = folder.absolute()
    work = folder.parent / f".{folder.name}.partial"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent / f".{folder.name}.lock"):
            if (folder / MANIFEST).exists():
                manifest = check(folder, config, verify=True)
            elif folder.exists() and any(folder.iterdir()):
                raise DataError(f"data.folder {folder} holds other files; set data.folder to a new or an empty folder")
            else:
                manifest = _Preparation(config, work, on_progress or _silent).run(folder, workers)
            shutil.rmtree(work, ignore_errors=True)
            return manifest
    except OSError as fault:
        reason = f"{fault.strerror or fault} ({fault.filename})"
        raise DataError(f"data.folder {folder} cannot be prepared: {reason}; set data.folder to a writable place") from None


def _silent(stage: str, done: int, total: int) -> None:
    pass


@dataclass
class _Preparation:
    """One prepare at work in `work`."""

    config: DataConfig
    work: Path
    on_progress: Progress
    parts: dict[str, list[Part]] = field(default_factory=dict)

    def run(self, folder: Path, workers: int | None) -> Manifest:
        """All stages, in order."""
        self.work.mkdir(parents=True, exist_ok=True)
        if self.config.tokenizer.kind == "file":
            open_tokenizer(self._tokenizer({}), self.config.tokenizer.resolved_end)  # a fault of it is found before the work
        for source in self.config.sources:
            self.parts[source.name] = list_parts(source, self.config.seed)
        here = any(source.kind == "installed_python" for source in self.config.sources)
        with runner(workers, here) as tasks:
            surveys = self._survey(tasks)
            published = {name: [part.held_out for part in parts] for name, parts in self.parts.items()}
            plans = make_plan(self.config, surveys, published)
            tokenizer_path = self._tokenizer(plans)
            tokenizer = open_tokenizer(tokenizer_path, self.config.tokenizer.resolved_end)
            token_files = self._tokenize(tasks, plans, tokenizer_path, tokenizer)
            shards = self._shards(tasks, token_files, tokenizer)
        return self._publish(folder, plans, tokenizer_path, tokenizer, token_files, shards)

    def _run_missing(self, tasks: Runner, stage: str, function: Callable[..., str], jobs: list[tuple[Path, tuple[Any, ...]]]) -> list[Path]:
        """Run the jobs whose file (or folder) is not there yet; the paths of all of them."""
        missing = {path: arguments for path, arguments in jobs if not path.exists()}
        before = len(jobs) - len(missing)
        self.on_progress(stage, before, len(jobs))
        calls = [(*arguments, path) for path, arguments in missing.items()]
        tasks.map(function, calls, lambda done: self.on_progress(stage, before + done, len(jobs)))
        return [path for path, _ in jobs]

    def _survey(self, tasks: Runner) -> dict[str, list[Survey]]:
        jobs = []
        for source in self.config.sources:
            for part in self.parts[source.name]:
                key = digest_of([_VERSION, source.model_dump(mode="json"), part.digest, self.config.deduplicate])
                jobs.append((self.work / f"survey-{key}.npz", (source, part, self.config.deduplicate)))
        loaded = iter([Survey.load(path) for path in self._run_missing(tasks, "survey", survey_part, jobs)])
        return {name: [next(loaded) for _ in parts] for name, parts in self.parts.items()}

    def _tokenizer(self, plans: dict[str, SourcePlan]) -> Path:
        """The tokenizer's file: the given one, or one trained on a sample of the train documents."""
        wanted = self.config.tokenizer
        if wanted.path is not None and wanted.kind == "file":
            return Path(wanted.path).expanduser().absolute()
        fates = [part.tobytes().hex() for plan in plans.values() for part in plan.fate_by_part]
        key = digest_of([_VERSION, wanted.model_dump(mode="json"), self.config.seed, [plan.digest for plan in plans.values()], fates])
        path = self.work / f"tokenizer-{key}{'.json' if wanted.kind == 'byte_bpe' else '.model'}"
        self.on_progress("tokenizer", int(path.exists()), 1)
        if not path.exists():
            train_tokenizer(wanted, self._sample(plans), path)
            self.on_progress("tokenizer", 1, 1)
        return path

    def _sample(self, plans: dict[str, SourcePlan]) -> Any:
        """Train documents, a fair sample of about `train_megabytes`."""
        total = sum(plan.text_bytes(TRAIN) for plan in plans.values())
        limit = min(int(self.config.tokenizer.train_megabytes * 1e6 / total * (1 << 64)), 1 << 64)
        for source in self.config.sources:
            for part, fate_D in zip(self.parts[source.name], plans[source.name].fate_by_part, strict=True):
                if not (fate_D == TRAIN).any():
                    continue
                for document, fate in zip(read_part(source, part), fate_D, strict=False):
                    if fate == TRAIN and rank_of(self.config.seed, "tokenizer", source.name, document.key) < limit:
                        yield document.text

    def _tokenize(self, tasks: Runner, plans: dict[str, SourcePlan], tokenizer_path: Path, tokenizer: Tokenizer) -> dict[str, list[Path]]:
        """The token file of every part, by source."""
        words = sum(plan.text_bytes(HELD_OUT) for plan in plans.values()) // _BYTES_A_WORD
        threshold = sample_threshold(words, _OVERLAP_SAMPLE)
        end = self.config.tokenizer.resolved_end
        jobs = []
        for source in self.config.sources:
            for part, fate_D in zip(self.parts[source.name], plans[source.name].fate_by_part, strict=True):
                read = [source.model_dump(mode="json"), part.digest, fate_D.tobytes().hex()]
                key = digest_of([_VERSION, read, tokenizer.digest, end, threshold])
                jobs.append((self.work / f"tokens-{key}.npz", (source, part, fate_D, tokenizer_path, end, threshold)))
        files = iter(self._run_missing(tasks, "tokenize", tokenize_part, jobs))
        return {name: [next(files) for _ in parts] for name, parts in self.parts.items()}

    def _shards(self, tasks: Runner, token_files: dict[str, list[Path]], tokenizer: Tokenizer) -> dict[tuple[str, Split], list[Path]]:
        """The folder of every shard, by source and split."""
        seq_len = self.config.seq_len
        step = windows_a_shard(seq_len, token_type(tokenizer.vocab_size).itemsize)
        jobs: list[tuple[Path, tuple[Any, ...]]] = []
        counts = {}
        for source, paths in token_files.items():
            for split in SPLITS:
                located, tokens = locate(paths, split)
                windows = count_windows(tokens, seq_len, split)
                if not windows:
                    shortfall = f"{tokens} {split} tokens do not fill a window of data.seq_len {seq_len}"
                    raise DataError(f"source '{source}': {shortfall}; give it more text or shorten seq_len")
                for first in range(0, windows, step):
                    last = min(first + step, windows)
                    key = digest_of([_VERSION, [(path.name, start) for path, start in located], split, seq_len, first, last])
                    jobs.append((self.work / f"shard-{key}", (located, split, seq_len, first, last)))
                counts[source, split] = -(-windows // step)
        folders = iter(self._run_missing(tasks, "shards", write_shard, jobs))
        return {place: [next(folders) for _ in range(count)] for place, count in counts.items()}

    def _publish(
        self,
        folder: Path,
        plans: dict[str, SourcePlan],
        tokenizer_path: Path,
        tokenizer: Tokenizer,
        token_files: dict[str, list[Path]],
        shards: dict[tuple[str, Split], list[Path]],
    ) -> Manifest:
        """Put the set together beside its place and give it its name."""
        whole = self.work / "whole"
        shutil.rmtree(whole, ignore_errors=True)
        for (source, split), folders in shards.items():
            merge_shards(folders, split_folder(whole, source, split))
        file = f"tokenizer{tokenizer_path.suffix}"
        link_or_copy(tokenizer_path, whole / file)
        overlaps = measure_overlap(token_files)
        places = [f"{source}/{split}/{INDEX}" for source, split in shards]
        manifest = Manifest(
            format=FORMAT,
            recipe=content_fields(self.config),
            seq_len=self.config.seq_len,
            token_bytes=token_type(tokenizer.vocab_size).itemsize,
            tokenizer=TokenizerManifest(
                kind=self.config.tokenizer.kind,
                file=file,
                vocab_size=tokenizer.vocab_size,
                document_end=self.config.tokenizer.resolved_end,
                end_of_document=tokenizer.end_of_document,
                digest=tokenizer.digest,
            ),
            sources={name: self._describe(plans[name], token_files[name], overlap) for name, overlap in overlaps.items()},
            indices={place: digest_of_file(whole / place) for place in places},
        )
        write_text(whole / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
        os.rename(whole, folder)
        return manifest

    def _describe(self, plan: SourcePlan, paths: list[Path], overlap: float) -> SourceManifest:
        splits: dict[Split, SplitManifest] = {}
        for split, fate in _FATES.items():
            tokens = locate(paths, split)[1]
            splits[split] = SplitManifest(
                documents=plan.count(fate),
                text_bytes=plan.text_bytes(fate),
                tokens=tokens,
                windows=count_windows(tokens, self.config.seq_len, split),
            )
        return SourceManifest(
            digest=plan.digest,
            documents=sum(map(len, plan.fate_by_part)),
            exact_duplicates=plan.count(EXACT_DUPLICATE),
            near_duplicates=plan.count(NEAR_DUPLICATE),
            over_budget=plan.count(OVER_BUDGET),
            overlap=overlap,
            splits=splits,
        )


def locate(paths: list[Path], split: Split) -> tuple[list[tuple[Path, int]], int]:
    """Each token file with the position of its first token in the stream, and the stream's length."""
    located = []
    position = 0
    for path in paths:
        located.append((path, position))
        position += token_count(path, split)
    return located, position
