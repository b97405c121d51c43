"""Other projects' expert layers on our routes and weights, where their sources lie in a folder of the user's.

The folder (`.rivals/` unless told, never committed) holds plain checkouts, side by side:

    moeut/         github.com/RobertCsordas/moeut          of it: moeut/cvmm.py
    cvmm_codex/    github.com/RobertCsordas/cvmm_codex     of it: cvmm.py
    scattermoe/    github.com/shawntan/scattermoe          of it: scattermoe/

The first two import `packaging`. They take float32 weights under autocast, as their authors train. MegaBlocks has no adapter: it is
compiled C++ that a checkout does not bring.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.kernel_forms import Layer, both_ways
from benchmarks.timing import Form


def rival_forms(folder: Path, layer: Layer) -> tuple[dict[str, Form], dict[str, str]]:
    """Forward and backward of `layer` by each rival, gradients in the order of `layer.leaves`; and why the others are missing."""
    forms: dict[str, Form] = {}
    reasons: dict[str, str] = {}
    for name, rival in RIVALS.items():
        try:
            forms[name] = rival.form(rival.load(folder / rival.place, name), layer)
        except Exception as fault:  # whatever another project's import may raise
            reasons[name] = reason(fault)
    return forms, reasons


def reason(fault: BaseException) -> str:
    """One line of an error, for a table."""
    first = (str(fault).strip().splitlines() or [""])[0]
    return f"{type(fault).__name__}: {first}".replace("|", "/")[:120]


def _cvmm(module: Any, layer: Layer) -> Form:
    def down_selection(selection: Any, weight_TK: Tensor) -> Any:
        selection = selection.clone()
        selection.reduction_weight, selection.sel_index, selection.out_index = weight_TK, selection.out_index, None
        return selection

    return _cvmm_form(module, layer, down_selection)


def _cvmm_codex(module: Any, layer: Layer) -> Form:
    return _cvmm_form(module, layer, lambda selection, weight_TK: module.cvmm_prepare_sel2(selection, weight_TK, route_input=True))


def _cvmm_form(module: Any, layer: Layer, down_selection: Callable[[Any, Tensor], Any]) -> Form:
    up_EDF, down_EFD = (weight.detach().float().requires_grad_() for weight in (layer.up_EDF, layer.down_EFD))
    chosen_TK, narrow = layer.expert_TK.int(), layer.x_TD.dtype

    def forward() -> Tensor:
        with torch.autocast(layer.x_TD.device.type, dtype=narrow, enabled=narrow != torch.float32):
            selection = module.cvmm_prepare_sel2(chosen_TK)
            hidden_TKF = torch.relu(module.cvmm(layer.x_TD, selection, up_EDF))
            return module.cvmm(hidden_TKF, down_selection(selection, layer.weight_TK), down_EFD)

    return both_ways(forward, [layer.x_TD, layer.weight_TK, up_EDF, down_EFD], layer.dy_TD)


def _scattermoe(module: Any, layer: Layer) -> Form:
    # Its own layer keeps the matrices transposed.
    up_EDF, down_EFD = (w.detach().mT.contiguous().mT.requires_grad_() for w in (layer.up_EDF, layer.down_EFD))
    shape, dtype = layer.shape, layer.x_TD.dtype

    def forward() -> Tensor:
        routes = module.flatten_sort_count(layer.expert_TK, num_experts=shape.n_experts)
        hidden_QF = torch.relu(module.parallel_linear(layer.x_TD, up_EDF, shape.top_k, *routes, grouped_out=True))
        return module.parallel_linear(hidden_QF, down_EFD, 1, *routes, gates=layer.weight_TK.to(dtype), grouped_in=True)

    return both_ways(forward, [layer.x_TD, layer.weight_TK, up_EDF, down_EFD], layer.dy_TD)


class _Renamed(SourceFileLoader):
    """Loads a file with its operators renamed after the module: both cvmm files register `mylib::cvmm_triton`."""

    def get_code(self, fullname: str) -> CodeType:
        source = self.get_data(self.path).replace(b"mylib", fullname.encode())
        return compile(source, self.path, "exec", dont_inherit=True)


@cache
def _file(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"rival_{name}", path, loader=_Renamed(f"rival_{name}", str(path)))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def _package(path: Path, name: str) -> Any:
    sys.path.append(str(path.parent))
    try:
        return importlib.import_module(path.name)
    finally:
        sys.path.remove(str(path.parent))


class Rival(NamedTuple):
    """Where its source lies in the folder, how it is loaded, and how its form is made."""

    place: str
    load: Callable[[Path, str], Any]
    form: Callable[[Any, Layer], Form]


RIVALS = {
    "cvmm": Rival("moeut/moeut/cvmm.py", _file, _cvmm),
    "cvmm_codex": Rival("cvmm_codex/cvmm.py", _file, _cvmm_codex),
    "ScatterMoE": Rival("scattermoe/scattermoe", _package, _scattermoe),
}
