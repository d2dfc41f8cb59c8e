"""One running host: its process, its HTTP API, and what it prints."""

from __future__ import annotations

import base64
import io
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harness.kinds import ENVIRONMENT, Kind

START_SECONDS = 300.0
STOP_SECONDS = 20.0
REQUEST_SECONDS = 300.0

#: The probe answers only who sends this along; the value is made anew for every host.
TOKEN_VARIABLE = "LIB_GUARD_PROBE_TOKEN"
TOKEN_HEADER = "X-Lib-Guard-Probe"


class HostFailedError(RuntimeError):
    """The host did not start, or went away; the text ends with the end of its log."""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer. json: None when the body is none. text: the body as it came."""

    status: int
    json: Any
    text: str

    @property
    def pictures(self) -> list[np.ndarray]:
        """The pictures, each (height, width, 3) uint8; none after a failure."""
        if self.status != 200 or not isinstance(self.json, dict):
            return []
        texts = [text.split(",", 1)[-1] for text in self.json.get("images") or []]
        files = [io.BytesIO(base64.b64decode(text)) for text in texts]
        return [np.asarray(Image.open(file).convert("RGB")) for file in files]

    @property
    def infotext(self) -> str:
        """What the API says about the pictures."""
        return str(self.json.get("info", "")) if isinstance(self.json, dict) else ""


class Server:
    """A host's process. `folder` is the WebUI, `data` the folder it runs on."""

    def __init__(self, kind: Kind, folder: Path, data: Path, flags: Sequence[str] = ()) -> None:
        self.kind = kind
        self.folder = folder
        self.data = data
        self.port = _free_port()
        self.log = data / "host.log"
        self._flags = tuple(flags)
        self._token = secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, and return when the API answers. Raises `HostFailedError` when it does not."""
        python = self.kind.python(self.folder)
        data = ["--data-dir", str(self.data), "--port", str(self.port)]
        flags = [flag.format(data=self.data) for flag in (*self.kind.flags, *self._flags)]
        command = [str(python), "launch.py", *data, *flags]
        # As with the environment activated: SD.Next restarts itself as `python`, which is looked up (installer.py:413).
        path = os.pathsep.join([str(python.parent), os.environ.get("PATH", "")])
        environment = {**os.environ, **ENVIRONMENT, **self.kind.environment, TOKEN_VARIABLE: self._token, "PATH": path}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                # The probe reads this pipe: when the harness is gone, however it went, it ends, and so does the host.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._wait(START_SECONDS)

    def wait_for_restart(self, since: int) -> None:
        """Return when the host, asked to restart at this mark of the output, is up again."""
        self._wait(START_SECONDS, since)

    def stop(self) -> None:
        """End the process and whatever it started. After an interrupt it can be called again."""
        process = self._process
        if process is None:
            return
        _signal(process, signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            _signal(process, getattr(signal, "SIGKILL", signal.SIGTERM))
            process.wait(STOP_SECONDS)
        if process.stdin:
            process.stdin.close()
        self._process = None

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def _wait(self, seconds: float, since: int = 0) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not self.alive:
                raise HostFailedError(f"{self.kind.title} ended while it started:\n{self.tail()}")
            if self.kind.ready in self.output()[since:] and self._answers():
                return
            time.sleep(0.5)
        raise HostFailedError(f"{self.kind.title} did not start within {seconds:.0f} s:\n{self.tail()}")

    def _answers(self) -> bool:
        try:
            return self.get("/lib-guard-probe/ping").status == 200
        except OSError:
            return False

    # HTTP.

    def get(self, path: str) -> Answer:
        """GET `path`."""
        return self._request(path, None)

    def post(self, path: str, body: Any = None) -> Answer:
        """POST `body` as JSON. A status of 400 and more is an answer as well, not an exception."""
        return self._request(path, json.dumps({} if body is None else body).encode())

    def generate(self, endpoint: str, body: dict[str, Any], scripts: dict[str, Any]) -> Answer:
        """A request for pictures, with the script arguments given beside those of the body."""
        both = {**body.get("alwayson_scripts", {}), **scripts}
        return self.post(f"/sdapi/v1/{endpoint}", {**body, "alwayson_scripts": both})

    def options(self, **values: Any) -> None:
        """Set options through the API. Raises `HostFailedError` when they are refused."""
        answer = self.post("/sdapi/v1/options", values)
        if answer.status != 200:
            raise HostFailedError(f"the options {values} were refused: {answer.text[:400]}")

    def _request(self, path: str, data: bytes | None) -> Answer:
        headers = {"Content-Type": "application/json", TOKEN_HEADER: self._token}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        # No proxy: the address is the loopback's whatever the environment says.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=REQUEST_SECONDS) as answer:
                return _answer(answer.status, answer.read())
        except urllib.error.HTTPError as error:
            return _answer(error.code, error.read())

    # What it prints.

    def output(self) -> str:
        """Everything that it has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""

    def mark(self) -> int:
        """A place in the output, for `said`."""
        return len(self.output())

    def said(self, since: int = 0) -> list[str]:
        """LibGuard's lines on the console since a mark."""
        return [line for line in self.output()[since:].splitlines() if "[LibGuard]" in line]

    def tail(self, lines: int = 40) -> str:
        """The end of the output."""
        return "\n".join(self.output().splitlines()[-lines:])


def _answer(status: int, body: bytes) -> Answer:
    text = body.decode("utf-8", errors="replace")
    try:
        return Answer(status, json.loads(text), text)
    except ValueError:
        return Answer(status, None, text)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """To the process and its children, which have a session of their own."""
    if sys.platform == "win32":
        process.terminate()
        return
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
