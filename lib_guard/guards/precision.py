"""The precision guard: within a boundary every operation gets operands of one floating dtype.

Nothing is cast ahead of a failure: a call with unequal dtypes is healthy under autocast, under a host's manual cast
and wherever an operation promotes by itself, and a healthy generation must keep every bit. So the boundary's parts run
under `Reconcile`, which acts on the operation that raises. In a VAE of one dtype that operation is computed in the
VAE's dtype, which is the entry cast that the caller forgot; in a VAE of several, in the dtype that loses nothing.

What a caller gets back it gets in the dtype that it came with: with the input cast alone, SD.Next's img2img fails in
the UNet instead of the VAE. The latents are *sampled* in the VAE's dtype first, as diffusers does itself where it
upcasts (pipeline_stable_diffusion_xl_img2img.py:772), so the picture is that of a healthy configuration bit for bit.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch

from ..findings import Finding, Primitive, Repair
from ..hooks import Attachments
from ..hosts.base import DECODE, ENCODE, Boundary, Detour, Entry, Shield
from ..settings import FIX
from ..tensors.census import Census, take_census
from ..tensors.dtypes import dtype_name, is_compute, promoted
from ..tensors.reconcile import Mismatch, Reconcile
from .base import GuardContext

_PASSED = {"encode": "a {} picture", "decode": "{} latents"}


class PrecisionGuard:
    """See the module's docstring. Guards the VAE's encode and decode."""

    name = "precision"

    def __init__(self, context: GuardContext) -> None:
        self._context = context
        self._attachments = Attachments()
        self._crossings: list[_Crossing] = []

    def attach(self) -> None:
        """Put the pair of hooks on every part of every boundary, and the span on the method around them."""
        self._put_back()
        for boundary in self._context.host.boundaries():
            crossing = _Crossing(boundary, self._context)
            self._crossings.append(crossing)
            crossing.attach(self._attachments)

    def detach(self) -> None:
        """Take the hooks away; modes that an interrupt left entered do nothing from here on."""
        self._attachments.detach()
        for crossing in self._crossings:
            crossing.disarm()
        self._crossings.clear()
        self._put_back()

    def _put_back(self) -> None:
        for finding, repair in self._context.host.left_behind(put_back=self._context.settings.precision == FIX):
            self._context.report(finding, repair)


@dataclass(frozen=True)
class _Seen:
    """A mismatch, without its tensors. path: the module it happened in, `` when that is not known."""

    dtypes: tuple[torch.dtype, ...]
    operation: str
    path: str
    target: torch.dtype | None
    error: str


@dataclass(frozen=True)
class _Led:
    """A layer that was led around a change of dtype, without its tensors."""

    path: str
    given: torch.dtype
    cast: torch.dtype


@dataclass
class _Call:
    """One call of a part, or of the method that spans the parts.

    caller: the dtype that it was spoken to in; None when no floating tensor was given. census: taken at the first
    mismatch, because hosts convert a VAE between two calls. led: the layers that were led around, in order.
    """

    caller: torch.dtype | None
    mode: Reconcile | None = None
    first: _Seen | None = None
    led: list[_Led] = field(default_factory=list)
    operations: int = 0
    seconds: float = 0.0
    targets: set[torch.dtype] = field(default_factory=set)
    census: Census | None = None
    finite: bool = True

    def take_over(self, part: _Call) -> None:
        """Count a part's mismatches as one's own."""
        self.first = self.first or part.first
        self.led += part.led
        self.census = self.census or part.census
        self.operations += part.operations
        self.seconds += part.seconds
        self.targets |= part.targets
        self.finite = self.finite and part.finite


@dataclass
class _Attempt:
    """One call of a host's method that casts what it hands over by a declaration which the component contradicts.

    trial: whether it is the first one, in which nothing is repaired. call: what happened in the spans inside.
    """

    trial: bool
    call: _Call
    came_through: bool = False


class _ThreadState(threading.local):
    """What one thread is in the middle of: an attempt and a span at most, and the parts inside it."""

    def __init__(self) -> None:
        self.attempt: _Attempt | None = None
        self.span: _Call | None = None
        self.parts: list[_Call] = []


class _Crossing:
    """One boundary of one model, guarded."""

    def __init__(self, boundary: Boundary, context: GuardContext) -> None:
        self._boundary = boundary
        self._context = context
        self._repair = context.settings.precision == FIX
        chosen = context.settings.vae_precision
        self._compute: torch.dtype | None = None if chosen == "auto" else getattr(torch, chosen)
        self._thread = _ThreadState()
        self._entered: set[Reconcile] = set()

    def attach(self, attachments: Attachments) -> None:
        for _, module in self._boundary.modules:
            attachments.around(module, self._before, self._after)
        attachments.method(self._boundary.owner, self._boundary.method, self._spanning)
        entry = self._boundary.entry
        if entry is not None and self._repair:
            attachments.method(entry.owner, entry.method, functools.partial(self._entering, entry))
        for shield in self._context.host.shields() if self._repair else ():
            attachments.method(shield.owner, shield.name, functools.partial(self._shielding, shield))

    def disarm(self) -> None:
        for mode in self._entered:
            mode.inert = True

    # The border: what torch calls. Each of these passes a failure of ours by.

    def _before(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._guarded("entering", lambda: self._enter(_Call(_first_dtype(args, kwargs))), None)

    def _after(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        # `always`: the mode was entered, so it must be left, whatever failed in between.
        part = self._context.border.always("precision", f"leaving {self._boundary.name}", self._leave_part, None)
        return (
            None if part is None else self._guarded("finishing", lambda: self._finish_part(module, part, output), None)
        )

    def _spanning(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._span(_Call(_first_dtype(args, kwargs))) as span:
                result = method(*args, **kwargs)
                return self._guarded("handing back the result of", lambda: self._hand_back(span, result), result)

        return call

    def _entering(self, entry: Entry, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            dtype = self._guarded("comparing dtypes ahead of", lambda: self._contradicting(entry), None)
            return (
                method(*args, **kwargs)
                if dtype is None
                else self._try(entry, dtype, functools.partial(method, *args, **kwargs))
            )

        return call

    def _shielding(self, shield: Shield, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            detour = self._guarded("shielding", lambda: self._lead(shield.detour(*args, **kwargs)), None)
            return function(*args, **kwargs) if detour is None else detour.call()

        return call

    def _guarded(self, doing: str, call: Callable[[], Any], otherwise: Any) -> Any:
        return self._context.border.run("precision", f"{doing} {self._boundary.name}", call, otherwise)

    # A part: one module called through __call__.

    def _enter(self, part: _Call) -> None:
        self._unwind()
        part.mode = Reconcile(
            lambda dtypes: self._guarded("choosing a dtype in", lambda: self._prefer(part, dtypes), None),
            lambda mismatch: self._guarded("noting a mismatch in", lambda: self._note(part, mismatch), None),
            repair=self._repair and not self._is_trial(),
            compute=self._compute,
        )
        part.mode.enter()
        self._entered.add(part.mode)
        self._thread.parts.append(part)

    def _leave_part(self) -> _Call | None:
        part = self._thread.parts.pop() if self._thread.parts else None
        if part is not None and part.mode is not None:
            self._leave_mode(part.mode)
        return part

    def _leave_mode(self, mode: Reconcile) -> None:
        mode.leave()
        self._entered.discard(mode)

    def _unwind(self) -> None:
        """Leave what an interrupt that is no `Exception` left entered: torch calls no hook then, not even `always`."""
        while self._thread.parts:
            self._leave_part()

    def _finish_part(self, module: torch.nn.Module, part: _Call, output: Any) -> Any:
        span = self._thread.span
        if span is not None:
            span.take_over(part)
        call = span or part
        if output is not None and (call.targets or call.led or self._thread.attempt):
            call.finite = call.finite and _all_finite(output)
        if output is not None and self._acted(call) and self._is_exit(module, span):
            output = _cast_tensors(output, self._exit_dtype(call))
        if span is None:
            self._report(part)
        return output

    def _is_exit(self, module: torch.nn.Module, span: _Call | None) -> bool:
        """Whether what this part returns leaves the boundary; of an encode it is drawn from first (`_hand_back`)."""
        last = module is self._boundary.modules[-1][1]
        return last and (span is None or self._boundary.direction == DECODE)

    def _acted(self, call: _Call) -> bool:
        return bool(call.targets) or self._compute is not None

    def _exit_dtype(self, call: _Call) -> torch.dtype | None:
        """What the boundary's last part hands out: never wider than caller, component and the user's choice ask for."""
        dominant = (call.census or take_census(self._boundary.owner)).dominant
        known = [dtype for dtype in (call.caller, dominant, self._compute) if dtype is not None]
        return promoted(known) if known else None

    # The span: the method that calls the parts.

    @contextmanager
    def _span(self, span: _Call) -> Iterator[_Call]:
        self._unwind()
        outer, self._thread.span = self._thread.span, span
        try:
            yield span
        finally:
            self._unwind()
            self._thread.span = outer
            self._guarded("reporting on", lambda: self._report(span), None)

    def _hand_back(self, span: _Call, result: Any) -> Any:
        if self._boundary.direction == ENCODE and self._acted(span) and span.caller is not None:
            return _deliver(result, span.caller)
        return result

    # The entry: a host's method that casts what it hands over, by a declaration that may be wrong.

    def _contradicting(self, entry: Entry) -> torch.dtype | None:
        """The component's one dtype, where it is not the declared one."""
        declared = getattr(entry.owner, entry.declared, None)
        if not isinstance(declared, torch.dtype) or any(p.dtype == declared for p in self._boundary.owner.parameters()):
            return None
        return take_census(self._boundary.owner).uniform

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
    def _attempt(self, trial: bool) -> Iterator[_Attempt]:
        outer, self._thread.attempt = self._thread.attempt, _Attempt(trial, _Call(None))
        try:
            yield self._thread.attempt
        finally:
            self._thread.attempt = outer

    def _is_trial(self) -> bool:
        return self._thread.attempt is not None and self._thread.attempt.trial

    def _report_entry(self, entry: Entry, dtype: torch.dtype, failed: _Call, second: _Attempt) -> None:
        if failed.first is None or failed.census is None:
            return
        failed.targets = {dtype} if second.came_through else set()
        finding = self._finding(failed, failed.first, failed.census)
        again = f"{self._boundary.direction}d in {dtype_name(dtype)}, called again with {entry.declared} put right"
        proof = "result finite" if second.call.finite and second.call.first is None else ""
        repair = Repair(again, proof, failed.seconds * 1000) if second.came_through else None
        self._context.report(finding, repair)

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
            self._thread.parts[-1].led.append(_Led(path, detour.given, detour.cast))
        return detour

    # Judging and reporting.

    def _prefer(self, part: _Call, dtypes: tuple[torch.dtype, ...]) -> torch.dtype | None:
        part.census = part.census or take_census(self._boundary.owner)
        return part.census.uniform if part.census.uniform in dtypes else None

    def _note(self, part: _Call, mismatch: Mismatch) -> None:
        part.census = part.census or take_census(self._boundary.owner)
        if part.first is None:
            path = _calling_module(self._boundary.owner)
            part.first = _Seen(mismatch.dtypes, mismatch.operation, path, mismatch.target, mismatch.error)
        part.operations += 1
        part.seconds += mismatch.seconds
        if mismatch.target is not None:
            part.targets.add(mismatch.target)

    def _report(self, call: _Call) -> None:
        attempt = self._thread.attempt
        if attempt is not None:
            attempt.call.caller = attempt.call.caller or call.caller
            attempt.call.take_over(call)
            return
        if call.led:
            self._context.report(self._shielded(call), Repair(*self._led_around(call), 0.0))
        if call.first is None or call.census is None:
            return
        finding = self._finding(call, call.first, call.census)
        self._context.report(finding, self._repaired(call) if call.targets else None)

    def _finding(self, call: _Call, first: _Seen, census: Census) -> Finding:
        code, saw = _judge(self._boundary, call, first, census)
        evidence: dict[str, Primitive] = {
            "module": first.path,
            "operation": first.operation,
            "dtypes": ", ".join(dtype_name(dtype) for dtype in first.dtypes),
            "caller": dtype_name(call.caller) if call.caller else None,
            "component": census.describe(),
            "computed_in": dtype_name(promoted(call.targets)) if call.targets else None,
            "error": first.error[:200],
            "operations": call.operations,
            "cause_key": census.describe(),
        }
        finding = Finding(code, "precision", self._boundary.component, self._boundary.direction, saw, evidence)
        return self._context.host.explain(finding)

    def _shielded(self, call: _Call) -> Finding:
        first, layers = call.led[0], len({led.path for led in call.led})
        census = take_census(self._boundary.owner).describe()
        others = f" and {layers - 1} more layers" if layers > 1 else ""
        saw = (
            f"{self._boundary.name}: {first.path}{others} would make {dtype_name(first.given)} "
            f"{dtype_name(first.cast)} inside, the VAE is {census}"
        )
        evidence: dict[str, Primitive] = {
            "module": first.path,
            "layers": layers,
            "dtypes": f"{dtype_name(first.given)}, {dtype_name(first.cast)}",
            "caller": dtype_name(call.caller) if call.caller else None,
            "component": census,
            "cause_key": census,
        }
        finding = Finding("LG105", "precision", self._boundary.component, self._boundary.direction, saw, evidence)
        return self._context.host.explain(finding)

    def _led_around(self, call: _Call) -> tuple[str, str]:
        layers = len({led.path for led in call.led})
        did = f"{self._boundary.direction}d with the original forward of {layers} layer{'s' if layers != 1 else ''}"
        return did, "result finite" if call.finite else ""

    def _repaired(self, call: _Call) -> Repair:
        count = f"{call.operations} operation{'s' if call.operations != 1 else ''} cast"
        proof = "result finite" if call.finite else ""
        return Repair(
            f"{self._boundary.direction}d in {dtype_name(promoted(call.targets))}, {count}", proof, call.seconds * 1000
        )


