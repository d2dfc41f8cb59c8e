"""The adapters' seams in the installed WebUIs' own source: all there, and each missed when it is renamed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from harness.kinds import KINDS, Kind

from lib_guard.__main__ import GOOD, PROBLEM, main
from lib_guard.hosts.detect import find_adapter
from lib_guard.hosts.seams import Seam
from lib_guard.hosts.webui import WebUiHost

each_host = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def installed(kind: Kind) -> tuple[Path, type[WebUiHost]]:
    """The WebUI's folder and the adapter that LibGuard chooses for it."""
    folder = kind.folder()
    if folder is None:
        pytest.skip(f"set {kind.variable} to the folder of an installed {kind.title}")
    adapter = find_adapter(folder)
    assert adapter is not None, f"no adapter takes {folder}"
    return folder, adapter


def file_of(seam: Seam, folder: Path) -> Path:
    """The file of a seam's module."""
    place = folder / seam.module.replace(".", "/")
    return place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"


@each_host
def test_the_right_adapter_takes_it(kind: Kind) -> None:
    _, adapter = installed(kind)
    assert adapter.name == kind.title


@each_host
def test_the_doctor_finds_everything(kind: Kind, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = installed(kind)
    assert main(["doctor", str(folder)]) == GOOD, capsys.readouterr().out


@each_host
def test_each_renamed_seam_is_missed(kind: Kind, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, adapter = installed(kind)
    copy = copied(folder, tmp_path / "webui")
    assert find_adapter(copy) is adapter
    for seam in (seam for seam in adapter.seams if seam.attribute and not seam.set_at_run_time):
        path = file_of(seam, copy)
        whole = path.read_text(encoding="utf-8")
        last = seam.attribute.rpartition(".")[2]
        path.write_text(re.sub(rf"\b{last}\b", f"{last}_renamed", whole), encoding="utf-8")
        assert main(["doctor", str(copy)]) == PROBLEM, seam
        said = capsys.readouterr()
        assert f"{seam.name} is missing" in " ".join(said.out.split()) and said.err == ""
        path.write_text(whole, encoding="utf-8")
    assert main(["doctor", str(copy)]) == GOOD


def copied(folder: Path, place: Path) -> Path:
    """The WebUI's Python files at the top and in the folders that adapters look at; no environment, no models."""
    place.mkdir()
    for path in folder.glob("*.py"):
        shutil.copy2(path, place / path.name)
    for name in ("modules", "modules_forge", "backend", "extensions-builtin"):
        for path in (folder / name).rglob("*.py"):
            target = place / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
    return place
