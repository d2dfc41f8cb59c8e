"""Writes what the rows on real hosts have shown into docs/hosts.md: `python tests/hosts/table.py`.

The rows leave their results in `.demo/hosts/<letter>.json`; the part of docs/hosts.md between a host's markers is
replaced. A row that failed is never left out: it says so.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / ".demo" / "hosts"
PAGE = ROOT / "docs" / "hosts.md"

#: A silence row has nothing to cure: its id begins so.
SILENCE = "Z"


def main() -> int:
    """Write every host's tables; returns 1 when a row among them has failed."""
    text = PAGE.read_text(encoding="utf-8")
    failed = 0
    for path in sorted(RESULTS.glob("*.json")):
        rows = sorted(json.loads(path.read_text(encoding="utf-8")), key=lambda row: row["id"])
        failed += sum(not row["passed"] for row in rows)
        for part, silent in (("faults", False), ("silence", True)):
            kept = [row for row in rows if row["id"].startswith(SILENCE) == silent]
            text = replaced(text, f"{path.stem}-{part}", tables(part, kept))
    PAGE.write_text(text, encoding="utf-8")
    return 1 if failed else 0


def replaced(text: str, name: str, body: list[str]) -> str:
    """The page with the part between the markers of this name exchanged; without markers as it is."""
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = text.partition(opening)
    _, ended, after = rest.partition(closing)
    if not (found and ended and body):
        return text
    return "\n".join([f"{before}{opening}", *body, f"{closing}{after}"])


def tables(part: str, rows: list[dict[str, Any]]) -> list[str]:
    """The lines of one table; none without rows."""
    if not rows:
        return []
    return list(faults(rows) if part == "faults" else silence(rows))


def faults(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| row | what | without LibGuard | with LibGuard | picture | healthy configuration | ms |"
    yield "|---|---|---|---|---|---|---:|"
    for row in rows:
        reference = row["reference"] or "has none"
        cells = [row["id"], row["title"], row["without"], verdict(row), row["with_"], reference]
        yield line([*cells, f"{row['milliseconds']:.1f}"])


def silence(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| row | requests | pictures without | pictures with | said |"
    yield "|---|---|---|---|---|"
    for row in rows:
        said = "nothing" if row["passed"] else "**failed**"
        yield line([row["id"], row["title"], row["without"], row["with_"], said])


def verdict(row: dict[str, Any]) -> str:
    if not row["passed"]:
        return "**failed**"
    return f"{row['codes']}: {'equal in every pixel' if row['reference'] else 'a picture'}"


def line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
