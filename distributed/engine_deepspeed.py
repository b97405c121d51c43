"""The engine over DeepSpeed's ZeRO stages 1 and 2 (found by trial with 0.19.8 on gloo).

What DeepSpeed must be told, and why:

- Expert layers, and tables cut along d alike: it looks for `deepspeed.moe.layer.MoE` among the modules. A marker without
  parameters is enough, with `allreduce = False` and a `group_name` on the parameters, and optimizer groups that carry
  that name. Partitions are known by their number of ranks; there may be several.
- `gradient_allreduce_op: sum`: the trainer normalises its loss by global counts; the mean would also divide by the
  world in the gradient's own type, which rounds unless the world is a power of two.
- One reduction bucket: it is flushed when the next parameter does not fit. Ranks with uneven expert counts then flush
  at different places and pair different collectives (stage 2, 155 experts over 3 ranks, a bucket of 9,050 entries: gloo
  ends the process), so the bucket holds all of a rank's parameters.
- bf16 with fp32 accumulation: at stage 1 DeepSpeed would choose `BF16_Optimizer`, whose bookkeeping of fragments is
  another one. The ZeRO class does the same job (`grad_accum` in fp32), so `_Engine` asks for it at both stages.
"""

from __future__ import annotations

import importlib
import logging
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from distributed.engine import StepReport, build_optimizer, prepare_moments, set_step_counter
from distributed.fragment import Fragment
from distributed.topology import Topology, before_close
from distributed.train_config import TrainConfig


class DeepSpeedEngine:
    """See `distributed.engine.Engine`."""

    def __init__(self, model: Any, train: TrainConfig, topology: Topology) -> None:
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        self._boxes, self._exchanges = model.boxes(), model.exchanges
        self._parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
        handed, groups = _hand_over(model, self._parameters, topology)
        optimizer = build_optimizer(groups, train)
        engine_class, config_class = _deepspeed_classes()
        settings = _settings(train, handed)
        self._engine = engine_class(
            args=None, model=handed, optimizer=optimizer, config=settings, config_class=config_class(settings), dist_init_required=False
        )
        before_close(self._engine.destroy)  # its hooks and parameters hold each other, and the groups, where no collector sees it
        self.module = self._engine
        self._zero = self._engine.optimizer
        prepare_moments(self._zero.optimizer)
        self.applied_steps = 0

    def backward(self, loss: Tensor, last: bool) -> None:
        """Backward; after the last micro-batch (stage 2: after each) gradients are summed over the ranks."""
        for exchange in self._exchanges:
            exchange.before_backward(last)
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss)

    def step(self, lr: float) -> StepReport:
        """Clip, update this rank's partition, gather the parameters."""
        self._zero.set_lr(lr)
        self._tell_of_change()  # before, so that gathered banks make room for the optimizer
        self._engine.step()
        skipped = bool(self._zero.overflow)
        if not skipped:
            self.applied_steps += 1
        return StepReport(grad_norm=float(self._zero._global_grad_norm), skipped=skipped)

    def fragments(self) -> list[Fragment]:
        """This rank's ZeRO partition, cut at parameter boundaries."""
        owned = [self._fragment(name, parameter) for name, parameter in self._parameters.items()]
        return [fragment for fragment in owned if fragment is not None]

    def finish_load(self, applied_steps: int) -> None:
        """Parameters follow the masters: each rank copies its partition, then all gather."""
        self.applied_steps = applied_steps
        set_step_counter(self._zero.optimizer, applied_steps)
        self._zero.update_lp_params()
        self._tell_of_change()

    def _tell_of_change(self) -> None:
        for exchange in self._exchanges:
            exchange.weights_changed()

    def _fragment(self, name: str, parameter: nn.Parameter) -> Fragment | None:
        mapping = getattr(parameter, "_hp_mapping", None)  # absent where a rank owns no expert
        if mapping is None:
            return None
        partition = self._zero.single_partition_of_fp32_groups[mapping.param_group_index]
        # Not `get_optim_state_fragment`: it is linked after the first group has stepped and stays empty for the others.
        moments = {key: value for key, value in self._zero.optimizer.state[partition].items() if key != "step"}
        here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
        tensors = {key: value.detach().narrow(0, here.start, here.numel) for key, value in {"master": partition, **moments}.items()}
        return Fragment(name, self._boxes[name], there.start, there.start + there.numel, tensors)


