"""The laws that can be read off the source."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = sorted((ROOT / "lib_guard").rglob("*.py"))
HOST_MODULES = {"modules", "backend", "ldm_patched", "modules_forge", "networks", "launch"}
#: What every supported host ships; nothing else may be imported at run time.
SHIPPED = {"torch", "gradio", "safetensors", "numpy", "PIL", "pydantic"}


def imports(path: Path) -> set[str]:
    """The top-level names that a file imports from outside its own package."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            found |= {str(a.value).split(".")[0] for a in node.args if isinstance(a, ast.Constant)}
    return found


@pytest.mark.parametrize("path", PACKAGE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_only_hosts_import_a_hosts_modules(path):
    if path.parent.name == "hosts":
        pytest.skip("this is where host knowledge lives")
    assert not imports(path) & HOST_MODULES


@pytest.mark.parametrize("path", PACKAGE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_nothing_is_needed_that_a_host_does_not_ship(path):
    import sys

    foreign = imports(path) - HOST_MODULES - SHIPPED - set(sys.stdlib_module_names)
    assert foreign == set()


@pytest.mark.parametrize("path", PACKAGE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_nothing_downloads_sends_or_unpickles(path):
    assert not imports(path) & {"requests", "urllib", "http", "socket", "pickle", "huggingface_hub"}
    assert not re.search(r"\btorch\.load\b|\beval\(|\bexec\(", path.read_text(encoding="utf-8"))


def test_a_broad_except_stands_only_at_the_border():
    broad = [
        path.name
        for path in PACKAGE
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or getattr(node.type, "id", "") in ("Exception", "BaseException"))
    ]
    assert broad == ["border.py"]


def test_pytorch_is_pinned_in_one_place():
    pins = [
        path.name
        for path in ROOT.iterdir()
        if path.is_file() and re.search(r"torch==\d", path.read_text(encoding="utf-8", errors="ignore"))
    ]
    assert pins == ["requirements-dev.txt"]
