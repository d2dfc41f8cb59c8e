"""The LoRA guard: the weights are the checkpoint plus exactly what this request asked for.

Hosts lose count of what is in the weights: after a merge that raised half way, after a strength was changed and the
LoRA removed, while a request has extra networks disabled. So the guard looks at the weights. Their fingerprints are
taken while no adapter is in them, and compared when the set of LoRAs changes, when it has become empty, and after a
generation that did not come through; a request for what was proven last costs nothing.

What is in the weights beside the checkpoint is taken out by a ladder of rungs, each verified bit for bit: the host's
own unload, its backups, the tensors of the checkpoint's file, a reload. Nothing is ever subtracted: in the storage
dtype that leaves a residue (SD.Next, modules/lora/networks.py:108), which is what this guard is there to be rid of.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..findings import Finding, Primitive, Repair
from ..hooks import Attachments
from ..hosts.lora_handling import Asked, LoraHandling, LoraUse, Place
from ..settings import FIX
from ..tensors.baseline import Baseline, baseline_of, keep, measure
from ..tensors.restore import fingerprints_in_files, stamp
from ..tensors.weights import layers
from .base import GuardContext
from .lora_applied import look_at_applied
from .lora_file import lora_file_findings, silenced
from .lora_ladder import Ladder
from .lora_memory import MEMORY
from .lora_words import by_component, listed, named, short

#: The host's settings: compare at every request, and LoRAs of which nothing is to be said beforehand.
PARANOID, SILENCED = "lib_guard_lora_paranoid", "lib_guard_lora_silenced"


@dataclass(frozen=True)
class _Turn:
    """One activation. params: the parsed tags; None where the host activates nothing. options: what else it is
    given."""

    handling: LoraHandling
    request: Any
    params: Any
    options: Mapping[str, Any]

    def asked(self) -> Asked:
        return self.handling.asked(self.request, self.params, **self.options)

    def activate_again(self) -> None:
        self.handling.activate_again(self.request, self.params, **self.options)


class LoraGuard:
    """See the module's docstring."""

    name = "lora"
    early = False

    def __init__(self, context: GuardContext) -> None:
        self._context = context
        self._attachments = Attachments()
        self._handling: LoraHandling | None = context.host.lora_handling()
        self._repair = context.settings.lora == FIX
        #: Whether this batch's activation has been judged.
        self._judged = False
        #: What was applied anew and has not been looked at since.
        self._fresh: Asked | None = None

    @classmethod
    def passed_over(cls) -> None:
        """See `Guard`. Whatever that generation does to the weights is not seen."""
        MEMORY.distrust()

    def attach(self) -> None:
        """See `Guard`."""
        place = self._handling.activation() if self._handling else None
        if place is not None:
            self._attachments.method(*place, self._activating)

    def detach(self) -> None:
        """See `Guard`."""
        self._attachments.detach()

    def settled(self, request: Any) -> None:
        """See `Guard`. Where the request has extra networks disabled, or the host's LoRA extension is gone, nothing was
        activated."""
        handling, judged = self._handling, self._judged
        self._judged = False
        if handling is None or judged:
            return
        if handling.activation() is None or getattr(request, "disable_extra_networks", False):
            self._judge(_Turn(handling, request, None, {}))

    def sampled(self, request: Any) -> None:
        """See `Guard`. What was applied anew is in the weights now, also on a host that applies it layer by layer."""
        if self._handling is not None and not self._handling.eager:
            self._look_at_fresh(self._handling)

    def finished(self) -> None:
        """See `Guard`."""
        MEMORY.close(self)

    # Around the host's activation.

    def _activating(self, activate: Callable[..., Any]) -> Callable[..., Any]:
        def call(request: Any, params: Any = (), *args: Any, **options: Any) -> Any:
            handling, original = self._handling, partial(activate, request, params, *args, **options)
            if handling is None or _is_later_step(args, options):
                MEMORY.distrust()
                return original()
            turn = _Turn(handling, request, params, options)
            return self._eagerly(turn, original) if handling.eager else self._lazily(turn, original)

        return call

    def _lazily(self, turn: _Turn, activate: Callable[[], Any]) -> Any:
        """Nothing is in the weights yet when the host has noted what is wanted."""
        with ExitStack() as on_failure:
            on_failure.callback(self._guarded, lambda: self._after_failure(turn, turn.asked()))
            result = activate()
            on_failure.pop_all()
        self._judged = True
        self._guarded(lambda: self._judge(turn))
        return result

    def _eagerly(self, turn: _Turn, activate: Callable[[], Any]) -> Any:
        """The base is brought back before another set is applied: afterwards nothing tells the two apart."""
        asked: Asked | None = self._guarded(lambda: self._judge(turn)) if self._repair else None
        with ExitStack() as on_failure:
            on_failure.callback(self._guarded, lambda: self._after_failure(turn, asked))
            result = activate()
            on_failure.pop_all()
        self._guarded(lambda: self._after_eager(turn))
        return result

    def _after_eager(self, turn: _Turn) -> None:
        if not self._repair:
            self._judge(turn)
        if turn.handling.interrupted():
            MEMORY.distrust()
            return
        if self._fresh is not None:
            self._say_of_files(turn.handling, self._fresh)
            self._look_at_fresh(turn.handling)

    def _after_failure(self, turn: _Turn, asked: Asked | None) -> None:
        """The host could not activate them: a part of them may be in the weights."""
        MEMORY.distrust()
        self._fresh = None
        if asked is not None:
            self._say_of_files(turn.handling, asked)

    def _guarded(self, call: Callable[[], Any]) -> Any:
        return self._context.border.run(self.name, "judging the LoRAs of this generation", call, None)

    # Judging.

    def _judge(self, turn: _Turn) -> Asked:
        asked, handling = turn.asked(), turn.handling
        places = handling.places()
        paranoid = bool(self._context.host.options().get(PARANOID, False))
        if not places or (MEMORY.knows(self, asked, places) and not paranoid):
            return asked
        proven = self._bring_back(turn, asked, places) if self._can_judge(handling, asked) else True
        MEMORY.note(self, asked, handling.places())
        if not proven:
            MEMORY.distrust()
        self._fresh = asked if asked.loras else None
        if asked.loras and not handling.eager:
            self._say_of_files(handling, asked)
        return asked

    def _can_judge(self, handling: LoraHandling, asked: Asked) -> bool:
        """Where an eager host is only watched, its LoRAs are in the weights already, and hide what else is."""
        return self._repair or not handling.eager or not asked.loras

    def _bring_back(self, turn: _Turn, asked: Asked, places: Sequence[Place]) -> bool:
        """Whether the weights are the base, or are again."""
        handling = turn.handling
        unsure = {place: handling.touched(place) for place in places if baseline_of(place.owner) is None}
        if self._repair or not handling.eager:
            handling.settle(asked)
        seen_before = [_known(place) for place in places]
        known = [
            (place, baseline or _taken(place, unsure.get(place, frozenset())))
            for place, baseline in zip(places, seen_before)
        ]
        ladder, lingering = Ladder(handling, known), list(handling.lingering(asked))
        # What was taken a moment ago, of weights that are not in doubt, is not read again.
        strays = ladder.strays() if lingering or any(seen_before) or any(unsure.values()) else {}
        if not any(strays.values()) and not lingering:
            if strays:
                ladder.renew()
            self._mind_conditioning(turn, asked)
            return True
        finding = self._residue(handling, asked, known, strays, lingering)
        if not self._repair:
            self._context.say(finding, None)
            return False
        return self._climb(turn, asked, ladder, finding)

    def _climb(self, turn: _Turn, asked: Asked, ladder: Ladder, finding: Finding) -> bool:
        handling, started = turn.handling, time.perf_counter()
        rung, proven = ladder.climb(asked)
        handling.forget_records()
        if asked.loras and not handling.eager:
            turn.activate_again()
        handling.forget_conditioning(turn.request)
        spent = (time.perf_counter() - started) * 1000
        self._context.say(finding, Repair(f"restored {rung}", "bit-exact" if proven else "", spent))
        return proven

    def _mind_conditioning(self, turn: _Turn, asked: Asked) -> None:
        """Text that was encoded under other LoRAs outlives clean weights, where the cache's key does not tell."""
        known = MEMORY.last if MEMORY.trusted else None
        if not self._repair or known == asked:
            return
        outlived = turn.handling.forget_conditioning(turn.request)
        if outlived and known is not None:
            saw = f"{named(asked)}, but the prompt was kept as encoded under {listed(known) or 'no LoRA'}"
            evidence: dict[str, Primitive] = {"entries": outlived, "loras": listed(known)}
            finding = Finding("LG305", self.name, "text_encoder", "", saw, evidence)
            self._context.say(finding, Repair("the prompt is encoded anew", "cache empty", 0.0))

    def _residue(
        self,
        handling: LoraHandling,
        asked: Asked,
        known: Sequence[tuple[Place, Baseline]],
        strays: Mapping[str, list[str]],
        lingering: Sequence[str],
    ) -> Finding:
        total = {place.component: len(layers(list(baseline.sums))) for place, baseline in known}
        counts = {component: len(layers(names)) for component, names in strays.items() if names}
        left = ", ".join(dict.fromkeys(short(name) for name in [*MEMORY.suspects(), *lingering]))
        carried = f'still carry "{left}"' if left else "are not the checkpoint's"
        told = f"{by_component(counts, total)} {carried}" if counts else f'"{left}" would still act'
        evidence: dict[str, Primitive] = {
            **counts,
            "loras": left,
            "asked": listed(asked),
            "lingering": ", ".join(map(short, lingering)),
        }
        cause, fix = handling.permanent_fix()
        return Finding("LG301", self.name, "lora", "", f"{named(asked)}, but {told}", evidence, cause, fix)

    # What is said of LoRAs beside that.

    def _quiet(self) -> frozenset[str]:
        return silenced(self._context.host.options().get(SILENCED))

    def _say_of_files(self, handling: LoraHandling, asked: Asked) -> None:
        quiet, places = self._quiet(), handling.places()
        for use in asked.loras:
            for finding in lora_file_findings(use, handling.reach(use, places), places, quiet):
                self._context.say(_with_reason(finding, use, handling), None)
            if handling.stale(use) and use.name.lower() not in quiet:
                saw = f'LoRA "{short(use.name)}" was replaced on disk, and the WebUI goes on with what it read before'
                evidence: dict[str, Primitive] = {"lora": short(use.name), "cause_key": short(use.name)}
                self._context.say(Finding("LG307", self.name, "lora", "", saw, evidence), None)

    def _look_at_fresh(self, handling: LoraHandling) -> None:
        asked, self._fresh = self._fresh, None
        found = look_at_applied(handling, asked, self._quiet()) if asked is not None else []
        for finding in found:
            self._context.say(finding, None)
        if any(finding.code == "LG308" for finding in found):
            MEMORY.distrust()