def _hand_over(model: Any, parameters: dict[str, nn.Parameter], topology: Topology) -> tuple[nn.Module, list[dict[str, Any]]]:
    """The module for DeepSpeed and its optimizer groups: replicated parameters, and those partitioned over each number of ranks."""
    ranks_of: dict[str, int] = model.partitioned_parameters()
    replicated = [parameter for name, parameter in parameters.items() if name not in ranks_of]
    groups: list[dict[str, Any]] = [{"params": replicated, "name": "replicated"}]
    sizes = sorted({part.size for part in (topology.experts, topology.tables)} - {1})
    if not sizes:
        return model, groups
    parts = {size: [parameters[name] for name, ranks in ranks_of.items() if ranks == size] for size in sizes}
    handed = _with_experts_class()(model, {size: any(parameter.numel() for parameter in part) for size, part in parts.items()})
    for marker, (size, part) in zip(handed.markers, parts.items(), strict=True):
        partitioned, group_name = [*part, *marker.parameters()], f"ep_size_{size}"
        for parameter in partitioned:
            parameter.allreduce = False
            parameter.group_name = group_name
        groups.append({"params": partitioned, "name": group_name, "moe": True})
    return handed, groups


@cache
def _with_experts_class() -> Any:
    from deepspeed.moe.layer import MoE

    class ExpertMarker(MoE):
        """Says that there are parameters partitioned over `size` ranks. Computes nothing."""

        def __init__(self, size: int, owns_some: bool) -> None:
            nn.Module.__init__(self)
            self.num_experts = self.ep_size = size
            self.num_local_experts = 1
            self.expert_group_name = f"ep_size_{size}"
            if not owns_some:
                # A rank may own no expert, but DeepSpeed's optimizer needs the expert group on every rank.
                self.placeholder = nn.Parameter(torch.zeros(1))

        def set_deepspeed_parallelism(self, *args: Any, **kwargs: Any) -> None:
            """The groups exist already."""

    class WithExperts(nn.Module):
        """The model beside a marker for each number of ranks; the model itself stays as it is."""

        def __init__(self, model: nn.Module, owns_some: dict[int, bool]) -> None:
            super().__init__()
            self.model = model
            self.markers = nn.ModuleList(ExpertMarker(size, owns) for size, owns in owns_some.items()).to(next(model.parameters()))

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.model(*args, **kwargs)

    return WithExperts


@cache
def _deepspeed_classes() -> tuple[Any, Any]:
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.engine import ZERO_OPTIMIZATION
    from deepspeed.runtime.engine import DeepSpeedEngine as Base

    _import_muon_uncompiled()

    class _Engine(Base):
        """DeepSpeed's engine with the ZeRO optimizer at every stage and precision."""

        def _do_optimizer_sanity_check(self, basic_optimizer: torch.optim.Optimizer) -> Any:
            return ZERO_OPTIMIZATION

    return _Engine, DeepSpeedConfig


def _import_muon_uncompiled() -> None:
    """Spare every worker 5 CPU seconds: the first reduction imports Muon, which loads torch's compiler to decorate it."""
    from deepspeed.runtime import compiler

    decorate, compiler.compile = compiler.compile, lambda: lambda function: function
    try:
        with suppress(ImportError):
            importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = decorate


def _settings(train: TrainConfig, handed: nn.Module) -> dict[str, Any]:
    total = sum(parameter.numel() for parameter in handed.parameters())
    bf16 = next(handed.parameters()).dtype is torch.bfloat16
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_allreduce_op": "sum",
        "gradient_clipping": train.clip or 0.0,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "bf16": {"enabled": bf16, "check_grad_overflow": bf16},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": train.zero_stage,
            "reduce_bucket_size": total,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "overlap_comm": False,
        },
        "steps_per_print": None,
    }
