"""Forge's image encoders with two layers, in their real widths.

Part of the tests, never shipped. Whole ones take gigabytes, and the host builds them from configs of its own
(backend/patcher/clipvision.py:10, :29); everything else it takes from the file (models/forge_encoder_maker.py).
"""

from backend.patcher import clipvision

for config in (clipvision.CLIP_VISION_G, clipvision.CLIP_VISION_H):
    config["num_hidden_layers"], config["intermediate_size"] = 2, 256
