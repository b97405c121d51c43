"""What ranks run for test_exchange.py: visits to one sigma-MoE bank, and what came out on this rank.

Shape suffixes: T tokens, K experts a token chose, D model width, E experts, F expert width.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from distributed.collectives import recorded_order
from distributed.exchange import TokenExchange
from distributed.movement import Movement
from distributed.topology import Topology, init_topology
from distributed.weight_exchange import WeightExchange
from kernels.expert_mlp import expert_mlp
from model.exchange import Exchange, ExpertWork, LocalExchange, run_experts

D_MODEL, D_EXPERT = 12, 5


@dataclass(frozen=True)
class Case:
    """`tokens` has an entry a rank; `chosen` sends every token to that one expert in place of its router's choice.

    On the ranks `frozen` neither the tokens nor the router ask for a gradient.
    """

    n_experts: int
    top_k: int
    tokens: tuple[int, ...]
    parts: int = 2
    visits: int = 2
    recompute: bool = False
    early_stop: bool = True
    chosen: int | None = None
    frozen: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float64
    move: str = "tokens"
    micro_batches: int = 1


def draw(case: Case) -> dict[str, Tensor]:
    """Inputs and weights over all ranks and experts."""
    generator = torch.Generator().manual_seed(5)
    shapes = {
        "x": (sum(case.tokens), D_MODEL),
        "target": (sum(case.tokens), D_MODEL),
        "router": (case.n_experts, D_MODEL),
        "up": (case.n_experts, D_MODEL, D_EXPERT),
        "down": (case.n_experts, D_EXPERT, D_MODEL),
    }
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64).to(case.dtype) for name, shape in shapes.items()}


def choose(case: Case, logits_TE: Tensor) -> Tensor:
    """[T, K] expert numbers."""
    if case.chosen is not None:
        return torch.full((logits_TE.shape[0], 1), case.chosen, device=logits_TE.device)
    return logits_TE.detach().topk(case.top_k).indices


def visit(
    case: Case, exchange: Exchange, x_TD: Tensor, weights: dict[str, Tensor], record: dict[str, Any], note: Callable[[str], None]
) -> Tensor:
    """x + the expert layer of x. The choice is recorded, as in the model; `note` hears when experts work."""
    logits_TE = x_TD @ weights["router"].T
    if "choice" not in record:
        record["choice"] = choose(case, logits_TE)
    weight_TK = torch.sigmoid(logits_TE).gather(1, record["choice"])

    def bank(work: ExpertWork) -> Tensor:
        note("experts")
        assert (work.row_Q.diff() >= 0).all(), "kernels are promised routes in the order of their rows"
        banks = [exchange.gather(weights[name], case.n_experts) for name in ("up", "down")]
        y_SD = expert_mlp(work.x_SD, work.row_Q, work.expert_Q, work.weight_Q, *banks)
        if y_SD.requires_grad:
            y_SD.register_hook(lambda _: note("experts backward"))
        return y_SD

    return x_TD + run_experts(exchange, bank, x_TD, record["choice"], weight_TK, case.n_experts, record.setdefault("exchange", {}))


def run_visits(
    case: Case,
    exchange: Exchange,
    rows: slice,
    note: Callable[[str], None] = lambda _: None,
    frozen: bool = False,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Output and every gradient of the loss sum(y * target) over the tokens `rows`, experts as the exchange owns them."""
    drawn = {name: tensor.to(device) for name, tensor in draw(case).items()}
    owned = exchange.owned(case.n_experts)
    mine = {"router": drawn["router"], "up": drawn["up"][owned.start : owned.stop], "down": drawn["down"][owned.start : owned.stop]}
    weights = {name: tensor.clone().requires_grad_() for name, tensor in mine.items()}
    weights["router"].requires_grad_(not frozen)
    x_TD = drawn["x"][rows].clone().requires_grad_(not frozen)
    outputs = []
    for number, part_TD in enumerate(x_TD.tensor_split(case.micro_batches)):
        y_TD = part_TD
        for _ in range(case.visits):
            if case.recompute:
                y_TD = checkpoint(visit, case, exchange, y_TD, weights, {}, note, use_reentrant=False, early_stop=case.early_stop)
            else:
                y_TD = visit(case, exchange, y_TD, weights, {}, note)
        exchange.before_backward(last=number == case.micro_batches - 1)
        (y_TD * drawn["target"][rows].tensor_split(case.micro_batches)[number]).sum().backward()
        outputs.append(y_TD.detach())
    results = {"y": torch.cat(outputs), "d_x": x_TD.grad, **{f"d_{name}": tensor.grad for name, tensor in weights.items()}}
    return {name: None if tensor is None else tensor.cpu() for name, tensor in results.items()}


