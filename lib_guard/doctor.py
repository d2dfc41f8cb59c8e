"""What LibGuard would find in a WebUI's folder, told from its files alone; nothing of it is executed."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from .findings import LIBGUARD
from .hosts.checkout import commit_of
from .hosts.detect import find_adapter
from .hosts.seams import Seam, problem_in_source

#: What a version is written in: file, and the pattern whose first group is the version. The first that is there counts.
_VERSIONS = (
    ("modules_forge/forge_version.py", r"^version\s*=\s*['\"]([^'\"]+)"),
    ("CHANGELOG.md", r"^##\s+(?:Update for\s+)?(.+)$"),
)

_PACKAGES = ("torch", "gradio", "diffusers", "safetensors", "numpy", "pillow", "pydantic")

#: A seam's state. AT_RUN_TIME: it is set from elsewhere while the host runs, so its file cannot tell.
OK, MISSING, AT_RUN_TIME = "ok", "missing", "set at run time"


class NoWebUiError(ValueError):
    """The folder holds no WebUI that LibGuard knows; the text says so in one sentence."""


@dataclass(frozen=True)
class SeamState:
    """One seam as its file has it. problem: empty unless it is missing."""

    name: str
    state: str
    source: str
    meaning: str
    guards: tuple[str, ...]
    problem: str


@dataclass(frozen=True)
class Installed:
    """A copy of LibGuard in the WebUI's extensions. folder: its name."""

    folder: str
    version: str


@dataclass(frozen=True)
class Report:
    """The answer. version, commit, python: empty where the files do not tell. packages: name -> version."""

    folder: str
    host: str
    version: str
    commit: str
    python: str
    packages: dict[str, str]
    seams: tuple[SeamState, ...]
    extensions: tuple[Installed, ...]

    @property
    def good(self) -> bool:
        """Whether no seam is missing."""
        return not self.off

    @property
    def off(self) -> dict[str, list[str]]:
        """The guards that would stay off, each with what they lack; `libguard` stands for all of them."""
        found: dict[str, list[str]] = {}
        for seam in self.seams:
            for guard in seam.guards if seam.state == MISSING else ():
                found.setdefault(guard, []).append(seam.problem)
        return found


def examine(folder: Path) -> Report:
    """Look at a WebUI's folder. Raises `NoWebUiError` when it is none that an adapter knows."""
    if not folder.is_dir():
        raise NoWebUiError(f"{folder} is no folder")
    adapter = find_adapter(folder)
    if adapter is None:
        raise NoWebUiError(f"{folder} holds no WebUI that LibGuard knows (its folder is the one with launch.py)")
    packages = _packages(folder)
    return Report(
        folder=str(folder),
        host=adapter.name,
        version=_version(folder),
        commit=commit_of(folder),
        python=_python(folder),
        packages={name: packages[name] for name in _PACKAGES if name in packages},
        seams=tuple(_state(seam, folder) for seam in adapter.seams),
        extensions=tuple(_extensions(folder)),
    )


def as_json(report: Report) -> str:
    """The report as JSON, with what would be off."""
    return json.dumps({**asdict(report), "good": report.good, "off": report.off}, indent=2)


def as_table(report: Report) -> str:
    """The report for a person."""
    facts = {
        "WebUI": f"{report.host} {report.version}".strip() + (f", commit {report.commit[:8]}" if report.commit else ""),
        "Python": report.python or "its environment is not in or beside the folder",
        "Packages": ", ".join(f"{name} {version}" for name, version in report.packages.items()) or "none found",
        "LibGuard": ", ".join(f"{one.version} in extensions/{one.folder}" for one in report.extensions)
        or "not in extensions/",
    }
    lines = [f"{name:<10}{text}" for name, text in facts.items()]
    lines += ["", *_seam_lines(report.seams), ""]
    return "\n".join([*lines, *_verdict(report)])


def _seam_lines(seams: Sequence[SeamState]) -> Iterator[str]:
    width = max(len(seam.name) for seam in seams)
    for seam in seams:
        yield f"{seam.state:<16}{seam.name:<{width}}  {seam.meaning} ({seam.source})"


def _verdict(report: Report) -> Iterator[str]:
    if report.good:
        yield "Everything that LibGuard needs is there."
    for guard, problems in report.off.items():
        who = "LibGuard would stay off" if guard == LIBGUARD else f"The guard {guard} would stay off"
        yield textwrap.fill(f"{who}: {'; '.join(problems)}.", 120)


def _state(seam: Seam, folder: Path) -> SeamState:
    problem = problem_in_source(seam, folder)
    state = MISSING if problem else AT_RUN_TIME if seam.set_at_run_time else OK
    return SeamState(seam.name, state, seam.source, seam.meaning, seam.guards, problem)


def _version(folder: Path) -> str:
    for name, pattern in _VERSIONS:
        found = re.search(pattern, _text(folder / name), re.MULTILINE)
        if found:
            return found.group(1).strip()
    return ""


def _environment(folder: Path) -> Path | None:
    """The virtual environment that the WebUI's own start script makes, in its folder or beside it."""
    places = (place / name for place in (folder, folder.resolve().parent) for name in ("venv", ".venv"))
    return next((place for place in places if (place / "pyvenv.cfg").is_file()), None)


def _python(folder: Path) -> str:
    environment = _environment(folder)
    if environment is None:
        return ""
    found = re.search(r"^version(?:_info)?\s*=\s*([\d.]+)", _text(environment / "pyvenv.cfg"), re.MULTILINE)
    return found.group(1).strip(".") if found else ""


def _packages(folder: Path) -> dict[str, str]:
    environment = _environment(folder)
    if environment is None:
        return {}
    places = [*environment.glob("lib/python*/site-packages"), *environment.glob("Lib/site-packages")]
    found = metadata.distributions(path=[str(place) for place in places])
    return {str(one.metadata["Name"]).lower(): one.version for one in found if one.metadata["Name"]}


def _extensions(folder: Path) -> Iterator[Installed]:
    for package in sorted(folder.glob("extensions/*/lib_guard/__init__.py")):
        found = re.search(r'^__version__ = "([^"]+)"', _text(package), re.MULTILINE)
        yield Installed(package.parents[1].name, found.group(1) if found else "of unknown version")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
