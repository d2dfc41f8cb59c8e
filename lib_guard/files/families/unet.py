"""What tells the UNets apart: SD1.5, SD2, SDXL and its refiner.

Widths of the text context: invoke-ai/InvokeAI configs/main.py:373-382. Which blocks hold attention, and how wide it is,
follows from the UNets' configurations and was checked on UNets built without weights (diffusers 0.39).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..header import TensorEntry
from .verdict import SD2, SD15, SDXL, SDXL_REFINER, SPOKEN, Clue, clue

#: Width of the text that cross-attention is given.
CONTEXT = {768: SD15, 1024: SD2, 2048: SDXL, 1280: SDXL_REFINER}

#: Width of self-attention. SDXL has none at 320, where SD1.5 and SD2 have; the refiner has other widths throughout.
_HIDDEN = {
    320: (SD15, SD2),
    640: (SD15, SD2, SDXL),
    1280: (SD15, SD2, SDXL),
    768: (SDXL_REFINER,),
    1536: (SDXL_REFINER,),
}

#: All names are looked at with underscores for dots, which is how kohya writes them.
_BLOCKS = re.compile(r"(?:^|_)(?:(?:in|out)put_blocks|middle_block|(?:down|up)_blocks|mid_block)_")
_OF_A_VIDEO_UNET = re.compile(r"temporal|motion_modules|time_stack")
_CROSS = re.compile(r"attn2_(?:processor_)?to_[kv]$")
_SQUARE = re.compile(r"(?:attn1_(?:processor_)?to_(?:q|k|v|out(?:_0)?)|attn2_(?:processor_)?to_(?:q|out(?:_0)?))$")
_DEPTH = re.compile(r"_transformer_blocks_(\d{1,4})_")
#: What only the attention of these UNets consists of; Kandinsky's has other names in the same places.
_INSIDE = r"_(?:transformer_blocks_|proj_(?:in|out)$)"
_OUTERMOST = re.compile(
    r"(?:^|_)(?:(?:down_blocks_0|up_blocks_3)_attentions_\d+|(?:input_blocks_[12]|output_blocks_(?:9|10|11))_1)"
    + _INSIDE
)
_INNERMOST = re.compile(r"(?:^|_)(?:up_blocks_0_attentions_\d+|output_blocks_[012]_1)" + _INSIDE)


def is_unet_layer(path: str) -> bool:
    """Whether a layer of this name, dots as underscores, lies in a UNet that makes pictures."""
    return bool(_BLOCKS.search(path)) and not _OF_A_VIDEO_UNET.search(path)


def is_video_unet_layer(path: str) -> bool:
    """Whether it is one that only UNets for video have. Their other layers look like SD1.5's or SD2's and are not."""
    return bool(_OF_A_VIDEO_UNET.search(path))


def takes_context(path: str) -> bool:
    """Whether the layer's input is the text context."""
    return bool(_CROSS.search(path))


def is_square(path: str) -> bool:
    """Whether the layer's input and output are both as wide as the block."""
    return bool(_SQUARE.search(path))


def context_clues(width: int | None, name: str, entry: TensorEntry, certain: bool = True) -> Iterator[Clue]:
    """What the width of the text context tells."""
    family = CONTEXT.get(width or 0)
    if family:
        yield clue(family, name, entry, f"{_possessive(family)} text context is {width} wide", certain)


def hidden_clues(width: int | None, name: str, entry: TensorEntry) -> Iterator[Clue]:
    """What the width of self-attention tells."""
    families = _HIDDEN.get(width or 0)
    if families:
        owners = " and ".join(SPOKEN[one] for one in families)
        yield clue(families, name, entry, f"attention {width} wide is found in {owners}")


def place_clues(path: str, name: str, entry: TensorEntry) -> Iterator[Clue]:
    """What it tells that there is a transformer at this place (invoke-ai/InvokeAI configs/lora.py, ComfyUI #3518)."""
    depth = _DEPTH.search(path)
    if depth and int(depth.group(1)) >= 4:
        yield clue(SDXL, name, entry, "only SDXL has more than four transformer blocks in one place")
    elif depth and int(depth.group(1)) >= 2:
        yield clue((SDXL, SDXL_REFINER), name, entry, "SD1.5 and SD2 have one transformer block in each place")
    if _OUTERMOST.search(path):
        yield clue((SD15, SD2), name, entry, "SDXL has no attention in its outermost blocks")
    elif _INNERMOST.search(path):
        yield clue(SDXL, name, entry, "only SDXL has attention in its innermost up block")


def _possessive(family: str) -> str:
    return f"{SPOKEN[family]}'s"
