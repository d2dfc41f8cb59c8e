"""The LoRA guard: the weights are the checkpoint plus exactly what this request asked for.

Hosts lose count of what is in the weights: after a merge that raised half way, after a strength was changed and the
LoRA removed, while a request has extra networks disabled. So the guard looks at the weights. Their fingerprints are
taken while no adapter is in them, and compared when the set of LoRAs changes, when it has become empty, and after a
generation that did not come through; a request for what was proven last costs nothing.

What is in the weights beside the checkpoint is taken out by a ladder of rungs, each verified bit for bit: the host's
own unload, its backups, the tensors of the checkpoint's file, a reload. Nothing is ever subtracted: in the storage
dtype that leaves a residue (SD.Next, diffusers #4473), which is what this guard is there to be rid of.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..findings import Finding, Primitive, Repair
from ..hooks import Attachments
from ..hosts.lora_handling import Asked, LoraHandling, Place, Reach
from ..settings import FIX
from ..tensors.baseline import Baseline, baseline_of, keep, measure
from ..tensors.restore import fingerprints_in_files, stamp
from ..tensors.weights import layers
from ..wording import on_one_line
from .base import GuardContext
from .lora_file import lora_file_findings, silenced
from .lora_ladder import Ladder
from .lora_memory import MEMORY

#: The host's settings: compare at every request, and LoRAs of which nothing is to be said beforehand.
PARANOID, SILENCED = "lib_guard_lora_paranoid", "lib_guard_lora_silenced"

Activate = Callable[..., Any]


class LoraGuard:
    """See the module's docstring."""

    name = "lora"

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
        """See `Guard`. Where the request has extra networks disabled, the host has activated nothing."""
        handling, judged = self._handling, self._judged
        self._judged = False
        if handling is None or judged or (handling.eager and handling.activation() is not None):
            return
        if handling.activation() is None or getattr(request, "disable_extra_networks", False):
            self._judge(handling, request, None, {})

    def sampled(self, request: Any) -> None:
        """See `Guard`. What was applied anew is in the weights now, also on a host that applies it layer by layer."""
        asked, self._fresh = self._fresh, None
        if asked is not None and self._handling is not None and not self._handling.eager:
            self._look_at_applied(self._handling, asked)

    def finished(self) -> None:
        """See `Guard`."""
        MEMORY.close(self)

    # Around the host's activation.

    def _activating(self, activate: Activate) -> Activate:
        def call(request: Any, params: Any = (), *args: Any, **options: Any) -> Any:
            handling = self._handling
            if handling is None or _is_later_step(args, options):
                MEMORY.distrust()
                return activate(request, params, *args, **options)
            if handling.eager:
                return self._eagerly(
                    handling, partial(activate, request, params, *args, **options), (request, params), options
                )
            result = activate(request, params, *args, **options)
            self._judged = True
            self._guarded("judging the LoRAs of", lambda: self._judge(handling, request, params, options))
            return result

        return call

    def _eagerly(
        self, handling: LoraHandling, activate: Callable[[], Any], request: tuple[Any, Any], options: dict[str, Any]
    ) -> Any:
        """The base is brought back before another set is applied: afterwards nothing tells the two apart."""
        asked: Asked | None = None
        if self._repair:
            asked = self._guarded("judging the LoRAs of", lambda: self._judge(handling, *request, options))
        came_through = False
        try:
            result = activate()
            came_through = True
        finally:
            after = partial(self._after_eager, handling, asked, request, options)
            failed = partial(self._after_failure, handling, asked)
            self._guarded("looking at the LoRAs of", after if came_through else failed)
        return result

    def _after_failure(self, handling: LoraHandling, asked: Asked | None) -> None:
        """The host could not activate them: part of them may be in the weights."""
        MEMORY.distrust()
        self._fresh = None
        if asked is not None:
            self._say_of_files(handling, asked)

    def _after_eager(
        self, handling: LoraHandling, asked: Asked | None, request: tuple[Any, Any], options: dict[str, Any]
    ) -> None:
        if not self._repair:
            self._judge(handling, *request, options)
        if handling.interrupted():
            MEMORY.distrust()
        elif self._fresh is not None and asked is not None:
            fresh, self._fresh = self._fresh, None
            self._say_of_files(handling, fresh)
            self._look_at_applied(handling, fresh)

    def _guarded(self, doing: str, call: Callable[[], Any]) -> Any:
        return self._context.border.run(self.name, f"{doing} this generation", call, None)

    # Judging.

    def _judge(self, handling: LoraHandling, request: Any, params: Any, options: dict[str, Any]) -> Asked:
        asked = handling.asked(request, params, **options)
        places = handling.places()
        paranoid = bool(self._context.host.options().get(PARANOID, False))
        if not places or (MEMORY.knows(self, asked, places) and not paranoid):
            return asked
        unsure = {place: handling.touched(place) for place in places if baseline_of(place.owner) is None}
        if self._repair or not handling.eager:
            handling.settle(asked)
        proven = True
        if self._repair or not handling.eager or not asked.loras:
            known = [(place, _baseline(place, unsure.get(place, frozenset()))) for place in places]
            proven = self._compare(
                handling, asked, known, partial(handling.activate_again, request, params, **options), request
            )
        MEMORY.note(self, asked, handling.places())
        if not proven:
            MEMORY.distrust()
        self._fresh = asked if asked.loras else None
        if asked.loras and not handling.eager:
            self._say_of_files(handling, asked)
        return asked

    def _compare(
        self,
        handling: LoraHandling,
        asked: Asked,
        known: Sequence[tuple[Place, Baseline]],
        activate_again: Callable[[], None],
        request: Any,
    ) -> bool:
        """Whether the weights are, or are again, what they are to be."""
        ladder = Ladder(handling, known)
        strays, lingering = ladder.strays(), list(handling.lingering(asked))
        if not any(strays.values()) and not lingering:
            ladder.renew()
            self._mind_conditioning(handling, asked, request)
            return True
        finding = self._residue(handling, asked, known, strays, lingering)
        if not self._repair:
            self._context.say(finding, None)
            return False
        started = time.perf_counter()
        rung, proven = ladder.climb(asked)
        handling.forget_records()
        if asked.loras and not handling.eager:
            activate_again()
        handling.forget_conditioning(request)
        spent = (time.perf_counter() - started) * 1000
        self._context.say(finding, Repair(f"restored {rung}", "bit-exact" if proven else "", spent))
        return proven

    def _mind_conditioning(self, handling: LoraHandling, asked: Asked, request: Any) -> None:
        """Text that was encoded under other LoRAs outlives clean weights, where the cache's key does not tell."""
        known = MEMORY.last if MEMORY.trusted else None
        if not self._repair or known == asked:
            return
        outlived = handling.forget_conditioning(request)
        if outlived and known is not None:
            saw = f"{_named(asked)}, but the prompt was kept as encoded under {_listed(known) or 'no LoRA'}"
            evidence: dict[str, Primitive] = {"entries": outlived, "loras": _listed(known)}
            self._context.say(
                Finding("LG305", self.name, "text_encoder", "", saw, evidence),
                Repair("will be encoded anew", "cache empty", 0.0),
            )

    def _residue(
        self,
        handling: LoraHandling,
        asked: Asked,
        known: Sequence[tuple[Place, Baseline]],
        strays: dict[str, list[str]],
        lingering: Sequence[str],
    ) -> Finding:
        total = {place.component: len(layers(list(baseline.sums))) for place, baseline in known}
        counts = {component: len(layers(names)) for component, names in strays.items() if names}
        where = " and ".join(
            f"{count} of {total[component]} {component.replace('_', ' ')} layers" for component, count in counts.items()
        )
        left = ", ".join(dict.fromkeys([*MEMORY.suspects(), *map(_short, lingering)]))
        carried = f'still carry "{left}"' if left else "are not the checkpoint's"
        told = f"{where} {carried}" if where else f'"{left}" would still act'
        evidence: dict[str, Primitive] = {
            **counts,
            "loras": left,
            "asked": _listed(asked),
            "lingering": ", ".join(map(_short, lingering)),
        }
        cause, fix = handling.permanent_fix()
        return Finding("LG301", self.name, "lora", "", f"{_named(asked)}, but {told}", evidence, cause, fix)

    # What was applied.

    def _say_of_files(self, handling: LoraHandling, asked: Asked) -> None:
        quiet = silenced(self._context.host.options().get(SILENCED))
        places = handling.places()
        for use in asked.loras:
            reach = handling.reach(use, places)
            for finding in lora_file_findings(use, reach, places, quiet):
                self._context.say(finding, None)
            if handling.stale(use) and use.name.lower() not in quiet:
                saw = f'LoRA "{_short(use.name)}" was replaced on disk, and the WebUI goes on with what it read before'
                evidence: dict[str, Primitive] = {"lora": _short(use.name), "cause_key": _short(use.name)}
                self._context.say(Finding("LG307", self.name, "lora", "", saw, evidence), None)

    def _look_at_applied(self, handling: LoraHandling, asked: Asked) -> None:
        """Of the layers that a LoRA's file names some must differ from the base, and no others may."""
        places = handling.places()
        reaches = {use.name: handling.reach(use, places) for use in asked.loras}
        if any(reach is None or reach.weights is None for reach in reaches.values()):
            return
        differing = {
            place.component: set(baseline.strays(measure(place.owner)))
            for place in places
            for baseline in [baseline_of(place.owner)]
            if baseline is not None
        }
        quiet = silenced(self._context.host.options().get(SILENCED))
        for use in asked.loras:
            if use.name.lower() not in quiet and _should_act(use.strengths):
                self._say_if_idle(use.name, reaches[use.name], differing)
        self._say_if_more(asked, [reach for reach in reaches.values() if reach is not None], differing)

    def _say_if_idle(self, name: str, reach: Reach | None, differing: dict[str, set[str]]) -> None:
        if reach is None or not reach.layers or not reach.weights:
            return
        if any(names & differing.get(component, set()) for component, names in reach.weights.items()):
            return
        saw = f'LoRA "{_short(name)}" has {reach.layers} layers of this model, and none of them has changed'
        evidence: dict[str, Primitive] = {"lora": _short(name), "layers": reach.layers, "cause_key": _short(name)}
        self._context.say(Finding("LG302", self.name, "lora", "", saw, evidence), None)

    def _say_if_more(self, asked: Asked, reaches: Sequence[Reach], differing: dict[str, set[str]]) -> None:
        allowed: dict[str, set[str]] = {}
        for reach in reaches:
            for component, names in (reach.weights or {}).items():
                allowed.setdefault(component, set()).update(names)
        more = {component: names - allowed.get(component, set()) for component, names in differing.items()}
        counts = {component: len(layers(list(names))) for component, names in more.items() if names}
        if not counts:
            return
        MEMORY.distrust()
        where = " and ".join(f"{count} {component.replace('_', ' ')} layers" for component, count in counts.items())
        saw = f"{_named(asked)}, and {where} have changed that no file of it names"
        evidence: dict[str, Primitive] = {**counts, "asked": _listed(asked), "cause_key": "more"}
        self._context.say(Finding("LG301", self.name, "lora", "", saw, evidence), None)


