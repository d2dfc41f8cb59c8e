"""What a guard sees of how a host puts LoRAs into its model and takes them out again.

Hosts differ in when they do it. An eager one (SD.Next) changes the weights while it activates a request's extra
networks. A lazy one (AUTOMATIC1111, Forge) only notes what is wanted, and changes each layer at its next forward, or
when the model is next brought to its device: there weights that still carry the last request's LoRA are normal until
the host has `settle`d.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Place:
    """A component whose weights LoRAs change.

    component: as in `Boundary`. owner: the module; names of weights are paths in it. origin: which checkpoint its
    weights came from, in any words; another one when other weights were loaded into the same module; empty where the
    last load did not reach it, so that it still has what it had before. files: the safetensors files that hold these
    weights, as far as they are known. prefix: what comes before a weight's name in these files.
    """

    component: str
    owner: torch.nn.Module
    origin: str
    files: tuple[Path, ...] = ()
    prefix: str = ""


@dataclass(frozen=True)
class LoraUse:
    """One LoRA of a request.

    name: as the request has it. file: None when the host has none of that name. strengths: every number that the
    request gives for it. stamp: the file's size and time of change, so that a replaced file is another use; zeros
    without a file.
    """

    name: str
    file: Path | None
    strengths: tuple[float | str | None, ...] = ()
    stamp: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, name: str, file: Path | str | None, strengths: Sequence[float | str | None]) -> LoraUse:
        """With the file's stamp as it is now; a file that cannot be looked at has none."""
        path = Path(file) if file else None
        try:
            stat = path.stat() if path else None
        except OSError:
            stat = None
        return cls(name, path, tuple(strengths), (stat.st_size, stat.st_mtime_ns) if stat else (0, 0))


@dataclass(frozen=True)
class Asked:
    """What a request asks for.

    loras: in its order; empty when it asks for none. mode: the options that say how the host applies them (functional,
    fused, which components); the same LoRAs in another mode are another state of the weights.
    """

    loras: tuple[LoraUse, ...] = ()
    mode: tuple[str | float | bool | None, ...] = ()


@dataclass(frozen=True)
class Reach:
    """How far a LoRA gets in the loaded model, as the host has read it.

    layers: how many of the model's layers it changes; None where the host does not tell. weights: which weights that
    are, by component; None where the host does not change weights for it (it is added to the layers' results, or is a
    layer of its own).
    """

    layers: int | None
    weights: Mapping[str, frozenset[str]] | None = None


class LoraHandling(Protocol):
    """One host's way with LoRAs. Nothing here judges; that is the guard's."""

    #: Whether `activation` has already changed the weights when it returns.
    eager: bool

    def activation(self) -> tuple[object, str] | None:
        """The host's function that activates a request's LoRAs, as owner and name; it is called with the request and
        the list of parsed tags. None when the host's LoRA extension is not there."""

    def places(self) -> Sequence[Place]:
        """The components of the model that is loaded now. Empty when none is."""

    def asked(self, request: Any, params: Sequence[Any] | None, **options: Any) -> Asked:
        """What a request asks for. params: the parsed tags that the host was given to activate, None when it was given
        none because the request has extra networks disabled. options: what else the host's call was given."""

    def settle(self, asked: Asked) -> None:
        """Have the host do, now and by copies alone, what it would do by itself to bring the weights back to the
        checkpoint before it applies `asked`. What the host would not take out stays. Raises what the host raises."""

    def lingering(self, asked: Asked) -> Sequence[str]:
        """Names of LoRAs that are not asked for and that the host holds outside of the weights, so that they will act
        all the same: networks that it still lists, adapters that are layers of their own."""

    def unload(self, strays: Mapping[str, Collection[str]]) -> Mapping[str, frozenset[str]] | None:
        """Rung 1: the host's own unload, forced, of at least the weights that stray; all others have just been seen to
        be the checkpoint's. Returns the weights that it may have written, by component; None where it may have been
        any. Raises what the host raises."""

    def copies(self, place: Place) -> Mapping[str, torch.Tensor]:
        """Rung 2: the host's own backups of weights, by the weight's name. They are only believed when their
        fingerprint is the baseline's."""

    def touched(self, place: Place) -> frozenset[str]:
        """The weights of a place that, by the host's records, a LoRA is or was in, and that the host has no copy of.
        They are not taken for the checkpoint's when the model is seen for the first time."""

    def forget_records(self) -> None:
        """The weights are at the baseline again: bring everything that the host remembers about what is applied to
        'nothing'. A host that goes by some records alone would leave out a part of the next LoRA."""

    def activate_again(self, request: Any, params: Sequence[Any] | None, **options: Any) -> None:
        """After `forget_records`, on a lazy host: have it note once more what this request asks for."""

    def forget_conditioning(self, request: Any) -> int:
        """Empty the host's caches of encoded prompts. Returns how many entries this request would have been given,
        though they may have been encoded under other LoRAs: those whose key equals the request's in all that the key
        knows about LoRAs."""

    def reload(self) -> None:
        """Rung 4: the host's own reload of the checkpoint from its file. Raises what the host raises."""

    def interrupted(self) -> bool:
        """Whether the user has interrupted the host, so that an eager one may have stopped half way."""

    def reach(self, use: LoraUse, places: Sequence[Place]) -> Reach | None:
        """How far a LoRA that was activated gets in these places; None when the host has not read it at all."""

    def refusal(self, use: LoraUse) -> tuple[str, str]:
        """Why this host applies nothing of a LoRA's file, where that is a rule of its own: cause and fix; empty ones
        where no rule is known."""

    def stale(self, use: LoraUse) -> bool:
        """Whether the host will go on using what it has read from the file before the file was replaced."""

    def permanent_fix(self) -> tuple[str, str]:
        """Why this host leaves LoRAs behind, if a setting or an extension is known to, and what ends it: cause and
        fix in the host's own words; empty ones where nothing is known."""
