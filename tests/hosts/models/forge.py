"""Forge tells a checkpoint's family by the real sizes of its UNet, so its model is a full Stable Diffusion 1.5 of
random weights; the host's own interpreter makes it.

Written once, into the cache folder (2 GB), and linked from there: no test writes to a model.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from demo.bench import DEFAULT_DATA

_MAKER = Path(__file__).with_name("forge_maker.py")
_MAKE_SECONDS = 600


def write_models(folder: Path, host: Path, python: Path) -> None:
    """Fill a data folder's `models`. host: the WebUI's folder. python: its interpreter."""
    built = _built(host, python)
    for source in built.rglob("*.safetensors"):
        place = folder / source.relative_to(built)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            place.symlink_to(source)
        except OSError:  # Windows lets only some users make them
            shutil.copy2(source, place)


def _built(host: Path, python: Path) -> Path:
    """The cache folder, made when its recipe has changed."""
    place = DEFAULT_DATA / "hosts" / f"forge-{hashlib.sha256(_MAKER.read_bytes()).hexdigest()[:12]}"
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(dir=place.parent))
        try:
            _make(making, host, python)
            making.rename(place)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return place


def _make(making: Path, host: Path, python: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    made = subprocess.run(
        [str(python), str(_MAKER), str(making)],
        cwd=host,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_MAKE_SECONDS,
        check=False,
    )
    if made.returncode != 0:
        raise RuntimeError(f"Forge's checkpoint could not be made:\n{made.stdout[-2000:]}\n{made.stderr[-4000:]}")
