"""What is said of one error, and the helpers that all rules share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..findings import CODES

INSPECT = "`python -m lib_guard inspect FILE` tells what a file is, whatever it is called."

#: How far before an error its traceback is looked at, in characters.
_REACH = 3_000


@dataclass(frozen=True)
class Explanation:
    """One error, explained.

    code: the code under which LibGuard says the same where it runs; empty when there is none, or when the text leaves
    open which. cause: what was wrong. evidence: what of the text shows it, in LibGuard's words with the text's numbers.
    cure: what to do.
    """

    code: str
    cause: str
    evidence: str
    cure: str


@dataclass(frozen=True)
class Hit:
    """An explanation, and where in the text its error begins."""

    at: int
    explanation: Explanation


Rule = Callable[[str], Iterable[Hit]]


def cure(code: str, elsewhere: str) -> str:
    """What LibGuard does where it runs, in the words of its code, and what to do in other programs."""
    if not CODES[code].curable:
        return f"In a WebUI LibGuard says so and changes nothing. There and elsewhere: {elsewhere}"
    return f"In a WebUI with LibGuard: {CODES[code].cure} Elsewhere: {elsewhere}"


def before(text: str, at: int) -> str:
    """The traceback that leads to an error, as far as it is near; an earlier error's is left out."""
    start = max(0, at - _REACH)
    return text[max(start, text.rfind("Traceback (most recent call last)", start, at)) : at]
