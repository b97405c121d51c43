"""The sources of a training set, as data: `data.sources` of a recipe."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """Base of all recipe parts: unknown keys are errors, numbers are finite, true is no number, values do not change after the check.

    The string below a field is its words, which `./launch.sh fields` shows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, values: Any) -> Any:
        """pydantic takes true for 1."""
        for name, value in values.items() if isinstance(values, dict) else ():
            annotation = cls.model_fields[name].annotation if name in cls.model_fields else None
            taken = [annotation, *get_args(annotation)]
            taken += [type(one) for one in taken]  # of a Literal's values
            if isinstance(value, bool) and bool not in taken and (int in taken or float in taken):
                raise ValueError(f"{name} is {str(value).lower()}, where a number belongs")
        return values


class HeldOutConfig(Strict):
    """Held-out documents as a data set's publisher divided them: what differs from the source they belong to."""

    path: str | None = None
    """Another path than the source's."""
    split: str | None = None
    """Another split than the source's."""
    files: list[str] | None = None
    """Other files than the source's, as patterns."""

    @model_validator(mode="after")
    def _something_differs(self) -> HeldOutConfig:
        if self == HeldOutConfig.model_construct():
            raise ValueError("held_out names nothing; set held_out.split, held_out.files or held_out.path")
        return self


class SourceConfig(Strict):
    """One source of documents."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_\-]*$")
    """The source's name: small letters, digits, `_` and `-`."""
    kind: Literal["installed_python", "text", "code", "jsonl", "parquet", "hugging_face"]
    """`installed_python` reads the Python source on this machine (standard library and packages) and needs no path; `text` and `code`
    read trees of files; `jsonl` and `parquet` read a field of records; `hugging_face` reads a data set of the Hugging Face hub."""
    path: str | None = None
    """A file or folder; of `hugging_face` the data set's name."""
    subset: str | None = None
    """Configuration of a `hugging_face` data set."""
    revision: str | None = None
    """Revision of a `hugging_face` data set."""
    files: list[str] | None = None
    """Patterns of a `hugging_face` data set's files, of which only those are fetched; null: all."""
    split: str = "train"
    """Split of a `hugging_face` data set."""
    text_field: str = "text"
    """The field of a record that holds the text."""
    suffixes: list[str] | None = None
    """Ends of the names of files that are read; null: the usual ones of the kind (`.jsonl`, also gzip or zstd; `.parquet`; `.txt`,
    `.md` and others)."""
    proportion: float = Field(default=1.0, gt=0.0)
    """The source's share of the samples, relative to the other sources' numbers."""
    max_megabytes: float | None = Field(default=None, gt=0.0)
    """Read no more text than this, in 10^6 bytes: a fair sample, of `hugging_face` the beginning; null: all."""
    held_out: HeldOutConfig | None = None
    """Where the publisher keeps held-out documents; null: they are drawn from the source."""

    @model_validator(mode="after")
    def _path_given(self) -> SourceConfig:
        if self.kind != "installed_python" and not self.path:
            raise ValueError(f"source '{self.name}' of kind {self.kind} needs a path")
        return self

    @model_validator(mode="after")
    def _only_of_hugging_face(self) -> SourceConfig:
        for field in ("files", "revision"):
            if getattr(self, field) is not None and self.kind != "hugging_face":
                raise ValueError(f"source '{self.name}' of kind {self.kind} cannot have {field}; leave it out, or use kind hugging_face")
        return self

    @model_validator(mode="after")
    def _held_out_is_another_text(self) -> SourceConfig:
        held_out, told = self.held_out, f"source '{self.name}' of kind {self.kind}"
        if held_out is None:
            return self
        if self.kind == "installed_python":
            raise ValueError(f"{told} has no held-out documents of its own; leave held_out out")
        if self.kind != "hugging_face" and (held_out.split is not None or held_out.files is not None):
            raise ValueError(f"{told} has neither splits nor files; name its held-out documents by held_out.path")
        if self.files is not None and held_out.files is None and held_out.path is None:
            raise ValueError(f"{told}: held_out would read the same files; set held_out.files")
        if self.max_megabytes is not None and self.kind == "hugging_face" and held_out.files is None:
            raise ValueError(f"{told}: with max_megabytes the whole data set would be fetched for its held-out split; set held_out.files")
        if self._place() == self.published_held_out()._place():  # type: ignore[union-attr]
            raise ValueError(f"{told}: held_out names the text that is trained on; set another held_out.path, split or files")
        return self

    def _place(self) -> tuple[object, ...]:
        return self.path, self.subset, self.revision, self.split, self.files

    def published_held_out(self) -> SourceConfig | None:
        """The source's own held-out documents as a source, None where they are drawn."""
        if self.held_out is None:
            return None
        changes = {**self.held_out.model_dump(exclude_none=True), "held_out": None, "max_megabytes": None}
        if self.held_out.path is not None:  # another data set has other files and revisions
            changes |= {"files": self.held_out.files, "revision": None}
        return self.model_copy(update=changes)
