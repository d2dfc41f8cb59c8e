"""LoRA files of every algorithm: which model they were trained on.

Order of the rules and their sources: invoke-ai/InvokeAI configs/lora.py (`_get_base_or_raise`), AUTOMATIC1111 #12221,
ComfyUI comfy/model_detection.py; the rest is with each group of rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from ..header import Header
from .layers import Layer, Width, algorithms_of, layers_of
from .metadata import metadata_rules
from .text import is_text_layer, text_rules
from .transformers import is_control, transformer_rules
from .unet import (
    context_clues,
    hidden_clues,
    is_square,
    is_unet_layer,
    is_video_unet_layer,
    place_clues,
    takes_context,
)
from .verdict import (
    CHROMA,
    FLUX1,
    LORA,
    SD2,
    SD15,
    SDXL,
    SDXL_REFINER,
    Clue,
    Verdict,
    clue,
    settle,
    verdict,
)

_PROJECTION = re.compile(r"(?:attentions_\d+|put_blocks_\d+_1|middle_block_1)_proj_(?:in|out)$")
_BUNDLED = "bundle_emb."


def lora_verdict(header: Header) -> Verdict | None:
    """What a LoRA was trained on; None when the file is no LoRA.

    It is one when more than half of its tensors belong to changed layers: a model with a few tensors that happen to be
    called so is none.
    """
    layers = layers_of(header.tensors)
    bundled = [name for name in header.tensors if name.startswith(_BUNDLED)]
    if not layers or sum(len(layer.parts) for layer in layers) * 2 <= len(header.tensors) - len(bundled):
        return None
    rules = [*_unet_rules(layers), *transformer_rules(layers), *text_rules(layers), *metadata_rules(header.metadata)]
    variant = algorithms_of(layers) + (", FLUX.1 control" if is_control(layers) else "")
    return _by_default(verdict(LORA, settle(rules), variant, _remarks(layers, bundled)))


def _by_default(found: Verdict) -> Verdict:
    """Chroma's layers are FLUX.1's but for one part, which few train. Nearly all such files are FLUX.1's."""
    if set(found.candidates) != {FLUX1, CHROMA}:
        return found
    remarks = (*found.remarks, "a Chroma LoRA can look the same")
    return replace(found, family=FLUX1, confidence="likely", remarks=remarks)


def _unet_rules(layers: Sequence[Layer]) -> Iterator[Iterable[Clue]]:
    if any(is_video_unet_layer(layer.path) for layer in layers):
        return
    own = [layer for layer in layers if is_unet_layer(layer.path)]
    yield [found for layer in own for found in _context(layer)]
    yield [found for layer in own for found in _hidden(layer)]
    yield [found for layer in own for found in place_clues(layer.path, layer.first.name, layer.first.entry)]
    yield [found for layer in own for found in _projection(layer)]


def _context(layer: Layer) -> Iterator[Clue]:
    width = layer.width_in() if takes_context(layer.path) else None
    if width:
        yield from _noted(width, context_clues(width.value, width.name, width.entry))


def _hidden(layer: Layer) -> Iterator[Clue]:
    width = layer.width_square() if is_square(layer.path) else None
    if width:
        yield from _noted(width, hidden_clues(width.value, width.name, width.entry))


def _noted(width: Width, clues: Iterator[Clue]) -> Iterator[Clue]:
    for one in clues:
        evidence = replace(one.evidence, expected=width.note + one.evidence.expected)
        yield replace(one, evidence=evidence)


def _projection(layer: Layer) -> Iterator[Clue]:
    part = layer.parts.get("down") or layer.parts.get("diff")
    if part is None or not _PROJECTION.search(layer.path):
        return
    if len(part.entry.shape) == 4:
        yield clue(SD15, part.name, part.entry, "of the UNets SD1.5's alone projects by a convolution")
    elif len(part.entry.shape) == 2:
        yield clue((SD2, SDXL, SDXL_REFINER), part.name, part.entry, "SD1.5's UNet projects by a convolution")


def _remarks(layers: Sequence[Layer], bundled: Sequence[str]) -> Iterator[str]:
    missing = [layer.missing for layer in layers if not layer.whole]
    if missing:
        yield f"it is damaged: {missing[0]}" + (f", and {len(missing) - 1} more of this kind" if missing[1:] else "")
    if all(is_text_layer(layer.path) for layer in layers):
        yield "it changes text encoders only: what loads a UNet's layers alone does nothing with it"
    if bundled:
        names = {name.removeprefix(_BUNDLED).partition(".")[0] for name in bundled}
        yield f"it brings {len(names)} textual inversion{'s' if len(names) > 1 else ''} along"
