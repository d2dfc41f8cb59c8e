"""The ladder back to the baseline: rungs that are tried in order until the weights prove themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

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
        self._strays: dict[str, list[str]] = {}

    def strays(self) -> dict[str, list[str]]:
        """The weights that are not at the baseline, by component. Reads all of them.

        Where other weights altogether were written into a component, they are its baseline from here on.
        """
        self._measure()
        self._places = [(place, self._of_now(place, baseline)) for place, baseline in self._places]
        self._compare()
        return dict(self._strays)

    def _measure(self) -> None:
        self._now = {place.component: measure(place.owner) for place, _ in self._places}

    def _compare(self) -> None:
        self._strays = {place.component: known.strays(self._now[place.component]) for place, known in self._places}

    def _of_now(self, place: Place, baseline: Baseline) -> Baseline:
        now = self._now[place.component]
        if not baseline.is_exchanged(baseline.strays(now)):
            return baseline
        other = replace(baseline, sums=now)
        keep(place.owner, other)
        return other

    def renew(self) -> None:
        """Nothing strays, as `strays` has just said: take what has another dtype or shape now into the baseline."""
        for place, baseline in self._places:
            now = self._now[place.component]
            if any(name not in baseline.sums or baseline.sums[name].differs(one) for name, one in now.items()):
                keep(place.owner, baseline.renewed(now))

    def climb(self, asked: Asked) -> tuple[str, bool]:
        """Try rung after rung; returns by which one it was done, in words, and whether it is proven.

        To be called after `strays`. What is compared anew is what strayed and whatever else was written since; all
        weights where the host had its hands in them and does not tell in which.
        """
        rungs: list[tuple[str, Callable[[], None]]] = [
            ("by the WebUI's own unload", self._unload),
            ("from the WebUI's backups", self._from_copies),
            ("from the checkpoint's file", self._from_files),
            ("by loading the checkpoint again", self._reload),
        ]
        for rung, restore in rungs:
            restore()
            if not any(self._strays.values()) and not self._handling.lingering(asked):
                return rung, True
        return f"as far as it goes{self._excuse()}", False

    def _unload(self) -> None:
        try:
            written = self._handling.unload(self._strays)
        except _HOST_FAILURES:
            written = None
        if written is None:
            self._measure()
            self._compare()
        else:
            self._compare_again(written)

    def _from_copies(self) -> None:
        for place, baseline in self._places:
            strays = self._strays[place.component]
            if strays:
                restore_from_copies(place.owner, baseline, strays, self._handling.copies(place))
        self._compare_again()

    def _from_files(self) -> None:
        for place, baseline in self._places:
            strays = self._strays[place.component]
            if strays:
                restore_from_files(place.owner, baseline, strays)
        self._compare_again()

    def _compare_again(self, written: Mapping[str, frozenset[str]] = MappingProxyType({})) -> None:
        """What strayed before, and what the host may have written."""
        for place, baseline in self._places:
            doubtful = {*self._strays[place.component], *written.get(place.component, ())}
            if doubtful:
                still = set(baseline.strays(measure(place.owner, doubtful)))
                self._strays[place.component] = [name for name in baseline.sums if name in doubtful & still]

    def _reload(self) -> None:
        """The host may make new modules; what they must be is what the old ones were."""
        try:
            self._handling.reload()
        except _HOST_FAILURES:
            return
        before = {place.component: baseline for place, baseline in self._places}
        self._places = [
            (place, before[place.component]) for place in self._handling.places() if place.component in before
        ]
        for place, baseline in self._places:
            keep(place.owner, baseline)
        self._measure()
        self._compare()

    def _excuse(self) -> str:
        replaced = [path.name for _, baseline in self._places for path in changed_files(baseline)]
        return f" ({replaced[0]} is no longer the file that was loaded)" if replaced else ""
