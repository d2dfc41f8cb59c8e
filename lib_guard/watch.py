"""One generation, from the host's first callback that sees the model to its end, whatever way it ends.

Hosts call no callback after a failure, so a `Watch` never counts on one: it ends with `postprocess`, with the host's
own always-called place, with the request object itself, or when the next request begins.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from . import console
from .border import Border
from .findings import LIBGUARD, Finding, Repair
from .guards import Guard, GuardContext
from .hosts.base import Host
from .ledger import Generation, Ledger
from .settings import OFF, Settings, from_args, from_options, to_infotext


class Watch:
    """LibGuard's view of one generation: its settings, its record, and the guards that are attached for it.

    begun: whether the host's `process` has been come to; until then only the guards that go early are attached.
    """

    def __init__(self, request: Any, settings: Settings, generation: Generation) -> None:
        self._request = weakref.ref(request)
        self.settings = settings
        self.generation = generation
        self.guards: list[Guard] = []
        self.begun = False

    @property
    def request(self) -> Any:
        """The host's processing object; None when it is gone."""
        return self._request()


class Watches:
    """All that is being watched: one generation, or several inside one another.

    An extension may start a generation inside another's callbacks (ADetailer does). Then the outer one's guards are
    taken off and put back afterwards, so that only one policy is ever attached to a model.
    """

    def __init__(self, host: Host, ledger: Ledger, kinds: Sequence[type[Guard]]) -> None:
        """kinds: the guards that this host can serve, in the order in which they are attached."""
        self._host = host
        self._ledger = ledger
        self._kinds = kinds
        self._border = Border(self._report_failure)
        self._open: list[Watch] = []
        self._lock = threading.RLock()
        self._said_options: list[str] = []

    def defaults(self) -> Settings:
        """The user's defaults from the host's settings; broken values are said once, and are the built-in ones."""
        options = self._host.options()
        console.set_level(options.get(console.OPTION, "normal"))
        settings, problems = from_options(options)
        if problems and problems != self._said_options:
            console.say(_rejected("LG003", problems), None)
        self._said_options = problems
        return settings

    def prepare(self, request: Any, args: Sequence[object]) -> None:
        """A request is about to begin, and no extension has worked on it: have the host note what they will change for
        its length, end what a failure left open, read its settings, and attach the guards that go early."""
        self._border.reset()
        self._border.always(LIBGUARD, "preparing a generation", lambda: self._host.remember(request), None)
        self._border.run(LIBGUARD, "preparing a generation", lambda: self._prepare(request, args), None)

    def begin(self, request: Any, args: Sequence[object]) -> None:
        """A generation begins: attach the guards that its settings ask for. It need not have been prepared."""
        self._border.always(LIBGUARD, "beginning a generation", lambda: self._begin(request, args), None)

    def settled(self, request: Any) -> None:
        """A batch's extra networks have been activated, and its text is not encoded yet."""
        self._each(request, "settling before", lambda guard: guard.settled(request))

    def note(self, request: Any) -> None:
        """Pictures are about to be written: have them carry what LibGuard did, if it did anything."""
        self._each(request, "looking back at", lambda guard: guard.sampled(request))
        self._border.run(LIBGUARD, "writing infotext", lambda: self._note(request), None)

    def end(self, request: Any, outcome: str = "finished") -> None:
        """A generation has ended. Ending it again does nothing."""
        if outcome == "finished":
            self._each(request, "closing", lambda guard: guard.finished())
        self._border.always(LIBGUARD, "ending a generation", lambda: self._end_of(request, outcome), None)

    def end_all(self) -> None:
        """LibGuard is being unloaded: take everything off the model."""
        with self._lock:
            while self._open:
                self._end(self._open[-1], "failed")

    def _each(self, request: Any, doing: str, call: Callable[[Guard], None]) -> None:
        """Call something of every guard of the innermost generation, if that is the request's."""
        with self._lock:
            watch = self._watch_of(request)
            guards = list(watch.guards) if watch is not None else []
        for guard in guards:
            self._border.run(guard.name, f"{doing} a batch", partial(call, guard), None)

    def _prepare(self, request: Any, args: Sequence[object]) -> None:
        with self._lock:
            self._end_stale()
            # One request is watched once: a host's own callback may have begun it before the Script's did.
            self._end_of(request, "failed")
            settings, problems = from_args(args, self.defaults())
            watch = Watch(request, settings, self._ledger.open(self._host.tab(request)))
            self._pause()
            self._open.append(watch)
            if problems:
                self._report(watch, _rejected("LG002", problems), None)
            self._end_with(request, watch)
            self._attach(watch, self._kinds_that_are(early=True))

    def _begin(self, request: Any, args: Sequence[object]) -> None:
        with self._lock:
            watch = self._watch_of(request)
            if watch is None or watch.begun or watch is not self._open[-1]:
                self._border.reset()
                self._prepare(request, args)
                watch = self._open[-1]
            self._follow(watch, args)
            watch.begun = True
            self._attach(watch, self._kinds_that_are(early=False))

    def _follow(self, watch: Watch, args: Sequence[object]) -> None:
        """Another extension may have changed the arguments since the request was prepared."""
        settings, _ = from_args(args, self.defaults())
        if settings != watch.settings:
            self._detach(watch)
            watch.settings = settings
            self._attach(watch, self._kinds_that_are(early=True))

    def _kinds_that_are(self, early: bool) -> list[type[Guard]]:
        return [kind for kind in self._kinds if kind.early == early]

    def _end_stale(self) -> None:
        """End the watches whose request is not in the middle of being worked on: it failed without a word."""
        while self._open and not self._is_running(self._open[-1]):
            self._end(self._open[-1], "failed")

    def _is_running(self, watch: Watch) -> bool:
        request = watch.request
        return request is not None and self._host.is_running(request)

    def _end_with(self, request: Any, watch: Watch) -> None:
        end = weakref.WeakMethod(self._end_quietly)
        reference = weakref.ref(watch)

        def ended() -> None:
            call, still = end(), reference()
            if call is not None and still is not None:
                call(still)

        self._host.on_end(request, ended)
        at_last = weakref.finalize(request, ended)
        at_last.atexit = False  # type: ignore[misc] # typeshed takes the property for a slot

    def _end_quietly(self, watch: Watch) -> None:
        self._border.always(LIBGUARD, "ending a generation", lambda: self._end(watch, "failed"), None)

    def _end_of(self, request: Any, outcome: str) -> None:
        watch = self._watch_of(request)
        if watch is not None:
            self._end(watch, outcome)

    def _end(self, watch: Watch, outcome: str) -> None:
        with self._lock:
            if watch not in self._open:
                return
            inner = self._open[self._open.index(watch) :]
            for one in reversed(inner):
                self._detach(one)
                self._ledger.close(one.generation, outcome if one is watch else "failed")
                self._open.remove(one)
            self._resume()

    def _watch_of(self, request: Any) -> Watch | None:
        return next((watch for watch in self._open if watch.request is request), None)

    def _pause(self) -> None:
        if self._open:
            self._detach(self._open[-1])

    def _resume(self) -> None:
        if self._open and self._is_running(self._open[-1]):
            watch = self._open[-1]
            self._attach(watch, self._kinds if watch.begun else self._kinds_that_are(early=True))

    def _attach(self, watch: Watch, kinds: Sequence[type[Guard]]) -> None:
        report = partial(self._report, watch)
        context = GuardContext(self._host, watch.settings, self._border, report, request=lambda: watch.request)
        for kind in kinds:
            if watch.settings.policy(kind.name) == OFF:
                kind.passed_over()
            else:
                self._border.run(kind.name, "attaching", partial(self._attach_one, watch, kind, context), None)

    def _attach_one(self, watch: Watch, kind: type[Guard], context: GuardContext) -> None:
        guard = kind(context)
        watch.guards.append(guard)
        guard.attach()

    def _detach(self, watch: Watch) -> None:
        while watch.guards:
            guard = watch.guards.pop()
            self._border.always(guard.name, "detaching", guard.detach, None)

    def _note(self, request: Any) -> None:
        watch = self._watch_of(request)
        if watch is None:
            return
        codes = sorted({entry.finding.code for entry in watch.generation.repaired})
        chosen = watch.settings.vae_precision != "auto" and watch.settings.precision != OFF
        if codes or chosen:
            acted = {"LibGuard": " ".join(codes)} if codes else {}
            self._host.write_infotext(request, acted | to_infotext(watch.settings))

    def _report(self, watch: Watch, finding: Finding, repair: Repair | None) -> None:
        if self._ledger.add(watch.generation, finding, repair):
            console.say(finding, repair)

    def _report_failure(self, finding: Finding) -> None:
        with self._lock:
            if self._open:
                self._report(self._open[-1], finding, None)
            else:
                console.say(finding, None)


def _rejected(code: str, problems: list[str]) -> Finding:
    what = "script arguments" if code == "LG002" else "settings"
    return Finding(code, LIBGUARD, LIBGUARD, "", f"{what}: {'; '.join(problems)}", {"problems": len(problems)})
