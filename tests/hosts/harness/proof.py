"""The comparisons: a fault fails without LibGuard and is cured with it; a healthy request is not touched at all."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from harness.keeper import Host
from harness.server import Answer

TITLE = "LibGuard"
OFF: dict[str, Any] = {TITLE: {"args": [False]}}
ON: dict[str, Any] = {TITLE: {"args": [True, "fix", "auto", "fix", "fix", "fix"]}}
#: Enabled, every guard's policy off: nothing may be attached.
POLICY_OFF: dict[str, Any] = {TITLE: {"args": [True, "off", "auto", "off", "off", "off"]}}

SIZE = 64


def _base64(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _init_image() -> str:
    image = Image.linear_gradient("L").resize((SIZE, SIZE)).convert("RGB")
    ImageDraw.Draw(image).ellipse((12, 16, 44, 52), fill=(200, 60, 40))
    return _base64(image)


def _mask() -> str:
    image = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(image).rectangle((16, 16, 48, 48), fill=255)
    return _base64(image)


BASE: dict[str, Any] = {
    "prompt": "a red cat on a green chair",
    "negative_prompt": "blurry",
    "seed": 7,
    "steps": 2,
    "width": SIZE,
    "height": SIZE,
    "cfg_scale": 4.0,
}
INIT: dict[str, Any] = {"init_images": [_init_image()], "denoising_strength": 0.6}
MASK: dict[str, Any] = {**INIT, "mask": _mask()}


@dataclass(frozen=True)
class Row:
    """One fault in one host.

    id: ROW-HOST and what sets it apart (`P07-S-sd15-fp16-img2img`). title: one sentence. endpoint, body: the request.
    damage: what the probe does to the VAE first. comparable: whether a healthy configuration gives a picture to
    compare with. silently: the same request without the part that is said to be lost (a Detailer's pass); without
    LibGuard the two pictures are then equal. before: requests that come first, sent the same way. healthy: the probe's
    operation that makes the configuration a healthy one without LibGuard. error: what the failure without it says; a
    request that fails for another reason proves nothing.
    """

    id: str
    title: str
    endpoint: str
    body: dict[str, Any]
    damage: str = ""
    comparable: bool = True
    silently: dict[str, Any] | None = None
    before: tuple[tuple[str, dict[str, Any]], ...] = ()
    healthy: str = "align"
    error: str = r"should be the same|same dtype|scalar type"


@dataclass
class Result:
    """A line of the table in docs/hosts.md."""

    id: str
    title: str
    without: str = ""
    with_: str = ""
    reference: str = ""
    codes: str = ""
    milliseconds: float = 0.0
    passed: bool = False


@dataclass
class Table:
    """What has been shown in this run, by host."""

    rows: dict[str, list[Result]] = field(default_factory=dict)

    def add(self, host: Host, result: Result) -> Result:
        """Enter a line, before it is known whether it passes."""
        self.rows.setdefault(host.kind.letter, []).append(result)
        return result

    def write(self, folder: Path) -> None:
        """Write `<letter>.json` for each host, for `tests/hosts/table.py`; rows that did not run now are kept."""
        for letter, results in self.rows.items():
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{letter}.json"
            before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
            rows = {row["id"]: row for row in [*before, *(asdict(result) for result in results)]}
            path.write_text(json.dumps(list(rows.values()), indent=2) + "\n", encoding="utf-8")


TABLE = Table()


def digest(pictures: Sequence[np.ndarray]) -> str:
    """A short name for pictures' pixels; `none` when there are none."""
    if not pictures:
        return "none"
    total = hashlib.sha256()
    for picture in pictures:
        total.update(repr(picture.shape).encode() + np.ascontiguousarray(picture).tobytes())
    return total.hexdigest()[:12]


def same(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> bool:
    """Whether there are as many pictures, each equal in every pixel."""
    return len(a) == len(b) and all(np.array_equal(one, other) for one, other in zip(a, b))


def fresh(host: Host, damage: str = "") -> None:
    """Weights as they are on the disk, and then the damage."""
    host.post("/sdapi/v1/unload-checkpoint")
    host.post("/sdapi/v1/reload-checkpoint")
    if damage:
        host.probe.damage(damage)


def assert_cured(host: Host, row: Row, codes: Collection[str], provoke: Callable[[], object] | None = None) -> Result:
    """Run a row: without LibGuard it must fail; with it the picture must be the healthy configuration's.

    codes: what LibGuard may call it; the console must have said one of them. provoke: brings the host into the state
    in which the request fails, in the place of fresh weights and `row.damage`; it is called before each request.
    """
    prepare = provoke or (lambda: fresh(host, row.damage))
    result = TABLE.add(host, Result(row.id, row.title))

    prepare()
    mark = host.mark()
    failed, result.without = _judge_without(host, row, _send(host, row, OFF), mark)
    reference = _reference(host, row, prepare)
    result.reference = digest(reference) if row.comparable else ""

    prepare()
    mark = host.mark()
    answer = _send(host, row, ON)
    said = host.said(mark)
    entries = host.probe.entries()
    result.codes = " ".join(dict.fromkeys(entry["code"] for entry in entries))
    result.milliseconds = sum(entry["milliseconds"] for entry in entries)
    result.with_ = digest(answer.pictures) if answer.pictures else _failure(host, answer, mark)

    assert failed, f"it does not fail without LibGuard, so it proves nothing: {result.without}"
    assert re.search(row.error, result.without), f"it fails for another reason: {result.without}"
    assert answer.pictures, f"no picture with LibGuard: {result.with_}\n{host.tail()}"
    if row.comparable:
        assert result.with_ == result.reference, "with LibGuard the picture is not that of a healthy configuration"
    else:
        # A NaN would have become black here, and a lost latent one flat colour.
        assert all(picture.std() > 1 for picture in answer.pictures)
    assert result.codes and set(result.codes.split()) <= set(codes), entries
    assert all(entry["did"] for entry in entries), entries
    assert said and all(any(code in line for line in said) for code in result.codes.split()), said
    assert host.probe.marks() == []
    result.passed = True
    return result


def assert_silent(
    host: Host,
    row_id: str,
    calls: Sequence[tuple[str, dict[str, Any]]],
    prepare: Callable[[], None] = lambda: None,
    *,
    pictures_expected: bool = True,
) -> Result:
    """The same requests without and with LibGuard give the same pixels; nothing is recorded, printed or left behind.

    prepare: called before each of the two passes, to have them begin in the same state.
    """
    result = TABLE.add(host, Result(row_id, ", ".join(dict.fromkeys(endpoint for endpoint, _ in calls))))
    prepare()
    without = _all(host, calls, OFF)
    result.without = result.reference = digest(without)
    prepare()
    mark, number = host.mark(), host.probe.generation()
    with_ = _all(host, calls, ON)
    result.with_ = digest(with_)
    generations = host.probe.since(number)
    assert bool(without) == pictures_expected, host.tail()
    assert same(with_, without), f"{result.with_} with LibGuard, {result.without} without"
    assert len(generations) >= len(calls), "LibGuard did not see every request, so its silence proves nothing"
    assert [generation["entries"] for generation in generations] == [[]] * len(generations)
    assert host.said(mark) == []
    assert host.probe.marks() == []
    result.passed = True
    return result


def _all(host: Host, calls: Sequence[tuple[str, dict[str, Any]]], scripts: dict[str, Any]) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    for endpoint, body in calls:
        answer = host.generate(endpoint, body, scripts)
        assert answer.status == 200, answer.text[:2000]
        found += answer.pictures
    return found


def _send(host: Host, row: Row, scripts: dict[str, Any]) -> Answer:
    for endpoint, body in row.before:
        host.generate(endpoint, body, scripts)
    return host.generate(row.endpoint, row.body, scripts)


def _reference(host: Host, row: Row, prepare: Callable[[], None]) -> list[np.ndarray]:
    """The clean pictures: the same state and request, made healthy by the probe, without LibGuard."""
    if not row.comparable:
        return []
    prepare()
    host.probe(row.healthy, on=True)
    try:
        answer = _send(host, row, OFF)
    finally:
        host.probe(row.healthy, on=False)
    assert answer.pictures, f"the reference gave no picture: {answer.text[:400]}\n{host.tail()}"
    return answer.pictures


def _judge_without(host: Host, row: Row, answer: Answer, mark: int) -> tuple[bool, str]:
    if not answer.pictures:
        return True, _failure(host, answer, mark)
    if row.silently is not None:
        plain = host.generate(row.endpoint, row.silently, OFF).pictures
        if same(answer.pictures, plain):
            return True, f"HTTP 200, the pass has no effect: {_error(host, mark)}"
    return False, f"a picture ({digest(answer.pictures)}): it does not fail"


def _failure(host: Host, answer: Answer, mark: int) -> str:
    shown = "no picture" if answer.status == 200 else "error"
    return f"HTTP {answer.status}, {shown}: {_error(host, mark) or answer.text[:200]}"


def _error(host: Host, mark: int) -> str:
    """The first exception that the host printed since a mark."""
    found = re.search(r"\b((?:Runtime|Type|Value|Index|Key|Assertion|NotImplemented)Error:.*)", host.output()[mark:])
    return " ".join(found.group(1).split())[:160] if found else ""
