"""Each unit of a ControlNet extension names a preprocessor: is its image encoder the one that the adapter takes?

A wrong pair raises while the extension works, which swallows it: the picture comes without the adapter, and only the
console says so (sd-webui-controlnet scripts/ipadapter/image_proj_models.py:151; Forge, lib_ipadapter/
IPAdapterPlus.py:706).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ..files.families import EncoderNeed
from ..files.families.verdict import INSIGHTFACE
from ..findings import Finding, Repair
from ..hooks import Attachments
from ..hosts.encoder_handling import UnitEncoders, UnitPair
from ..wording import on_one_line
from .base import GuardContext
from .encoder_file import GUARD, file_finding, finding, looked_at, megabytes, quoted, spoken, wanted


class UnitPairing:
    """Looks at the units of one generation whenever the extension asks for them."""

    def __init__(self, context: GuardContext, handling: UnitEncoders, repair: bool) -> None:
        self._context = context
        self._handling = handling
        self._repair = repair
        #: What was said; the extension may ask for its units several times.
        self._said: set[tuple[str, ...]] = set()

    def attach(self, attachments: Attachments) -> None:
        """Wrap what hands out the units."""
        found = self._handling.units(self._context.request())
        if found is not None:
            attachments.method(*found, self._around)

    def _around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            units = function(*args, **kwargs)
            return self._context.border.run(GUARD, "looking at ControlNet's units", partial(self._paired, units), units)

        return call

    def _paired(self, units: Sequence[Any]) -> list[Any]:
        pairs: list[UnitPair] = []
        found = [self._with_its_encoder(unit, pairs) for unit in units]
        if pairs and self._repair:
            self._make_room(pairs)
        return [unit for unit in found if unit is not None]

    def _with_its_encoder(self, unit: Any, pairs: list[UnitPair]) -> Any:
        """The unit, or a copy with another preprocessor. What it comes to is added to the pairs.

        None where nothing that is on disk serves it: it would raise, and take the request's other units along.
        """
        pair = self._handling.pair(unit)
        if pair is None:
            return unit
        file = looked_at(pair.adapter)
        self._say(file_finding(pair.adapter, file, self._handling.text_width()), None)
        need = file.need or pair.need
        if need is None or _fits(pair, need):
            pairs.append(pair)
            return unit
        better = self._handling.preprocessor_for(need)
        self._say_of(pair, need, better)
        if not self._repair:
            pairs.append(pair)
            return unit
        if better is None:
            self._handling.left_out(unit, self._context.request())
            return None
        changed = self._handling.with_preprocessor(unit, better, self._context.request())
        now = self._handling.pair(changed)
        pairs += [now] if now is not None else []
        return changed

    def _say_of(self, pair: UnitPair, need: EncoderNeed, better: str | None) -> None:
        chosen = on_one_line(pair.preprocessor, 60)
        saw = (
            f"IP-Adapter {quoted(pair.adapter)} needs {wanted(need)}, and preprocessor"
            f' "{chosen}" gives {spoken(pair.offer)}'
        )
        evidence = {"needs": need.describe(), "preprocessor": chosen}
        if better is not None:
            repair = Repair(f'"{better}" is used', "its encoder fits", 0.0) if self._repair else None
            found = finding("LG402", pair.adapter, saw, evidence)
            self._say(found, repair, f'Choose preprocessor "{better}" for this adapter.')
            return
        found = finding("LG405", pair.adapter, f"{saw}; there is none on disk that fits", evidence)
        if self._say(found, None):
            self._context.comment(found)

    def _make_room(self, pairs: Sequence[UnitPair]) -> None:
        """A switch of family: encoders that no unit of this request needs."""
        for name, size in self._handling.unload_others(pairs).items():
            needs = ", ".join(dict.fromkeys(spoken(pair.offer) for pair in pairs))
            saw = f"the request needs {needs}, and {on_one_line(name, 60)} is still in memory"
            found = finding("LG401", pairs[0].adapter, saw, {"megabytes": round(size / 1_000_000, 1)})
            self._say(found, Repair("unloaded", f"{megabytes(size)} freed", 0.0))

    def _say(self, found: Finding | None, repair: Repair | None, fix: str = "") -> bool:
        """Whether it was not said before in this generation."""
        if found is None or (found.code, found.component, found.saw) in self._said:
            return False
        self._said.add((found.code, found.component, found.saw))
        self._context.say(replace(found, permanent_fix=fix), repair)
        return True


def _fits(pair: UnitPair, need: EncoderNeed) -> bool:
    """An offer that is not known is not judged."""
    if pair.offer is None:
        return True
    if INSIGHTFACE in (need.kind, pair.offer.kind):
        return need.kind == pair.offer.kind
    return need.met_by(pair.offer) and need.face == pair.face
