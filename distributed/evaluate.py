"""Held-out loss: exact over every window, whatever the batch size and the number of ranks.

Nats are summed in fp64 token by token and divided once by the number of tokens. Windows shorter than the rest (ragged
tails) are padded on the right, which a causal model cannot see, and the padding is not scored.

Shape suffixes: B windows of a batch, T positions, V vocabulary, N = B*T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_pipeline.manifest import check
from data_pipeline.windows import Windows
from distributed.batching import segments_of
from distributed.errors import RunError
from distributed.expert_use import ExpertUse
from distributed.figures import perplexity
from distributed.protocols import check_protocol, windows_counted
from distributed.reduction import sum_over_ranks
from distributed.run_folder import RunFolder, data_folder
from distributed.topology import Topology
from distributed.trained import Trained, load_trained
from model.depth_override import check_repeats

_NOT_SCORED = -100


class WindowReader(Protocol):
    """What evaluation needs of a set of windows: `data_pipeline.windows.Windows` has it."""

    @property
    def ids(self) -> range:
        """Numbers of the windows."""
        ...

    def read_ragged(self, ids: Sequence[int]) -> list[np.ndarray]:
        """Token ids of each window, int64, 2 to T+1 long."""
        ...


@torch.no_grad()
def held_out_loss(
    model: nn.Module,
    windows: WindowReader,
    batch: int,
    device: torch.device,
    topology: Topology | None = None,
    max_windows: int | None = None,
    end_of_document: int | None = None,
    repeats: int | None = None,
    use: ExpertUse | None = None,
) -> dict[str, Any]:
    """Mean negative log-likelihood a token over `windows`.

    Windows are dealt over the ranks in turn. Under expert parallelism every rank calls the model equally often, with empty
    batches where it has no window left, because each call is a collective. The model is left in the mode it was found in.

    Args:
        model: called on int64 [B, T], answers with `logits` [B, T, V].
        batch: windows a call; changes memory and speed, not the result.
        topology: ranks that share the work; all of them must call this. None: this process alone.
        max_windows: only the first so many.
        end_of_document: given for a model trained with document masks: the token that ends a document.
        repeats: how many times the model goes through its group of layers; None: as configured.
        use: counts what this rank's scored tokens choose.

    Returns:
        {"nats": mean a token, "total_nats": sum, "tokens": scored, "windows": scored}, equal on all ranks.
    """
    chosen = windows.ids[:max_windows]
    rank, world = (topology.rank, topology.world) if topology else (0, 1)
    mine = chosen[rank::world]
    calls = math.ceil(math.ceil(len(chosen) / world) / batch)
    total = torch.zeros(2, dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    try:
        for call in range(calls):
            ids = mine[call * batch : (call + 1) * batch]
            if ids or (topology is not None and topology.forward_meets):
                rows = windows.read_ragged(ids) if ids else []
                total += _score(model, rows, device, end_of_document, repeats, use)
    finally:
        model.train(was_training)
    if topology is not None:
        total = sum_over_ranks({"total": total}, topology, "held_out")["total"]
    nats, tokens = total.tolist()
    return {"nats": nats / tokens if tokens else math.nan, "total_nats": nats, "tokens": int(tokens), "windows": len(chosen)}


def _score(
    model: nn.Module,
    rows: list[np.ndarray],
    device: torch.device,
    end_of_document: int | None,
    repeats: int | None,
    use: ExpertUse | None,
) -> Tensor:
    """[2]: summed nats and scored tokens of one batch, fp64."""
    inputs_BT, targets_BT = (tokens_BT.to(device) for tokens_BT in pad(rows))
    segments_BT = segments_of(inputs_BT, end_of_document) if end_of_document is not None else None
    output = model(inputs_BT, segments_BT=segments_BT, repeats=repeats)
    logits_NV = output.logits.flatten(0, 1)
    wide_NV = logits_NV.float() if logits_NV.dtype in (torch.bfloat16, torch.float16) else logits_NV
    nats_N = F.cross_entropy(wide_NV, targets_BT.flatten(), reduction="none", ignore_index=_NOT_SCORED)
    scored_BT = targets_BT != _NOT_SCORED
    if use is not None:
        use.add(output.records, scored_BT.flatten())
    return torch.stack((nats_N.double().sum(), scored_BT.sum().double()))


def pad(rows: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Inputs and targets, int64 [B, T], of windows of unequal lengths; [0, 1] for no window."""
    width = max((len(row) - 1 for row in rows), default=1)
    inputs_BT = torch.zeros(len(rows), width, dtype=torch.int64)
    targets_BT = torch.full((len(rows), width), _NOT_SCORED, dtype=torch.int64)
    for number, row in enumerate(rows):
        tokens = torch.from_numpy(np.asarray(row, dtype=np.int64))
        inputs_BT[number, : len(row) - 1] = tokens[:-1]
        targets_BT[number, : len(row) - 1] = tokens[1:]
    return inputs_BT, targets_BT


