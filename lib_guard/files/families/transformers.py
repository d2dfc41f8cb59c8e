"""What tells the transformers apart by a LoRA's layers: SD3, FLUX, Chroma, PixArt, Z-Image, Qwen-Image, Wan, Krea-2.

Sources: kohya-ss/sd-scripts networks/lora_sd3.py:233-236 and networks/lora_flux.py:712-714; InvokeAI's tests of
flux_lora_kohya_format, flux_lora_diffusers_format and `_is_flux2_lora_state_dict`; ComfyUI comfy/lora.py; SD.Next
modules/model_probe.py. Widths were checked on transformers built without weights (diffusers 0.39).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from .layers import Layer, Width
from .unet import is_unet_layer
from .verdict import (
    CHROMA,
    FLUX1,
    FLUX2,
    KREA2,
    LUMINA2,
    PIXART,
    QWEN_IMAGE,
    SD3,
    SD35_LARGE,
    WAN,
    Z_IMAGE,
    Clue,
    clue,
)

#: The pictures that a FLUX.1 Control LoRA takes beside the noise double what its input layer is given.
CONTROL_CHANNELS = 128

_FLUX = frozenset({FLUX1, FLUX2, CHROMA})
_FLUX1_OR_CHROMA = (FLUX1, CHROMA)
_FLUX1_WIDTH, _FLUX2_WIDTHS = 3072, (4096, 6144)
#: FLUX.1 and Chroma have 19 double and 38 single blocks; HunyuanVideo, of the same names and widths, has more.
_FLUX1_BLOCKS, _FLUX1_SINGLE_BLOCKS = 19, 38
_SD3_WIDTHS = {1536: SD3, 2432: SD35_LARGE}
_SD3_BLOCKS = 24
_NEXT_WIDTHS = {3840: Z_IMAGE, 2304: LUMINA2}
_PIXART_WIDTH = 1152
_QWEN_WIDTH = 3072

_B = r"(?:^|_)"
_DOUBLE = re.compile(rf"{_B}double_blocks_(\d{{1,4}})_|{_B}(?<!single_)transformer_blocks_(\d{{1,4}})_")
_SINGLE = re.compile(rf"{_B}single(?:_transformer)?_blocks_(\d{{1,4}})_")
_HUNYUAN = re.compile(r"(?:img|txt)_mlp_fc[12]|(?:img|txt)_mod_linear|individual_token_refiner")
_PLAIN = re.compile(rf"{_B}(?<!single_)transformer_blocks_\d{{1,4}}_")

#: A block's cross-attention; what other transformers call blocks has a word before it.
_CROSS = rf"{_B}(?<!double_)(?<!single_)(?<!joint_)(?<!transformer_)blocks_\d+_cross_attn_"

_Rule = Callable[[Layer, Width | None, Width | None], Iterator[Clue]]


def transformer_rules(layers: Iterable[Layer]) -> tuple[list[Clue], list[Clue]]:
    """The clues of all layers that lie in no UNet: those from shapes and names of one family, then those from names
    that a few families share."""
    own = [layer for layer in layers if not is_unet_layer(layer.path)]
    strong = [found for layer in own for rule in _RULES for found in rule(layer, layer.width_in(), layer.width_out())]
    strong += [*_pixart(own), *_wan(own)]
    weak = [found for layer in own for found in _shared_names(layer)]
    if _is_no_flux(own) and not any(one.families == {FLUX2} for one in strong):
        strong = [one for one in strong if not one.families <= _FLUX]
        weak = [one for one in weak if not one.families <= _FLUX]
    return strong, weak


def is_control(layers: Iterable[Layer]) -> bool:
    """Whether it is a FLUX.1 Control LoRA (invoke-ai/InvokeAI lora_conversions/flux_control_lora_utils.py)."""
    return any(layer.path == "img_in" and _is(layer.width_in(), CONTROL_CHANNELS) for layer in layers)


def _is(width: Width | None, *values: int) -> bool:
    return width is not None and width.value in values


def _seen(width: Width | None, families: str | Iterable[str], said: str, certain: bool = True) -> Iterator[Clue]:
    if width is not None:
        yield clue(families, width.name, width.entry, width.note + said, certain)


def _is_no_flux(layers: Iterable[Layer]) -> bool:
    """Whether the layers cannot be FLUX.1's or Chroma's though they are called so."""
    for layer in layers:
        double, single = _DOUBLE.search(layer.path), _SINGLE.search(layer.path)
        if _HUNYUAN.search(layer.path) or (double and int(double.group(1) or double.group(2)) >= _FLUX1_BLOCKS):
            return True
        if single and int(single.group(1)) >= _FLUX1_SINGLE_BLOCKS:
            return True
    return False


def _flux1(layer: Layer, into: Width | None, out: Width | None) -> Iterator[Clue]:
    path = layer.path
    if re.search(rf"{_B}double_blocks_\d+_(?:img|txt)_mlp_0$", path) and _is(into, _FLUX1_WIDTH) and _is(out, 12288):
        yield from _seen(out, _FLUX1_OR_CHROMA, "FLUX.1's MLP is 12288 wide")
    modulation = re.search(rf"{_B}(?:double_blocks_\d+_(?:img|txt)_mod|single_blocks_\d+_modulation)_lin$", path)
    if modulation and _is(into, _FLUX1_WIDTH):
        yield from _seen(into, FLUX1, "FLUX.1 alone has a modulation of 3072 in each block")
    if re.search(rf"{_B}single_transformer_blocks_\d+_proj_out$", path) and _is(into, 15360):
        yield from _seen(into, _FLUX1_OR_CHROMA, "FLUX.1's single blocks end in 15360", certain=False)
    if re.search(rf"{_B}single_transformer_blocks_\d+_norm_linear$", path) and _is(into, _FLUX1_WIDTH):
        yield from _seen(into, FLUX1, "FLUX.1 has a modulation of 3072 in each block", certain=False)
    if re.search(rf"{_B}double_blocks_\d+_processor_(?:qkv|proj)$", path) and _is(into, _FLUX1_WIDTH):
        yield from _seen(into, FLUX1, "XLabs writes so for FLUX.1, which is 3072 wide")
    if path == "img_in" and _is(into, CONTROL_CHANNELS) and _is(out, _FLUX1_WIDTH):
        yield from _seen(into, FLUX1, "a FLUX.1 Control LoRA takes 128 channels")


def _flux2(layer: Layer, into: Width | None, out: Width | None) -> Iterator[Clue]:
    path = layer.path
    first = re.search(rf"{_B}(?:double_blocks_\d+_(?:img|txt)_(?:attn_qkv|mlp_0)|single_blocks_\d+_linear1)$", path)
    if first and _is(into, *_FLUX2_WIDTHS):
        yield from _seen(into, FLUX2, "FLUX.2 is 4096 or 6144 wide, FLUX.1 3072")
    if re.search(rf"{_B}double_blocks_\d+_(?:img|txt)_mlp_0$", path) and _is(into, _FLUX1_WIDTH) and _is(out, 18432):
        yield from _seen(out, FLUX2, "the MLP of FLUX.2 Klein 4B is 18432 wide")
    if re.search(rf"{_B}single_blocks_\d+_linear1$", path) and _is(into, _FLUX1_WIDTH) and _is(out, 27648):
        yield from _seen(out, FLUX2, "attention and MLP of FLUX.2 Klein 4B are 27648 wide together")
    if re.search(rf"{_B}txt_in$", path) and _is(into, 7680, 12288, 15360):
        yield from _seen(into, FLUX2, "FLUX.2's text is 7680, 12288 or 15360 wide")
    if re.search(rf"{_B}vector_in_in_layer$", path) and _is(into, 2560, 4096, 5120):
        yield from _seen(into, FLUX2, "FLUX.1's pooled text is 768 wide")
    if re.search(
        r"_to_qkv_mlp_proj$|transformer_blocks_\d+_ff(?:_context)?_linear_in$|_stream_modulation(?:_|$)", path
    ):
        yield clue(FLUX2, layer.first.name, layer.first.entry, "FLUX.2 alone has a layer of this name")


def _sd3(layer: Layer, into: Width | None, _out: Width | None) -> Iterator[Clue]:
    path = layer.path
    joint = re.search(rf"{_B}joint_blocks_(\d{{1,4}})_(?:x|context)_block_(\w+)$", path)
    added = re.search(rf"{_B}(?<!single_)transformer_blocks_\d+_attn_add_[qkv]_proj$", path)
    inner = joint and joint.group(2) in ("attn_qkv", "attn_proj", "mlp_fc1", "adaLN_modulation_1")
    for width, family in _SD3_WIDTHS.items():
        if (inner or added) and _is(into, width):
            yield from _seen(into, family, f"its transformer is {width} wide")
    if joint and int(joint.group(1)) >= _SD3_BLOCKS:
        yield clue(SD35_LARGE, layer.first.name, layer.first.entry, "only SD3.5 large has more than 24 joint blocks")


def _chroma(layer: Layer, _into: Width | None, _out: Width | None) -> Iterator[Clue]:
    if re.search(rf"{_B}distilled_guidance_layer_", layer.path):
        yield clue(CHROMA, layer.first.name, layer.first.entry, "Chroma alone has a layer of this name")


def _next_dit(layer: Layer, into: Width | None, _out: Width | None) -> Iterator[Clue]:
    """Lumina 2 and Z-Image are of one build and differ in their width."""
    inner = r"(?:attention_(?:to_)?(?:q|k|v|qkv)|attn_to_[qkv]|feed_forward_(?:w[13]|linear_[13]))$"
    if re.search(rf"{_B}(?:layers|noise_refiner|context_refiner)_\d+_{inner}", layer.path) and into is not None:
        family = _NEXT_WIDTHS.get(into.value)
        if family:
            yield from _seen(into, family, f"its transformer is {into.value} wide")


def _qwen(layer: Layer, into: Width | None, _out: Width | None) -> Iterator[Clue]:
    named = re.search(rf"{_PLAIN.pattern}(?:img|txt)_(?:mlp_net_0_proj|mod_1)$", layer.path)
    if named and _is(into, _QWEN_WIDTH):
        yield from _seen(into, QWEN_IMAGE, "Qwen-Image is 3072 wide, and has an MLP of its own for the picture")


def _krea(layer: Layer, _into: Width | None, _out: Width | None) -> Iterator[Clue]:
    if re.search(rf"{_B}(?:txtfusion|text_fusion|time_mod_proj)(?:_|$)", layer.path):
        yield clue(KREA2, layer.first.name, layer.first.entry, "Krea-2 alone has a layer of this name")


_RULES: tuple[_Rule, ...] = (_flux1, _flux2, _sd3, _chroma, _next_dit, _qwen, _krea)


def _pixart(layers: Iterable[Layer]) -> Iterator[Clue]:
    """PixArt's attention is 1152 wide, and so is Sana's smallest and DiT's. Sana has convolutions where PixArt has its
    MLP, and DiT has no cross-attention."""
    paths = [layer.path for layer in layers]
    certain = any(re.search(rf"{_B}adaln_single_", path) for path in paths)
    likely = any(re.search(rf"{_B}caption_projection_|{_PLAIN.pattern}ff_net_0_proj$", path) for path in paths)
    if any("_ff_conv_" in path for path in paths) or not (certain or likely):
        return
    for layer in layers:
        into = layer.width_in()
        if re.search(rf"{_PLAIN.pattern}attn2_to_[qkv]$", layer.path) and _is(into, _PIXART_WIDTH):
            yield from _seen(into, PIXART, "PixArt is 1152 wide", certain)


def _wan(layers: Iterable[Layer]) -> Iterator[Clue]:
    """Others have such cross-attention too; with the layer that takes the picture in it is certain."""
    if any(re.search(rf"{_B}patch_embedding$", layer.path) for layer in layers):
        for layer in layers:
            if re.search(_CROSS, layer.path):
                part = layer.first
                yield clue(WAN, part.name, part.entry, "Wan alone has this beside a patch embedding")


def _shared_names(layer: Layer) -> Iterator[Clue]:
    """Names that a few families have; which of them it is, widths tell, or nothing does. Those of FLUX's blocks are not
    among them: AuraFlow and HunyuanVideo call theirs so too."""
    path, part = layer.path, layer.first
    for pattern, families, said in _NAMES:
        if re.search(pattern, path):
            yield clue(families, part.name, part.entry, said, certain=False)


_NAMES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (rf"{_B}joint_blocks_\d+_(?:x|context)_block_", (SD3, SD35_LARGE), "SD3 and SD3.5 have joint blocks"),
    (rf"{_B}(?:noise|context)_refiner_\d+_", (LUMINA2, Z_IMAGE), "Lumina 2 and Z-Image have refiner layers"),
    (r"^lora_unet__layers_\d+_", (Z_IMAGE,), "trainers write so for Z-Image"),
    (rf"{_B}(?<!single_)transformer_blocks_\d+_(?:img|txt)_(?:mlp|mod)_", (QWEN_IMAGE,), "Qwen-Image has such layers"),
    (rf"{_CROSS}[qkvo]$", (WAN,), "Wan has such layers"),
)