def _baseline(place: Place, unsure: frozenset[str]) -> Baseline:
    """The baseline of a component, taken now where it has none or other weights were loaded into it.

    unsure: weights that a LoRA may be in, because LibGuard was off until now.
    """
    known = baseline_of(place.owner)
    if known is not None and place.origin in ("", known.origin):
        return known
    files = tuple((path, *stamp(path)) for path in place.files)
    sums = measure(place.owner)
    if unsure:
        sums |= fingerprints_in_files(place.owner, place.files, place.prefix, unsure)
    taken = Baseline(place.origin, files, place.prefix, sums)
    keep(place.owner, taken)
    return taken


def _is_later_step(args: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """SD.Next activates anew at every step when a strength changes with the steps; that is not judged step by step."""
    step = options.get("step", args[0] if args else 0)
    return isinstance(step, int) and step > 0


def _should_act(strengths: Sequence[object]) -> bool:
    numbers = [one for one in strengths if isinstance(one, (int, float))]
    return not numbers or any(numbers)


def _named(asked: Asked) -> str:
    return f'the request asks for "{_listed(asked)}"' if asked.loras else "no LoRA is requested"


def _listed(asked: Asked) -> str:
    return on_one_line(", ".join(dict.fromkeys(_short(use.name) for use in asked.loras)), 200)


def _short(name: str) -> str:
    return on_one_line(name, 60)