def _with_reason(finding: Finding, use: LoraUse, handling: LoraHandling) -> Finding:
    """Why the host applies nothing of a file, where the host knows it."""
    if finding.code != "LG302" or finding.cause:
        return finding
    cause, fix = handling.refusal(use)
    return replace(finding, cause=cause, permanent_fix=fix)


def _known(place: Place) -> Baseline | None:
    """The baseline of a component; None where it has none, or other weights were loaded into it."""
    known = baseline_of(place.owner)
    return known if known is not None and place.origin in ("", known.origin) else None


def _taken(place: Place, unsure: frozenset[str]) -> Baseline:
    """The baseline of a component, taken now.

    unsure: weights that a LoRA may be in, because LibGuard was off until now.
    """
    files = tuple((path, *stamp(path)) for path in place.files)
    sums = measure(place.owner)
    if unsure:
        sums |= fingerprints_in_files(place.owner, place.files, place.prefix, unsure)
    taken = Baseline(place.origin, files, place.prefix, sums)
    keep(place.owner, taken)
    return taken


def _is_later_step(args: tuple[Any, ...], options: Mapping[str, Any]) -> bool:
    """SD.Next activates anew at every step when a strength changes with the steps; that is not judged step by step."""
    step = options.get("step", args[0] if args else 0)
    return isinstance(step, int) and step > 0
