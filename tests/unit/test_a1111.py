"""What the adapter for AUTOMATIC1111 can be asked without the host; tests/hosts/ has the rest, on the running one."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_guard.hosts.a1111 import A1111Host
from lib_guard.hosts.detect import find_adapter

OWN = ("webui.py", "modules/sd_models.py", "modules/sd_hijack.py", "extensions-builtin/Lora/networks.py")


def lay(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_its_folder_is_known(tmp_path):
    assert find_adapter(lay(tmp_path, *OWN)) is A1111Host


@pytest.mark.parametrize("more", ["modules_forge/forge_version.py", "modules/modeldata.py"])
def test_the_folder_of_another_of_its_line_is_not_taken_for_it(tmp_path, more):
    """Forge and its kin, and SD.Next, have all that it has."""
    assert not A1111Host.is_folder(lay(tmp_path, *OWN, more))


@pytest.mark.parametrize("lacking", OWN)
def test_half_a_folder_is_none(tmp_path, lacking):
    assert not A1111Host.is_folder(lay(tmp_path, *(name for name in OWN if name != lacking)))
