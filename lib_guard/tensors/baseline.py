"""What the weights of a component were when no adapter was in them, kept with the component itself.

It stays when the host executes the extension anew, which happens while the model stays: a LoRA that was left in the
weights meanwhile (AUTOMATIC1111: Lora extension disabled, UI reloaded) is seen by the next code. So it is plain data
under a marked name, with no class of ours in it, and a reader that does not know its version takes it for none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from .fingerprint import Fingerprint, fingerprints_of
from .weights import weights_of

#: The attribute of the component that holds the baseline.
ATTRIBUTE = "_lib_guard_baseline"
_VERSION = 1


@dataclass(frozen=True)
class Baseline:
    """A component's weights without adapters.

    origin: as in `Place`. files: the files they came from, with size and time of change when they were read. prefix:
    what comes before a name in these files. sums: the fingerprints, by the weight's name.
    """

    origin: str
    files: tuple[tuple[Path, int, int], ...]
    prefix: str
    sums: Mapping[str, Fingerprint]

    def strays(self, now: Mapping[str, Fingerprint]) -> list[str]:
        """The weights that are not what they were, and those that are gone.

        A weight of another dtype or shape was exchanged or converted on purpose (a precision chosen anew, vectors of a
        textual inversion put behind the vocabulary): that is no adapter's doing and is not judged.
        """
        return [
            name
            for name, before in self.sums.items()
            if name not in now or (before.differs(now[name]) and _alike(before, now[name]))
        ]

    def is_exchanged(self, strays: Sequence[str]) -> bool:
        """Whether what strays are other weights altogether, put there on purpose: extensions that mix checkpoints write
        into the loaded model. Adapters change matrices, and hardly ever norms and biases; a mix changes those as well.
        """
        vectors = {name for name, one in self.sums.items() if len(one.shape) == 1 and one.dtype.is_floating_point}
        return len(vectors & set(strays)) * 2 > len(vectors)

    def renewed(self, now: Mapping[str, Fingerprint]) -> Baseline:
        """With what is not judged as it is now. Only to be called when nothing strays."""
        kept = {
            name: one if name in now and not one.differs(now[name]) else now.get(name, one)
            for name, one in self.sums.items()
        }
        return Baseline(self.origin, self.files, self.prefix, {**now, **kept})


def measure(component: nn.Module, names: Iterable[str] | None = None) -> dict[str, Fingerprint]:
    """The fingerprints of a component's own weights, or of those that are named and there."""
    weights = weights_of(component)
    wanted = None if names is None else set(names)
    return fingerprints_of(weights if wanted is None else {n: t for n, t in weights.items() if n in wanted})


def baseline_of(component: nn.Module) -> Baseline | None:
    """The baseline that is kept with a component; None when there is none that can be read."""
    kept = vars(component).get(ATTRIBUTE)
    if not isinstance(kept, dict) or kept.get("version") != _VERSION:
        return None
    files = tuple((Path(path), size, changed) for path, size, changed in kept["files"])
    sums = {name: _fingerprint(plain) for name, plain in kept["sums"].items()}
    return Baseline(kept["origin"], files, kept["prefix"], sums)


def keep(component: nn.Module, baseline: Baseline) -> None:
    """Keep a baseline with its component."""
    vars(component)[ATTRIBUTE] = {
        "version": _VERSION,
        "origin": baseline.origin,
        "files": [(str(path), size, changed) for path, size, changed in baseline.files],
        "prefix": baseline.prefix,
        "sums": {name: _plain(one) for name, one in baseline.sums.items()},
    }


def forget(component: nn.Module) -> None:
    """Take the baseline away."""
    vars(component).pop(ATTRIBUTE, None)


def _alike(one: Fingerprint, other: Fingerprint) -> bool:
    return (one.dtype, one.shape) == (other.dtype, other.shape)


def _plain(one: Fingerprint) -> tuple[Any, ...]:
    return one.dtype, one.shape, one.sums, tuple(_plain(part) for part in one.parts)


def _fingerprint(plain: tuple[Any, ...]) -> Fingerprint:
    dtype, shape, sums, parts = plain
    return Fingerprint(dtype, shape, sums, tuple(_fingerprint(part) for part in parts))
