"""LibGuard as one host has it: the parts put together, for `scripts/lib_guard.py` to hand the host's calls to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from . import __version__, console
from .findings import LIBGUARD, Finding
from .guards import GUARDS
from .hooks import sweep
from .hosts.base import Host
from .hosts.detect import find_host
from .hosts.encoder_handling import PipelineEncoders
from .hosts.seams import missing
from .ledger import LEDGER
from .settings import Settings
from .ui import accordion
from .watch import Watches


class Extension:
    """One load of LibGuard into one host.

    On a WebUI that no adapter knows it says so once, and does nothing at all from then on.
    """

    def __init__(self) -> None:
        console.set_up("normal")
        self.host: Host | None = find_host()
        lacking = {LIBGUARD: ["no adapter knows this WebUI"]} if self.host is None else missing(self.host.seams)
        for guard, problems in lacking.items():
            console.say(Finding("LG004", guard, LIBGUARD, "", "; ".join(problems)), None)
        served = [kind for kind in GUARDS if kind.name not in lacking]
        usable = self.host is not None and LIBGUARD not in lacking
        self.watches = Watches(self.host, LEDGER, served) if self.host is not None and usable else None
        if self.watches and self.host:
            names = ", ".join(kind.name for kind in served) or "none"
            console.LOGGER.info("%s on %s, guards: %s", __version__, self.host.title, names)
            self.host.connect(lambda request: self.begin(request, ()), self.end)

    def build_ui(self, tab: str, elem_id: Callable[[str], str]) -> accordion.Accordion:
        """The accordion of one tab, filled with the user's defaults."""
        defaults = self.watches.defaults() if self.watches else Settings(enabled=False)
        return accordion.build(defaults, LEDGER, tab, elem_id)

    def prepare(self, request: Any, args: Sequence[object]) -> None:
        """`before_process`: no extension has changed anything for this request yet."""
        if self.watches:
            self.watches.prepare(request, args)

    def begin(self, request: Any, args: Sequence[object]) -> None:
        """`process`: the model is there and nothing has been computed yet."""
        if self.watches:
            self.watches.begin(request, args)

    def settled(self, request: Any) -> None:
        """`process_batch`: the extra networks are activated, and the text is not encoded yet."""
        if self.watches:
            self.watches.settled(request)

    def note(self, request: Any) -> None:
        """`postprocess_batch`, `postprocess_image`: pictures are about to be written."""
        if self.watches:
            self.watches.note(request)

    def end(self, request: Any) -> None:
        """`postprocess`: the generation came through."""
        if self.watches:
            self.watches.end(request)

    def unload(self) -> None:
        """The host is about to throw this load of the extension away; the model stays."""
        if self.watches and self.host:
            self.watches.end_all()
            boundaries = self.host.boundaries()
            touched: list[object] = [boundary.owner for boundary in boundaries]
            touched += [entry.owner for entry in (getattr(b, "entry", None) for b in boundaries) if entry is not None]
            touched += [arrival.owner for arrival in self.host.arrivals()]
            touched += [shield.owner for shield in self.host.shields()]
            handling = self.host.lora_handling()
            activation = handling.activation() if handling is not None else None
            touched += [activation[0]] if activation is not None else []
            encoders = self.host.encoder_handling()
            found = [encoders.adapters(), encoders.arguments()] if isinstance(encoders, PipelineEncoders) else []
            touched += [one[0] for one in found if one is not None]
            for owner in {id(one): one for one in touched}.values():
                sweep(owner)
