"""Forge tells a checkpoint's family by the real sizes of its UNet, so its model is a full Stable Diffusion 1.5 of
random weights; the host's own interpreter makes it. IP-Adapters are of their real sizes too.

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

#: What each makes has a place of its own in the cache, so that a change of one recipe makes nothing else anew.
_MAKERS = tuple(Path(__file__).with_name(f"{name}.py") for name in ("forge_maker", "forge_encoder_maker"))
_MAKE_SECONDS = 600


def write_models(folder: Path, host: Path, python: Path) -> None:
    """Fill a data folder's `models`. host: the WebUI's folder. python: its interpreter."""
    for maker in _MAKERS:
        built = _built(maker, host, python)
        for source in built.rglob("*.safetensors"):
            _put(source, folder / source.relative_to(built))


def _put(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        place.symlink_to(source)
    except OSError:  # Windows lets only some users make them
        shutil.copy2(source, place)


def _built(maker: Path, host: Path, python: Path) -> Path:
    """The cache folder, made when its recipe has changed."""
    kind = maker.stem.removesuffix("_maker").replace("_", "-")
    place = DEFAULT_DATA / "hosts" / f"{kind}-{hashlib.sha256(maker.read_bytes()).hexdigest()[:12]}"
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(dir=place.parent))
        try:
            _make(maker, making, host, python)
            making.rename(place)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return place


def _make(maker: Path, making: Path, host: Path, python: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    made = subprocess.run(
        [str(python), str(maker), str(making)],
        cwd=host,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_MAKE_SECONDS,
        check=False,
    )
    if made.returncode != 0:
        raise RuntimeError(f"Forge's models could not be made:\n{made.stdout[-2000:]}\n{made.stderr[-4000:]}")
