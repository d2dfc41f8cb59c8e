"""install.py: says what is missing, and installs nothing when all is there."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def installer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lib_guard_install", ROOT / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nothing_is_said_or_done_where_all_is_there():
    """As the hosts run it: a process of its own, without `launch` on the path."""
    done = subprocess.run(
        [sys.executable, ROOT / "install.py"], capture_output=True, text=True, check=True, cwd=ROOT / "tests"
    )
    assert done.stdout + done.stderr == ""


def test_what_is_too_old_or_missing_is_named(installer):
    installer.PYTHON = (99, 0)
    installer.NEEDED = {"torch": (99, 1), "lib-guard-none-such": (1, 0), "safetensors": (0, 3)}
    python, torch, none = installer.problems()
    assert python.endswith("is older than 99.0")
    assert torch.startswith("torch ") and torch.endswith("is older than 99.1")
    assert none == "lib-guard-none-such is not installed"


VERSIONS = {"2.13.0+cpu": (2, 13), "2.0.1": (2, 0), "0.4rc1": (0, 4), "3": (3, 0), "unknown": ()}


@pytest.mark.parametrize("version, numbers", VERSIONS.items())
def test_versions_as_packages_write_them(installer, version, numbers):
    assert installer._numbers(version) == numbers


def test_it_installs_nothing():
    text = (ROOT / "install.py").read_text(encoding="utf-8")
    assert "run_pip" not in text and "import launch" not in text and "subprocess" not in text