def partitioned(case: Case, device: str = "cpu") -> dict[str, Any]:
    """This rank's share of the case, and the order of its collectives. On a CPU uninitialised memory holds NaN."""
    if device == "cpu":
        torch.set_deterministic_debug_mode("error")
    topology = init_topology(len(case.tokens), device=device, timeout_seconds=30, use_deepspeed=False)
    exchange = _exchange(case, topology)
    first = sum(case.tokens[: topology.rank])
    with recorded_order() as order:
        rows = slice(first, first + case.tokens[topology.rank])
        results = run_visits(case, exchange, rows, order.append, topology.rank in case.frozen, topology.device)
    left = sum(isinstance(thing, Movement) for thing in gc.get_objects())
    return {**results, "order": order, "left": left, "sent": exchange.traffic.sent, "copies": exchange.traffic.one_copy_an_expert}


def _exchange(case: Case, topology: Topology) -> TokenExchange | WeightExchange:
    return WeightExchange(topology) if case.move == "weights" else TokenExchange(topology, case.parts)


def steps_with_weights(weights: tuple[float, ...]) -> list[Any]:
    """A bank of one expert a rank, all of `weights[step] + rank`, as it is gathered in every step, without and with gradients."""
    topology = init_topology(2, device="cpu", timeout_seconds=30, use_deepspeed=False)
    exchange = WeightExchange(topology)
    bank_OIJ = torch.nn.Parameter(torch.empty(1, 1, 1))
    seen = []
    for weight in weights:
        with torch.no_grad():
            bank_OIJ.fill_(weight + topology.rank)
        exchange.weights_changed()
        with torch.no_grad():
            seen.append(exchange.gather(bank_OIJ, 2).flatten().tolist())
        seen.append(exchange.gather(bank_OIJ, 2).flatten().tolist())
    return seen


def gradients_in_a_row(times: int) -> list[float]:
    """What a bank of ones, one expert a rank, has for a gradient after each of so many last backwards of its sum."""
    topology = init_topology(2, device="cpu", timeout_seconds=30, use_deepspeed=False)
    exchange = WeightExchange(topology)
    bank_OIJ = torch.nn.Parameter(torch.ones(1, 1, 1))
    seen = []
    for _ in range(times):
        exchange.gather(bank_OIJ, 2).sum().backward()
        assert bank_OIJ.grad is not None
        seen.append(float(bank_OIJ.grad))
    return seen


def whole(case: Case) -> dict[str, Tensor]:
    """The same in one process."""
    return run_visits(case, LocalExchange(), slice(0, sum(case.tokens)))


def gradient_dropped() -> str:
    """What the exchange says to experts that cut the graph."""
    topology = init_topology(2, device="cpu", timeout_seconds=30, use_deepspeed=False)
    x_TD = torch.zeros(3, D_MODEL, requires_grad=True)
    choice_TK = torch.zeros(3, 1, dtype=torch.int64)
    try:
        run_experts(TokenExchange(topology), lambda work: work.x_SD.detach(), x_TD, choice_TK, torch.ones(3, 1), 2, {})
    except ValueError as fault:
        return str(fault)
    return "no error"
