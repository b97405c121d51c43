"""The engine of one process without DeepSpeed: torch's optimizer over masters of the parameters.

fp32 and float64 parameters are their own masters. bf16 parameters have fp32 masters, and their gradients are added up
in fp32: bf16 keeps 8 bits, so a sum of many micro-batches in bf16 would lose the small ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distributed.engine import StepReport, build_optimizer, prepare_moments, set_step_counter
from distributed.fragment import Fragment
from distributed.train_config import TrainConfig


class PlainEngine:
    """See `distributed.engine.Engine`."""

    def __init__(self, model: Any, train: TrainConfig) -> None:
        self.module = model
        self.applied_steps = 0
        self._clip = train.clip
        self._boxes = model.boxes()
        self._parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
        self._masters = {name: _master(parameter) for name, parameter in self._parameters.items()}
        self._optimizer = build_optimizer([{"params": list(self._masters.values())}], train)
        prepare_moments(self._optimizer)
        for name, parameter in self._parameters.items():
            if self._masters[name] is not parameter:
                parameter.register_post_accumulate_grad_hook(_move_gradient_to(self._masters[name]))

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradient of `loss` to the masters' gradients."""
        loss.backward()

    def step(self, lr: float) -> StepReport:
        """Clip, update, and let the parameters follow."""
        gradients = [_gradient(master) for master in self._masters.values()]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        skipped = not bool(torch.isfinite(norm))
        if not skipped:
            self._clip_by(norm, gradients)
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            self._optimizer.step()
            self.applied_steps += 1
            self._follow_masters()
        self._optimizer.zero_grad(set_to_none=True)
        return StepReport(grad_norm=float(norm), skipped=skipped)

    def fragments(self) -> list[Fragment]:
        """Whole parameters: one process owns everything."""
        return [self._fragment(name, master) for name, master in self._masters.items()]

    def finish_load(self, applied_steps: int) -> None:
        """Parameters follow the masters that were loaded."""
        self.applied_steps = applied_steps
        set_step_counter(self._optimizer, applied_steps)
        self._follow_masters()

    def _clip_by(self, norm: Tensor, gradients: list[Tensor]) -> None:
        if self._clip is not None:
            # The order of operations is DeepSpeed's, so that both engines round alike.
            torch._foreach_mul_(gradients, 1.0 / torch.clamp((norm + 1e-6) / self._clip, min=1.0))

    @torch.no_grad()
    def _follow_masters(self) -> None:
        for name, parameter in self._parameters.items():
            if self._masters[name] is not parameter:
                parameter.copy_(self._masters[name])

    def _fragment(self, name: str, master: Tensor) -> Fragment:
        moments = {key: value for key, value in self._optimizer.state[master].items() if key != "step"}
        tensors = {"master": master.detach(), **moments}
        flat = {key: tensor.view(-1) for key, tensor in tensors.items()}
        return Fragment(name, self._boxes[name], 0, master.numel(), flat)


def _master(parameter: nn.Parameter) -> Tensor:
    if parameter.dtype in (torch.float32, torch.float64):
        return parameter
    return parameter.detach().to(torch.float32, copy=True).requires_grad_()


def _gradient(master: Tensor) -> Tensor:
    """That of the step; zeros where nothing read the parameter, which is decayed like the others, as DeepSpeed does."""
    if master.grad is None:
        master.grad = torch.zeros_like(master)
    return master.grad


def _move_gradient_to(master: Tensor) -> Any:
    def move(parameter: Tensor) -> None:
        assert parameter.grad is not None
        if master.grad is None:
            master.grad = parameter.grad.float()
        else:
            master.grad.add_(parameter.grad)
        parameter.grad = None

    return move
