"""Every reported fault, without LibGuard and with it: `python -m demo --check`.

A row passes when the request fails without LibGuard, and comes out clean with it: equal to the reference bit for bit
where there is one, else finite and not constant. What nobody can repair passes when LibGuard says what it is.
"""

from __future__ import annotations

import contextlib
import json
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from demo import bench as benches
from demo.bench import Bench, Reply
from demo.encoder_faults import ENCODER_FAULTS
from demo.faults import FAULTS, Call, Fault, pictures, send
from demo.lora_faults import LORA_FAULTS
from demo.lora_file_faults import LORA_FILE_FAULTS

TITLE = "LibGuard"
OFF: dict[str, Any] = {TITLE: {"args": [False]}}
ON: dict[str, Any] = {TITLE: {"args": [True, "fix", "auto", "fix", "fix", "fix"]}}

_ALL = (*FAULTS, *LORA_FAULTS, *LORA_FILE_FAULTS, *ENCODER_FAULTS)

#: Column widths, 120 in all with two spaces between.
COLUMNS = {"id": 23, "fault": 27, "without": 31, "with": 13, "code": 5, "ms": 5, "": 4}


@dataclass
class Row:
    """One fault's result. `without` and `with_` are what the user gets; milliseconds are LibGuard's own."""

    id: str
    title: str
    without: str = ""
    failed_without: bool = False
    with_: str = ""
    cured: bool = False
    codes: tuple[str, ...] = ()
    milliseconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the row proves anything, and proves it well."""
        return self.failed_without and self.cured


def guard_entries(bench: Bench, since: int) -> list[tuple[str, float]]:
    """What LibGuard recorded for the generations after the one of that number: (code, milliseconds) of each entry."""
    # Looked up each time: reloading the extension makes a new module.
    found = sys.modules["lib_guard.ledger"].LEDGER.generations()
    return [(entry.finding.code, entry.milliseconds) for one in found if one.number > since for entry in one.entries]


def last_generation(bench: Bench) -> int:
    """The number of the last generation that LibGuard has seen; 0 before the first."""
    last = sys.modules["lib_guard.ledger"].LEDGER.last()
    return last.number if last else 0


def has_guard(bench: Bench) -> bool:
    """Whether the host loaded LibGuard."""
    return TITLE.lower() in bench.get("/sdapi/v1/scripts").json["txt2img"]


def check(bench: Bench, fault: Fault) -> Row:
    """Run one fault on a healthy host, and leave the host healthy."""
    row, guarded = Row(fault.id, fault.title), has_guard(bench)
    off = OFF if guarded else {}
    try:
        fault.provoke(bench)
        without = fault.run(bench, off)
        if not fault.leaves:
            row.failed_without, row.without = _judge_without(bench, fault, without, off)
        reference = _fresh(bench, fault).reference(bench, off)
        if fault.leaves:
            row.failed_without, row.without = _judge_left(without, reference or [])
        if guarded:
            mark = last_generation(bench)
            with_ = _fresh(bench, fault).run(bench, ON)
            entries = guard_entries(bench, mark)
            row.codes = tuple(dict.fromkeys(code for code, _ in entries))
            row.cured, row.with_ = _judge_with(with_, reference) if not fault.told else _judge_told(fault, row.codes)
            row.milliseconds = sum(spent for _, spent in entries)
        else:
            row.with_ = "not loaded"
    finally:
        fault.heal(bench)
    return row


def _fresh(bench: Bench, fault: Fault) -> Fault:
    """The fault, provoked on weights fresh from the disk."""
    fault.heal(bench)
    fault.provoke(bench)
    return fault


def _judge_without(bench: Bench, fault: Fault, reply: Reply, off: dict[str, Any]) -> tuple[bool, str]:
    """Whether the request failed, and the exception or the wrong picture in words."""
    if reply.status != 200:
        return True, f"{reply.json['error']}: {reply.json['errors']}"
    found = pictures(reply)
    if not found:
        return True, "HTTP 200 without a picture, the error swallowed"
    if not any(_is_picture(picture) for picture in found):
        return True, "HTTP 200 with a picture of one colour"
    if fault.request.body.get("detailer") and _same(found, _without_detailer(bench, fault, off)):
        return True, "the Detailer's pass is missing, without a word"
    if fault.lost is not None and _same(found, pictures(send(bench, fault.lost, off))):
        return True, "what it asks for is missing in the picture, without a word"
    return False, "a picture: does not fail"


def _judge_left(reply: Reply, reference: Sequence[np.ndarray]) -> tuple[bool, str]:
    """Whether earlier requests have changed the picture."""
    found = pictures(reply)
    if not found:
        return True, f"{reply.json.get('error', 'no picture')}: {reply.json.get('errors', '')}"
    wrong = not _same(found, reference)
    return wrong, f"another picture: {_difference(found, reference)}" if wrong else "the clean picture"


def _without_detailer(bench: Bench, fault: Fault, off: dict[str, Any]) -> list[np.ndarray]:
    plain = Call(fault.request.endpoint, {**fault.request.body, "detailer": False})
    return pictures(send(bench, plain, off))


def _judge_with(reply: Reply, reference: list[np.ndarray] | None) -> tuple[bool, str]:
    if reply.status != 200:
        return False, f"{reply.json['error']}: {reply.json['errors']}"
    found = pictures(reply)
    if not found:
        return False, "no picture"
    if reference is not None:
        return (True, "bit-identical") if _same(found, reference) else (False, _difference(found, reference))
    return (True, "a picture") if all(_is_picture(picture) for picture in found) else (False, "a flat picture")


def _judge_told(fault: Fault, codes: Sequence[str]) -> tuple[bool, str]:
    return (True, "says why") if tuple(codes) == (fault.told,) else (False, "says nothing")


def _is_picture(picture: np.ndarray) -> bool:
    """A NaN has become black by now, and a lost latent one flat colour."""
    return bool(picture.std() > 1)


def _same(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> bool:
    return len(a) == len(b) and all(np.array_equal(one, other) for one, other in zip(a, b))


def _difference(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> str:
    if len(a) != len(b) or a[0].shape != b[0].shape:
        return f"{len(a)} of {len(b)} pictures"
    gap = np.abs(a[0].astype(int) - b[0].astype(int))
    return f"differs by {gap.max()} in {(gap > 0).mean():.1%}"


def _line(cells: Sequence[str]) -> str:
    """One row of the table, as many lines high as its highest cell."""
    columns = [textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, COLUMNS.values())]
    lines = []
    for index in range(max(map(len, columns))):
        parts = [column[index] if index < len(column) else "" for column in columns]
        lines.append("  ".join(part.ljust(width) for part, width in zip(parts, COLUMNS.values())).rstrip())
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    spent = f"{row.milliseconds:.1f}" if row.codes else ""
    return [row.id, row.title, row.without, row.with_, " ".join(row.codes), spent, "ok" if row.passed else "FAIL"]


def main(
    json_path: str | Path | None = None,
    *,
    order: str = "a1111",
    data_dir: str | Path = benches.DEFAULT_DATA,
    extensions: Sequence[str | Path] = (),
) -> int:
    """Print the table and return 0, or 1 when a row fails. With `json_path`, write the rows there as well."""
    # upcast_vae announces its deprecation once in each pipeline; the table is the output here.
    warnings.simplefilter("ignore", FutureWarning)
    rule, log = "-" * 120, Path(data_dir) / "check.log"
    print(f"Reported faults on the embedded host, {order} order.\n{rule}\n{_line(list(COLUMNS))}\n{rule}", flush=True)
    rows = []
    for row in _rows(order, data_dir, extensions, log):
        rows.append(row)
        print(_line(_cells(row)), flush=True)
    good = sum(row.passed for row in rows)
    print(f"{rule}\n{good} of {len(rows)} rows: fail without LibGuard, clean with it.")
    print(f"What the host and LibGuard wrote to the console meanwhile: {log}")
    if json_path is not None:
        table = [{**asdict(row), "passed": row.passed} for row in rows]
        Path(json_path).write_text(json.dumps({"order": order, "rows": table}, indent=2) + "\n", encoding="utf-8")
    return 0 if rows and good == len(rows) else 1


def _rows(order: str, data_dir: str | Path, extensions: Sequence[str | Path], log: Path) -> Iterator[Row]:
    """Run every fault; the console goes into a file, or the hosts' tracebacks would bury the table."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as console, contextlib.redirect_stderr(console):
        bench = benches.start(data_dir, order=order, extensions=extensions)
        try:
            yield from (check(bench, fault) for fault in _ALL)
        finally:
            bench.close()
