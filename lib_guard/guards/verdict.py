"""What a call across a boundary amounts to: the finding with its code and evidence, and the repair."""

from __future__ import annotations

import torch

from ..findings import Finding, Primitive, Repair
from ..hosts.base import ENCODE, Boundary, VaeBoundary
from ..tensors.census import Census, take_census
from ..tensors.dtypes import dtype_name, promoted
from .culprit import extension_of
from .passage import Passage, Seen

_PASSED = {"encode": "a {} picture", "decode": "{} latents"}


def mismatch(boundary: Boundary, passage: Passage, first: Seen, census: Census) -> Finding:
    """Operations met operands of unequal dtypes: LG101 to LG104 in a VAE, LG111 to LG113 elsewhere; or a dtype that the
    device cannot compute in: LG114."""
    if isinstance(boundary, VaeBoundary):
        direction = boundary.direction
        code, saw = _judge_vae(boundary, passage, first, census)
    else:
        direction = ""
        code, saw = _judge(boundary, passage, first, census)
    evidence = _evidence(passage, first, census)
    extension = evidence["extension"]
    cause = f"{_CAUSES[code]} The extension {extension} is in the call ({first.place})." if extension else ""
    return Finding(code, "precision", boundary.component, direction, saw, evidence, cause)


#: How a cause begins that names an extension; without one the code's own is said, or the host's.
_CAUSES = {
    "LG101": "The VAE runs in another precision than what calls it.",
    "LG102": "The VAE runs in another precision than what calls it.",
    "LG103": "A part of the VAE was converted and the rest was not.",
    "LG104": "Something changes dtypes inside the VAE.",
    "LG111": "A part of the component was converted and the rest was not.",
    "LG112": "The component runs in another precision than what calls it.",
    "LG113": "Something changes dtypes inside the component.",
    "LG114": "The device has no kernel for this operation in this dtype.",
}


def computed(boundary: Boundary, passage: Passage) -> Repair:
    """The operations of a mismatch were computed in another dtype."""
    verb = f"{boundary.direction}d" if isinstance(boundary, VaeBoundary) else "computed"
    did = f"{verb} in {dtype_name(promoted(passage.targets))}, {_count(passage.operations, 'operation')} cast"
    return Repair(did, _proof(passage), passage.seconds * 1000)


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


def _evidence(passage: Passage, first: Seen, census: Census) -> dict[str, Primitive]:
    return {
        "module": first.path,
        "operation": first.operation,
        "dtypes": ", ".join(dtype_name(dtype) for dtype in first.dtypes),
        "caller": dtype_name(passage.caller) if passage.caller else None,
        "given": ", ".join(f"{name} {dtype_name(dtype)}" for name, dtype in passage.given),
        "component": census.describe(),
        "computed_in": dtype_name(promoted(passage.targets)) if passage.targets else None,
        "place": first.place,
        "called_from": first.caller,
        "extension": extension_of(first.place) or extension_of(first.caller),
        "error": first.error[:200],
        "operations": passage.operations,
        "cause_key": census.describe(),
    }


def _judge_vae(boundary: VaeBoundary, passage: Passage, first: Seen, census: Census) -> tuple[str, str]:
    """The code of a mismatch, and the clause that tells it."""
    where = f"{first.path or boundary.component}, {first.operation}"
    if len(set(first.dtypes)) == 1:
        return _no_kernel(boundary, first)
    if census.uniform is None:
        saw = f"the VAE is {census.describe()}, {boundary.direction} cannot pass {where}{_quoted(first)}"
        return "LG103", saw
    own = dtype_name(census.uniform)
    if passage.caller is not None and passage.caller != census.uniform:
        code = "LG102" if boundary.direction == ENCODE else "LG101"
        passed = _PASSED[boundary.direction].format(dtype_name(passage.caller))
        return code, f"{boundary.name} got {passed}, the VAE is {own} ({where}{_quoted(first)})"
    inside = f"{boundary.name} and its input are {own}, but inside something made it {_foreign(first, census.uniform)}"
    return "LG104", f"{inside} ({where}{_quoted(first)})"


def _judge(boundary: Boundary, passage: Passage, first: Seen, census: Census) -> tuple[str, str]:
    title, where = boundary.title, f"{first.path or first.place or boundary.title}, {first.operation}"
    if len(set(first.dtypes)) == 1:
        return _no_kernel(boundary, first)
    if census.uniform is None:
        return "LG111", f"the {title} is {census.describe()}, a call cannot pass {where}{_quoted(first)}"
    own = dtype_name(census.uniform)
    foreign = [
        f"{dtype_name(dtype)} {_argument(name)}" for name, dtype in passage.given if _is_foreign(dtype, first, census)
    ]
    if foreign:
        return "LG112", f"the {title} is {own} and was given {', '.join(foreign[:3])} ({where}{_quoted(first)})"
    inside = f"the {title} is {own}, but inside something made it {_foreign(first, census.uniform)}"
    return "LG113", f"{inside} ({where}{_quoted(first)})"


def _no_kernel(boundary: Boundary, first: Seen) -> tuple[str, str]:
    where = f"{boundary.name}, {first.path or first.place}"
    return (
        "LG114",
        f"the device cannot compute {first.operation} in {dtype_name(first.dtypes[0])} ({where}{_quoted(first)})",
    )


def _is_foreign(dtype: torch.dtype, first: Seen, census: Census) -> bool:
    """Whether an argument can be what brought a dtype into the operation. Timesteps come in any dtype and are cast by
    every UNet, so that a dtype which did not get as far as the operation is not to blame."""
    return dtype != census.uniform and dtype in first.dtypes


def _argument(name: str) -> str:
    return f"argument {name}" if name.isdigit() else name


def _foreign(first: Seen, own: torch.dtype) -> str:
    return dtype_name(next((dtype for dtype in first.dtypes if dtype != own), own))


def _quoted(first: Seen) -> str:
    return f': "{" ".join(first.error.split())[:160]}"' if first.error else ""


def _proof(passage: Passage) -> str:
    return "result finite" if passage.finite and passage.came_through else ""


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' if number != 1 else ''}"
