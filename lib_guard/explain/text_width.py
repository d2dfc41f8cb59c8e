"""Text of one family of models that meets layers of another: the width of the text context tells both.

Widths: `files/families/checkpoint.py` and `lora.py`, with their sources. Errors as reported: AUTOMATIC1111/
stable-diffusion-webui #12221, Mikubill/sd-webui-controlnet (`77x2048 and 768x320`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..files.families.verdict import SD2, SD15, SDXL, SDXL_REFINER, SPOKEN
from .explanation import INSPECT, Explanation, Hit, before, cure
from .shapes import Product, mismatches, products

_FAMILIES = {768: SD15, 1024: SD2, 1280: SDXL_REFINER, 2048: SDXL}
#: How wide the UNet is inside, where text comes in. Other widths beside a text's are of text encoders.
_INSIDE = {768: (320, 640, 1280), 1024: (320, 640, 1280), 1280: (384, 768, 1536), 2048: (640, 1280)}
#: Nobody trains a larger rank than that; below the narrowest UNet in any case.
_LARGEST_RANK = 256
_PROMPT = 77

_TENSORS = re.compile(
    r"size of tensor a \((\d{1,7})\) must match the size of tensor b \((\d{1,7})\) at non-singleton dimension 1\b"
)
_LORA_IN_CALL = re.compile(r"lora|networks\.py|lycoris", re.IGNORECASE)
_LORA_TENSOR = re.compile(r"attn2[._](?:processor[._])?to_[kv][._](?:lora_A|lora_down|lora[._]down)")


def text_product(text: str) -> Iterator[Hit]:
    """A layer that was given the text of another family, as a matrix product that cannot be."""
    for product in products(text):
        given, wanted = _FAMILIES.get(product.given), _FAMILIES.get(product.takes)
        if not given or not wanted or given == wanted or product.rows % _PROMPT:
            continue
        if product.makes <= _LARGEST_RANK:
            yield Hit(product.at, _lora(wanted, given, _shown(product, "a LoRA's layer of rank {}")))
        elif product.makes in _INSIDE[product.takes]:
            yield Hit(product.at, _component(wanted, given, _shown(product, "a cross-attention of {}")))


def tensor_widths(text: str) -> Iterator[Hit]:
    """A LoRA that is added to weights of another width.

    The message is torch's for any two tensors. 2048 and 768 are told by themselves; other widths of texts are sizes of
    pictures as well, and are told only where a LoRA is in the call.
    """
    for found in _TENSORS.finditer(text):
        model, file = int(found[1]), int(found[2])
        known = model in _FAMILIES and file in _FAMILIES and model != file
        if known and ({model, file} == {768, 2048} or _LORA_IN_CALL.search(before(text, found.start()))):
            shown = f"the model's weight, which stands first, is {model} wide, and what is added to it {file}"
            yield Hit(found.start(), _lora(_FAMILIES[file], _FAMILIES[model], shown))


def lora_sizes(text: str) -> Iterator[Hit]:
    """A LoRA's file that does not fit, as peft says it: sizes that differ in the cross-attention's keys or values."""
    for one in mismatches(text):
        file, model = _FAMILIES.get(one.file[-1]), _FAMILIES.get(one.model[-1])
        two = len(one.file) == len(one.model) == 2
        if two and file and model and file != model and _LORA_TENSOR.search(one.name):
            shown = (
                f"a LoRA's layer beside the text is {one.file[-1]} wide in the file and {one.model[-1]} in the model"
            )
            yield Hit(one.at, _lora(file, model, shown))


def _shown(product: Product, layer: str) -> str:
    name = layer.format(product.makes)
    return f"the text is {product.rows}x{product.given}, and {name} takes text of {product.takes}"


def _lora(file: str, model: str, shown: str) -> Explanation:
    cause = f"A LoRA that was made for {SPOKEN[file]} is applied to a model of {SPOKEN[model]}."
    elsewhere = f"leave that LoRA out, or load a model that it was made for. {INSPECT}"
    return Explanation("LG304", cause, shown, cure("LG304", elsewhere))


def _component(layer: str, given: str, shown: str) -> Explanation:
    cause = (
        f"Layers of {SPOKEN[layer]} were given the text of {SPOKEN[given]}: mostly a ControlNet, or another part with"
        f" layers of its own, that was made for {SPOKEN[layer]}, beside a model of {SPOKEN[given]}."
    )
    advice = f"Use a ControlNet that was made for {SPOKEN[given]}, or a model of {SPOKEN[layer]}. {INSPECT}"
    return Explanation("", cause, shown, advice)
