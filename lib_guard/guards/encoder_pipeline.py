"""A pipeline holds one image encoder for all its adapters: is it the one that each of them takes?

diffusers loads an encoder only when there is none (loaders/ip_adapter.py:206), and a host that remembers which one it
loaded loses count when a checkpoint brings one along (SD.Next, modules/ipadapter.py:190).
"""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..files.families import EncoderNeed
from ..files.families.verdict import HIDDEN, INSIGHTFACE, UNKNOWN
from ..findings import Finding, Repair
from ..hooks import Attachments
from ..hosts.encoder_handling import PLAIN_ATTENTION, AdapterUse, Embedding, PipelineEncoders
from ..tensors.image_encoder import need_of, offer_of, size_in_bytes
from .base import GuardContext
from .encoder_file import GUARD, AdapterFile, file_finding, finding, looked_at, megabytes, quoted, spoken, wanted


@dataclass
class _Turn:
    """One call of the host's function that brings adapters.

    files: what those of the uses tell. exchange: of the encoder that was unloaded beforehand, until it is known how it
    went on: the finding, what was freed, and the milliseconds.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    uses: list[AdapterUse] = field(default_factory=list)
    files: list[AdapterFile] = field(default_factory=list)
    exchange: tuple[Finding, str, float] | None = None

    @property
    def call(self) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        return self.args, self.kwargs


class PipelinePairing:
    """Looks at the adapters of one generation when the host brings them into its pipeline."""

    def __init__(self, context: GuardContext, handling: PipelineEncoders, repair: bool) -> None:
        self._context = context
        self._handling = handling
        self._repair = repair
        #: Of adapters of several families; empty when the pipeline's one encoder serves all.
        self._embeddings: list[Embedding] = []

    def attach(self, attachments: Attachments) -> None:
        """Wrap what brings the adapters, and what says how the pipeline is called."""
        for found, wrap in (
            (self._handling.adapters(), self._around_adapters),
            (self._handling.arguments(), self._around_arguments),
        ):
            if found is not None:
                attachments.method(*found, wrap)

    def _around_adapters(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            turn = _Turn(args, kwargs)
            self._guarded("before adapters come", partial(self._before, turn))
            try:
                return function(*args, **kwargs)
            finally:
                self._guarded("after adapters came", partial(self._after, turn))

        return call

    def _around_arguments(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            hand_over = partial(self._for_this_pass, result, args, kwargs)
            return self._context.border.run(GUARD, "handing over images", hand_over, result)

        return call

    def _for_this_pass(self, result: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What the pipeline of a pass is called with."""
        if self._handling.has_images_in_vain(result, args, kwargs):
            saw = "a pass is handed an IP-Adapter's image, and its model has no adapter"
            found = Finding("LG408", GUARD, "unet", "", saw, {})
            repair = Repair("the image is left out of the pass", "it needs none", 0.0) if self._repair else None
            self._context.say(found, repair)
            return self._handling.without_images(result) if self._repair else result
        return self._handling.with_embeddings(result, self._embeddings, args) if self._embeddings else result

    def _guarded(self, doing: str, call: Callable[[], None]) -> None:
        self._context.border.run(GUARD, doing, call, None)

    # Before the host brings them.

    def _before(self, turn: _Turn) -> None:
        self._embeddings = []
        turn.uses = list(self._handling.uses(*turn.call))
        if not turn.uses:
            self._see_to_the_list(turn)
            return
        self._handling.remember()
        turn.files = [looked_at(use) for use in turn.uses]
        text_width = self._handling.text_width()
        for use, file in zip(turn.uses, turn.files):
            self._say(file_finding(use, file, text_width), None)
        if _of_several_families([file.need for file in turn.files]):
            self._leave_out_what_cannot_be_served(turn)
        else:
            self._unload_a_wrong_one(turn)

    def _see_to_the_list(self, turn: _Turn) -> None:
        if not self._handling.lacks_list(*turn.call):
            return
        found = Finding("LG409", GUARD, "unet", "", "a request has nothing in the place of its list of IP-Adapters", {})
        if not self._repair:
            self._context.say(found, None)
            return
        self._handling.give_empty_list(*turn.call)
        proof = "" if self._handling.lacks_list(*turn.call) else "the list is there"
        self._context.say(found, Repair("it is given an empty one", proof, 0.0))

    def _leave_out_what_cannot_be_served(self, turn: _Turn) -> None:
        lacking = {
            place: file.need
            for place, file in enumerate(turn.files)
            if file.need is not None and not self._can_serve(file.need)
        }
        for place, need in lacking.items():
            self._say_missing(turn.uses[place], need)
        missing = list(lacking)
        if missing and self._repair and len(missing) < len(turn.uses):
            self._handling.leave_out(missing, *turn.call)
            turn.uses = [use for place, use in enumerate(turn.uses) if place not in missing]
            turn.files = [file for place, file in enumerate(turn.files) if place not in missing]
            if not _of_several_families([file.need for file in turn.files]):
                self._unload_a_wrong_one(turn)

    def _can_serve(self, need: EncoderNeed) -> bool:
        return self._fits(need) or self._handling.has_encoder(need)

    def _unload_a_wrong_one(self, turn: _Turn) -> None:
        """So that the host loads the right one next."""
        use, need = _first_need(turn.uses, [file.need for file in turn.files])
        if use is None or need is None or self._handling.encoder() is None or self._fits(need):
            return
        found = self._wrong_one(use, need)
        if self._repair:
            turn.exchange = (found, *self._unload())
        else:
            self._context.say(found, None)

    def _unload(self) -> tuple[str, float]:
        """What was freed, in words, and the milliseconds that it took."""
        started, encoder = time.perf_counter(), self._handling.encoder()
        if encoder is None:
            return "nothing was in place", 0.0
        size, gone = size_in_bytes(encoder), weakref.ref(encoder)
        self._handling.unload_encoder()
        del encoder
        if gone() is not None:
            # Something that holds it is part of a circle, and would keep it until some later collection.
            gc.collect()
        freed = f"{megabytes(size)} {'freed' if gone() is None else 'no longer in the pipeline'}"
        return freed, (time.perf_counter() - started) * 1000

    def _wrong_one(self, use: AdapterUse, need: EncoderNeed) -> Finding:
        offered = self._offered()
        saw = f"IP-Adapter {quoted(use)} needs {wanted(need)}, and {offered} is in place"
        return finding("LG401", use, saw, {"needs": need.describe(), "in_place": offered})

    # After it has.

    def _after(self, turn: _Turn) -> None:
        if not turn.uses:
            self._clear()
            return
        needs = [need_of(one) for one in self._handling.projections()]
        given = self._handling.given(*turn.call)
        if not given or len(needs) != len(turn.uses):
            self._say_why_not(turn)
            if not given:
                self._clear()
            return
        if _of_several_families(needs):
            self._serve_each(turn, needs)
        else:
            self._see_to_the_one(turn, needs)

    def _say_why_not(self, turn: _Turn) -> None:
        """The host could not bring the adapters, or not all of them."""
        self._say_exchange(turn)
        use, need = _first_need(turn.uses, [file.need for file in turn.files])
        if use is not None and need is not None and not self._can_serve(need):
            self._say_missing(use, need)

    def _see_to_the_one(self, turn: _Turn, needs: Sequence[EncoderNeed | None]) -> None:
        use, need = _first_need(turn.uses, needs)
        if use is None or need is None:
            return
        if self._repair and not self._fits(need):
            # What the header could not tell beforehand, the adapter in the model does.
            self._exchange_for(turn, use, need)
        fits = self._fits(need)
        self._say_exchange(turn, f"{self._offered()} is loaded" if fits else "")
        if self._repair and not fits:
            self._say_missing(use, need)
            self._handling.give_up(*turn.call)
            self._handling.clear()

    def _exchange_for(self, turn: _Turn, use: AdapterUse, need: EncoderNeed) -> None:
        """Have the host load the encoder that an adapter needs, where it is on disk."""
        if not self._handling.has_encoder(need):
            return
        if self._handling.encoder() is not None:
            found = self._wrong_one(use, need)
            unloaded = self._unload()
            turn.exchange = turn.exchange or (found, *unloaded)
        self._handling.load_encoder(need)

    def _serve_each(self, turn: _Turn, needs: Sequence[EncoderNeed | None]) -> None:
        """The images of each adapter by its own encoder, with one encoder in memory at a time."""
        names = " and ".join(dict.fromkeys(wanted(need) for need in needs if need is not None))
        listed = ", ".join(quoted(use) for use in turn.uses)
        found = finding("LG403", turn.uses[0], f"IP-Adapters {listed} need {names}", {"adapters": len(turn.uses)})
        if not self._repair:
            self._context.say(found, None)
            return
        started = time.perf_counter()
        encoded: dict[int, Embedding] = {}
        # First those that the encoder in place serves.
        for place in sorted(range(len(needs)), key=lambda place: not self._fits(needs[place])):
            use, need = turn.uses[place], needs[place]
            if need is None:
                return
            if not self._fits(need) and self._handling.has_encoder(need):
                self._unload()
                self._handling.load_encoder(need)
            if not self._fits(need):
                self._say_missing(use, need)
                self._handling.give_up(*turn.call)
                self._handling.clear()
                return
            encoded[place] = self._handling.encode(place, need.output == HIDDEN, *turn.call)
        self._embeddings = [encoded[place] for place in range(len(needs))]
        spent = (time.perf_counter() - started) * 1000
        self._context.say(found, Repair("each is given the embedding of its own", "the widths fit", spent))

    def _clear(self) -> None:
        """No adapter is in use now: nothing of one may be in the model."""
        left = list(self._handling.leftovers())
        if not left:
            return
        found, did = _left_behind(left)
        if not self._repair:
            self._context.say(found, None)
            return
        started = time.perf_counter()
        self._handling.clear()
        proof = "" if self._handling.leftovers() else "nothing is left"
        self._context.say(found, Repair(did, proof, (time.perf_counter() - started) * 1000))

    # Words.

    def _fits(self, need: EncoderNeed | None) -> bool:
        """What is not known is not judged, and what takes a face needs no image encoder."""
        encoder = self._handling.encoder()
        if need is None or need.kind == INSIGHTFACE:
            return True
        offer = offer_of(encoder)
        return encoder is not None and (offer is None or need.met_by(offer))

    def _offered(self) -> str:
        return spoken(offer_of(self._handling.encoder()))

    def _say_missing(self, use: AdapterUse, need: EncoderNeed) -> None:
        saw = f"IP-Adapter {quoted(use)} needs {wanted(need)}, which is not on disk"
        found = finding("LG405", use, saw, {"needs": need.describe()})
        self._context.say(found, None)
        self._context.comment(found)

    def _say_exchange(self, turn: _Turn, loaded: str = "") -> None:
        if turn.exchange is None:
            return
        found, freed, spent = turn.exchange
        turn.exchange = None
        proof = f"{loaded} and fits" if loaded else ""
        self._context.say(found, Repair(f"unloaded, {freed}", proof, spent))

    def _say(self, found: Finding | None, repair: Repair | None) -> None:
        if found is not None:
            self._context.say(found, repair)


