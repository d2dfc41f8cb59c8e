"""One direction of a VAE, guarded: the hooks on its parts, the span around them, and what is done inside."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..findings import Repair
from ..hooks import Attachments
from ..hosts.base import DECODE, ENCODE, Detour, Entry, Shield, VaeBoundary
from ..tensors.census import take_census
from ..tensors.dtypes import dtype_name, promoted
from ..tensors.handover import all_finite, first_dtype, hand_over
from . import verdict
from .base import GuardContext
from .crossing import Crossing
from .passage import Attempt, Led, Passage


class VaeCrossing(Crossing):
    """See the module's docstring."""

    def __init__(self, boundary: VaeBoundary, context: GuardContext) -> None:
        super().__init__(boundary, context)
        self._boundary = boundary
        chosen = context.settings.vae_precision
        self._chosen: torch.dtype | None = None if chosen == "auto" else getattr(torch, chosen)

    def attach(self, attachments: Attachments) -> None:
        """Put hooks on the parts, the span on their method, and, to repair, what the host gives to be led around."""
        for _, module in self._boundary.modules:
            attachments.around(module, self._before, self._after)
        attachments.method(self._owner, self._boundary.method, self._spanning)
        entry = self._boundary.entry
        if entry is not None and self._repair:
            attachments.method(entry.owner, entry.method, functools.partial(self._entering, entry))
        for shield in self._context.host.shields() if self._repair else ():
            attachments.method(shield.owner, shield.name, functools.partial(self._shielding, shield))

    # The border: what torch calls. Each of these passes a failure of ours by.

    def _before(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._guarded("entering", lambda: self._enter(Passage(first_dtype(args, kwargs))), None)

    def _after(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        part = self._leave_always()
        if part is None:
            return None
        return self._guarded("finishing", lambda: self._finish_part(module, part, output), None)

    def _spanning(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._span(Passage(first_dtype(args, kwargs))) as span:
                result = method(*args, **kwargs)
                span.came_through = True
                return self._guarded("handing back the result of", lambda: self._hand_back(span, result), result)

        return call

    def _entering(self, entry: Entry, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            dtype = self._guarded("comparing dtypes ahead of", lambda: self._contradicting(entry), None)
            if dtype is None:
                return method(*args, **kwargs)
            return self._try(entry, dtype, functools.partial(method, *args, **kwargs))

        return call

    def _shielding(self, shield: Shield, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            detour = self._guarded("shielding", lambda: self._lead(shield.detour(*args, **kwargs)), None)
            return function(*args, **kwargs) if detour is None else detour.call()

        return call

    # A part: one module called through __call__.

    def _enter(self, part: Passage) -> None:
        self._unwind()
        self._arm(part, self._repair and not self._is_trial(), self._compute)
        self._thread.parts.append(part)

    @property
    def _compute(self) -> torch.dtype | None:
        """What the user chose to compute in; what is called again has a dtype of its own, from around this guard."""
        return None if self._context.again.dtype else self._chosen

    def _finish_part(self, module: torch.nn.Module, part: Passage, output: Any) -> Any:
        span = self._thread.span
        if span is not None:
            span.take_over(part)
        call = span or part
        if output is not None and (call.targets or call.led or self._thread.attempt):
            call.finite = call.finite and all_finite(output)
        if output is not None and self._acted(call) and self._is_exit(module, span):
            dtype = self._exit_dtype(call)
            output = output if dtype is None else hand_over(output, dtype)
        if span is None:
            part.came_through = output is not None
            self._report(part)
        return output

    def _is_exit(self, module: torch.nn.Module, span: Passage | None) -> bool:
        """Whether what this part returns leaves the boundary; of an encode it is drawn from first (`_hand_back`)."""
        last = module is self._boundary.modules[-1][1]
        return last and (span is None or self._boundary.direction == DECODE)

    def _acted(self, call: Passage) -> bool:
        return bool(call.targets) or self._compute is not None

    def _exit_dtype(self, call: Passage) -> torch.dtype | None:
        """What the boundary's last part hands out: never wider than caller, component and the user's choice ask for.

        None where none of them says anything."""
        dominant = (call.census or take_census(self._owner)).dominant
        asked = (call.caller, dominant, self._compute, self._context.again.dtype)
        known = [dtype for dtype in asked if dtype is not None]
        return promoted(known) if known else None

    # The span: the method that calls the parts.

    @contextmanager
    def _span(self, span: Passage) -> Iterator[Passage]:
        self._unwind()
        outer, self._thread.span = self._thread.span, span
        try:
            yield span
        finally:
            self._unwind()
            self._thread.span = outer
            self._guarded("reporting on", lambda: self._report(span), None)

    def _hand_back(self, span: Passage, result: Any) -> Any:
        if self._boundary.direction == ENCODE and self._acted(span) and span.caller is not None:
            return hand_over(result, span.caller)
        return result

    # The entry: a host's method that casts what it hands over, by a declaration that may be wrong.

    def _contradicting(self, entry: Entry) -> torch.dtype | None:
        """The component's one dtype, where it is not the declared one."""
        declared = getattr(entry.owner, entry.declared, None)
        if not isinstance(declared, torch.dtype) or any(p.dtype == declared for p in self._owner.parameters()):
            return None
        return take_census(self._owner).uniform

    def _try(self, entry: Entry, dtype: torch.dtype, call: Callable[[], Any]) -> Any:
        """Call the method as it is, for layers may fit themselves to what they are given; and only when that fails on
        dtypes once more, with the declaration put right for its length. A cast inside would come after the rounding
        that the wrong one brings."""
        started = time.perf_counter()
        try:
            with self._attempt(trial=True) as first:
                result = call()
            self._guarded("reporting on", lambda: self._report(first.call), None)
            return result
        except RuntimeError:
            if first.call.first is None:
                raise
        first.call.seconds = time.perf_counter() - started
        with self._attempt(trial=False) as second:
            try:
                with _declared_as(entry, dtype):
                    result = call()
                second.came_through = True
            finally:
                self._guarded("reporting on", lambda: self._report_entry(entry, dtype, first.call, second), None)
        return result

    @contextmanager
    def _attempt(self, trial: bool) -> Iterator[Attempt]:
        outer, self._thread.attempt = self._thread.attempt, Attempt(trial, Passage(None))
        try:
            yield self._thread.attempt
        finally:
            self._thread.attempt = outer

    def _is_trial(self) -> bool:
        return self._thread.attempt is not None and self._thread.attempt.trial

    def _report_entry(self, entry: Entry, dtype: torch.dtype, failed: Passage, second: Attempt) -> None:
        if failed.first is None or failed.census is None:
            return
        failed.targets = {dtype} if second.came_through else set()
        finding = verdict.mismatch(self._boundary, failed, failed.first, failed.census)
        again = f"{self._boundary.direction}d in {dtype_name(dtype)}, called again with {entry.declared} put right"
        proof = "result finite" if second.call.finite and second.call.first is None else ""
        repair = Repair(again, proof, failed.seconds * 1000) if second.came_through else None
        self._context.say(finding, repair)

    # The shield: a function that layers of all components run through.

    @functools.cached_property
    def _paths(self) -> dict[int, str]:
        """The boundary's own layers by identity; wanted only when something would change a dtype."""
        parts = self._boundary.modules
        return {id(m): ".".join(filter(None, (name, path))) for name, part in parts for path, m in part.named_modules()}

    def _lead(self, detour: Detour | None) -> Detour | None:
        path = None if detour is None else self._paths.get(id(detour.layer))
        if detour is None or path is None:
            return None
        if self._thread.parts:
            self._thread.parts[-1].led.append(Led(path, detour.given, detour.cast))
        return detour

    # Judging and reporting.

    def _report(self, call: Passage) -> None:
        attempt = self._thread.attempt
        if attempt is not None:
            attempt.call.caller = attempt.call.caller or call.caller
            attempt.call.take_over(call)
            return
        if call.led:
            self._context.say(*verdict.led_around(self._boundary, call))
        if call.first is None or call.census is None:
            return
        finding = verdict.mismatch(self._boundary, call, call.first, call.census)
        self._context.say(finding, verdict.computed(self._boundary, call) if call.targets else None)


@contextmanager
def _declared_as(entry: Entry, dtype: torch.dtype) -> Iterator[None]:
    """With the declaration saying `dtype`. What somebody else has set meanwhile stays."""
    before = getattr(entry.owner, entry.declared)
    setattr(entry.owner, entry.declared, dtype)
    try:
        yield
    finally:
        if getattr(entry.owner, entry.declared) == dtype:
            setattr(entry.owner, entry.declared, before)
