"""ControlNets and T2I-Adapters of every build: which model they are made for.

Mikubill/sd-webui-controlnet scripts/controlnet_model_guess.py (lines with each test); invoke-ai/InvokeAI
configs/controlnet.py, flux/controlnet/state_dict_utils.py, configs/t2i_adapter.py; checked on ControlNets built without
weights (diffusers 0.39). The middle block's bias tells nothing: it is 1280 long in SD1.5's, SD2's and SDXL's.
InstantID and Shuffle are told by their files' names alone, and so not here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from ..header import Header, TensorEntry
from .metadata import metadata_rules
from .unet import context_clues, hidden_clues, is_square, is_unet_layer, place_clues
from .verdict import (
    CONTROLNET,
    FLUX1,
    LAST,
    SD15,
    SDXL,
    T2I_ADAPTER,
    VIT_L,
    Clue,
    EncoderNeed,
    Evidence,
    Verdict,
    clue,
    settle,
    size,
    verdict,
    with_names,
)

_Tensors = Mapping[str, TensorEntry]

_HINT, _DIFFUSERS_HINT = "input_hint_block.0.weight", "controlnet_cond_embedding.conv_in.weight"
_CLASSES = "label_emb.0.0.bias"
_SPARSE = "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"
_ADDED = "add_embedding.linear_1.weight"
_UNION, _TASKS = "control_add_embedding.linear_1.bias", "task_embedding"
_STARTS = ("control_model.", "adapter.")


def controlnet_verdict(header: Header) -> Verdict | None:
    """What a ControlNet or T2I-Adapter is made for; None when the file is none."""
    start = next((start for start in _STARTS if any(name.startswith(start) for name in header.tensors)), "")
    names = {name.removeprefix(start): name for name in header.tensors}
    tensors = {bare: header.tensors[name] for bare, name in names.items()}
    builds = (build(tensors, header) for build in _BUILDS)
    found = next((verdict for verdict in builds if verdict is not None), None)
    return with_names(found, names) if found else None


def _said(
    kind: str, rules: Iterable[Iterable[Clue]], header: Header, variant: str, remarks: Iterable[str] = ()
) -> Verdict:
    return verdict(kind, settle([*rules, *metadata_rules(header.metadata)]), variant, remarks)


def _shapes(tensors: _Tensors, end: str = ".weight") -> Iterator[Iterable[Clue]]:
    """By the width of the text context, by that of self-attention, and by the places where attention is."""
    own = {name: name.removesuffix(end).replace(".", "_") for name in tensors if name.endswith(end)}
    own = {name: path for name, path in own.items() if is_unet_layer(path)}
    yield [
        found
        for name, path in own.items()
        if path.endswith("attn2_to_k")
        for found in context_clues(size(tensors[name], 1), name, tensors[name])
    ]
    yield [
        found
        for name, path in own.items()
        if is_square(path)
        for found in hidden_clues(size(tensors[name], 1), name, tensors[name])
    ]
    yield [found for name, path in own.items() for found in place_clues(path, name, tensors[name])]


def _control_lora(tensors: _Tensors, header: Header) -> Verdict | None:
    """Lines 122-128. Its layers are products, `.down` being given what the layer is given."""
    if "lora_controlnet" not in tensors:
        return None
    last = "input_blocks.11.0.in_layers.0.weight"
    if last in tensors:
        rule = [clue(SD15, last, tensors[last], "SDXL has no such block", certain=False)]
    else:
        absent = Evidence(last, None, "is absent, which SD1.5 has and SDXL has not")
        rule = [Clue(frozenset({SDXL}), absent, "likely")]
    return _said(CONTROLNET, [*_shapes(tensors, ".down"), rule], header, "Control-LoRA")


def _sparse(tensors: _Tensors, header: Header) -> Verdict | None:
    """Line 137. The only one there is was made for SD1.5."""
    if _SPARSE not in tensors:
        return None
    rule = [clue(SD15, _SPARSE, tensors[_SPARSE], "SparseCtrl was made for SD1.5", certain=False)]
    return _said(CONTROLNET, [rule], header, "SparseCtrl")


def _flux(tensors: _Tensors, header: Header) -> Verdict | None:
    first = "controlnet_blocks.0.weight"
    if first not in tensors:
        return None
    xlabs, instantx = {"pos_embed_input.weight", _HINT}, {"controlnet_x_embedder.weight"}
    owner = "XLabs" if xlabs <= tensors.keys() else "InstantX" if instantx <= tensors.keys() else ""
    rule = [clue(FLUX1, first, tensors[first], f"{owner} writes so for FLUX.1")] if owner else []
    return _said(CONTROLNET, [rule], header, owner)


def _ldm(tensors: _Tensors, header: Header) -> Verdict | None:
    """Lines 180-224."""
    if _HINT not in tensors:
        return None
    rules, variant = [*_shapes(tensors)], "LDM"
    if _CLASSES in tensors:
        rules.append([clue(SDXL, _CLASSES, tensors[_CLASSES], "SDXL's ControlNets are given the picture's size")])
        variant = f"LDM, {_sdxl_size(tensors)}"
    return _said(CONTROLNET, rules, header, *_union_or_difference(tensors, variant))


def _sdxl_size(tensors: _Tensors) -> str:
    if "input_blocks.8.1.transformer_blocks.9.norm3.weight" in tensors:
        return "full size"
    return "middle size" if "input_blocks.8.1.transformer_blocks.0.norm3.weight" in tensors else "small size"


def _diffusers(tensors: _Tensors, header: Header) -> Verdict | None:
    """Line 152. The middle and small ones of SDXL lack the attention that would tell."""
    if _DIFFUSERS_HINT not in tensors:
        return None
    rules = [*_shapes(tensors)]
    if _ADDED in tensors and tensors[_ADDED].shape == (1280, 2816):
        rules.append([clue(SDXL, _ADDED, tensors[_ADDED], "SDXL's pooled text and sizes are 2816 wide")])
    return _said(CONTROLNET, rules, header, *_union_or_difference(tensors, "diffusers"))


def _union_or_difference(tensors: _Tensors, variant: str) -> tuple[str, list[str]]:
    if _UNION in tensors and _TASKS in tensors:
        return f"union, {variant}", []
    if "difference" in tensors:
        return f"difference, {variant}", ["its weights are differences: the host adds the UNet's to them"]
    return variant, []


def _lllite(tensors: _Tensors, header: Header) -> Verdict | None:
    """Line 287. It is attached to layers that its tensors are called after."""
    own = {name: name.partition(".")[0] for name in tensors if "lllite" in name}
    if len(own) * 2 <= len(tensors):
        return None
    rule = [found for name, path in own.items() for found in place_clues(path, name, tensors[name])]
    return _said(CONTROLNET, [rule], header, "LLLite")


def _t2i(tensors: _Tensors, header: Header) -> Verdict | None:
    """Lines 245-251, and 274 for the light ones. What it is given is the picture's pixels in squares: of 8 x 8 for
    SD1.5, of 16 x 16 for SDXL; once for grey and three times for colour."""
    light, full = "body.0.in_conv.weight", "conv_in.weight"
    bodies = {"body.0.block2.weight", "body.0.resnets.0.block2.weight"}
    name = full if full in tensors and bodies & tensors.keys() else light
    entry = tensors.get(name)
    if entry is None:
        return None
    channels, rule = size(entry, 1), []
    if channels in (256, 768):
        rule.append(clue(SDXL, name, entry, "SDXL's T2I-Adapters are given 256 or 768 channels"))
    elif channels in (64, 192):
        rule.append(clue(SD15, name, entry, "SD1.5's T2I-Adapters are given 64 or 192 channels"))
    return _said(T2I_ADAPTER, [rule], header, "light" if name == light else "full")


def _t2i_style(tensors: _Tensors, header: Header) -> Verdict | None:
    """Line 266."""
    name = "style_embedding"
    if name not in tensors:
        return None
    rule = [clue(SD15, name, tensors[name], "the style adapter was made for SD1.5", certain=False)]
    settled = settle([rule, *metadata_rules(header.metadata)])
    width = size(tensors[name], -1)
    need = EncoderNeed(VIT_L, width, LAST) if width == 1024 else None
    return replace(verdict(T2I_ADAPTER, settled, "style"), need=need)


_BUILDS = (_control_lora, _sparse, _flux, _ldm, _diffusers, _lllite, _t2i, _t2i_style)
