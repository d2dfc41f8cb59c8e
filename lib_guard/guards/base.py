"""What every guard is made of."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch

from ..border import Border
from ..findings import Finding, Repair, sentence
from ..hooks import Attachments
from ..hosts.base import Arrival, Boundary, Host
from ..settings import Settings


class Again(threading.local):
    """What a thread calls once more, because the first result was not finite.

    dtype: what it is computed in this time, whatever else asks for another one; None while nothing is called again.
    """

    def __init__(self) -> None:
        self.dtype: torch.dtype | None = None


@dataclass(frozen=True)
class GuardContext:
    """What the guards of one generation share.

    report: takes a finding and what was done about it (None: nothing), from any thread. request: the host's processing
    object; None when it is gone.
    """

    host: Host
    settings: Settings
    border: Border
    report: Callable[[Finding, Repair | None], None]
    again: Again = field(default_factory=Again)
    request: Callable[[], Any] = lambda: None

    def say(self, finding: Finding, repair: Repair | None) -> None:
        """Report a finding with its cause and fix in the host's own words."""
        self.report(self.host.explain(finding), repair)

    def comment(self, finding: Finding) -> None:
        """Say a finding under the picture too: what is missing there shows nowhere else."""
        request = self.request()
        if request is not None:
            self.host.comment(request, f"LibGuard {sentence(self.host.explain(finding), None)}")


class Guard(Protocol):
    """Keeps one invariant for one generation. It is made only when its policy is not `off`."""

    #: Its name in settings and on the console.
    name: str
    #: Whether it is attached before any extension works on the request, and so before the model is looked at.
    early: bool

    def __init__(self, context: GuardContext) -> None: ...

    def attach(self) -> None:
        """Put hooks on the model. Raises when it cannot; then `detach` follows."""

    def detach(self) -> None:
        """Take everything away, whatever state the attaching was left in. Calling it again does nothing."""

    @classmethod
    def passed_over(cls) -> None:
        """A generation begins in which this guard is off."""

    def settled(self, request: Any) -> None:
        """A batch's extra networks have been activated, and nothing was computed with them yet."""

    def sampled(self, request: Any) -> None:
        """A batch has been computed, and its pictures are about to be written."""

    def finished(self) -> None:
        """The generation came through. Not called when it did not."""


class BoundaryGuard:
    """A guard that sits on the model's boundaries, and moves with them when the host exchanges a component.

    Before such an exchange it lets go of everything: a model that the host throws away to make room for the next one
    must not be kept in memory by its guard.
    """

    name = ""
    early = False

    def __init__(self, context: GuardContext) -> None:
        self._context = context
        self._on_boundaries = Attachments()
        self._on_arrivals = Attachments()
        self._attached = False

    def attach(self) -> None:
        """See `Guard`."""
        self._attached = True
        self._take_hold()
        for arrival in self._context.host.arrivals():
            self._on_arrivals.method(arrival.owner, arrival.name, partial(self._arriving, arrival))

    def detach(self) -> None:
        """See `Guard`."""
        self._attached = False
        self._on_arrivals.detach()
        self._let_go()

    @classmethod
    def passed_over(cls) -> None:
        """See `Guard`. Nothing is remembered from one generation to the next."""

    def settled(self, request: Any) -> None:
        """See `Guard`. What is on a boundary waits for its calls."""

    def sampled(self, request: Any) -> None:
        """See `Guard`."""

    def finished(self) -> None:
        """See `Guard`."""

    def attach_to(self, boundary: Boundary, attachments: Attachments) -> None:
        """Put hooks on one boundary. To be overridden."""
        raise NotImplementedError

    def _take_hold(self) -> None:
        """Attach to what is there now. One arrival may call another, and a generation may end within one."""
        self._let_go()
        if not self._attached:
            return
        for boundary in self._context.host.boundaries():
            self.attach_to(boundary, self._on_boundaries)

    def _let_go(self) -> None:
        self._on_boundaries.detach()

    def _arriving(self, arrival: Arrival, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._context.border.always(self.name, f"letting go before {arrival.name}", self._let_go, None)
            try:
                return function(*args, **kwargs)
            finally:
                self._context.border.run(self.name, f"attaching after {arrival.name}", self._take_hold, None)

        return call
