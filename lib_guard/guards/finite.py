"""The finite guard: what the VAE returns, and the latent that it is given, is finite.

One reduction a decode tells. The VAE alone is called again, and only when what it was given is finite: a latent that
holds NaN cannot be decoded by anything, so that is said with the step in which it began.

The repetition runs in float32 at once, because that picture is the healthy configuration's bit for bit; bfloat16, which
SDXL's VAE bears as well, is for when memory does not suffice. No weight is converted: `Reconcile` casts the operands.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from ..findings import Finding, Primitive, Repair
from ..hooks import Attachments
from ..hosts.base import ENCODE, Boundary, VaeBoundary
from ..settings import FIX, OFF
from ..tensors.census import take_census
from ..tensors.dtypes import dtype_name
from ..tensors.handover import all_finite, hand_over, tensors_in
from ..tensors.random_state import remember_random_state
from ..tensors.reconcile import Reconcile, is_out_of_memory
from .base import BoundaryGuard, GuardContext
from .origin import Origin

#: What an overflow is computed again in, in this order.
_WIDER = (torch.float32, torch.bfloat16)

#: The components whose results make the latent.
_SAMPLING = ("unet", "transformer")


class FiniteGuard(BoundaryGuard):
    """See the module's docstring."""

    name = "finite"

    def __init__(self, context: GuardContext) -> None:
        super().__init__(context)
        self._repair = context.settings.finite == FIX
        self._origin = Origin(context.host)
        self._told = False

    def attach_to(self, boundary: Boundary, attachments: Attachments) -> None:
        """See `BoundaryGuard`."""
        if isinstance(boundary, VaeBoundary):
            attachments.method(boundary.owner, boundary.method, partial(self._looking, boundary))
        elif boundary.component.startswith(_SAMPLING):
            attachments.behind(boundary.owner, self._sampled)

    def detach(self) -> None:
        """See `Guard`. A host may give up over a latent that is not finite before it is decoded."""
        self._guarded("looking at what was sampled in", self._say_origin_at_last, None)
        super().detach()

    def _guarded(self, doing: str, call: Callable[[], Any], otherwise: Any) -> Any:
        return self._context.border.run(self.name, f"{doing} this generation", call, otherwise)

    # The latent.

    def _sampled(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._guarded("noting a step of", lambda: self._origin.note(output), None)

    def _say_origin_at_last(self) -> None:
        if not self._told and self._origin.began() is not None:
            self._say_origin("the latent is not finite", "")

    def _say_origin(self, saw: str, direction: str) -> None:
        if self._told:
            return
        self._told = True
        told, evidence = self._origin.tell()
        finding = Finding("LG202", self.name, "latent", direction, f"{saw}; {told}", evidence)
        self._context.say(finding, None)

    # The VAE.

    def _looking(self, boundary: VaeBoundary, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            put_back = self._guarded("remembering the random state of", lambda: self._remember(boundary, args), None)
            result = method(*args, **kwargs)
            again = _Again(boundary, partial(method, *args, **kwargs), put_back)
            return self._guarded("looking at", lambda: self._look(again, (args, kwargs), result), result)

        return call

    def _remember(self, boundary: VaeBoundary, given: Any) -> Callable[[], None] | None:
        """An `encode` may draw (Forge's does, backend/nn/vae.py:292); called again it must draw the same."""
        return remember_random_state(given) if boundary.direction == ENCODE else None

    def _look(self, again: _Again, given: Any, result: Any) -> Any:
        if all_finite(result):
            return result
        if not all_finite(given):
            name = "the picture" if again.boundary.direction == ENCODE else "the latent"
            self._say_origin(f"{name} that {again.boundary.name} is given is not finite", again.boundary.direction)
            return result
        return self._compute_again(again, given, result)

    def _compute_again(self, again: _Again, given: Any, result: Any) -> Any:
        dtype, tried = next((tensor.dtype for tensor in tensors_in(result)), None), []
        if self._was_widest(again.boundary, dtype):
            self._context.say(_hopeless(again.boundary, dtype, [dtype_name(torch.float32)]), None)
            return result
        if not self._repair:
            self._context.say(_overflow(again.boundary, dtype), None)
            return result
        started = time.perf_counter()
        for wider in _WIDER:
            second = again.call(wider, self._context)
            tried.append(dtype_name(wider))
            if second is not None and all_finite(second):
                spent = (time.perf_counter() - started) * 1000
                did = f"{again.boundary.direction}d again in {dtype_name(wider)}"
                self._context.say(_overflow(again.boundary, dtype), Repair(did, "result finite", spent))
                return self._handed_back(again.boundary, second, given)
        self._context.say(_hopeless(again.boundary, dtype, tried), None)
        return result

    def _was_widest(self, boundary: VaeBoundary, dtype: torch.dtype | None) -> bool:
        """Whether it was computed in float32 already, so that nothing is left to try."""
        chosen = self._context.settings.vae_precision
        narrowed = self._context.settings.precision != OFF and chosen not in ("auto", "float32")
        return dtype == take_census(boundary.owner).uniform == torch.float32 and not narrowed

    def _handed_back(self, boundary: VaeBoundary, result: Any, given: Any) -> Any:
        """Latents go back in the dtype that the picture came in, or the failure would only move into the UNet; a
        picture stays as wide as it was computed, since rounding it would be felt."""
        caller = next((tensor.dtype for tensor in tensors_in(given)), None)
        return hand_over(result, caller) if boundary.direction == ENCODE and caller else result


class _Again:
    """The call that overflowed, to be repeated.

    put_back: sets the random state to what it was before; None where nothing is drawn.
    """

    def __init__(self, boundary: VaeBoundary, call: Callable[[], Any], put_back: Callable[[], None] | None) -> None:
        self.boundary = boundary
        self._call = call
        self._put_back = put_back

    def call(self, dtype: torch.dtype, context: GuardContext) -> Any:
        """The result of the same call computed in `dtype`; None when memory does not suffice."""
        if self._put_back is not None:
            self._put_back()
        try:
            with _computing_in(dtype, context):
                return self._call()
        except RuntimeError as error:
            if is_out_of_memory(error):
                return None
            raise


@contextmanager
def _computing_in(dtype: torch.dtype, context: GuardContext) -> Iterator[None]:
    before, context.again.dtype = context.again.dtype, dtype
    try:
        with Reconcile(lambda dtypes: None, lambda mismatch: None, compute=dtype):
            yield
    finally:
        context.again.dtype = before


def _overflow(boundary: VaeBoundary, dtype: torch.dtype | None) -> Finding:
    name = dtype_name(dtype) if dtype else "unknown"
    saw = f"{boundary.name} gave inf or NaN in {name}, what it was given is finite"
    evidence: dict[str, Primitive] = {"dtype": name, "component": take_census(boundary.owner).describe()}
    return Finding("LG201", "finite", boundary.component, boundary.direction, saw, evidence)


def _hopeless(boundary: VaeBoundary, dtype: torch.dtype | None, tried: list[str]) -> Finding:
    broken = _broken_weights(boundary.owner)
    named = f"; {len(broken)} of its weights are not finite, {broken[0]} is the first" if broken else ""
    saw = f"{boundary.name} gave inf or NaN in {' and '.join(tried)}{named}"
    evidence: dict[str, Primitive] = {
        "dtype": dtype_name(dtype) if dtype else None,
        "tried": ", ".join(tried),
        "weights": len(broken),
        "weight": broken[0] if broken else None,
    }
    cause = "" if broken else "The VAE does not go with this model, or what it is given lies far outside of its range."
    return Finding("LG203", "finite", boundary.component, boundary.direction, saw, evidence, cause)


def _broken_weights(component: torch.nn.Module) -> list[str]:
    return [name for name, weight in component.named_parameters() if not weight.is_meta and not all_finite(weight)]
