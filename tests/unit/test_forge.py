"""What the adapter for Forge can be asked without the host; tests/hosts/ has the rest, on the running one."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_guard.hosts.a1111 import A1111Host
from lib_guard.hosts.detect import find_adapter
from lib_guard.hosts.forge import ForgeHost, name_of

OWN = ("webui.py", "modules/sd_models.py", "modules_forge/forge_version.py")
#: What Forge and its kin have besides, which is AUTOMATIC1111's.
INHERITED = ("modules/sd_hijack.py", "extensions-builtin/Lora/networks.py")


def lay(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_its_folder_is_known(tmp_path):
    assert find_adapter(lay(tmp_path, *OWN)) is ForgeHost


def test_a_folder_of_its_kin_is_not_taken_for_the_ancestors(tmp_path):
    assert find_adapter(lay(tmp_path, *OWN, *INHERITED)) is ForgeHost


def test_the_ancestors_folder_is_not_taken_for_it(tmp_path):
    folder = lay(tmp_path, "webui.py", "modules/sd_models.py", *INHERITED)
    assert not ForgeHost.is_folder(folder) and find_adapter(folder) is A1111Host


def test_sdnexts_folder_is_not_taken_for_it(tmp_path):
    assert not ForgeHost.is_folder(lay(tmp_path, *OWN, "modules/modeldata.py"))


@pytest.mark.parametrize("lacking", OWN)
def test_half_a_folder_is_none(tmp_path, lacking):
    assert not ForgeHost.is_folder(lay(tmp_path, *(name for name in OWN if name != lacking)))


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("2.0.1v1.10.1", "Forge 2.0.1v1.10.1"),
        ("1.0.0v2-v1.10.1RC", "reForge 1.0.0v2-v1.10.1RC"),
        ("classic", "Forge Classic"),
        ("neo", "Forge Neo"),
    ],
)
def test_the_kin_are_told_apart_by_version(version, name):
    assert name_of(version) == name
