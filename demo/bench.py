"""Starts the host inside this process: for the command line, for the check, and for tests."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import transformers
import uvicorn

from demo.models import build

REPOSITORY = Path(__file__).resolve().parent.parent
WEBUI = Path(__file__).resolve().parent / "webui"
DEFAULT_DATA = REPOSITORY / ".demo"
START_SECONDS = 30.0


@dataclass(frozen=True)
class Reply:
    """An HTTP answer; `json` is None when the body is none."""

    status: int
    json: Any


class Bench:
    """A running host. One at a time in a process, because `modules` is one package; close it before the next."""

    def __init__(self, modules: ModuleType, port: int) -> None:
        self.modules = modules
        self.shared = sys.modules["modules.shared"]
        self.sd_models = sys.modules["modules.sd_models"]
        self.port = port
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The page's address, without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> Reply:
        """GET `path`."""
        return self._request(urllib.request.Request(self.url + path))

    def post(self, path: str, body: Any = None) -> Reply:
        """POST `body` as JSON to `path`. A status of 400 and more is a reply as well, not an exception."""
        data = json.dumps({} if body is None else body).encode()
        return self._request(urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}))

    def _request(self, request: urllib.request.Request) -> Reply:
        # No proxy: the address is the loopback's whatever the environment says.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=120) as answer:
                return Reply(answer.status, _json(answer.read()))
        except urllib.error.HTTPError as error:
            return Reply(error.code, _json(error.read()))

    def options(self, **values: Any) -> None:
        """Set options through the API; a model option reloads the model. Raises RuntimeError if that fails."""
        reply = self.post("/sdapi/v1/options", values)
        if reply.status != 200:
            raise RuntimeError(f"options {values} were refused: {reply.json}")

    def script_globals(self, title: str) -> dict[str, Any]:
        """The module of an extension's script as it is loaded now; a reload makes a new one, in no `sys.modules`."""
        scripts = sys.modules["modules.scripts"].scripts_txt2img.alwayson_scripts
        script = next(script for script in scripts if script.title() == title)
        return type(script).title.__globals__

    def serve(self) -> None:
        """Build the page from the loaded scripts and serve it from a thread. Returns when it answers."""
        from modules import webui

        _need_event_loop()
        config = uvicorn.Config(
            webui.build(self._reload_soon),
            host="127.0.0.1",
            port=self.port,
            # It would print a traceback for every page that is open while the server goes down.
            log_level="critical",
            # A page left open keeps a stream open, which must not keep the server from going down.
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name="demo-server", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise RuntimeError(f"the server on port {self.port} did not start")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop serving; the model stays."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(timeout=10)
        self._server = self._thread = None

    def _reload_soon(self) -> None:
        """Reload UI, asked for through the server: its answer has to leave before the server goes down."""
        threading.Timer(0.2, self.reload_ui).start()

    def reload_ui(self) -> None:
        """Reload UI: the scripts are executed anew as new modules, the model stays and is not announced again."""
        from modules import webui

        webui.unload_scripts()
        self.stop()
        webui.load_scripts()
        self.serve()

    def close(self) -> None:
        """End the host: scripts are told, the server stops, the model is dropped."""
        from modules import webui

        webui.unload_scripts()
        self.stop()
        self.sd_models.unload_model_weights()


def _need_event_loop() -> None:
    """Gradio leaves out its queue's locks, without a word, when it is built in a thread that has no event loop."""
    try:
        asyncio.get_event_loop()
    except RuntimeError:
        asyncio.set_event_loop(asyncio.new_event_loop())


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def start(
    data_dir: str | Path = DEFAULT_DATA,
    order: str = "a1111",
    extensions: Sequence[str | Path] = (),
    port: int = 0,
    own_extension: bool = True,
    models_dir: str | Path | None = None,
) -> Bench:
    """Start a host and return it when it answers.

    Settings are kept in `data_dir/config.json`. The models are built in `models_dir` (default `data_dir/models`) if
    they are not there, so that hosts with settings of their own can share them. `order` is "a1111" or "sdnext". This
    repository is the first extension unless `own_extension` is False; `extensions` are further extension folders.
    Port 0 is any free one.
    """
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    data = Path(data_dir).resolve()
    _keep_out_of_git(data)
    models = build(Path(models_dir).resolve() if models_dir else data / "models")
    if str(WEBUI) not in sys.path:
        sys.path.insert(0, str(WEBUI))
    import modules
    from modules import paths, sd_models, shared, webui

    folders = ([REPOSITORY] if own_extension else []) + [Path(folder).resolve() for folder in extensions]
    paths.configure(data, models, folders)
    shared.configure(data, order)
    webui.start()
    bench = Bench(modules, port or _free_port())
    bench.serve()
    sd_models.load_model()
    return bench


def _keep_out_of_git(data: Path) -> None:
    """The data folder ignores itself, wherever it is put."""
    data.mkdir(parents=True, exist_ok=True)
    (data / ".gitignore").write_text("*\n", encoding="utf-8")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
