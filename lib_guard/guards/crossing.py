"""One boundary of one model, guarded: what guarding any of them takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..hooks import Attachments
from ..hosts.base import Boundary
from ..settings import FIX
from ..tensors.census import take_census
from ..tensors.reconcile import Mismatch, Reconcile
from .base import GuardContext
from .culprit import caller_of, module_in, place_in
from .passage import Passage, Seen, ThreadState


class Crossing:
    """The modes that a boundary's calls run under, and what is noted of them."""

    def __init__(self, boundary: Boundary, context: GuardContext) -> None:
        self._owner = boundary.owner
        self._name = boundary.name
        self._context = context
        self._repair = context.settings.precision == FIX
        self._thread = ThreadState()
        self._entered: set[Reconcile] = set()

    def attach(self, attachments: Attachments) -> None:
        """Put hooks on the boundary. To be overridden."""
        raise NotImplementedError

    def disarm(self) -> None:
        """Leave what an interrupt left entered. On another thread than this it stays there, and acts no more."""
        for mode in list(self._entered):
            mode.leave()
        self._entered.clear()

    def _guarded(self, doing: str, call: Callable[[], Any], otherwise: Any) -> Any:
        """The border: what torch or the host calls passes a failure of ours by."""
        return self._context.border.run("precision", f"{doing} {self._name}", call, otherwise)

    def _arm(self, part: Passage, repair: bool, compute: torch.dtype | None) -> None:
        """Have the calling thread's operations run under `Reconcile` until the part is left."""
        part.mode = Reconcile(
            lambda dtypes: self._guarded("choosing a dtype in", lambda: self._prefer(part, dtypes), None),
            lambda mismatch: self._guarded("noting a mismatch in", lambda: self._note(part, mismatch), None),
            repair=repair,
            compute=compute,
        )
        part.mode.enter()
        self._entered.add(part.mode)

    def _leave_always(self) -> Passage | None:
        """Leave the innermost part, also when this guard is off by now: what was entered must be left."""
        part: Passage | None = self._context.border.always("precision", f"leaving {self._name}", self._leave, None)
        return part

    def _leave(self) -> Passage | None:
        part = self._thread.parts.pop() if self._thread.parts else None
        if part is not None and part.mode is not None:
            part.mode.leave()
            self._entered.discard(part.mode)
        return part

    def _unwind(self) -> None:
        """Leave what an interrupt that is no `Exception` left entered: torch calls no hook then, not even `always`."""
        while self._thread.parts:
            self._leave()

    def _prefer(self, part: Passage, dtypes: tuple[torch.dtype, ...]) -> torch.dtype | None:
        part.census = part.census or take_census(self._owner)
        return part.census.uniform if part.census.uniform in dtypes else None

    def _note(self, part: Passage, mismatch: Mismatch) -> None:
        part.census = part.census or take_census(self._owner)
        if part.first is None:
            part.first = Seen(
                mismatch.dtypes,
                mismatch.operation,
                module_in(self._owner),
                mismatch.error,
                place_in(),
                caller_of(self._owner),
            )
        part.operations += 1
        part.seconds += mismatch.seconds
        if mismatch.target is not None:
            part.targets.add(mismatch.target)
