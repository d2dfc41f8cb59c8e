"""The WebUIs that the harness can start, and how each of them is started."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from models.a1111 import write_models as write_a1111_models
from models.forge import write_models as write_forge_models
from models.sdnext import write_models as write_sdnext_models

#: For every host: no downloads, no telemetry, and nothing but plain text on the console.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "PYTHONUNBUFFERED": "1",
    "NO_COLOR": "1",
    "TERM": "dumb",
    # Wide enough for LibGuard's one line; SD.Next breaks lines at this width.
    "COLUMNS": "1000",
    # The rows' reference pictures are computed on the CPU, on every machine.
    "CUDA_VISIBLE_DEVICES": "",
}


#: For AUTOMATIC1111 and what came from it: use the environment as it is, and fetch nothing.
_NO_SETTING_UP = (
    *("--skip-prepare-environment", "--skip-install", "--skip-torch-cuda-test"),
    *("--skip-python-version-check", "--skip-version-check", "--no-download-sd-model", "--do-not-download-clip"),
)


@dataclass(frozen=True)
class Kind:
    """One WebUI.

    title: as its users call it. letter: as row ids name it. variable: the environment variable with its folder.
    flags: the command line after `launch.py`, without port and data folder (`{data}` stands for its path). settings:
    what `config.json` holds when it starts. write_models: fills a data folder's `models` with tiny models. ready: a
    line of the log that says that everything is up, beside the API's answering. environment: more of it.
    """

    title: str
    letter: str
    variable: str
    flags: tuple[str, ...]
    settings: Mapping[str, object]
    write_models: Callable[[Path], None]
    ready: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def folder(self) -> Path | None:
        """The installed WebUI's folder; None when the variable does not name one."""
        named = os.environ.get(self.variable, "")
        return Path(named).resolve() if named else None

    def python(self, folder: Path) -> Path:
        """Its interpreter. Raises FileNotFoundError naming the variable when there is none."""
        named = os.environ.get(f"{self.variable}_PYTHON", "")
        if named:
            return Path(named)
        inside = "Scripts/python.exe" if sys.platform == "win32" else "bin/python"
        for place in (folder, folder.parent):
            for name in ("venv", ".venv"):
                if (place / name / inside).is_file():
                    return place / name / inside
        raise FileNotFoundError(f"no venv in or beside {folder}; set {self.variable}_PYTHON to the interpreter")


SDNEXT = Kind(
    title="SD.Next",
    letter="S",
    variable="LIB_GUARD_SDNEXT",
    flags=("--skip-all", "--skip-git", "--use-cpu", "all", "--log", "{data}/sdnext.log"),
    settings={
        "sd_model_checkpoint": "Diffusers/tiny-sd15",
        "offline_mode": True,
        # Otherwise a checkpoint's T5 is looked for online.
        "te_shared_te": False,
        "diffusers_offload_mode": "none",
        "server_status": 0,
        "cuda_dtype": "FP32",
        "gradio_theme": "Default",
        # Rows send requests as fast as they are answered.
        "server_rate_limit": 0,
    },
    write_models=write_sdnext_models,
    ready="Startup time",
    # One thread: the pictures do not depend on the machine's cores, and several hosts can run side by side.
    environment={"SD_NOHASHING": "1", "OMP_NUM_THREADS": "1"},
)


def _write_a1111_models(models: Path, size: str = "tiny") -> None:
    host = A1111.folder()
    if host is None:
        raise FileNotFoundError(f"{A1111.variable} names no folder, whose interpreter makes the models")
    write_a1111_models(models, host, A1111.python(host), size)


A1111 = Kind(
    title="AUTOMATIC1111",
    letter="A",
    variable="LIB_GUARD_A1111",
    flags=(
        *("--api", "--use-cpu", "all", "--no-hashing"),
        *_NO_SETTING_UP,
    ),
    settings={"sd_model_checkpoint": "tinysd1.safetensors"},
    write_models=_write_a1111_models,
    ready="Startup time",
    # Sums of a fixed order, so that a picture does not depend on where in memory its operands lie.
    environment={"MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1", "IGNORE_CMD_ARGS_ERRORS": "1"},
)


#: With a model of Stable Diffusion 1.5's real size, for what is measured and not only compared.
A1111_REAL_SIZE = replace(
    A1111,
    settings={"sd_model_checkpoint": "realsd1.safetensors"},
    write_models=partial(_write_a1111_models, size="real"),
)


def _write_forge_models(models: Path) -> None:
    host = FORGE.folder()
    if host is None:
        raise FileNotFoundError(f"{FORGE.variable} names no folder, whose interpreter makes the models")
    write_forge_models(models, host, FORGE.python(host))


FORGE = Kind(
    title="Forge",
    letter="F",
    variable="LIB_GUARD_FORGE",
    flags=(
        *("--api", "--always-cpu", "--no-hashing"),
        *_NO_SETTING_UP,
    ),
    settings={"sd_model_checkpoint": "randomsd15.safetensors"},
    write_models=_write_forge_models,
    ready="Startup time",
    environment={
        "MKL_CBWR": "COMPATIBLE",
        "OMP_NUM_THREADS": "1",
        "IGNORE_CMD_ARGS_ERRORS": "1",
        # It goes through a LoRA's layers as a set: how far it gets before one of them raises.
        "PYTHONHASHSEED": "0",
    },
)

KINDS: dict[str, Kind] = {"sdnext": SDNEXT, "a1111": A1111, "forge": FORGE}
