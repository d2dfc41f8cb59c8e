"""ControlNets of sd-webui-controlnet as narrow as the tiny checkpoints.

Part of the tests, never shipped. It builds them by a table that holds the width of Stable Diffusion 1.5
(controlnet_model_guess.py:19); everything else it takes from the file.
"""

import sys

from modules import script_callbacks

#: The width of the tiny checkpoints' UNet (models/ldm_maker.py).
WIDTH = 32


def narrow(*_):
    """The extension's modules are there when the app has started."""
    sys.modules["scripts.controlnet_model_guess"].controlnet_default_config["model_channels"] = WIDTH


script_callbacks.on_app_started(narrow)
