"""A component that is called through `__call__`, guarded: text encoder, UNet, ControlNet, image encoder and the like.

A UNet makes thousands of calls an image, and Reconcile costs about a microsecond each. So it is only there for the
first call of a generation, which shows whether this way of calling passes; and from then on where a mismatch came up,
where a call raised, and whenever the component is given other dtypes than before.

A text encoder is given words, which have no dtype, and what meets inside of it (textual inversions) changes with them;
of its calls there are few in a generation, so Reconcile is there for all of them.
"""

from __future__ import annotations

import functools
import sys
import weakref
from typing import Any

import torch

from ..hooks import Attachments
from ..hosts.base import Boundary
from ..tensors import reconcile
from ..tensors.census import take_census
from ..tensors.handover import Given, all_finite, dtypes_given, first_dtype, hand_over, tensors_in
from ..tensors.layers import has_fast_path, is_quantized
from . import verdict
from .base import GuardContext
from .crossing import Crossing
from .passage import Passage

#: Components in which a call raised, also in an earlier generation: the one after it should not fail as well.
_RAISED: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()


class ComponentCrossing(Crossing):
    """See the module's docstring."""

    def __init__(self, boundary: Boundary, context: GuardContext) -> None:
        super().__init__(boundary, context)
        self._boundary = boundary
        #: The ways of calling that came through without a mismatch, and cannot but do so again.
        self._passing: set[Given] = set()

    def attach(self, attachments: Attachments) -> None:
        """Put a pair of hooks on the component."""
        attachments.around(self._owner, self._before, self._after)

    # The border: what torch calls. Each of these passes a failure of ours by.

    def _before(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._guarded("entering", lambda: self._enter(args, kwargs), None)

    def _after(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        part = self._leave_always()
        if part is None:
            return None
        return self._guarded("finishing", lambda: self._finish(part, output), None)

    # One call.

    def _enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._unwind()
        part = Passage(first_dtype(args, kwargs), dtypes_given(args, kwargs))
        if self._is_needed(part.given) or self._would_abort((args, kwargs)):
            self._arm(part, self._repair, None)
        self._thread.parts.append(part)

    def _is_needed(self, given: Given) -> bool:
        if self._owner in _RAISED:
            return True
        return given not in self._passing and not self._is_delicate

    def _would_abort(self, values: Any) -> bool:
        """On a device that ends the process nothing can be learnt from a call that fails."""
        first = next(tensors_in(values), None)
        return first is not None and first.device.type in reconcile.ABORTING_DEVICES and not self._is_delicate

    @functools.cached_property
    def _is_delicate(self) -> bool:
        """Whether a mode could be felt though nothing is wrong: it stays away until a call has raised.

        Quantized layers unpack themselves, some by functions that are compiled anew under a mode; and attention that
        takes its fast path rounds in another way without it, unless unequal weights keep it from that path anyway.
        """
        if is_quantized(self._owner):
            return True
        return has_fast_path(self._owner) and take_census(self._owner).uniform is not None

    def _finish(self, part: Passage, output: Any) -> Any:
        if output is None:
            self._remember_failure()
        elif part.first is None and part.given:
            self._passing.add(part.given)
        part.came_through = output is not None
        if part.targets and output is not None:
            part.finite = all_finite(output)
            dtype = self._exit_dtype(part)
            output = output if dtype is None else hand_over(output, dtype)
        if part.first is not None and part.census is not None:
            finding = verdict.mismatch(self._boundary, part, part.first, part.census)
            self._context.say(finding, verdict.computed(self._boundary, part) if part.targets else None)
        return output

    def _remember_failure(self) -> None:
        """torch calls the hook while it handles what was raised."""
        if isinstance(sys.exc_info()[1], (RuntimeError, TypeError)):
            _RAISED.add(self._owner)

    def _exit_dtype(self, part: Passage) -> torch.dtype | None:
        """The dtype that the caller spoke in; a text encoder is given words, and speaks in its own."""
        return part.caller or (part.census or take_census(self._owner)).dominant
