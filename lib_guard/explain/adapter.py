"""IP-Adapters that are in the model when they should not be, or not when they should, and encoders that are not found.

Errors as reported: huggingface/diffusers #6088, vladmandic/sdnext #4066, cubiq/ComfyUI_IPAdapter_plus #343. Names of
files: cubiq/ComfyUI_IPAdapter_plus utils.py `get_clipvision_file`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .explanation import INSPECT, Explanation, Hit, before, cure

#: Python 3.14 words it a little differently.
_NOT_ITERABLE = re.compile(r"argument of type 'NoneType' is not (?:a container or )?iterable")
_NO_PARAMETERS = "'NoneType' object has no attribute 'parameters'"
_NO_LAYERS = "'NoneType' object has no attribute 'image_projection_layers'"
_MISSING = re.compile(r"missing clip_?vision model|clip_?vision model not found", re.IGNORECASE)


def adapter_left(text: str) -> Iterator[Hit]:
    """A UNet that asks for an image though the request has no adapter.

    The message alone says nothing. An SDXL UNet that lacks its second text says the same; that one asks for
    `text_embeds`.
    """
    for found in _NOT_ITERABLE.finditer(text):
        call = before(text, found.start())
        asked = "image_embeds" in call or "encoder_hid_" in call
        if asked or ("unet_2d_condition" in call and "text_embeds" not in call):
            yield Hit(found.start(), _left("" if asked else "Most likely: "))


def _left(hedge: str) -> Explanation:
    where = "the part of the UNet that takes an image's embedding" if not hedge else "the UNet, without its line"
    return Explanation(
        "LG404",
        f"{hedge}An IP-Adapter of an earlier request is still in the UNet, and asks every request for an image.",
        f"None was searched for a name, and the traceback shows {where}",
        cure("LG404", "unload the adapter (`unload_ip_adapter` in diffusers) after use, or load the model anew."),
    )


def image_without_adapter(text: str) -> Iterator[Hit]:
    """A pass that is handed an adapter's image, and whose pipeline has nothing to put it into."""
    for name in (_NO_PARAMETERS, _NO_LAYERS):
        at = text.find(name)
        if at >= 0 and (name == _NO_LAYERS or "image_encoder" in before(text, at)):
            lacks = "projection for images" if name == _NO_LAYERS else "image encoder"
            yield Hit(at, _handed(lacks))


def _handed(lacks: str) -> Explanation:
    return Explanation(
        "LG408",
        f"A pass was handed an IP-Adapter's image, and its pipeline has no {lacks}: the refiner's, or another one into"
        " whose model no adapter was brought.",
        f"the {lacks} that the call works with is None",
        cure("LG408", "use no refiner together with IP-Adapters, or load the adapter into the second model as well."),
    )


def encoder_missing(text: str) -> Iterator[Hit]:
    """A program that looks for an image encoder by the name of its file."""
    for found in _MISSING.finditer(text):
        yield Hit(found.start(), _not_found())


def _not_found() -> Explanation:
    return Explanation(
        "LG405",
        "The program has no image encoder for the IP-Adapter. It looks for one by the NAME of its file, so that a right"
        " file by another name, or in another folder, counts as missing; or none was connected.",
        "no image encoder (CLIP vision model) was found, which says nothing of what the files hold",
        cure(
            "LG405",
            "in ComfyUI name the files in models/clip_vision CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors (OpenCLIP"
            " ViT-H), CLIP-ViT-bigG-14-laion2B-39B-b160k.safetensors (OpenCLIP ViT-bigG) and"
            f" clip-vit-large-patch14-336.bin (for Kolors), or connect a loader to the adapter's node. {INSPECT}",
        ),
    )
