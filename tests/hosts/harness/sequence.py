"""Rows about what earlier requests leave behind: a sequence, the request that shows it, and the same one on fresh
weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from harness.keeper import Host
from harness.proof import OFF, ON, TABLE, Result, digest, same

#: Something that happens in a row: a request or a setting. It is given the host and LibGuard's script arguments.
Step = Callable[[Host, dict[str, Any]], None]


@dataclass(frozen=True)
class Sequel:
    """One row.

    id: its pytest id, `L05-F-plain`. steps: what comes before. body: the txt2img request that shows what is left.
    shows: whether the weights are not the checkpoint's after it without LibGuard, beside the picture.
    """

    id: str
    title: str
    steps: Sequence[Step]
    body: dict[str, Any]
    shows: bool = True


def ask(body: dict[str, Any], endpoint: str = "txt2img") -> Step:
    """A request, whatever comes of it."""

    def step(host: Host, scripts: dict[str, Any]) -> None:
        host.generate(endpoint, body, scripts)

    return step


def choose(**options: Any) -> Step:
    """Settings."""

    def step(host: Host, scripts: dict[str, Any]) -> None:
        host.options(**options)

    return step


def probe(operation: str, **arguments: Any) -> Step:
    """Something that the probe does."""

    def step(host: Host, scripts: dict[str, Any]) -> None:
        host.probe(operation, **arguments)

    return step


def assert_gone(
    host: Host, row: Sequel, codes: Collection[str], fresh: Callable[[], None], first: Sequence[Step] = ()
) -> Result:
    """Without LibGuard the sequence ends in another picture than on fresh weights; with it in the same, and in the
    checkpoint's weights, bit for bit.

    fresh: brings weights from the disk, and forgets encoded prompts; it is called before each pass. first: the settings
    under which the clean picture is made, where some of `steps` stay.
    """
    result = TABLE.add(host, Result(row.id, row.title))
    fresh()
    for step in first:
        step(host, OFF)
    reference = host.generate("txt2img", row.body, OFF).pictures
    clean = host.probe.weights()
    result.reference = digest(reference)

    fresh()
    without = _run(host, row, OFF)
    result.without, left = digest(without), host.probe.weights() != clean
    result.without += ", weights changed" if left else ""

    fresh()
    mark, number = host.mark(), host.probe.generation()
    with_ = _run(host, row, ON)
    entries = [entry for generation in host.probe.since(number) for entry in generation["entries"]]
    said = [line for line in host.said(mark) if "LG" in line.partition("[LibGuard]")[2][:4]]
    result.with_, result.codes = digest(with_), " ".join(dict.fromkeys(entry["code"] for entry in entries))
    result.milliseconds = sum(entry["milliseconds"] for entry in entries)

    assert reference, host.tail()
    assert not same(without, reference), "the picture is not wrong without LibGuard, so it proves nothing"
    assert left or not row.shows, "the weights are not changed without LibGuard"
    assert same(with_, reference), f"{result.with_} with LibGuard, {result.reference} on fresh weights\n{said}"
    assert host.probe.weights() == clean, said
    assert result.codes and set(result.codes.split()) <= set(codes), entries
    assert all(entry["did"] and entry["proof"] for entry in entries if entry["code"] == "LG301"), entries
    assert len(said) == len(entries), said
    assert host.probe.marks() == []
    result.passed = True
    return result


def _run(host: Host, row: Sequel, scripts: dict[str, Any]) -> Any:
    for step in row.steps:
        step(host, scripts)
    return host.generate("txt2img", row.body, scripts).pictures
