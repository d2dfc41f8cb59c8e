"""Explanations for the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TextIO

from . import LONGEST
from .explanation import Explanation

#: Said where no rule knows the text.
UNKNOWN = (
    "LibGuard does not know this error, and does not guess. Give it the whole traceback, if that was a part of one;"
    " `python -m lib_guard inspect FILE` tells what a model file is."
)


def end_of(stream: TextIO) -> str:
    """As much of a stream as is looked at, however long it is."""
    text = ""
    while part := stream.read(LONGEST):
        text = (text + part)[-LONGEST:]
    return text


def as_json(found: Sequence[Explanation]) -> str:
    """All of it as JSON."""
    return json.dumps({"explanations": [asdict(one) for one in found]}, indent=2)


def as_text(found: Sequence[Explanation]) -> str:
    """All of it for a person."""
    return "\n\n".join("\n".join(f"{name:<10}{text}" for name, text in _lines(one)) for one in found)


def _lines(one: Explanation) -> Iterator[tuple[str, str]]:
    yield "Cause", one.cause
    yield "Shows", one.evidence
    yield "Cure", one.cure
    if one.code:
        yield "LibGuard", f"{one.code} docs/codes.md#{one.code.lower()}"
