"""Image encoders of sd-webui-controlnet with two layers and seeded random weights, in their real widths.

Their files are gigabytes and cannot be made small: the extension builds them from configs of its own
(annotator/clipvision/__init__.py). Loading is not strict there, so files that hold nothing leave what was drawn. Each
load is printed, for rows that count them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from modules import script_callbacks


def shrink(*_: Any) -> None:
    from annotator import clipvision
    from annotator.annotator_path import models_path

    for config in clipvision.configs.values():
        config["num_hidden_layers"], config["intermediate_size"] = 2, 256
    begin = clipvision.ClipVisionDetector.__init__

    def begin_seeded(self: Any, config: str, low_vram: bool) -> None:
        state = torch.get_rng_state()
        torch.manual_seed(len(config))
        begin(self, config, low_vram)
        torch.set_rng_state(state)
        print(f"small image encoder loaded: {config}")

    clipvision.ClipVisionDetector.__init__ = begin_seeded
    folder = Path(models_path) / "clip_vision"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("clip_h", "clip_g", "clip_vitl"):
        torch.save({"nothing": torch.zeros(1)}, folder / f"{name}.pth", _use_new_zipfile_serialization=False)


script_callbacks.on_app_started(shrink)
