"""Which dtypes a component's parameters are in, and which of its parts stray."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

from .dtypes import COMPUTE_DTYPES, dtype_name


@dataclass(frozen=True)
class Straggler:
    """A part of a component, whole, in another dtype than most of it: `decoder.conv_in`, float16, 2 tensors."""

    path: str
    dtype: torch.dtype
    tensors: int

    def describe(self) -> str:
        """`decoder.conv_in in float16 (2 tensors)`."""
        return f"{self.path} in {dtype_name(self.dtype)} ({self.tensors} tensor{'s' if self.tensors != 1 else ''})"


@dataclass(frozen=True)
class Census:
    """The compute dtypes of one component.

    values: how many numbers are held in each compute dtype. stragglers: the largest parts that hold only a dtype which
    is not the dominant one, in order of the module tree.
    """

    values: dict[torch.dtype, int]
    stragglers: tuple[Straggler, ...]

    @property
    def uniform(self) -> torch.dtype | None:
        """The one compute dtype of the component; None when it holds several, or none."""
        return next(iter(self.values)) if len(self.values) == 1 else None

    @property
    def dominant(self) -> torch.dtype | None:
        """The dtype that most of the component's numbers are in; None for a component without compute weights."""
        return max(self.values, key=lambda dtype: (self.values[dtype], str(dtype))) if self.values else None

    def describe(self, most: int = 3) -> str:
        """`float32`, or `float32 with decoder.conv_in in float16 (2 tensors)`; names at most `most` stragglers."""
        if self.dominant is None:
            return "without weights of a compute dtype"
        base = dtype_name(self.dominant)
        if not self.stragglers:
            return base
        named = [straggler.describe() for straggler in self.stragglers[:most]]
        left = len(self.stragglers) - len(named)
        return f"{base} with {', '.join(named)}" + (f" and {left} more parts" if left else "")


def take_census(component: torch.nn.Module) -> Census:
    """Count a component's compute dtypes and name its stragglers.

    A layer that stores one of its parameters in another kind of dtype (float8, int8, packed uint8) is left out whole:
    its scales and biases say nothing about the precision that it computes in. Nothing is read but dtypes and sizes,
    so meta and offloaded tensors count too.
    """
    parameters = _compute_parameters(component)
    values: Counter[torch.dtype] = Counter()
    for _, parameter in parameters:
        values[parameter.dtype] += parameter.numel()
    census = Census(dict(values), ())
    if len(values) < 2:
        return census
    return Census(census.values, _stragglers(parameters, census.dominant))


def _compute_parameters(component: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    found = []
    for path, module in component.named_modules():
        own = [(name, p) for name, p in module._parameters.items() if p is not None]
        if all(p.dtype in COMPUTE_DTYPES for _, p in own):
            found += [(f"{path}.{name}" if path else name, p) for name, p in own]
    return found


def _stragglers(
    parameters: list[tuple[str, torch.nn.Parameter]], dominant: torch.dtype | None
) -> tuple[Straggler, ...]:
    """The topmost parts of the tree whose parameters all share one dtype that is not the dominant one."""
    dtypes_below: dict[str, Counter[torch.dtype]] = {}
    for name, parameter in parameters:
        for part in _prefixes(name):
            dtypes_below.setdefault(part, Counter())[parameter.dtype] += 1
    found: dict[str, Straggler] = {}
    for name, parameter in parameters:
        if parameter.dtype == dominant:
            continue
        part = next(part for part in _prefixes(name) if len(dtypes_below[part]) == 1)
        found[part] = Straggler(part, parameter.dtype, dtypes_below[part][parameter.dtype])
    return tuple(found.values())


def _prefixes(name: str) -> list[str]:
    """`a.b.weight` -> `a`, `a.b`, `a.b.weight`."""
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]
