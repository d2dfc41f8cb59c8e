"""The border to the host: the one place where an error of LibGuard's own is caught.

Everything that a host calls (script callbacks, hooks inside a forward, UI events) passes through `Border.run`. An
error is recorded and said once, the guard it came from is off until the next request, and the generation goes on as
it would without LibGuard.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from .findings import LIBGUARD, Finding

T = TypeVar("T")

_ROOT = Path(__file__).resolve().parent


class Border:
    """Runs LibGuard's code for the host; remembers which guards have failed since the last `reset`."""

    def __init__(self, report: Callable[[Finding], None]) -> None:
        self._report = report
        self._failed: set[str] = set()

    def reset(self) -> None:
        """A new request: every guard gets another chance."""
        self._failed.clear()

    def has_failed(self, guard: str) -> bool:
        """Whether this guard is off until the next request."""
        return guard in self._failed

    def run(self, guard: str, doing: str, call: Callable[[], T], otherwise: T) -> T:
        """`call()`, or `otherwise` when it raises or when its guard has already failed in this request.

        guard: whose code it is. doing: what for, in words for the console line.
        Interrupts (KeyboardInterrupt, a host's own BaseException) are the user's and pass through.
        """
        return otherwise if guard in self._failed else self.always(guard, doing, call, otherwise)

    def always(self, guard: str, doing: str, call: Callable[[], T], otherwise: T) -> T:
        """As `run`, also when the guard has failed before: for taking away what it has put on the model."""
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - the border: nothing of LibGuard's may stop a generation
            self._failed.add(guard)
            self._report(_own_failure(guard, doing, error))
            return otherwise


def _own_failure(guard: str, doing: str, error: Exception) -> Finding:
    place = _innermost_own_frame(error)
    return Finding(
        code="LG001",
        guard=guard,
        component=LIBGUARD,
        direction="",
        saw=f"LibGuard failed while {doing} ({type(error).__name__} at {place}: {str(error)[:200]})",
        evidence={"doing": doing, "error": type(error).__name__, "place": place, "cause_key": place},
    )


def _innermost_own_frame(error: Exception) -> str:
    """`guards/precision.py:120`: enough for a report, without the path of anybody's folder."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(_ROOT)]
    if not own:
        return "an unknown place"
    return f"{Path(own[-1].filename).relative_to(_ROOT).as_posix()}:{own[-1].lineno}"
