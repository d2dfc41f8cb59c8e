"""AUTOMATIC1111 reads single-file LDM checkpoints with a config beside them; the host's own interpreter makes them.

The architecture comes from the host's own `configs/v1-inference.yaml` and its copy of the ldm repository, so it is the
real one; for the rows its widths are made small. Written once, into the cache folder, and copied from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from demo.bench import DEFAULT_DATA
from demo.models import vocab

_MAKER = Path(__file__).with_name("ldm_maker.py")
_MAKE_SECONDS = 300


def write_models(folder: Path, host: Path, python: Path, size: str = "tiny") -> None:
    """Fill a data folder's `models`. host: the WebUI's folder. python: its interpreter. size: `tiny` or `real`."""
    built = _built(host, python, size)
    shutil.copytree(built / "models", folder)
    # Beside `models`, where the host looks for them (--embeddings-dir).
    shutil.copytree(built / "embeddings", folder.parent / "embeddings")


def _built(host: Path, python: Path, size: str) -> Path:
    """The cache folder, made when its recipe has changed."""
    recipe = hashlib.sha256(_MAKER.read_bytes() + Path(__file__).read_bytes() + Path(vocab.__file__).read_bytes())
    kind = "ldm" if size == "tiny" else f"ldm-{size}"
    place = DEFAULT_DATA / "hosts" / f"{kind}-{recipe.hexdigest()[:12]}"
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(dir=place.parent))
        try:
            _make(making, place, host, python, size)
            making.rename(place)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return place


def _make(making: Path, place: Path, host: Path, python: Path, size: str) -> None:
    clip = making / "clip"
    tokens = vocab.write_clip(clip)
    # Only what every version of transformers reads alike.
    for path in clip.iterdir():
        if path.name not in ("vocab.json", "merges.txt"):
            path.unlink()
    tokenizer = {"tokenizer_class": "CLIPTokenizer", "model_max_length": vocab.CLIP_LENGTH}
    (clip / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    command = [str(python), str(_MAKER), str(making), str(place / "clip"), str(tokens), size]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    made = subprocess.run(
        command, cwd=host, env=environment, capture_output=True, text=True, timeout=_MAKE_SECONDS, check=False
    )
    if made.returncode != 0:
        raise RuntimeError(f"the checkpoints could not be made:\n{made.stdout[-2000:]}\n{made.stderr[-4000:]}")
