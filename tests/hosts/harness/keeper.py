"""Keeps one host of a kind running between tests that want it with the same flags and settings."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.data import make_data
from harness.kinds import Kind
from harness.looks import Looks
from harness.server import Server


class Host(Server):
    """A running host with the probe's operations."""

    def __init__(self, kind: Kind, folder: Path, data: Path, flags: Sequence[str]) -> None:
        super().__init__(kind, folder, data, flags)
        self.probe = Looks(self)


class Keeper:
    """Starts a host when a test asks for one that is not the one that runs; the one before is stopped."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._host: Host | None = None
        self._wanted: object = None
        self._before: str | None = None
        self._folder: Path | None = None

    def __call__(self, *, flags: Sequence[str] = (), extensions: Sequence[Path] = (), **settings: object) -> Host:
        """The host, started with these flags, extensions and settings. Skips when it is not installed here."""
        folder = self._kind.folder()
        if folder is None:
            pytest.skip(f"set {self._kind.variable} to the folder of an installed {self._kind.title}")
        if not (folder / "launch.py").is_file():
            pytest.fail(f"{self._kind.variable} names {folder}, which holds no launch.py")
        wanted = (tuple(flags), tuple(extensions), tuple(sorted(settings.items(), key=str)))
        if self._host is None or wanted != self._wanted or not self._host.alive:
            self.close()
            self._start(folder, flags, extensions, settings)
            self._wanted = wanted
        assert self._host is not None
        return self._host

    def _start(
        self, folder: Path, flags: Sequence[str], extensions: Sequence[Path], settings: dict[str, object]
    ) -> None:
        self._folder = folder
        self._before = self._before if self._before is not None else work_tree(folder)
        data = Path(tempfile.mkdtemp(prefix="lib-guard-host-"))
        self._host = Host(self._kind, folder, data, flags)
        try:
            make_data(self._kind, data, settings, extensions)
            self._host.start()
        except BaseException:  # an interrupt as well: neither the process nor its folder may stay
            self.close()
            raise

    def close(self) -> None:
        """Stop the host and delete its data folder. After an interrupt it can be called again."""
        if self._host is not None:
            self._host.stop()
            shutil.rmtree(self._host.data, ignore_errors=True)
            self._host = None

    def changed(self) -> str:
        """What has changed in the WebUI's folder since the first start, in git's words; empty when nothing has."""
        if self._folder is None or self._before is None:
            return ""
        now = work_tree(self._folder)
        return "" if now == self._before else f"before:\n{self._before}\nnow:\n{now}"


def work_tree(folder: Path) -> str:
    """Git's view of a WebUI's folder together with its settings file; empty where it is no clone and has none."""
    settings = folder / "config.json"
    text = settings.read_text(encoding="utf-8") if settings.is_file() else ""
    try:
        status = subprocess.run(
            ["git", "-C", str(folder), "status", "--porcelain"], capture_output=True, text=True, check=False
        ).stdout
    except FileNotFoundError:
        status = ""
    held = sorted(path.name for name in ("extensions", "models") for path in (folder / name).glob("*"))
    return "\n".join([status, text, *held])
