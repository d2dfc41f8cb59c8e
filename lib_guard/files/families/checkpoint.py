"""Whole models in one file, and their UNet or transformer alone: which family they are.

invoke-ai/InvokeAI configs/main.py:373-382; diffusers loaders/single_file_utils.py (CHECKPOINT_KEY_NAMES,
infer_diffusers_model_type); PixArt's and the Lumina 2 and Z-Image widths were checked on transformers built without
weights (diffusers 0.39). Widths count only where the numbers are not packed: four bits make two numbers one byte
(ComfyUI AGENTS.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from ..header import Header, TensorEntry
from .metadata import metadata_rules
from .unet import context_clues, is_video_unet_layer
from .verdict import (
    CHECKPOINT,
    CHROMA,
    FLUX1,
    FLUX2,
    LUMINA2,
    PIXART,
    SD3,
    SD35_LARGE,
    SDXL,
    SDXL_REFINER,
    Z_IMAGE,
    Clue,
    Verdict,
    clue,
    settle,
    size,
    verdict,
    with_names,
)

_Tensors = Mapping[str, TensorEntry]

_CORE = "model.diffusion_model."
_VAE = ("first_stage_model.", "vae.")
_TEXT = ("cond_stage_model.", "conditioner.", "text_encoders.")

#: A UNet or transformer alone is one only with both ends of it: a ControlNet has the first half of a UNet.
_ENDS = (
    {"input_blocks", "output_blocks", "out"},
    {"conv_in", "down_blocks", "up_blocks", "conv_out"},
    {"joint_blocks", "final_layer"},
    {"double_blocks", "final_layer"},
    {"blocks", "final_layer"},
    {"layers", "final_layer"},
    {"layers", "all_final_layer"},
    {"transformer_blocks", "proj_out"},
)

#: SDXL has no attention in `2.1`, and all of them have some in `4.1`.
_CONTEXTS = (
    "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight",
    "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight",
)
_FIRST = ("input_blocks.0.0.weight", "conv_in.weight")
_UNET_VARIANTS = {4: "", 5: "depth", 8: "instruct-pix2pix", 9: "inpaint"}
_FLUX_VARIANTS = {64: "", 128: "depth or canny", 384: "fill"}
_FLUX_BLOCK = "double_blocks.0.img_attn.norm.key_norm.scale"
_SD35_LARGE = "joint_blocks.37.x_block.mlp.fc1.weight"
_SD3_VARIANTS = {36864: "SD3 medium", 147456: "SD3.5 medium"}


def checkpoint_verdict(header: Header) -> Verdict | None:
    """Which family a model is; None when the file is no model that makes pictures."""
    core = {name.removeprefix(_CORE): entry for name, entry in header.tensors.items() if name.startswith(_CORE)}
    prefix = _CORE if core else ""
    tensors: _Tensors = core or header.tensors
    if not core and not _is_whole(tensors):
        return None
    settled = settle([*_rules(tensors, header.tensors), *metadata_rules(header.metadata)])
    variant = next((words for words in (ask(tensors) for ask in _VARIANTS) if words), "")
    alone = "" if core else "the UNet or transformer alone"
    remarks = _missing_parts(header.tensors) if core else ()
    found = verdict(CHECKPOINT, settled, ", ".join(filter(None, (variant, alone))), remarks)
    return with_names(found, {name: prefix + name for name in core})


def _is_whole(tensors: _Tensors) -> bool:
    starts = {name.partition(".")[0] for name in tensors}
    return any(ends <= starts for ends in _ENDS)


def _rules(tensors: _Tensors, whole: _Tensors) -> Iterator[Iterable[Clue]]:
    if not any(is_video_unet_layer(name) for name in tensors):
        yield _context(tensors)
    yield [found for rule in _RULES for found in rule(tensors)]
    yield _conditioner(whole)


def _plain(tensors: _Tensors, name: str) -> TensorEntry | None:
    """A tensor whose sizes can be believed: floating numbers of eight bits or more, one by one."""
    entry = tensors.get(name)
    return entry if entry is not None and re.match(r"BF16|F(?:8_|16|32|64)", entry.dtype) else None


def _context(tensors: _Tensors) -> list[Clue]:
    channels = {size(_plain(tensors, name), 1) for name in _FIRST} - {None}
    known = bool(channels & _UNET_VARIANTS.keys()) or not channels
    for name in _CONTEXTS if known else ():
        entry = _plain(tensors, name)
        if entry is not None:
            return list(context_clues(size(entry, -1), name, entry, certain=bool(channels)))
    return []


def _conditioner(whole: _Tensors) -> Iterator[Clue]:
    """SDXL's second text encoder is the refiner's only one."""
    for number, family in ((1, SDXL), (0, SDXL_REFINER)):
        name = f"conditioner.embedders.{number}.model.transformer.resblocks.9.mlp.c_proj.bias"
        if name in whole:
            said = "SDXL's second text encoder is in this place" if number else "the refiner's text encoder is"
            yield clue(family, name, whole[name], said, certain=False)
            return


def _sd3(tensors: _Tensors) -> Iterator[Clue]:
    first = "joint_blocks.0.context_block.adaLN_modulation.1.bias"
    if _SD35_LARGE in tensors:
        yield clue(SD35_LARGE, _SD35_LARGE, tensors[_SD35_LARGE], "only SD3.5 large has 38 joint blocks")
    elif size(_plain(tensors, first), 0) == 9216:
        yield clue(SD3, first, tensors[first], "SD3's and SD3.5 medium's modulation is 9216 wide")


def _flux(tensors: _Tensors) -> Iterator[Clue]:
    flux2 = ("single_stream_modulation.lin.weight", "double_stream_modulation_img.lin.weight")
    own = next((name for name in flux2 if name in tensors), None)
    chroma = next((name for name in tensors if name.startswith("distilled_guidance_layer.")), None)
    if own:
        yield clue(FLUX2, own, tensors[own], "FLUX.2 alone shares one modulation among its blocks")
    elif chroma:
        yield clue(CHROMA, chroma, tensors[chroma], "Chroma alone has a layer of this name")
    elif _FLUX_BLOCK in tensors:
        # FLUX.2 and Chroma have no pooled text (SD.Next modules/model_probe.py).
        pooled = any(name.startswith("vector_in.") for name in tensors)
        said = "FLUX.1 has it, without FLUX.2's or Chroma's own layers"
        yield clue(FLUX1, _FLUX_BLOCK, tensors[_FLUX_BLOCK], said, certain=pooled)


def _pixart(tensors: _Tensors) -> Iterator[Clue]:
    ldm, diffusers = "t_block.1.weight", "adaln_single.emb.timestep_embedder.linear_1.weight"
    if size(_plain(tensors, ldm), 1) == 1152:
        yield clue(PIXART, ldm, tensors[ldm], "PixArt is 1152 wide")
    if size(_plain(tensors, diffusers), 0) == 1152 and "pos_embed.proj.bias" in tensors:
        yield clue(PIXART, diffusers, tensors[diffusers], "PixArt is 1152 wide")


def _next_dit(tensors: _Tensors) -> Iterator[Clue]:
    """Lumina 2 and Z-Image are of one build; their text encoders' widths tell them apart."""
    text, modulation = "cap_embedder.0.weight", "layers.0.adaLN_modulation.0.weight"
    width = size(tensors.get(text), 0)
    if text in tensors and width in (2304, 2560):
        family, said = (Z_IMAGE, "Z-Image's") if width == 2560 else (LUMINA2, "Lumina 2's")
        yield clue(family, text, tensors[text], f"{said} text is {width} wide")
    elif text in tensors:
        yield clue((LUMINA2, Z_IMAGE), text, tensors[text], "Lumina 2 and Z-Image have it", certain=False)
    if modulation in tensors:
        yield clue(Z_IMAGE, modulation, tensors[modulation], "Z-Image modulates without an activation before")


