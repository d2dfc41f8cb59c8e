"""What a passage through a boundary amounts to: the finding with its code and evidence, and the repair."""

from __future__ import annotations

from ..findings import Finding, Primitive, Repair
from ..hosts.base import ENCODE, VaeBoundary
from ..tensors.census import Census, take_census
from ..tensors.dtypes import dtype_name, promoted
from .passage import Passage, Seen

_PASSED = {"encode": "a {} picture", "decode": "{} latents"}


def mismatch(boundary: VaeBoundary, passage: Passage, first: Seen, census: Census) -> Finding:
    """Operations met operands of unequal dtypes: LG101 to LG104."""
    code, saw = _judge(boundary, passage, first, census)
    evidence: dict[str, Primitive] = {
        "module": first.path,
        "operation": first.operation,
        "dtypes": ", ".join(dtype_name(dtype) for dtype in first.dtypes),
        "caller": dtype_name(passage.caller) if passage.caller else None,
        "component": census.describe(),
        "computed_in": dtype_name(promoted(passage.targets)) if passage.targets else None,
        "error": first.error[:200],
        "operations": passage.operations,
        "cause_key": census.describe(),
    }
    return Finding(code, "precision", boundary.component, boundary.direction, saw, evidence)


def computed(boundary: VaeBoundary, passage: Passage) -> Repair:
    """The operations of a mismatch were computed in another dtype."""
    did = f"{boundary.direction}d in {dtype_name(promoted(passage.targets))}, {_count(passage.operations, 'operation')}"
    return Repair(f"{did} cast", _proof(passage), passage.seconds * 1000)


def led_around(boundary: VaeBoundary, passage: Passage) -> tuple[Finding, Repair]:
    """Layers would have changed the dtype of what passes through them, and ran without that: LG105."""
    first, layers = passage.led[0], len({led.path for led in passage.led})
    census = take_census(boundary.owner).describe()
    others = f" and {layers - 1} more layers" if layers > 1 else ""
    change = f"{dtype_name(first.given)} {dtype_name(first.cast)}"
    saw = f"{boundary.name}: {first.path}{others} would make {change} inside, the VAE is {census}"
    evidence: dict[str, Primitive] = {
        "module": first.path,
        "layers": layers,
        "dtypes": f"{dtype_name(first.given)}, {dtype_name(first.cast)}",
        "caller": dtype_name(passage.caller) if passage.caller else None,
        "component": census,
        "cause_key": census,
    }
    did = f"{boundary.direction}d with the original forward of {_count(layers, 'layer')}"
    finding = Finding("LG105", "precision", boundary.component, boundary.direction, saw, evidence)
    return finding, Repair(did, _proof(passage), 0.0)


def _judge(boundary: VaeBoundary, passage: Passage, first: Seen, census: Census) -> tuple[str, str]:
    """The code of a mismatch, and the clause that tells it."""
    where = f"{first.path or boundary.component}, {first.operation}"
    quoted = f': "{" ".join(first.error.split())[:160]}"' if first.error else ""
    if census.uniform is None:
        return "LG103", f"the VAE is {census.describe()}, {boundary.direction} cannot pass {where}{quoted}"
    own = dtype_name(census.uniform)
    if passage.caller is not None and passage.caller != census.uniform:
        code = "LG102" if boundary.direction == ENCODE else "LG101"
        passed = _PASSED[boundary.direction].format(dtype_name(passage.caller))
        return code, f"{boundary.name} got {passed}, the VAE is {own} ({where}{quoted})"
    foreign = next((dtype for dtype in first.dtypes if dtype != census.uniform), census.uniform)
    inside = f"{boundary.name} and its input are {own}, but inside something made it {dtype_name(foreign)}"
    return "LG104", f"{inside} ({where}{quoted})"


def _proof(passage: Passage) -> str:
    return "result finite" if passage.finite and passage.came_through else ""


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' if number != 1 else ''}"
