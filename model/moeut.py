"""The language model: embedding, a schedule of visits to shared layers, final norm, output head.

MoEUT (arXiv 2405.16039) is `group: G, repeats: R` with SwitchHead attention, sigma-MoE and peri-layernorm; the dense
baseline and non-shared mixtures of experts are other fillings of the same slots.

Shape suffixes: B sequences, T tokens, D model width, W width of what the head reads, V vocabulary, E experts. `x` without a suffix
are the residual streams, whose shape is theirs (`model.streams`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from kernels.linear_cross_entropy import linear_cross_entropy
from kernels.rows import wide_dtype
from model.attention import Statistics
from model.balance import BalanceSums, Means
from model.block import Block
from model.cache import KVCache
from model.config import ModelConfig
from model.depth_override import check_repeats
from model.errors import ModelError
from model.exchange import Exchange, LocalExchange
from model.halting import run_layer
from model.halting_config import Computed
from model.initialise import Constant, Normal, Repeated, Rules, Uniform, draw
from model.norm import LayerNorm
from model.rotary import Positions, positions
from model.router import Record
from model.sharding import Box, Shard
from model.slots import build_halting
from model.streams import build_streams
from model.table_exchange import LocalTables, TableExchange
from model.truncation import constant_step
from model.visit import Visit

Recompute = Literal["none", "experts", "visit"]


@dataclass
class ModelOutput:
    """What a forward gives.

    Attributes:
        logits: [B, T, V] in the model's type; of no sequences where the cross-entropy was asked for instead.
        cross_entropy: summed over all tokens, nats, float32 at least; 0 without targets.
        balance_B: weighted regulariser of every sequence, float32 at least; the loss adds its mean.
        balance_loss: mean of `balance_B`, 0 for an empty batch.
        ponder_B: weighted halting loss of every sequence, 0 without halting; the loss adds its mean.
        computed: tokens that every visit made really computed, in order (`model.accounting` turns them into multiply-accumulates).
        loads: a visit's routes per feed-forward expert, int64 [E], of the tokens given here, an entry for each of the config's
            `routed_visits`; zeros for visits that were not made.
        records: what every visit chose, by the visit's number.
        step_sums: for balance of scope `step`: statistics of a token, summed over sequences, by distinct layer and router name.
    """

    logits: Tensor
    cross_entropy: Tensor
    balance_B: Tensor
    balance_loss: Tensor
    ponder_B: Tensor
    computed: list[Computed]
    loads: list[Tensor]
    records: list[Record]
    step_sums: Means


class MoEUT(nn.Module):
    """A decoder-only model whose layers may be visited more than once. `init_parameters` gives it values.

    Args:
        config: what it is.
        exchange: how tokens reach feed-forward experts (None: all experts are here).
        attention_exchange: the same for SwitchHead's experts (None: every rank has all of them).
        table_exchange: the same for the columns of memories' and PEER's tables (None: all are here).
        recompute: what the backward makes again: `none`; `experts`, their hidden activations; `visit`, everything of a visit.
    """

    def __init__(
        self,
        config: ModelConfig,
        exchange: Exchange | None = None,
        attention_exchange: Exchange | None = None,
        recompute: Recompute = "none",
        table_exchange: TableExchange | None = None,
    ) -> None:
        super().__init__()
        if recompute not in ("none", "experts", "visit"):
            raise ModelError(f"recompute is '{recompute}'; choose none, experts or visit")
        self.config, self.recompute = config, recompute
        # What `model.official` replaces to follow the official library to the last bit of a float64 model.
        self.balance_sums: type[BalanceSums] = BalanceSums
        self.angle_type: torch.dtype | None = None
        places = (exchange or LocalExchange(), attention_exchange or LocalExchange())
        self.exchanges: list[Exchange] = list(dict.fromkeys(places))
        self.streams = build_streams(config.residual, config.depth, config.d_model)
        self.embedding = nn.Embedding(config.vocab_size, self.streams.table_copies * config.d_model)
        how = *places, recompute == "experts", table_exchange or LocalTables()
        self.layers = nn.ModuleList(Block(config, layer, *how) for layer in range(config.depth.n_layers))
        self.halting = build_halting(config.halting, config.d_model)
        self.final_norm = LayerNorm(config.d_model)
        self.head = nn.Linear(self.streams.head_copies * config.d_model, config.vocab_size)

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        targets_BT: Tensor | None = None,
        segments_BT: Tensor | None = None,
        cache: KVCache | None = None,
        records: list[Record] | None = None,
        repeats: int | None = None,
        step_means: Means | None = None,
        read_out: bool = True,
    ) -> ModelOutput:
        """Next-token logits, or their cross-entropy, and the balance regulariser.

        Args:
            tokens_BT: int64; B may be 0, which runs through the same exchanges and gives every parameter a zero gradient.
            targets_BT: int64, the tokens to predict: the cross-entropy is given and no logits are kept.
            segments_BT: document numbers; attention stays inside a document and positions restart with it.
            cache: keys and values of the tokens before these, extended by these.
            records: a dict a visit, by its number. Empty ones are filled with the choices made, filled ones are obeyed.
            repeats: how many times to go through the group (None: as configured), for all ranks the same.
            step_means: where this batch is a part of a step: `step_sums` of all its parts, added up, over all its sequences.
            read_out: False where choices and statistics are all that is wanted: no logits, no cross-entropy.

        Raises:
            ModelError: `cache` together with `segments_BT`, records that do not fit, or more repeats than the model has parameters for.
        """
        repeats = self.config.depth.repeats if repeats is None else repeats
        check_repeats(self.config, repeats)
        records = self._records(records, self.config.depth.n_numbers(repeats))
        where = self._positions(tokens_BT, segments_BT, cache)
        balance = self.balance_sums(self.config.balance_terms(), step_means)
        x = self._embed(tokens_BT)
        walk = self.halting.begin(x, tokens_BT, repeats, cache is not None)
        for place in self.config.depth.visits(repeats):
            visit_cache = None if cache is None else cache.visits[place.number]
            visit = Visit(visit_cache, records[place.number], place.number, place.repeat, place.layer, repeats)
            walk.enter(visit, x)
            x, statistics = self._visit(x, where, visit)
            balance.add(place.layer, statistics)
        left = walk.leave(x)
        balance_B, balance_loss = balance.finish(tokens_BT.shape[0], left.n_tokens, left.x)
        logits_BTV, cross_entropy = self._read_out(left.x, targets_BT) if read_out else self._nothing(tokens_BT.shape[1])
        regularisers = balance_B, balance_loss, left.ponder_B, left.computed
        step_sums = balance.of_step_scope(left.n_tokens)
        return ModelOutput(logits_BTV, cross_entropy, *regularisers, self._loads(records, repeats), records, step_sums)

    def _read_out(self, x: Tensor, targets_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits and a cross-entropy of 0, or no logits and the cross-entropy."""
        x_BTW = self.streams.leave(x, self.final_norm).to(self.head.weight.dtype)
        no_logits, zero = self._nothing(x_BTW.shape[1])
        if targets_BT is None:
            return self.head(x_BTW), zero
        return no_logits, linear_cross_entropy(x_BTW.flatten(0, 1), self.head.weight, self.head.bias, targets_BT.flatten())

    def _nothing(self, n_tokens: int) -> tuple[Tensor, Tensor]:
        """Logits of no sequences, in the model's type, and a cross-entropy of 0."""
        no_logits = self.head.weight.new_empty(0, n_tokens, self.config.vocab_size)
        return no_logits, self.head.weight.new_zeros((), dtype=wide_dtype(self.head.weight.dtype))

    def init_parameters(self, seed: int) -> MoEUT:
        """Draw all parameters anew (arXiv 2405.16039, appendix): values depend on `seed` and names, not on the layout."""
        rules = self._rules()
        boxes = self.boxes()
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                box = boxes[name]
                parameter.copy_(draw(rules[name], name, box.global_shape, seed)[box.index])
        return self

    def boxes(self) -> dict[str, Box]:
        """Where every parameter lies in its global tensor: an expert bank holds rows of it, a table columns."""
        boxes = {name: shard.box for name, shard in self._shards().items()}
        return {name: boxes.get(name) or Box.whole(tuple(parameter.shape)) for name, parameter in self.named_parameters()}

    def partitioned_parameters(self) -> dict[str, int]:
        """Parameters of which a group of ranks holds a part each, and how many ranks that is; equal on every rank."""
        return {name: shard.ranks for name, shard in self._shards().items() if shard.ranks > 1}

    def _shards(self) -> dict[str, Shard]:
        sharded = [(name, module) for name, module in self.named_modules() if hasattr(module, "shards")]
        return {f"{name}.{key}": shard for name, module in sharded for key, shard in module.shards().items()}

    def _embed(self, tokens_BT: Tensor) -> Tensor:
        x = self.embedding(tokens_BT)
        x = self.streams.enter(x.to(wide_dtype(x.dtype)))
        if self.config.norm != "post":
            return x
        width = self.config.d_model
        return F.layer_norm(x * width**0.5, (width,))

    def _visit(self, x: Tensor, where: Positions, visit: Visit) -> tuple[Tensor, Statistics]:
        if self.config.depth.is_constant(visit.layer, visit.repeat, visit.repeats):
            with torch.no_grad():
                y, statistics = self._pass(x, where, visit)
            return constant_step(x, y), statistics
        if self.recompute != "visit" or visit.cache is not None or not torch.is_grad_enabled():
            return self._pass(x, where, visit)
        # No early stop: it would leave a recomputed exchange half way, its last collective issued on some ranks only.
        with set_checkpoint_early_stop(False):
            return checkpoint(self._pass, x, where, visit, use_reentrant=False)

    def _pass(self, x: Tensor, where: Positions, visit: Visit) -> tuple[Tensor, Statistics]:
        read_BTD, x = self.streams.read(visit, x)
        y_BTD, statistics = run_layer(self.layers[visit.layer], read_BTD, where, visit)
        return self.streams.write(visit, x, y_BTD), statistics

    def _positions(self, tokens_BT: Tensor, segments_BT: Tensor | None, cache: KVCache | None) -> Positions:
        if cache is not None and segments_BT is not None:
            raise ModelError("cache and segments_BT cannot be used together; decode one document a sequence")
        attention = self.config.attention
        past = 0 if cache is None else cache.length
        angle_type = self.angle_type or torch.promote_types(self.head.weight.dtype, torch.float32)
        return positions(tokens_BT, past, segments_BT, attention.d_head, attention.rotary, angle_type)

    def _records(self, records: list[Record] | None, n_visits: int) -> list[Record]:
        if records is None:
            return [{} for _ in range(n_visits)]
        if len(records) != n_visits:
            raise ModelError(f"records: {len(records)} given, the model has {n_visits} visits; give one dict a visit")
        return records

    def _loads(self, records: list[Record], repeats: int) -> list[Tensor]:
        none_E = torch.zeros(self.config.feed_forward.routed_experts, dtype=torch.int64, device=self.head.weight.device)
        routed = [records[number] for number in self.config.routed_visits(repeats)]
        return [record["loads"]["feed_forward"][0] if "loads" in record else none_E for record in routed]

    def _rules(self) -> Rules:
        width = self.config.d_model
        rules: Rules = {
            "embedding.weight": Repeated(Normal(width**-0.5), self.streams.table_copies),
            # Equal streams and equal parts of the head: their sum is the head of one stream.
            "head.weight": Repeated(Uniform(width**-0.5 / self.streams.head_copies), self.streams.head_copies),
            "head.bias": Uniform(width**-0.5),
        }
        scale = 1.0 if self.config.norm == "post" else (2 / self.config.depth.n_visits) ** 0.5
        for name, module in self.named_modules():
            if isinstance(module, LayerNorm):
                rules |= {f"{name}.weight": Constant(1.0), f"{name}.bias": Constant(0.0)}
            elif hasattr(module, "init_rules"):
                rules |= {f"{name}.{key}": rule for key, rule in module.init_rules(scale).items()}
        return rules