_RULES: tuple[Callable[[_Tensors], Iterator[Clue]], ...] = (_sd3, _flux, _pixart, _next_dit)


def _unet_variant(tensors: _Tensors) -> str:
    if not any(name in tensors for name in _CONTEXTS) or any(is_video_unet_layer(name) for name in tensors):
        return ""
    return next((_UNET_VARIANTS.get(size(_plain(tensors, name), 1) or 0, "") for name in _FIRST if name in tensors), "")


def _sd3_variant(tensors: _Tensors) -> str:
    return "" if _SD35_LARGE in tensors else _SD3_VARIANTS.get(size(tensors.get("pos_embed"), 1) or 0, "")


def _flux_variant(tensors: _Tensors) -> str:
    if not any(one.families == {FLUX1} for one in _flux(tensors)):
        return ""
    distilled = any(name.startswith("guidance_in.") for name in tensors)
    build = _FLUX_VARIANTS.get(size(_plain(tensors, "img_in.weight"), 1) or 0, "")
    return build or ("dev" if distilled else "schnell")


_VARIANTS = (_unet_variant, _sd3_variant, _flux_variant)


def _missing_parts(whole: _Tensors) -> Iterator[str]:
    """What a whole model lacks, the host takes from whatever it has loaded before."""
    for prefixes, part in ((_VAE, "VAE"), (_TEXT, "text encoder")):
        if not any(name.startswith(prefixes) for name in whole):
            yield f"it holds no {part}"
