"""What ranks run for test_engine.py: train the small model and say what came out."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any, ClassVar

import torch
from small_model import SmallModel
from torch import Tensor

from distributed.engine import Engine, build_engine
from distributed.topology import Topology, init_topology
from distributed.train_config import TrainConfig
from model.exchange import Exchange
from model.pkm import PKM
from model.product_key_config import PKMConfig
from model.sharding import Box
from model.visit import Visit

GLOBAL_BATCH = 12


def train_config(**changes: Any) -> TrainConfig:
    """A recipe's `train` part for twelve rows a step."""
    return TrainConfig(steps=100, global_batch=GLOBAL_BATCH, micro_batch=1, **({"lr": 1e-2, "clip": 0.5} | changes))


def batch(step: int, dtype: torch.dtype, poison: bool = False) -> tuple[Tensor, Tensor]:
    """Inputs and targets of one step, [12, 5] each, equal on all ranks."""
    generator = torch.Generator().manual_seed(step)
    x_ND, target_ND = (torch.randn(GLOBAL_BATCH, 5, generator=generator) for _ in range(2))
    if poison:
        x_ND[0, 0] = torch.inf
    return x_ND.to(dtype), target_ND.to(dtype)


def one_step(
    engine: Engine, topology: Topology, step: int, micro: int, lr: float, dtype: torch.dtype, poison: bool = False
) -> dict[str, Any]:
    """A step over this rank's rows in `micro` micro-batches: this rank's loss, and the engine's report."""
    x_ND, target_ND = (part.chunk(topology.world)[topology.rank] for part in batch(step, dtype, poison))
    total = 0.0
    for number, (rows, targets) in enumerate(zip(x_ND.tensor_split(micro), target_ND.tensor_split(micro), strict=True)):
        loss = (engine.module(rows) - targets).float().square().sum() / GLOBAL_BATCH
        engine.backward(loss, last=number == micro - 1)
        total += float(loss.detach())
    report = engine.step(lr)
    return {"loss": total, "grad_norm": report.grad_norm, "skipped": report.skipped}


def start(expert_parallel: int, dtype: str = "float32", **train: Any) -> tuple[Engine, Topology, SmallModel]:
    """A topology, the small model on it, and its engine."""
    topology = init_topology(expert_parallel, device="cpu", timeout_seconds=60)
    model = SmallModel(topology).to(getattr(torch, dtype))
    return build_engine(model, train_config(**train), topology), topology, model


def state(engine: Engine) -> list[dict[str, Any]]:
    """This rank's fragments, copied."""
    return [
        {"name": f.name, "box": f.box, "start": f.start, "stop": f.stop, **{key: view.clone() for key, view in f.tensors.items()}}
        for f in engine.fragments()
    ]


def run(
    expert_parallel: int = 1, steps: int = 5, micro: int = 2, lr: float = 1e-2, dtype: str = "float32", poison: int = -1, **train: Any
) -> dict[str, Any]:
    """Train some steps; the step numbered `poison` gets an infinite input."""
    engine, topology, model = start(expert_parallel, dtype, **train)
    reports = [one_step(engine, topology, step, micro, lr, getattr(torch, dtype), step == poison) for step in range(steps)]
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return {"reports": reports, "weights": weights, "state": state(engine), "applied": engine.applied_steps, "boxes": model.boxes()}


def group_threads(train: bool) -> int:
    """Threads of gloo groups in this process, after a step of an engine if it is to `train`."""
    gc.collect()
    if train:
        run(2, steps=1)
    names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    return sum(name.startswith("gloo_tcp_loop") for name in names)


def accumulated_gradient(zero_stage: int, engine: str, n_micro: int = 64) -> dict[str, tuple[int, Tensor]]:
    """The gradient that bf16 parameters get over many micro-batches, per rank's share of them, read from one plain SGD step."""
    built, topology, _ = start(1, "bfloat16", zero_stage=zero_stage, engine=engine, optimizer="sgd", clip=None, weight_decay=0.0)
    before = {fragment["name"]: (fragment["start"], fragment["master"]) for fragment in state(built)}
    mine = range(topology.rank, n_micro, topology.world)
    for number in mine:
        rows, targets = batch(number, torch.bfloat16)
        built.backward((built.module(rows) - targets).float().square().sum(), last=number == mine[-1])
    built.step(lr=1.0)
    return {fragment["name"]: (fragment["start"], before[fragment["name"]][1] - fragment["master"]) for fragment in state(built)}


class OneValue(PKM):
    """A memory of one value, which every visit reads with gate 1: its gradient is the sum of the visits' gradients."""

    exchanges: ClassVar[list[Exchange]] = []

    def __init__(self) -> None:
        super().__init__(4, PKMConfig(n_keys=1, heads=1, top_k=1, d_key=2))
        for parameter in self.parameters():
            torch.nn.init.zeros_(parameter)

    def boxes(self) -> dict[str, Box]:
        return {name: Box.whole(tuple(parameter.shape)) for name, parameter in self.named_parameters()}

    def partitioned_parameters(self) -> dict[str, int]:
        return {}

    def sum_of_reads(self, visits: int) -> Tensor:
        n_BTD = torch.zeros(1, 1, 4, dtype=torch.bfloat16)
        return torch.stack([self(n_BTD, n_BTD, Visit())[0].float().sum() for _ in range(visits)]).sum()


def gradient_of_a_value(engine: str, zero_stage: int, visits: int, micro: int) -> list[Tensor]:
    """What a bf16 table's master has moved by in one plain SGD step of learning rate 1, this rank's part."""
    topology = init_topology(device="cpu", timeout_seconds=60)
    model = OneValue().bfloat16()
    settings = train_config(engine=engine, zero_stage=zero_stage, optimizer="sgd", clip=None, weight_decay=0.0)
    built = build_engine(model, settings, topology)
    for number in range(micro):
        built.backward(model.sum_of_reads(visits), last=number == micro - 1)
    built.step(lr=1.0)
    return [-fragment["master"] for fragment in state(built) if fragment["name"] == "values"]


def live_views(expert_parallel: int, engine: str = "deepspeed") -> dict[str, Any]:
    """Overwrite masters and moments through the fragments of a fresh engine; what parameters and the next state are."""
    built, _, model = start(expert_parallel, engine=engine)
    for fragment in built.fragments():
        for number, view in enumerate(fragment.tensors.values()):
            view.fill_(number + 1.0)
    built.finish_load(7)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return {"weights": weights, "state": state(built), "applied": built.applied_steps}
