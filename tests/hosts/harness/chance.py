"""Random sequences of requests, settings and failures; after every request without LoRAs everything must be clean."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.keeper import Host
from harness.proof import OFF, ON, TABLE, Result, digest, same
from harness.sequence import Step

#: How many moves are played without LibGuard, to see that they do harm.
_WITHOUT = 40


@dataclass(frozen=True)
class Move:
    """One request. name: for the report. before, after: what is done around it. body: the request. expected: the key of
    the picture that it must give; empty where the failure in it leaves none to expect. empty: whether the weights must
    be the checkpoint's afterwards."""

    name: str
    body: dict[str, Any]
    before: Sequence[Step] = ()
    after: Sequence[Step] = ()
    expected: str = ""
    empty: bool = False

    def make(self, host: Host, scripts: dict[str, Any]) -> list[np.ndarray]:
        """Its pictures."""
        for step in self.before:
            step(host, scripts)
        pictures = host.generate("txt2img", self.body, scripts).pictures
        for step in self.after:
            step(host, scripts)
        return pictures


def drawn(draw: Callable[[random.Random], Move]) -> list[Move]:
    """LIB_GUARD_RANDOM_STEPS moves from the seed LIB_GUARD_RANDOM_SEED."""
    wanted = (("STEPS", 200), ("SEED", 1))
    steps, seed = (int(os.environ.get(f"LIB_GUARD_RANDOM_{name}", default)) for name, default in wanted)
    chance = random.Random(seed)
    return [draw(chance) for _ in range(steps)]


def assert_never_wrong(
    host: Host, row_id: str, moves: Sequence[Move], references: Mapping[str, Move], fresh: Callable[[], None]
) -> Result:
    """Played without LibGuard the sequence goes wrong, with it never.

    references: for each key a move that gives the picture on fresh weights; "none" is the one without LoRAs.
    """
    result = TABLE.add(host, Result(row_id, f"{len(moves)} random requests, many of which fail"))
    clean = {key: _on_fresh(host, move, fresh) for key, move in references.items()}
    idle = [key for key, pictures in clean.items() if key != "none" and same(pictures, clean["none"])]
    assert not idle, f"without effect: {idle}"
    fresh()
    references["none"].make(host, OFF)
    weights = host.probe.weights()
    fresh()
    without = _wrong(host, moves[:_WITHOUT], OFF, clean, weights)
    fresh()
    mark = host.mark()
    with_ = _wrong(host, moves, ON, clean, weights)
    result.without = f"{len(without)} of the first {_WITHOUT} are wrong"
    result.with_, result.reference = f"{len(with_)} of {len(moves)}", digest(clean["none"])
    result.codes = " ".join(sorted({word for line in host.said(mark) for word in line.split() if word[:3] == "LG3"}))
    assert without, "nothing goes wrong without LibGuard"
    assert not with_, "\n".join(with_)
    assert host.probe.marks() == [] and not any("LG001" in line for line in host.said(mark))
    result.passed = True
    return result


def _on_fresh(host: Host, move: Move, fresh: Callable[[], None]) -> list[np.ndarray]:
    fresh()
    return move.make(host, OFF)


def _wrong(
    host: Host,
    moves: Sequence[Move],
    scripts: dict[str, Any],
    clean: Mapping[str, list[np.ndarray]],
    weights: dict[str, str],
) -> list[str]:
    found = []
    for number, move in enumerate(moves):
        pictures = move.make(host, scripts)
        if move.expected and not same(pictures, clean[move.expected]):
            found.append(f"{number} {move.name}: {digest(pictures)} instead of {digest(clean[move.expected])}")
        if move.empty and host.probe.weights() != weights:
            found.append(f"{number} {move.name}: weights are not the checkpoint's")
    return found
