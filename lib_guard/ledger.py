"""What happened: the bounded, thread-safe record that console, accordion and infotext all read."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field

from .findings import Finding, Primitive, Repair

#: Generations kept. A record is a few hundred bytes, so this is bounded by what a person would read, not by memory.
CAPACITY = 100
#: Different causes kept for one generation.
CAUSES_A_GENERATION = 50


@dataclass
class Entry:
    """One cause within one generation: the first finding and repair, how often it came, and the time it took in all."""

    finding: Finding
    repair: Repair | None
    count: int = 1
    milliseconds: float = 0.0


@dataclass
class Generation:
    """One generation's entries, in the order in which their causes were first seen.

    tab: `txt2img` or `img2img`. outcome: `running`, `finished` or `failed`. crowded: causes that found no more room.
    """

    number: int
    tab: str
    outcome: str = "running"
    entries: list[Entry] = field(default_factory=list)
    crowded: int = 0

    @property
    def repaired(self) -> list[Entry]:
        """The entries that LibGuard did something about."""
        return [entry for entry in self.entries if entry.repair is not None]


class Ledger:
    """The record of the last generations. Every method may be called from any thread."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._lock = threading.Lock()
        self._generations: deque[Generation] = deque(maxlen=capacity)
        self._count = 0

    def open(self, tab: str) -> Generation:
        """Begin a generation's record; the oldest one goes when there is no room."""
        with self._lock:
            self._count += 1
            generation = Generation(self._count, tab)
            self._generations.append(generation)
            return generation

    def add(self, generation: Generation, finding: Finding, repair: Repair | None) -> bool:
        """Record a finding; returns True when its cause is new in this generation (so that it is to be said)."""
        spent = repair.milliseconds if repair else 0.0
        with self._lock:
            for entry in generation.entries:
                if entry.finding.key == finding.key:
                    entry.count += 1
                    entry.milliseconds += spent
                    return False
            if len(generation.entries) >= CAUSES_A_GENERATION:
                generation.crowded += 1
                return False
            generation.entries.append(Entry(finding, repair, 1, spent))
            return True

    def close(self, generation: Generation, outcome: str) -> None:
        """End a generation's record. Ending it again does nothing."""
        with self._lock:
            if generation.outcome == "running":
                generation.outcome = outcome

    def last(self, tab: str | None = None) -> Generation | None:
        """The newest generation, of one tab when it is named."""
        with self._lock:
            return next((g for g in reversed(self._generations) if tab in (None, g.tab)), None)

    def generations(self) -> list[Generation]:
        """Those that are still kept, oldest first."""
        with self._lock:
            return list(self._generations)

    def primitives(self) -> list[dict[str, object]]:
        """The whole record as JSON primitives, oldest generation first."""
        with self._lock:
            return [
                {"number": g.number, "tab": g.tab, "outcome": g.outcome, "entries": [_row(e) for e in g.entries]}
                for g in self._generations
            ]


def _row(entry: Entry) -> dict[str, object]:
    evidence: dict[str, Primitive] = dict(entry.finding.evidence)
    return {
        "code": entry.finding.code,
        "guard": entry.finding.guard,
        "component": entry.finding.component,
        "direction": entry.finding.direction,
        "saw": entry.finding.saw,
        "evidence": evidence,
        "did": entry.repair.did if entry.repair else None,
        "proof": entry.repair.proof if entry.repair else None,
        "count": entry.count,
        "milliseconds": round(entry.milliseconds, 3),
    }


#: The one ledger of this process.
LEDGER = Ledger()