def evaluate_run(
    run: RunFolder,
    step: int | None = None,
    batch: int = 16,
    protocol: str = "tail",
    max_windows: int | None = None,
    repeats: int | None = None,
    experts: bool = False,
) -> dict[str, Any]:
    """Held-out perplexity of a run's checkpoint, on this machine in one process.

    Args:
        run: a run with a checkpoint.
        step: which checkpoint; None: the newest.
        batch: windows a call (changes no figure).
        protocol: one of `distributed.protocols.PROTOCOLS`.
        max_windows: the first so many windows of a source in place of the protocol's number (peS2o: 4111).
        repeats: how many times to go through the model's group of layers; None: as configured.
        experts: also count what the tokens of all sources choose.

    Returns:
        {"run", "step", "protocol", "repeats", "sources": {name: figures}, "total": figures}; figures are nats, perplexity, tokens,
        windows, and bits_per_byte where every byte of the source was scored and their number is known. With `experts` also
        "experts", see `ExpertUse.figures`.

    Raises:
        RunError: no such checkpoint or protocol, fewer windows than the protocol's batch, or no experts to count. DataError: the
            data are not those of the run. ModelError: more repeats than the model has parameters for.
    """
    check_protocol(protocol)
    trained = load_trained(run, step)
    made = trained.recipe.model.depth.repeats if repeats is None else repeats
    check_repeats(trained.recipe.model, made)
    use = _expert_use(trained, made) if experts else None
    folder = data_folder(trained.recipe)
    manifest = check(folder, trained.recipe.data)
    end_of_document = trained.tokenizer.end_of_document if trained.recipe.data.document_mask else None
    sources = {}
    for source in trained.recipe.data.sources:
        windows = Windows(folder, "held_out", source.name)
        limit = windows_counted(protocol, windows, source.name, max_windows)
        result = held_out_loss(trained.model, windows, batch, trained.device, None, limit, end_of_document, made, use)
        # The text's bytes, of which only the very first token's are not predicted.
        everything = limit == len(windows)
        n_bytes = manifest.sources[source.name].splits["held_out"].text_bytes if everything else None
        sources[source.name] = _with_rates(result, n_bytes)
    which = {"run": run.name, "step": trained.step, "protocol": protocol, "repeats": made}
    figures = {**which, "sources": sources, "total": _pooled(list(sources.values()))}
    return figures if use is None else {**figures, "experts": use.figures(use.sums())}


def _expert_use(trained: Trained, repeats: int) -> ExpertUse:
    model = trained.recipe.model
    use = ExpertUse(model, trained.device, repeats)
    if not any(use.candidates):
        why = (
            f"model.feed_forward is '{model.feed_forward.kind}'"
            if model.halting.kind == "none"
            else f"model.halting is '{model.halting.kind}'"
        )
        raise RunError(f"run '{trained.recipe.name}' has no experts to count: {why}; leave --experts out")
    return use


def _pooled(results: list[dict[str, Any]]) -> dict[str, Any]:
    """All sources as one set: every token weighs the same."""
    total = {name: sum(result[name] for result in results) for name in ("total_nats", "tokens", "windows")}
    nats = total["total_nats"] / total["tokens"] if total["tokens"] else math.nan
    n_bytes = sum(result.get("bytes", 0) for result in results) if all("bytes" in result for result in results) else None
    return _with_rates({"nats": nats, **total}, n_bytes)


def _with_rates(result: dict[str, Any], n_bytes: int | None) -> dict[str, Any]:
    """Perplexity a token and, where the bytes are known, bits a byte."""
    figures = {**result, "perplexity": perplexity(result["nats"])}
    if n_bytes:
        figures |= {"bytes": n_bytes, "bits_per_byte": result["total_nats"] / math.log(2) / n_bytes}
    return figures
