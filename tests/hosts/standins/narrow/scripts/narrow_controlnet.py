"""sd-webui-controlnet at the size of the tiny checkpoints: the same code, smaller numbers in its own tables.

Part of the tests, never shipped. It builds ControlNets by a table that holds the width of Stable Diffusion 1.5, and
reads image encoders of gigabytes. Here a ControlNet is as narrow as the checkpoint, and an image encoder has two layers
of its real width, whose random weights are the same in every process.
"""

import sys
from pathlib import Path

import torch

from modules import script_callbacks


def narrow(*_):
    """The extension's modules are there when the app has started."""
    guess, clipvision = sys.modules["scripts.controlnet_model_guess"], sys.modules["annotator.clipvision"]
    guess.controlnet_default_config["model_channels"] = 32
    for config in clipvision.configs.values():
        config.update(num_hidden_layers=2, intermediate_size=256)
    seeded(clipvision.ClipVisionDetector)
    # What is missing would be downloaded; what is empty is loaded, since it does so with strict=False.
    folder = Path(clipvision.models_path) / "clip_vision"
    folder.mkdir(parents=True, exist_ok=True)
    for name in clipvision.configs:
        torch.save({}, folder / f"{name}.pth", _use_new_zipfile_serialization=False)


def seeded(detector):
    """Have an encoder's random weights come from its name; the host's own random numbers are left as they were."""
    made = detector.__init__

    def make(self, config, low_vram):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(len(config))
            made(self, config, low_vram)

    detector.__init__ = make


script_callbacks.on_app_started(narrow)
