"""VAE files: whose latents they decode.

invoke-ai/InvokeAI configs/vae.py. A VAE tells its latents' channels and no more: SD1.5's, SD2's and SDXL's are of one
build, and so are SD3's and FLUX.1's; their scales are in no file. Nor can a header tell an SDXL VAE that overflows in
float16 from one that was mended.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from ..header import Header, TensorEntry
from .metadata import metadata_rules
from .verdict import (
    FLUX1,
    FLUX2,
    QWEN_IMAGE,
    SD2,
    SD3,
    SD15,
    SD35_LARGE,
    SDXL,
    SDXL_REFINER,
    VAE,
    WAN,
    Clue,
    Verdict,
    clue,
    settle,
    size,
    verdict,
)

#: Channels of the latents -> whose they are. Other models that borrow one of these VAEs bring it along.
_FLAT = {4: (SD15, SD2, SDXL, SDXL_REFINER), 16: (SD3, SD35_LARGE, FLUX1), 32: (FLUX2,)}
_WITH_TIME = {16: (WAN, QWEN_IMAGE), 48: (WAN,)}

#: diffusers and LDM call the first layer of the decoder alike; Wan's own files do not.
_FIRST = ("decoder.conv_in.weight", "decoder.conv1.weight")
_FLUX2_ONLY = "bn.running_mean"
_DIFFUSERS = re.compile(r"decoder\.(?:up_blocks|mid_block)\.")
_LDM = re.compile(r"decoder\.(?:up|mid|upsamples|middle)\.")
_OWN = re.compile(r"(?:encoder|decoder|quant_conv|post_quant_conv|conv[12]|bn|quantize|loss)\.")
#: Where a whole checkpoint keeps its VAE, and what some trainers leave in a VAE's file alone.
_PREFIXES = ("first_stage_model.", "vae.")


def vae_verdict(header: Header) -> Verdict | None:
    """Whose latents a VAE decodes; None when the file is no VAE, or more than one."""
    tensors = _bare(header.tensors)
    own = sum(bool(_OWN.match(name)) for name in tensors)
    style = _style(tensors)
    if not style or own * 10 <= len(tensors) * 9:
        return None
    first = next((name for name in _FIRST if name in tensors), None)
    remarks = [] if first else ["it is damaged: its decoder lacks the layer that takes the latents in"]
    rules: list[Iterable[Clue]] = [list(_flux2(tensors)), list(_channels(tensors, first)) if first else []]
    settled = settle([*rules, *metadata_rules(header.metadata)])
    return verdict(VAE, settled, _variant(tensors, first, style), remarks)


def _bare(tensors: Mapping[str, TensorEntry]) -> Mapping[str, TensorEntry]:
    for prefix in _PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return {name.removeprefix(prefix): entry for name, entry in tensors.items()}
    return tensors


def _style(tensors: Mapping[str, TensorEntry]) -> str:
    if any(_DIFFUSERS.match(name) for name in tensors):
        return "diffusers"
    return "LDM" if any(_LDM.match(name) for name in tensors) else ""


def _flux2(tensors: Mapping[str, TensorEntry]) -> Iterator[Clue]:
    entry = tensors.get(_FLUX2_ONLY)
    if entry is not None:
        yield clue(FLUX2, _FLUX2_ONLY, entry, "FLUX.2's VAE alone norms its latents so")


def _channels(tensors: Mapping[str, TensorEntry], first: str) -> Iterator[Clue]:
    entry = tensors[first]
    channels = size(entry, 1) or 0
    if len(entry.shape) == 4:
        families, shape = _FLAT.get(channels), "flat pictures"
    elif len(entry.shape) == 5:
        families, shape = _WITH_TIME.get(channels), "pictures with time"
    else:
        return
    after = tensors.get("post_quant_conv.weight")
    if families and (after is None or after.shape[:2] == (channels, channels)):
        yield clue(families, first, entry, f"latents of {channels} channels for {shape}")


def _variant(tensors: Mapping[str, TensorEntry], first: str | None, style: str) -> str:
    channels = size(tensors.get(first or ""), 1)
    return f"{f'{channels} latent channels, ' if channels else ''}names of {style}"
