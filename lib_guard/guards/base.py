"""What every guard is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..border import Border
from ..findings import Finding, Repair
from ..hosts.base import Host
from ..settings import Settings


@dataclass(frozen=True)
class GuardContext:
    """What a guard is given for one generation.

    report: takes a finding and what was done about it (None: nothing), from any thread.
    """

    host: Host
    settings: Settings
    border: Border
    report: Callable[[Finding, Repair | None], None]


class Guard(Protocol):
    """Keeps one invariant for one generation. It is made only when its policy is not `off`."""

    #: Its name in settings and on the console.
    name: str

    def __init__(self, context: GuardContext) -> None: ...

    def attach(self) -> None:
        """Put hooks on the model. Raises when it cannot; then `detach` follows."""

    def detach(self) -> None:
        """Take everything away, whatever state the attaching was left in. Calling it again does nothing."""
