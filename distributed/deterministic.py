"""Equal bits on every run (`train.deterministic`)."""

from __future__ import annotations

import os

import torch


def make_deterministic() -> None:
    """Let torch choose repeatable forms of its operators and fail where it has none. Before the first matrix product.

    cuBLAS repeats its bits only with workspaces of a fixed size, which it takes from the environment; torch asks for that. Kernels of
    this project are repeatable as they are.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)  # a call with False would load torch's compiler, seconds in every worker
