"""Installing LibGuard from a URL, the way its users do."""

from __future__ import annotations

import functools
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from harness.data import put_extension
from harness.keeper import Host
from harness.proof import BASE, ON


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
    """`folder/lib-guard`, as a plain web server can serve it."""
    source = folder / "source"
    put_extension(source)
    git("init", cwd=source)
    git("add", "--all", cwd=source)
    git("commit", "--message", "LibGuard", cwd=source)
    git("clone", "--bare", "source", "lib-guard", cwd=folder)
    git("update-server-info", cwd=folder / "lib-guard")


def has_accordion(host: Host) -> bool:
    """Whether the page that a browser gets holds LibGuard's accordion, in both tabs."""
    ids = [(part.get("props") or {}).get("elem_id") or "" for part in host.get("/config").json["components"]]
    return sum("libguard" in one and one.endswith("accordion") for one in ids) == 2


def prove_install_from_url(host: Host, folder: Path) -> None:
    """Extensions > Install from URL on a host without LibGuard, then a restart: the accordion is in both tabs, and a
    generation is guarded. Ends with a host that is not to be kept: its extension is another than the other tests'.

    folder: an empty one, for the repository that is served.
    """
    place = host.data / "extensions" / "lib-guard"
    host.stop()
    shutil.rmtree(place)
    publish(folder)
    host.start()
    assert not has_accordion(host) and host.said() == []
    with served(folder) as address:
        said = host.probe("install_extension", url=f"{address}/lib-guard")["said"]
    assert "nstalled" in said and (place / "scripts" / "lib_guard.py").is_file(), said
    host.stop()
    host.start()
    assert has_accordion(host), host.tail()
    assert host.generate("txt2img", BASE, ON).pictures and len(host.probe.ledger()) == 1
    assert [line for line in host.said() if "guards:" in line] == host.said()
