"""Executes the script files of the extension folders."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import util
from pathlib import Path
from types import ModuleType

from modules import errors


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Put `folder` first on `sys.path` while the block runs, so that a script can import its own package."""
    before = sys.path
    sys.path = [str(folder), *before]
    try:
        yield
    finally:
        sys.path = before


def load_module(path: Path) -> ModuleType:
    """Execute the file as a new module named after it. As in A1111 it is not entered in `sys.modules`."""
    spec = util.spec_from_file_location(path.name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded as a module")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_folder(folder: Path) -> Iterator[tuple[Path, ModuleType]]:
    """Execute `scripts/*.py` of one extension in the order of their names. A broken file is reported and skipped."""
    for path in sorted((folder / "scripts").glob("*.py")):
        with importable(folder):
            try:
                module = load_module(path)
            except Exception:  # noqa: BLE001 - a broken extension must not keep the host from starting
                errors.report(f"Error loading script: {path.name}", exc_info=True)
                continue
        yield path, module
