"""Adapters give rivals our routes and weights and take gradients back in our order. Stand-ins for the rivals: theirs need CUDA."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from benchmarks import rivals
from benchmarks.comparison import relative_error
from benchmarks.kernel_forms import Layer, Shape, draw_layer, layer_forms
from benchmarks.rivals import rival_forms

CVMM = '''
from dataclasses import dataclass, replace
import torch

torch.library.define("mylib::stand_in", "(Tensor x) -> Tensor")

@dataclass
class Selection:
    raw: torch.Tensor
    sel_index: object
    out_index: object
    reduction_weight: object = None

    def clone(self):
        return replace(self)

def cvmm_prepare_sel2(sel, w=None, route_input=False):
    assert not hasattr(sel, "dtype") or sel.dtype == torch.int32
    if isinstance(sel, Selection):
        return replace(sel, sel_index=sel.out_index, out_index=None, reduction_weight=w)
    order = sel.flatten().sort().indices
    return Selection(sel, order // sel.shape[-1], order, w)

def cvmm(x, selection, keys):
    """As the original: rows of tokens out a route, or, where there is no out_index, routes in and a weighted sum of each token's out."""
    x = x[:, None] if selection.out_index is not None else x
    out = (x[..., None, :] @ keys[selection.raw.long()]).squeeze(-2)
    return out if selection.reduction_weight is None else (selection.reduction_weight[..., None] * out).sum(-2)
'''
SCATTERMOE = """
import torch

def flatten_sort_count(experts, num_experts):
    flat, order = experts.flatten().sort()
    return flat, order, flat.bincount(minlength=num_experts).cumsum(0)

def parallel_linear(x, w, k, flat, order, ends, gates=None, grouped_in=False, grouped_out=False):
    rows = x if grouped_in else x[order // k]
    out = (rows[:, None] @ w[flat]).squeeze(1)
    if grouped_out:
        return out
    return (gates[..., None] * torch.zeros_like(out).index_copy(0, order, out).unflatten(0, gates.shape)).sum(1)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for place, text in (("moeut/moeut/cvmm.py", CVMM), ("cvmm_codex/cvmm.py", CVMM), ("scattermoe/stand_in/__init__.py", SCATTERMOE)):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_text(text)
    return tmp_path


@pytest.fixture
def layer() -> Layer:
    return draw_layer(Shape(16, 8, 5, 2), 20, torch.float32, "cpu")


def test_adapters_compute_the_layer(folder: Path, layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also that both cvmm files can be loaded in one process, though both register an operator of one name."""
    scattermoe = rivals.RIVALS["ScatterMoE"]._replace(place="scattermoe/stand_in")
    monkeypatch.setitem(rivals.RIVALS, "ScatterMoE", scattermoe)
    forms, reasons = rival_forms(folder, layer)
    assert list(forms) == ["cvmm", "cvmm_codex", "ScatterMoE"] and reasons == {}
    ours = cast(Any, layer_forms(layer)["ours"])()
    for name, form in forms.items():
        assert relative_error(cast(Any, form)(), ours) < 1e-5, name


def test_what_is_missing_or_broken_is_named(folder: Path, layer: Layer) -> None:
    (folder / "moeut/moeut/cvmm.py").write_text("raise RuntimeError('too old | for this\\ntorch')")
    (folder / "cvmm_codex/cvmm.py").unlink()
    forms, reasons = rival_forms(folder, layer)
    assert forms == {} and set(reasons) == set(rivals.RIVALS)
    assert reasons["cvmm"] == "RuntimeError: too old / for this"
    assert reasons["cvmm_codex"].startswith("FileNotFoundError") and reasons["ScatterMoE"].startswith("ModuleNotFoundError")
