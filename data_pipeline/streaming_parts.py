"""The parts of mosaicml-streaming that are used, without what its packages import at their doors.

`import streaming` loads every data set class it has and, through them, transformers: five CPU seconds beyond torch's own in
each process that reads or writes shards. The modules of the shard format need none of it, so the two packages above them
are entered as empty rooms, which are furnished by their own `__init__` when somebody asks for what is missing there.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any


def streaming_part(module: str, name: str) -> Any:
    """`name` of the module `streaming.<module>`.

    Raises:
        ImportError: mosaicml-streaming is not installed, or has no such part.
    """
    for package in ("streaming", "streaming.base"):
        if package not in sys.modules:
            _enter(package)
    return getattr(importlib.import_module(f"streaming.{module}"), name)


def _enter(package: str) -> None:
    """Import a package without running its `__init__`, which runs when an attribute that is not there is first asked for."""
    spec = find_spec(package)
    if spec is None or spec.loader is None:
        raise ImportError("mosaicml-streaming is not installed")
    module = module_from_spec(spec)
    vars(module)["__getattr__"] = lambda name: _furnish(module, spec, name)  # PEP 562
    sys.modules[package] = module
    parent, _, child = package.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)


def _furnish(module: ModuleType, spec: ModuleSpec, name: str) -> Any:
    if name != "__all__" and name.startswith("__"):
        raise AttributeError(f"module '{spec.name}' has no attribute '{name}'")
    del vars(module)["__getattr__"]
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return getattr(module, name)