def _judge(boundary: Boundary, call: _Call, first: _Seen, census: Census) -> tuple[str, str]:
    """The code of a mismatch, and the clause that tells it."""
    where = f"{first.path or boundary.component}, {first.operation}"
    quoted = f': "{" ".join(first.error.split())[:160]}"' if first.error else ""
    if census.uniform is None:
        return "LG103", f"the VAE is {census.describe()}, {boundary.direction} cannot pass {where}{quoted}"
    own = dtype_name(census.uniform)
    if call.caller is not None and call.caller != census.uniform:
        code = "LG102" if boundary.direction == ENCODE else "LG101"
        passed = _PASSED[boundary.direction].format(dtype_name(call.caller))
        return code, f"{boundary.name} got {passed}, the VAE is {own} ({where}{quoted})"
    foreign = next((dtype for dtype in first.dtypes if dtype != census.uniform), census.uniform)
    inside = f"{boundary.name} and its input are {own}, but inside something made it {dtype_name(foreign)}"
    return "LG104", f"{inside} ({where}{quoted})"


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


def _calling_module(owner: torch.nn.Module) -> str:
    """The path of the innermost module of `owner` whose method is being executed; `` when there is none.

    The frames tell it where the operands cannot: a layer that casts its weight hands a copy to the operation.
    """
    paths = {id(module): path for path, module in owner.named_modules()}
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        path = paths.get(id(frame.f_locals.get("self")))
        if path:
            return str(path)
        frame = frame.f_back
    return ""