def _left_behind(left: Sequence[str]) -> tuple[Finding, str]:
    """What is said of it, and what is done about it."""
    if list(left) == [PLAIN_ATTENTION]:
        saw = f"the IP-Adapter that was taken out has left {PLAIN_ATTENTION} in the place of the model's own"
        return Finding("LG410", GUARD, "unet", "", saw, {"left": PLAIN_ATTENTION}), "the model's own are put back"
    saw = f"no IP-Adapter is in use, and {', '.join(left)} of one is still in the model"
    return Finding("LG404", GUARD, "unet", "", saw, {"left": ", ".join(left)}), "taken out"


def _first_need(
    uses: Sequence[AdapterUse], needs: Sequence[EncoderNeed | None]
) -> tuple[AdapterUse | None, EncoderNeed | None]:
    """The first adapter that takes what an image encoder gives; of one family all take the same."""
    for use, need in zip(uses, needs):
        if need is not None and need.kind != INSIGHTFACE:
            return use, need
    return None, None


def _of_several_families(needs: Sequence[EncoderNeed | None]) -> bool:
    """Whether no single encoder can serve them. What takes faces alone, or is not known, asks for none."""
    kinds = {
        need.kind if need.kind != UNKNOWN else f"{need.output} of {need.width}"
        for need in needs
        if need is not None and need.kind != INSIGHTFACE
    }
    return len(kinds) > 1
