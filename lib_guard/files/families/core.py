"""The part of a model that samples, and a LoRA's layers of it.

Both are told by the same rules, each of a model's own layers standing for a LoRA that changes all of it. So what a LoRA
of all layers is taken for, the model is taken for too, and where both are known they can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from .layers import Layer, Width
from .transformers import transformer_rules
from .unet import (
    context_clues,
    hidden_clues,
    is_square,
    is_unet_layer,
    is_video_unet_layer,
    place_clues,
    takes_context,
)
from .verdict import SD2, SD15, SDXL, SDXL_REFINER, Clue, Evidence, Settled, clue, distinct, settle

_PROJECTION = re.compile(r"(?:attentions_\d+|put_blocks_\d+_1|middle_block_1)_proj_(?:in|out)$")


@dataclass(frozen=True)
class Core:
    """What the layers come to.

    clues: those that led there, weightiest first. contexts: the widths of text that the layers of a UNet take, each
    with one tensor that tells.
    """

    settled: Settled
    clues: tuple[Clue, ...]
    contexts: Mapping[int, Width]

    @property
    def families(self) -> frozenset[str]:
        """Every family that is possible; empty when nothing is known."""
        return frozenset(self.settled.candidates)

    def against(self, others: frozenset[str]) -> Evidence | None:
        """The weightiest tensor that speaks for one of its families and against all of these."""
        speaking = (one.evidence for one in self.clues if one.families & self.families and not one.families & others)
        return next(speaking, next(reversed(self.settled.evidence), None))


def core_of(layers: Sequence[Layer]) -> Core:
    """What these layers come to."""
    rules = core_rules(layers)
    own = [layer for layer in layers if is_unet_layer(layer.path)]
    widths = [width for layer in own for width in [_context_width(layer)] if width]
    clues = tuple(one for rule in rules for one in distinct(rule))
    return Core(settle(rules), clues, {width.value: width for width in reversed(widths)})


def core_rules(layers: Sequence[Layer]) -> list[list[Clue]]:
    """The clues of all layers that sample, rule by rule."""
    return [*_unet_rules(layers), *transformer_rules(layers)]


def _unet_rules(layers: Sequence[Layer]) -> Iterator[list[Clue]]:
    if any(is_video_unet_layer(layer.path) for layer in layers):
        return
    own = [layer for layer in layers if is_unet_layer(layer.path)]
    yield [found for layer in own for found in _context(layer)]
    yield [found for layer in own for found in _hidden(layer)]
    yield [found for layer in own for found in place_clues(layer.path, layer.first.name, layer.first.entry)]
    yield [found for layer in own for found in _projection(layer)]


def _context_width(layer: Layer) -> Width | None:
    return layer.width_in() if takes_context(layer.path) else None


def _context(layer: Layer) -> Iterator[Clue]:
    width = _context_width(layer)
    if width:
        yield from _noted(width, context_clues(width.value, width.name, width.entry))


def _hidden(layer: Layer) -> Iterator[Clue]:
    width = layer.width_square() if is_square(layer.path) else None
    if width:
        yield from _noted(width, hidden_clues(width.value, width.name, width.entry))


def _noted(width: Width, clues: Iterable[Clue]) -> Iterator[Clue]:
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
