"""The forms of the expert MLP beside each other, forward and backward, with their floors; says which is fastest on this device.

    ./launch.sh bench forms [--size 244M] [--tokens 65536] [--rounds 9] [--launches]

Without an accelerator only the floors are printed. In every round each form runs once in changed order; times are medians over rounds.
`dense` is a dense layer of equal multiply-accumulates. --launches adds what each kernel of a form took in one pass, forward and backward.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.floors import DEVICES, NAMES
from benchmarks.form_floors import form_floors
from benchmarks.kernel_forms import Shape, dense_layer, draw_layer
from benchmarks.kernel_times import kernel_times
from benchmarks.timing import measure
from kernels.expert_mlp_triton import FORMS, expert_mlp_triton
from model.moe_config import SigmaMoEConfig
from model.paper import PAPER


class Passes(NamedTuple):
    """A form's two passes, each to be called as often as one likes."""

    forward: Callable[[], Tensor]
    backward: Callable[[], tuple[Tensor, ...]]


def passes(shape: Shape, tokens: int, dtype: torch.dtype, device: str) -> dict[str, Passes]:
    """Every form, and `dense`, on the same rows; forms on the same random routes."""
    layer = draw_layer(shape, tokens, dtype, device)
    row_Q, expert_Q = torch.arange(tokens, device=device).repeat_interleave(shape.top_k), layer.expert_TK.flatten()

    def of_form(name: str) -> Callable[[], Tensor]:
        experts = layer.up_EDF, layer.down_EFD
        return lambda: expert_mlp_triton(layer.x_TD, row_Q, expert_Q, layer.weight_TK.flatten(), *experts, form=name)

    found = {name: _passes(of_form(name), layer.leaves, layer.dy_TD) for name in FORMS}
    return found | {"dense": _passes(*dense_layer(layer), layer.dy_TD)}


def _passes(forward: Callable[[], Tensor], leaves: list[Tensor], cotangent: Tensor) -> Passes:
    result: list[Tensor] = []  # made at the first backward, so that a form that is not run keeps nothing

    def backward() -> tuple[Tensor, ...]:
        if not result:
            result.append(forward())
        return torch.autograd.grad(result[0], leaves, cotangent, retain_graph=True)

    return Passes(forward, backward)


def medians(found: dict[str, Passes], rounds: int, device: str) -> dict[str, tuple[float, float]]:
    """Seconds of every form's forward and backward."""
    both = {f"{way} {name}": getattr(form, way) for name, form in found.items() for way in Passes._fields}
    times = measure(both, rounds, device)
    return {name: (statistics.median(times[f"forward {name}"]), statistics.median(times[f"backward {name}"])) for name in found}


def report(times: dict[str, tuple[float, float]], floors: dict[str, tuple[float, float]]) -> str:
    """Print a line a form, forward, backward and both in ms with the floors in brackets; returns the fastest form."""
    whole = sum(times["dense"])
    for name, (forward, backward) in times.items():
        floor = floors.get(name, (0.0, 0.0))
        pairs = ((forward, floor[0]), (backward, floor[1]), (forward + backward, sum(floor)))
        shown = "".join(f"{1e3 * seconds:>9.3f} ({1e3 * least:>5.2f})" for seconds, least in pairs)
        print(f"{name:<22}{shown}{(forward + backward) / whole:>12.2f}")
    forms = {name: sum(both) for name, both in times.items() if name != "dense"}
    best = min(forms, key=lambda name: forms[name])
    print(f"fastest: {best}")
    return best


def floors_of(size: str, tokens: int, device: str) -> dict[str, tuple[float, float]]:
    """Seconds of every form's forward and backward at least, on one of `DEVICES`."""
    floors = {}
    for name, launches in form_floors(PAPER[size], tokens).items():
        backward = sum(work.seconds(DEVICES[device]) for launch, work in launches.items() if launch.startswith("d "))
        floors[name] = sum(work.seconds(DEVICES[device]) for work in launches.values()) - backward, backward
    return floors


def print_floors(size: str, tokens: int) -> None:
    """Every launch of every form: what bounds it and what each device needs for it."""
    print(f"{'form':<22}{'launch':<16}{'GFLOP':>8}{'MB':>8}{'MB, cache':>11}" + "".join(f"{name + ', us':>13}" for name in DEVICES))
    for name, launches in form_floors(PAPER[size], tokens).items():
        for launch, work in launches.items():
            floors = "".join(f"{1e6 * work.seconds(device):>13.0f}" for device in DEVICES.values())
            print(f"{name:<22}{launch:<16}{work.flops / 1e9:>8.0f}{work.bytes / 1e6:>8.0f}{work.cached / 1e6:>11.0f}{floors}")
        totals = "".join(f"{1e6 * sum(work.seconds(device) for work in launches.values()):>13.0f}" for device in DEVICES.values())
        print(f"{name:<22}{'all':<43}{totals}")


def print_launches(found: dict[str, Passes]) -> None:
    """What each kernel took, one pass of each form."""
    for name, form in found.items():
        print(name)
        for kernel in kernel_times(lambda form=form: (form.forward(), form.backward()), "cuda"):  # type: ignore[misc]
            print(f"  {1e6 * kernel.seconds:>9.0f} us  {kernel.calls:>3} x {kernel.name[:60]}")


def main(argv: list[str]) -> int:
    """Print the floors; measure where there is an accelerator."""
    parser = argparse.ArgumentParser(prog="bench forms", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--size", choices=PAPER, default="244M")
    parser.add_argument("--tokens", type=int, default=65536, help="tokens of a visit (default: 65536)")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (default: 9)")
    parser.add_argument("--launches", action="store_true", help="what each kernel took")
    args = parser.parse_args(argv)
    print_floors(args.size, args.tokens)
    if not torch.cuda.is_available():
        print("no accelerator: nothing measured")
        return 0
    config, title = PAPER[args.size], torch.cuda.get_device_name()
    assert isinstance(config.feed_forward, SigmaMoEConfig)
    shape = Shape(config.d_model, config.feed_forward.d_expert, config.feed_forward.n_experts, config.feed_forward.top_k)
    floors = floors_of(args.size, args.tokens, NAMES[title]) if title in NAMES else {}
    found = passes(shape, args.tokens, torch.bfloat16, "cuda")
    print(f"{title}, {args.size}, {args.tokens} tokens, bf16, ms (floor)")
    print(f"{'form':<22}{'forward':>17}{'backward':>17}{'both':>17}{'over dense':>12}")
    report(medians(found, args.rounds, "cuda"), floors)
    if args.launches:
        print_launches({name: form for name, form in found.items() if name != "dense"})
    return 0
