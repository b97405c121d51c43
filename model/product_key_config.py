"""Feed-forward slots that find a few rows of a large table by product keys: memories and PEER.

Symbols: d model width, n sub-keys a half, so N = n * n slots (values, experts), h heads, k slots a head, d_k query width a head.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from model.balance_config import Scope
from model.slot_config import Count, FeedForwardSlot

QueryNorm = Literal["none", "layer", "batch"]


def _norm_parameters(norm: QueryNorm, heads: int, d_key: int) -> int:
    """Gains and biases: one set for all heads, or one of every feature."""
    return {"none": 0, "layer": 2 * d_key, "batch": 2 * heads * d_key}[norm]


def _norm_scopes(norm: QueryNorm) -> dict[str, Scope]:
    return {"query_norm": "micro_batch"} if norm == "batch" else {}


class ProductKeyConfig(FeedForwardSlot):
    """Base of the slots that find their k of n * n rows by product keys. Sub-keys all count as active, as a router does."""

    params_knobs = ("n_keys",)
    n_keys: int = Field(ge=1)
    """Sub-keys a half (n); the table has `n_keys * n_keys` rows."""
    heads: int = Field(ge=1)
    """Query heads (h), each of which picks its own rows."""
    top_k: int = Field(ge=1)
    """Rows that a head picks for a token (k)."""

    @property
    def n_slots(self) -> int:
        """N, rows of the table."""
        return self.n_keys**2

    @property
    def table_rows(self) -> int:
        return self.n_slots

    @property
    def candidates(self) -> int:
        return self.n_slots

    @property
    def reads(self) -> int:
        """Rows a token reads."""
        return self.heads * self.top_k

    def table(self, d_model: int) -> Count:
        """One table of N rows; rows that two heads pick count once where they must overlap."""
        return Count(self.n_slots * d_model, min(self.reads, self.n_slots) * d_model)

    @model_validator(mode="after")
    def _top_k_fits(self) -> ProductKeyConfig:
        if self.top_k > self.n_slots:
            fits = f"choose top_k <= {self.n_slots}"
            raise ValueError(f"top_k is {self.top_k} but {self.n_keys} sub-keys a half make {self.n_slots} slots; {fits}")
        return self


class PKMConfig(ProductKeyConfig):
    """Product-key memory as published (arXiv 1907.05242): a query a head, softmax over a head's winners, summed values."""

    macs_knobs = ("d_key", "heads")
    kind: Literal["pkm"] = "pkm"
    heads: int = Field(default=4, ge=1)
    top_k: int = Field(default=32, ge=1)
    d_key: int = Field(ge=2, multiple_of=2)
    """Width of a head's query, of which each half meets the sub-keys of one half."""
    query_norm: QueryNorm = "none"
    """Norm of queries: `none`, `layer` (a head at a time), or the published `batch` norm of every feature, whose statistics in training
    are of a micro-batch: a query depends on later tokens and on other sequences."""

    def statistic_scopes(self) -> dict[str, Scope]:
        return _norm_scopes(self.query_norm)

    def parameters(self, d_model: int) -> Count:
        query = (d_model + 1) * self.heads * self.d_key
        always = query + self.heads * self.n_keys * self.d_key + _norm_parameters(self.query_norm, self.heads, self.d_key)
        values = self.table(d_model)
        return Count(always + values.stored, always + values.active)

    def macs(self, d_model: int, exact: bool) -> int:
        return self.heads * self.d_key * (d_model + self.n_keys) + self.reads * d_model


class PKMHalvesConfig(ProductKeyConfig):
    """Product-key memory of the sigma-MoE paper (arXiv 2310.10837): every head reads the halves of the input, no query layer."""

    macs_knobs = ("n_keys",)
    kind: Literal["pkm_halves"] = "pkm_halves"
    heads: int = Field(default=4, ge=1)
    top_k: int = Field(default=128, ge=1)
    """Rows that a head picks for a token; with `n_keys` or more (all the paper's runs) heads are summed first, over all rows, which is
    another function."""
    activation: Literal["relu", "softmax"] = "relu"
    """What the scores of all heads together go through."""
    value_fan_in: Literal["d_model", "slots", "reads"] = "d_model"
    """Values start with variance 2 / (unrolled depth x fan-in), the fan-in being `d_model`, `slots` (rows; the paper's "+ init") or
    `reads` (heads x top_k)."""

    @property
    def dense(self) -> bool:
        """Whether every slot is read."""
        return self.top_k >= self.n_keys

    @property
    def candidates(self) -> int:
        return 0 if self.dense else self.n_slots

    def parameters(self, d_model: int) -> Count:
        keys, values = self.heads * self.n_keys * d_model, self.table(d_model)
        return Count(keys + values.stored, keys + (values.stored if self.dense else values.active))

    def macs(self, d_model: int, exact: bool) -> int:
        """The dense form adds up the heads' keys before it multiplies."""
        if self.dense:
            return self.n_keys * d_model + self.n_slots * d_model
        return self.heads * self.n_keys * d_model + self.reads * d_model


class PeerConfig(ProductKeyConfig):
    """PEER (arXiv 2407.04153): n_keys x n_keys experts of one hidden neuron, top_k picked by each of the query heads."""

    macs_knobs = ("d_key", "heads")
    kind: Literal["peer"] = "peer"
    heads: int = Field(default=8, ge=1)
    top_k: int = Field(default=16, ge=1)
    d_key: int = Field(ge=2, multiple_of=2)
    """Width of a head's query; it decides the cost and was not published."""
    keys_per_head: bool = True
    """Own sub-keys for every head (all open implementations); false: one set for all (the paper's text)."""
    query_norm: QueryNorm = "layer"
    """Norm of queries: `layer` (a head at a time), `none`, or the paper's `batch` norm, with which a query in training depends on later
    tokens and on other sequences of its micro-batch."""
    gate: Literal["softmax", "sigmoid"] = "softmax"
    """An expert's weight: a softmax over a head's winners, or the sigmoid of its score."""
    activation: Literal["relu", "gelu"] = "gelu"
    """What an expert's one hidden neuron goes through."""
    glu: bool = False
    """Give experts a third vector, whose activated product with the token multiplies the plain one."""

    @property
    def tables(self) -> int:
        """Vectors of an expert."""
        return 3 if self.glu else 2

    def statistic_scopes(self) -> dict[str, Scope]:
        return _norm_scopes(self.query_norm)

    def parameters(self, d_model: int) -> Count:
        keys = (self.heads if self.keys_per_head else 1) * self.n_keys * self.d_key
        always = d_model * self.heads * self.d_key + keys + _norm_parameters(self.query_norm, self.heads, self.d_key)
        rows = self.table(d_model)
        return Count(always + self.tables * rows.stored, always + self.tables * rows.active)

    def macs(self, d_model: int, exact: bool) -> int:
        experts = self.tables * self.reads * d_model + ((self.tables - 1) * self.reads if exact else 0)
        return self.heads * self.d_key * (d_model + self.n_keys) + experts
