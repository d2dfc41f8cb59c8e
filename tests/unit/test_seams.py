"""Seams prove themselves: a host that has changed costs one line and one guard, in both ways of looking."""

from __future__ import annotations

import importlib
import itertools
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lib_guard import extension
from lib_guard.findings import LIBGUARD
from lib_guard.hosts.detect import ADAPTERS
from lib_guard.hosts.seams import Seam, missing, problem_in_source, problem_live
from lib_guard.hosts.webui import WebUiHost

ROOT = Path(__file__).resolve().parents[2]

SOURCE = """
from os import path as joined
import os.path

opts: dict = {}
if True:
    chosen = 1
try:
    attempted = 2
except ValueError:
    attempted = 3


def process_images(p):
    inner = p
    return inner


def takes_anything(*args, **kwargs):
    return args, kwargs


class Processing:
    sampler: str

    def __init__(self):
        self.width = 512

    def close(self, hard=False):
        self.width = 0


holder = Processing()
holder.model = None
"""

_numbers = itertools.count()


@dataclass
class FakeHost:
    """A host's source in a folder, importable under a name of its own."""

    folder: Path
    package: str

    @property
    def file(self) -> Path:
        return self.folder / self.package / "processing.py"

    def seam(self, attribute: str, **more: object) -> Seam:
        return Seam(f"{self.package}.processing", attribute, "processing.py:1", "a part", **more)

    def rename(self, old: str, new: str) -> None:
        text = self.file.read_text(encoding="utf-8")
        assert old in text
        self.file.write_text(text.replace(old, new), encoding="utf-8")

    def both(self, seam: Seam) -> tuple[str, str]:
        """What is wrong, live and in the source."""
        return problem_live(seam), problem_in_source(seam, self.folder)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHost]:
    made = FakeHost(tmp_path, f"fake_host_{next(_numbers)}")
    made.file.parent.mkdir()
    (made.file.parent / "__init__.py").touch()
    made.file.write_text(SOURCE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield made
    for name in [name for name in sys.modules if name.startswith(made.package)]:
        del sys.modules[name]


PRESENT = (
    "opts",
    "chosen",
    "attempted",
    "process_images",
    "Processing",
    "Processing.close",
    "holder",
    "joined",
    "os",
    "",
)


@pytest.mark.parametrize("attribute", PRESENT)
def test_what_is_there_is_found_in_both_ways(host: FakeHost, attribute: str) -> None:
    assert host.both(host.seam(attribute)) == ("", "")


@pytest.mark.parametrize(
    ("attribute", "old", "new"),
    [
        ("process_images", "def process_images", "def process_pictures"),
        ("Processing.close", "def close", "def shut"),
        ("holder", "holder", "keeper"),
        ("joined", "as joined", "as joint"),
    ],
)
def test_what_was_renamed_is_missed_in_both_ways(host: FakeHost, attribute: str, old: str, new: str) -> None:
    host.rename(old, new)
    seam = host.seam(attribute)
    assert host.both(seam) == (f"{seam.name} is missing",) * 2


def test_a_local_name_is_no_seam(host: FakeHost) -> None:
    """`inner` is bound inside a function only: the running host does not have it."""
    assert problem_live(host.seam("inner"))


def test_a_parameter_that_is_gone_is_named(host: FakeHost) -> None:
    seam = host.seam("Processing.close", parameters=("hard",))
    assert host.both(seam) == ("", "")
    host.rename("hard=False", "soft=False")
    for name in [name for name in sys.modules if name.startswith(host.package)]:
        del sys.modules[name]
    importlib.invalidate_caches()
    shutil.rmtree(host.file.parent / "__pycache__", ignore_errors=True)
    assert host.both(seam) == (f"{seam.name} takes no hard",) * 2


def test_a_call_that_takes_anything_takes_the_parameter_too(host: FakeHost) -> None:
    assert host.both(host.seam("takes_anything", parameters=("p",))) == ("", "")


def test_what_is_set_at_run_time_is_only_asked_of_the_running_host(host: FakeHost) -> None:
    seam = host.seam("holder.model", set_at_run_time=True)
    assert host.both(seam) == ("", "")
    assert problem_live(host.seam("holder.other", set_at_run_time=True)).endswith("holder.other is missing")


def test_a_module_that_is_gone_is_a_problem_and_no_traceback(host: FakeHost) -> None:
    seam = Seam(f"{host.package}.elsewhere", "x", "elsewhere.py:1", "a part")
    live, source = host.both(seam)
    assert live == f"{seam.module} cannot be imported (ModuleNotFoundError)"
    assert source == f"{seam.module} has no file"


def test_a_file_that_cannot_be_read_is_a_problem_and_no_traceback(host: FakeHost) -> None:
    host.rename("opts: dict = {}", "opts = = {}")
    assert "line 5" in problem_in_source(host.seam("opts"), host.folder)


def test_only_the_guards_that_need_it_are_named(host: FakeHost) -> None:
    seams = [host.seam("opts"), host.seam("gone", guards=("precision",))]
    assert missing(seams) == {"precision": [f"{host.package}.processing.gone is missing"]}


# The extension on a host that lacks something.


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Callable[[Seam], extension.Extension]:
    """Starts LibGuard on a host with this one seam."""

    def begin(seam: Seam) -> extension.Extension:
        adapter = type("Adapted", (WebUiHost,), {"title": "a fake host", "seams": (seam,)})
        monkeypatch.setattr(extension, "find_host", adapter)
        return extension.Extension()

    return begin


def test_a_guard_whose_seam_is_gone_is_off_and_said_in_one_line(host: FakeHost, start, capsys) -> None:
    started = start(host.seam("gone", guards=("precision",)))
    lines = capsys.readouterr().err.splitlines()
    said = [line for line in lines if "LG004" in line]
    assert len(said) == 1 and f"precision: {host.package}.processing.gone is missing" in said[0]
    assert not any("Traceback" in line for line in lines)
    assert started.watches is not None and lines[-1].endswith("guards: encoder, finite, lora")


def test_without_what_everything_stands_on_nothing_is_done(host: FakeHost, start, capsys) -> None:
    started = start(host.seam("gone"))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "LG004 libguard" in lines[0]
    assert started.watches is None
    started.begin(object(), ())
    started.end(object())
    started.unload()


def test_a_whole_host_is_served(host: FakeHost, start, capsys) -> None:
    started = start(host.seam("opts", guards=("precision",)))
    assert started.watches is not None and "LG004" not in capsys.readouterr().err


# The adapters' own.

WEBUI = ROOT / "demo" / "webui"


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.__name__)
def test_every_seam_says_where_it_was_read_and_what_it_is_for(adapter: type[WebUiHost]) -> None:
    for seam in adapter.seams:
        assert seam.source.endswith(".py") or seam.source.rpartition(":")[2].isdigit(), seam
        assert seam.meaning and seam.guards
        assert set(seam.guards) <= {LIBGUARD, "precision", "finite", "lora", "encoder"}, seam


def test_the_embedded_hosts_seams_are_in_its_source_and_are_missed_when_renamed(tmp_path: Path) -> None:
    seams = next(adapter for adapter in ADAPTERS if adapter.__name__ == "DiffusersHost").seams
    shutil.copytree(WEBUI / "modules", tmp_path / "modules")
    assert [problem_in_source(seam, tmp_path) for seam in seams] == [""] * len(seams)
    for seam in seams:
        spelt = replace(seam, attribute=f"{seam.attribute}_renamed")
        assert problem_in_source(spelt, tmp_path) == f"{spelt.name} is missing"
