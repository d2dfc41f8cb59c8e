"""What a model file is and whether its numbers are sound, for the command line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from .files.families import Verdict, family_of
from .files.families.verdict import SPOKEN, SPOKEN_ENCODERS, UNKNOWN
from .files.header import read_header
from .wording import on_one_line

_NAMES = {**SPOKEN, **SPOKEN_ENCODERS}


@dataclass(frozen=True)
class Inspection:
    """What was found out. file: its name. tensors: how many. dtypes: how many tensors of each.

    not_finite: the first tensor that holds inf or NaN, as a clause; empty when there is none. not_looked: why the
    numbers could not be looked at; empty when they were.
    """

    file: str
    verdict: Verdict
    tensors: int
    dtypes: dict[str, int]
    not_finite: str
    not_looked: str


def examine(path: Path) -> Inspection:
    """Read a file's header, tell what it is, and look at its numbers where torch is there to do it.

    Raises `lib_guard.files.header.UnreadableFile`, a ValueError, with one line.
    """
    header = read_header(path)
    not_finite, not_looked = _look(path)
    dtypes = Counter(entry.dtype for entry in header.tensors.values())
    return Inspection(
        file=on_one_line(path.name, 120),
        verdict=family_of(header),
        tensors=len(header.tensors),
        dtypes=dict(dtypes.most_common()),
        not_finite=not_finite,
        not_looked=not_looked,
    )


def as_json(found: Inspection) -> str:
    """All of it as JSON; the evidence is there both as data and as clauses."""
    clauses = [evidence.describe() for evidence in found.verdict.evidence]
    return json.dumps({**asdict(found), "clauses": clauses}, indent=2)


def as_text(found: Inspection) -> str:
    """All of it for a person."""
    return "\n".join(f"{name:<10}{text}" for name, text in _lines(found))


def _lines(found: Inspection) -> Iterator[tuple[str, str]]:
    verdict = found.verdict
    yield "File", found.file
    yield "Kind", verdict.kind.replace("_", " ") + (f" ({verdict.variant})" if verdict.variant else "")
    yield "Family", _family(verdict)
    yield from (("Because", evidence.describe()) for evidence in verdict.evidence)
    yield from (("Note", remark) for remark in verdict.remarks)
    if verdict.need:
        yield "Needs", verdict.need.describe()
    yield "Tensors", f"{found.tensors}: " + (", ".join(f"{n} {name}" for name, n in found.dtypes.items()) or "none")
    yield "Numbers", found.not_looked or found.not_finite or "all finite"


def _family(verdict: Verdict) -> str:
    if not verdict.candidates:
        return UNKNOWN
    names = [_NAMES.get(name, name) for name in verdict.candidates]
    said = _NAMES.get(verdict.family, f"one of {', '.join(names)}")
    return f"{said} ({verdict.confidence})"


def _look(path: Path) -> tuple[str, str]:
    try:
        # Here and not above: a header can be read without torch.
        from .files.header import UnreadableFile
        from .files.scan import first_not_finite
    except ModuleNotFoundError as error:
        return "", f"not looked at, since {error.name} is not installed"
    try:
        bad = first_not_finite(path)
    except UnreadableFile as error:
        return "", f"not looked at: {error}"
    return (bad.describe() if bad else ""), ""
