"""What a LoRA's text encoder layers tell: how wide they are, and how many encoders there are.

kohya-ss/sd-scripts networks/lora.py:870-874, networks/lora_sd3.py:233-236, networks/lora_flux.py:712-714;
invoke-ai/InvokeAI model_util.lora_token_vector_length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from .layers import Layer
from .verdict import FLUX1, SD2, SD3, SD15, SD35_LARGE, SDXL, SDXL_REFINER, Clue, clue

#: The number is the encoder's: kohya counts from 1 where there are several, diffusers leaves out the first.
_KOHYA = re.compile(r"^lora_te(\d?)_")
_DIFFUSERS = re.compile(r"(?:^|_)text_encoder(?:_(\d))?_(?:base_model_|text_model_|encoder_|layers_|model_)")
_ATTENTION = re.compile(r"_self_attn_(?:q|k|v|out)_proj$")
_T5 = re.compile(r"_encoder_block_\d+_")

_WITH_CLIP_L = (SD15, SDXL, SD3, SD35_LARGE, FLUX1)
_WITH_CLIP_G = (SDXL, SDXL_REFINER, SD3, SD35_LARGE)

#: kohya's encoder -> its width -> who has such a one.
_KOHYA_WIDTHS: dict[str, dict[int, tuple[str, ...]]] = {
    "": {768: (SD15,), 1024: (SD2,)},
    "1": {768: _WITH_CLIP_L[1:]},
    "2": {1280: _WITH_CLIP_G},
}
_DIFFUSERS_WIDTHS: dict[str, dict[int, tuple[str, ...]]] = {
    "": {768: _WITH_CLIP_L, 1024: (SD2,)},
    "2": {1280: _WITH_CLIP_G},
}


def is_text_layer(path: str) -> bool:
    """Whether a layer of this name, dots as underscores, lies in a text encoder."""
    return bool(_KOHYA.search(path) or _DIFFUSERS.search(path))


def text_rules(layers: Sequence[Layer]) -> Iterator[list[Clue]]:
    """One rule for each encoder, by its width; then what the set of encoders tells."""
    for pattern, table in ((_KOHYA, _KOHYA_WIDTHS), (_DIFFUSERS, _DIFFUSERS_WIDTHS)):
        for number, widths in table.items():
            yield [found for layer in layers for found in _width_clues(layer, pattern, number, widths)]
    yield [found for layer in layers for found in _t5_clues(layer)]
    yield _pair_clues(layers)


def _number(layer: Layer, pattern: re.Pattern[str]) -> str | None:
    found = pattern.search(layer.path)
    return (found.group(1) or "") if found else None


def _width_clues(
    layer: Layer, pattern: re.Pattern[str], number: str, widths: dict[int, tuple[str, ...]]
) -> Iterator[Clue]:
    if _number(layer, pattern) == number and _ATTENTION.search(layer.path):
        width = layer.width_square()
        families = widths.get(width.value) if width else None
        if width and families:
            said = f"{width.note}the text encoder is {width.value} wide"
            yield clue(families, width.name, width.entry, said, certain=len(families) == 1)


def _t5_clues(layer: Layer) -> Iterator[Clue]:
    number, part = _number(layer, _KOHYA), layer.first
    if number == "3":
        yield clue((SD3, SD35_LARGE, FLUX1), part.name, part.entry, "SD3 and FLUX.1 have a T5 in this place", False)
    elif number == "2" and _T5.search(layer.path):
        yield clue(FLUX1, part.name, part.entry, "in FLUX.1 the second text encoder is a T5", False)


def _pair_clues(layers: Sequence[Layer]) -> list[Clue]:
    """CLIP-L and CLIP-bigG, and nothing else but a UNet's layers: SDXL."""
    numbers = {number for layer in layers for number in (_number(layer, _KOHYA), _number(layer, _DIFFUSERS)) if number}
    others = any(not is_text_layer(layer.path) for layer in layers)
    t5 = any(_T5.search(layer.path) for layer in layers)
    second = next((layer for layer in layers if _KOHYA.match(layer.path) and _number(layer, _KOHYA) == "2"), None)
    if second is None or others or t5 or "1" not in numbers or "3" in numbers:
        return []
    part = second.first
    return [clue(SDXL, part.name, part.entry, "SDXL has two CLIP text encoders and no third", certain=False)]