def _first_dtype(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.dtype | None:
    values = (*args, *kwargs.values())
    return next((v.dtype for v in values if isinstance(v, torch.Tensor) and is_compute(v)), None)


def _all_finite(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return not is_compute(value) or bool(torch.isfinite(value).all())
    return all(_all_finite(item) for item in value) if isinstance(value, (tuple, list)) else True


def _cast_tensors(value: Any, dtype: torch.dtype | None) -> Any:
    if dtype is None:
        return value
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if is_compute(value) else value
    if type(value) in (tuple, list):
        return type(value)(_cast_tensors(item, dtype) for item in value)
    return value


def _deliver(result: Any, dtype: torch.dtype) -> Any:
    """An encode's result in the caller's dtype.

    Latents are cast. A distribution keeps its parameters as computed and casts what is drawn from it: drawing in the
    narrow dtype would round mean and deviation first. The distribution belongs to this one call, so that nothing has
    to be put back.
    """
    if isinstance(result, torch.Tensor):
        return result.to(dtype) if is_compute(result) else result
    if type(result) in (tuple, list):
        return type(result)(_deliver(item, dtype) for item in result)
    if isinstance(result, dict):  # diffusers' outputs are ordered dicts whose fields are attributes too
        for key, item in list(result.items()):
            result[key] = _deliver(item, dtype)
        return result
    for name in ("sample", "mode"):
        if callable(draw := getattr(result, name, None)):
            setattr(result, name, functools.partial(_draw, draw, dtype))
    return result


def _draw(draw: Callable[..., torch.Tensor], dtype: torch.dtype, *args: Any, **kwargs: Any) -> torch.Tensor:
    return draw(*args, **kwargs).to(dtype)
