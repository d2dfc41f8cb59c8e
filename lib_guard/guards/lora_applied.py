"""What is said of LoRAs once they are in the weights: that one changed nothing, or that more was changed than they
name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from ..findings import Finding, Primitive
from ..hosts.lora_handling import Asked, LoraHandling, Place, Reach
from ..tensors.baseline import baseline_of, measure
from ..tensors.weights import layers, weights_of
from .lora_words import by_component, listed, named, short

_GUARD = "lora"

#: Of a LoRA's weights that changed, so small a part is looked at more closely: a sum turns -0.0 into 0.0.
_FEW = 0.05


def look_at_applied(handling: LoraHandling, asked: Asked, quiet: frozenset[str]) -> list[Finding]:
    """Of the layers that a LoRA's file names some must differ from the base, and no others may.

    quiet: the LoRAs, in lower case, that are not to be said to do nothing. Nothing is said of a host that does not
    change weights for them.
    """
    places = handling.places()
    reaches = [(use, handling.reach(use, places)) for use in asked.loras]
    known = [(use, reach) for use, reach in reaches if reach is not None]
    if not known or any(reach.weights is None for _, reach in known):
        return []
    differing = {place.component: _differing(place) for place in places}
    idle = [
        _idle(use.name, reach)
        for use, reach in known
        if use.name.lower() not in quiet and _should_act(use.strengths) and _is_idle(handling, places, reach, differing)
    ]
    more = _more(asked, [reach for _, reach in known], differing)
    return [*idle, *more]


def _differing(place: Place) -> set[str]:
    baseline = baseline_of(place.owner)
    return set(baseline.strays(measure(place.owner))) if baseline is not None else set()


def _should_act(strengths: Sequence[object]) -> bool:
    numbers = [one for one in strengths if isinstance(one, (int, float))]
    return not numbers or any(numbers)


def _is_idle(handling: LoraHandling, places: Sequence[Place], reach: Reach, differing: dict[str, set[str]]) -> bool:
    if reach.layers == 0 or not reach.weights:
        return False
    changed = {component: names & differing.get(component, set()) for component, names in reach.weights.items()}
    count = sum(map(len, changed.values()))
    if count > _FEW * sum(map(len, reach.weights.values())):
        return False
    return all(_are_equal(handling, place, changed.get(place.component, ())) for place in places)


def _are_equal(handling: LoraHandling, place: Place, names: Iterable[str]) -> bool:
    """Whether weights are, in numbers, what the host has copies of."""
    names = list(names)
    if not names:
        return True
    copies, weights = handling.copies(place), weights_of(place.owner)
    pairs = [(copies.get(name), weights.get(name)) for name in names]
    return all(one is not None and other is not None and _equal(one, other) for one, other in pairs)


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    with torch.inference_mode():
        return torch.equal(one.to(other.device), other)


def _idle(name: str, reach: Reach) -> Finding:
    count = "layers" if reach.layers is None else f"{reach.layers} layers"
    saw = f'LoRA "{short(name)}" has {count} of this model, and none of them has changed'
    evidence: dict[str, Primitive] = {"lora": short(name), "layers": reach.layers, "cause_key": short(name)}
    cause = (
        "The LoRA was saved before it had learnt anything, or is for components that the WebUI leaves out (SD.Next:"
        ' text encoders, unless "LoRA native apply to text encoder" is on).'
    )
    return Finding("LG302", _GUARD, "lora", "", saw, evidence, cause)


def _more(asked: Asked, reaches: Sequence[Reach], differing: dict[str, set[str]]) -> list[Finding]:
    allowed: dict[str, set[str]] = {}
    for reach in reaches:
        for component, names in (reach.weights or {}).items():
            allowed.setdefault(component, set()).update(names)
    more = {component: names - allowed.get(component, set()) for component, names in differing.items()}
    counts = {component: len(layers(list(names))) for component, names in more.items() if names}
    if not counts:
        return []
    saw = f"{named(asked)}, and {by_component(counts)} have changed that no file of it names"
    evidence: dict[str, Primitive] = {**counts, "asked": listed(asked)}
    return [Finding("LG308", _GUARD, "lora", "", saw, evidence)]
