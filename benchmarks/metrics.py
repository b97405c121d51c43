"""What watching costs: the share of a training step that metrics, logging and the step clock take.

    python -m benchmarks.metrics [--steps 10] [--batch 8] [--recipe configs/quickstart.yaml]

Trains the recipe's model in this process on random tokens with AdamW, watched as in a run: spans, observe, step, and a
logging with TensorBoard every `logging.every` steps, with heat maps at every second one (a run has them more rarely). Time inside
those calls (flushes of the event file included) is summed and set against the time of the same steps: one ratio, one run.
Needs no GPU; with one it is used.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.nn import functional as F

from distributed.clock import StepClock
from distributed.metrics import Metrics
from distributed.recipe import Recipe
from distributed.recipe_file import load_recipe
from distributed.run_folder import RunFolder
from distributed.topology import Topology
from model.moeut import MoEUT

BAR = 0.01


class Stopwatch:
    """Seconds spent inside, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add what happens inside to `name`."""
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


class TimedClock(StepClock):
    """A StepClock that also knows what its own marks cost."""

    def __init__(self, device: torch.device, stopwatch: Stopwatch) -> None:
        self._stopwatch = stopwatch
        super().__init__(device)

    def enter(self, name: str) -> None:
        with self._stopwatch.time("clock"):
            super().enter(name)

    def leave(self, name: str) -> None:
        with self._stopwatch.time("clock"):
            super().leave(name)


def watched_training(recipe: Recipe, steps: int, batch: int, device: torch.device, folder: Path) -> dict[str, float]:
    """Seconds of `steps` steps (`all`) and of the watching inside them (`clock`, `observe`, `step`, `log`)."""
    run = RunFolder(folder / recipe.name)
    run.create(recipe)
    watch = Stopwatch()
    clock = TimedClock(device, watch)
    model = MoEUT(recipe.model).to(device)
    model.init_parameters(recipe.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.train.lr)
    metrics = Metrics(run, recipe, Topology(0, 1, 0, 1, device, "gloo", None, None, None), 0, clock)
    train_step(model, optimizer, clock, SimpleNamespace(observe=lambda *_: None), batch, recipe, Stopwatch())  # warm-up
    watch.seconds.clear()
    with watch.time("all"):
        for step in range(1, steps + 1):
            loss, balance = train_step(model, optimizer, clock, metrics, batch, recipe, watch)
            with watch.time("step"):
                tokens, repeats = batch * recipe.data.seq_len, recipe.model.depth.repeats
                metrics.step(step, loss, balance, grad_norm=1.0, lr=recipe.train.lr, tokens=tokens, repeats=repeats)
            if step % recipe.logging.every == 0:
                with watch.time("log"):
                    metrics.log(step)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    metrics.close()
    return watch.seconds


def train_step(
    model: MoEUT,
    optimizer: torch.optim.Optimizer,
    clock: StepClock,
    metrics: Metrics | SimpleNamespace,
    batch: int,
    recipe: Recipe,
    watch: Stopwatch,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One forward, backward and update on random tokens."""
    tokens_BT = torch.randint(
        recipe.model.vocab_size, (batch, recipe.data.seq_len + 1), device=optimizer.param_groups[0]["params"][0].device
    )
    with clock.part("forward"):
        output = model(tokens_BT[:, :-1])
        loss = F.cross_entropy(output.logits.flatten(0, 1).float(), tokens_BT[:, 1:].flatten())
    with clock.part("backward"):
        (loss + output.balance_loss).backward()
    with watch.time("observe"):
        metrics.observe(output, batch * recipe.data.seq_len)
    with clock.part("optimizer"):
        optimizer.step()
        optimizer.zero_grad()
    return loss, output.balance_loss


def main(argv: list[str] | None = None) -> int:
    """Measure and print; 1 when watching takes more than BAR of a step."""
    parser = argparse.ArgumentParser(prog="bench metrics", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--recipe", default=str(Path(__file__).resolve().parent.parent / "configs" / "quickstart.yaml"))
    parser.add_argument("--steps", type=int, default=10, help="steps to time (default: 10)")
    parser.add_argument("--batch", type=int, default=8, help="sequences a step (default: 8, a rank's share of the quickstart)")
    arguments = parser.parse_args(argv)
    every = load_recipe(arguments.recipe).logging.every
    recipe = load_recipe(arguments.recipe, ["expert_parallel.size=1", f"logging.heat_maps_every={2 * every}"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory(prefix="mootron-bench-") as folder:
        seconds = watched_training(recipe, arguments.steps, arguments.batch, device, Path(folder))
    whole = seconds.pop("all")
    print(f"{recipe.name}: {whole / arguments.steps:.3f} s a step on {device.type}, {torch.get_num_threads()} threads")
    for name, spent in seconds.items():
        print(f"  {name:8} {spent / arguments.steps * 1e3:8.3f} ms a step  {spent / whole:8.4%}")
    share = sum(seconds.values()) / whole
    print(f"metrics and logging: {share:.3%} of a step (bar {BAR:.0%}): {'within' if share <= BAR else 'ABOVE'}")
    return 0 if share <= BAR else 1


if __name__ == "__main__":
    raise SystemExit(main())
