"""What happened in one passage through a boundary, without holding on to a tensor."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import torch

from ..tensors.census import Census
from ..tensors.handover import Given
from ..tensors.reconcile import Reconcile


@dataclass(frozen=True)
class Seen:
    """A mismatch, without its tensors.

    path: the module it happened in, place: the line that called the operation, caller: the line that called the
    component; each `` when that is not known.
    """

    dtypes: tuple[torch.dtype, ...]
    operation: str
    path: str
    error: str
    place: str
    caller: str


@dataclass(frozen=True)
class Led:
    """A layer that was led around a change of dtype, without its tensors."""

    path: str
    given: torch.dtype
    cast: torch.dtype


@dataclass
class Passage:
    """One call of a component, of a part, or of the method that spans the parts.

    caller: the dtype that it was spoken to in; None when no floating tensor was given. given: all of these, by the
    argument's name. census: taken at the first
    mismatch, because hosts convert a VAE between two calls. led: the layers that were led around, in order.
    finite: whether what was looked at was; came_through: whether the call returned, without which that proves nothing.
    """

    caller: torch.dtype | None
    given: Given = ()
    mode: Reconcile | None = None
    first: Seen | None = None
    led: list[Led] = field(default_factory=list)
    operations: int = 0
    seconds: float = 0.0
    targets: set[torch.dtype] = field(default_factory=set)
    census: Census | None = None
    finite: bool = True
    came_through: bool = False

    def take_over(self, part: Passage) -> None:
        """Count a part's mismatches as one's own."""
        self.first = self.first or part.first
        self.led += part.led
        self.census = self.census or part.census
        self.operations += part.operations
        self.seconds += part.seconds
        self.targets |= part.targets
        self.finite = self.finite and part.finite


@dataclass
class Attempt:
    """One call of a host's method that casts what it hands over by a declaration which the component contradicts.

    trial: whether it is the first one, in which nothing is repaired. call: what happened in the spans inside.
    """

    trial: bool
    call: Passage
    came_through: bool = False


class ThreadState(threading.local):
    """What one thread is in the middle of: an attempt and a span at most, and the parts inside it."""

    def __init__(self) -> None:
        self.attempt: Attempt | None = None
        self.span: Passage | None = None
        self.parts: list[Passage] = []
