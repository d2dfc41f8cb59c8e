"""The ladder back to the baseline: rungs that are tried in order until the weights prove themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..hosts.lora_handling import Asked, LoraHandling, Place
from ..tensors.baseline import Baseline, keep, measure
from ..tensors.fingerprint import Fingerprint
from ..tensors.restore import changed_files, restore_from_copies, restore_from_files

#: What a host's own functions raise when they meet a state that they did not expect.
_HOST_FAILURES = (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError, OSError, AssertionError)


class Ladder:
    """Of one model, from whatever state its weights are in."""

    def __init__(self, handling: LoraHandling, places: Sequence[tuple[Place, Baseline]]) -> None:
        self._handling = handling
        self._places = list(places)
        self._now: dict[str, Mapping[str, Fingerprint]] = {}

    def strays(self) -> dict[str, list[str]]:
        """The weights that are not at the baseline, by component."""
        self._now = {place.component: measure(place.owner) for place, _ in self._places}
        return {place.component: baseline.strays(self._now[place.component]) for place, baseline in self._places}

    def renew(self) -> None:
        """Nothing strays, as `strays` has just said: take what has another dtype or shape now into the baseline."""
        for place, baseline in self._places:
            now = self._now[place.component]
            if any(name not in baseline.sums or baseline.sums[name].differs(one) for name, one in now.items()):
                keep(place.owner, baseline.renewed(now))

    def climb(self, asked: Asked) -> tuple[str, bool]:
        """Try rung after rung; returns by which one it was done, in words, and whether it is proven."""
        rungs: list[tuple[str, Callable[[], None]]] = [
            ("by the WebUI's own unload", self._handling.unload),
            ("from the WebUI's backups", self._from_copies),
            ("from the checkpoint's file", self._from_files),
            ("by loading the checkpoint again", self._reload),
        ]
        for rung, restore in rungs:
            try:
                restore()
            except _HOST_FAILURES:
                continue
            if self._is_proven(asked):
                return rung, True
        return f"as far as it goes{self._excuse()}", False

    def _is_proven(self, asked: Asked) -> bool:
        return not any(self.strays().values()) and not self._handling.lingering(asked)

    def _from_copies(self) -> None:
        for place, baseline in self._places:
            strays = baseline.strays(measure(place.owner))
            if strays:
                restore_from_copies(place.owner, baseline, strays, self._handling.copies(place))

    def _from_files(self) -> None:
        for place, baseline in self._places:
            restore_from_files(place.owner, baseline, baseline.strays(measure(place.owner)))

    def _reload(self) -> None:
        """The host may make new modules; what they must be is what the old ones were."""
        self._handling.reload()
        before = {place.component: baseline for place, baseline in self._places}
        self._places = [
            (place, before[place.component]) for place in self._handling.places() if place.component in before
        ]
        for place, baseline in self._places:
            keep(place.owner, baseline)

    def _excuse(self) -> str:
        replaced = [path.name for _, baseline in self._places for path in changed_files(baseline)]
        return f" ({replaced[0]} is no longer the file that was loaded)" if replaced else ""
