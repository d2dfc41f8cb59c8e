"""The two messages of torch that name shapes, as numbers.

Both are as torch words them: aten/src/ATen/native (`mat1 and mat2 shapes cannot be multiplied`) and torch/nn/modules/
module.py `_load_from_state_dict` (`size mismatch for`). Every repetition in a pattern has an end, so that no text can
make them slow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_SIDE = r"(\d{1,7})x(\d{1,7})"
_PRODUCT = re.compile(rf"mat1 and mat2 shapes cannot be multiplied \({_SIDE} and {_SIDE}\)")
_SIZE = r"torch\.Size\(\[(\d{1,7}(?:, ?\d{1,7}){0,5})\]\)"
_MISMATCH = re.compile(
    rf"size mismatch for ([\w.]{{1,200}}): copying a param with shape {_SIZE} from checkpoint,"
    rf" the shape in current model is {_SIZE}"
)


@dataclass(frozen=True)
class Product:
    """rows, given: of what a layer was given. takes, makes: of the layer."""

    at: int
    rows: int
    given: int
    takes: int
    makes: int


@dataclass(frozen=True)
class Mismatch:
    """name: of the tensor. file, model: its shape in the file, and in what the program has built for it."""

    at: int
    name: str
    file: tuple[int, ...]
    model: tuple[int, ...]


def products(text: str) -> Iterator[Product]:
    """Every matrix product of a text that could not be."""
    for found in _PRODUCT.finditer(text):
        yield Product(found.start(), *map(int, found.groups()))


def mismatches(text: str) -> Iterator[Mismatch]:
    """Every tensor of a text that did not fit into its place."""
    for found in _MISMATCH.finditer(text):
        yield Mismatch(found.start(), found[1], _shape(found[2]), _shape(found[3]))


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))
