"""Installing LibGuard on AUTOMATIC1111 the way its users do, and what the adapter relies on, read from its source."""

from __future__ import annotations

import functools
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from a1111_rows import start
from harness.data import put_extension
from harness.keeper import Host, Keeper
from harness.kinds import A1111
from harness.proof import BASE, ON

from lib_guard.hosts.a1111 import A1111Host
from lib_guard.hosts.detect import find_adapter
from lib_guard.hosts.seams import problem_in_source


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        return


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder over HTTP on the loopback; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def git(*arguments: str, cwd: Path) -> None:
    identity = ("-c", "user.name=LibGuard", "-c", "user.email=tests@localhost", "-c", "init.defaultBranch=main")
    subprocess.run(["git", *identity, *arguments], cwd=cwd, check=True, capture_output=True)


def publish(folder: Path) -> None:
    """`folder/lib-guard.git`, as a plain web server can serve it."""
    source = folder / "source"
    put_extension(source)
    git("init", cwd=source)
    git("add", "--all", cwd=source)
    git("commit", "--message", "LibGuard", cwd=source)
    git("clone", "--bare", "source", "lib-guard.git", cwd=folder)
    git("update-server-info", cwd=folder / "lib-guard.git")


def has_accordion(host: Host) -> bool:
    """Whether the page that a browser gets holds LibGuard's accordion, in both tabs."""
    ids = [(part.get("props") or {}).get("elem_id") or "" for part in host.get("/config").json["components"]]
    return sum("libguard" in one and one.endswith("accordion") for one in ids) == 2


@pytest.mark.parametrize("row_id", ["A-install"])
def test_install_from_url(a1111: Keeper, tmp_path: Path, row_id: str) -> None:
    """Extensions > Install from URL, then a restart: the accordion is there, and a generation is guarded."""
    host = start(a1111, "full")
    place = host.data / "extensions" / "lib-guard"
    host.stop()
    shutil.rmtree(place)
    publish(tmp_path)
    try:
        host.start()
        assert not has_accordion(host) and host.said() == []
        with served(tmp_path) as address:
            said = host.probe("install_extension", url=f"{address}/lib-guard.git")["said"]
        assert "Installed into" in said and (place / "scripts" / "lib_guard.py").is_file()
        host.stop()
        host.start()
        assert has_accordion(host), host.tail()
        assert host.generate("txt2img", BASE, ON).pictures and len(host.probe.ledger()) == 1
        assert [line for line in host.said() if "guards:" in line] == host.said()
    finally:
        # Not one to keep: its extension is another than the other tests'.
        a1111.close()


@pytest.mark.parametrize("row_id", ["A-seams"])
def test_what_the_adapter_relies_on_is_in_the_source(row_id: str) -> None:
    folder = A1111.folder()
    if folder is None:
        pytest.skip(f"set {A1111.variable} to the folder of an installed {A1111.title}")
    assert find_adapter(folder) is A1111Host
    assert [problem for seam in A1111Host.seams if (problem := problem_in_source(seam, folder))] == []
