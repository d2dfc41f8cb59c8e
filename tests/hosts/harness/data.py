"""A data folder for a host to run on: extension, probe, models and settings. Nothing is put into the WebUI's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.kinds import Kind

REPOSITORY = Path(__file__).resolve().parents[3]
PROBE = Path(__file__).resolve().parents[1] / "probe"

#: What of this repository a WebUI reads. Tests, environment and models beside it are not the host's business.
_PARTS = (
    "lib_guard",
    "scripts",
    "javascript",
    "localizations",
    "style.css",
    "metadata.ini",
    "install.py",
    "preload.py",
    "docs",
)


def make_data(kind: Kind, folder: Path, settings: Mapping[str, object], extensions: Sequence[Path]) -> Path:
    """Fill an empty folder, and return it."""
    kind.write_models(folder / "models")
    place = folder / "extensions"
    put_extension(place / "lib-guard")
    _copy(PROBE, place / "lib-guard-probe")
    for extension in extensions:
        _copy(extension, place / extension.name)
    (folder / "config.json").write_text(json.dumps({**kind.settings, **settings}), encoding="utf-8")
    return folder


def put_extension(place: Path) -> None:
    """Copy this repository's extension to `place`, as an installation has it."""
    for name in _PARTS:
        source = REPOSITORY / name
        if source.is_dir():
            _copy(source, place / name)
        elif source.is_file():
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, place / name)


def _copy(source: Path, place: Path) -> None:
    shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__", ".git"))
