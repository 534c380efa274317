"""The programs in ``containers``, as modules: they have no ``.py`` in their names, because users call them."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "containers"


def load(name: str) -> ModuleType:
    loader = SourceFileLoader(f"containers_{name}", str(FOLDER / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = sys.modules[loader.name] = importlib.util.module_from_spec(spec)
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # it would be containers/buildc
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = written
    return module
