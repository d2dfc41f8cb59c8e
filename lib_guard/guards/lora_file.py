"""What is said of a LoRA's file, before sampling: that it cannot be read, or was made for another model, or does not
reach the loaded one. Nothing is refused, and nothing but the file's header and the shapes of the model is looked at."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from pathlib import Path

from ..files.families import Evidence, Verdict, family_of
from ..files.families.core import Core, core_of
from ..files.families.layers import Width, layers_of
from ..files.families.lora import bundled_in, remarks_on
from ..files.families.text import is_text_layer
from ..files.families.unet import is_unet_layer
from ..files.families.verdict import LORA, SPOKEN, UNKNOWN
from ..files.header import Header, UnreadableFile, read_header
from ..findings import Finding, Primitive
from ..hosts.lora_handling import LoraUse, Place, Reach
from ..tensors.weights import layers as layers_named
from ..tensors.weights import weights_of
from ..wording import on_one_line
from .lora_family import sampling_layers

_GUARD = "lora"

#: How many files are remembered, and of how many layers each. No real one has so many.
_FILES, _LAYERS = 32, 20_000

#: What trainers put before a layer's own name; dots as underscores.
_PREFIX = re.compile(
    r"(?:(?:lora|lycoris|oft)_)?(?:(?:unet|transformer|prior_unet|te\d?|text_encoder(?:_\d)?|diffusion_model)_)?"
    r"(?:base_model_model_)?"
)

#: Layers that some builds of a model have as one: AUTOMATIC1111's and Forge's transformers, and OpenCLIP's attention.
_PART_OF_ONE = re.compile(r"(?:self_)?(?:attn_)?(?:to_[qkv]|add_[qkv]_proj|[qkv]_proj|out_proj|proj_mlp)$")
_ONE = re.compile(r"qkv|linear1|in_proj_weight")

_NO_SUCH_FILE = (
    "No LoRA has this name, or the WebUI has not looked into its folders since the file was put there.",
    "Correct the name in the prompt, or have the WebUI refresh its list of LoRAs.",
)


def silenced(option: object) -> frozenset[str]:
    """The names, in lower case, that nothing is to be said about: a text with commas or line breaks between them."""
    if not isinstance(option, str):
        return frozenset()
    names = chain.from_iterable(line.split(",") for line in option.lower().splitlines())
    return frozenset(filter(None, (name.strip() for name in names)))


def lora_file_findings(
    use: LoraUse, reach: Reach | None, places: Sequence[Place], quiet: frozenset[str]
) -> list[Finding]:
    """What is wrong with a LoRA's file for this model. reach: how far the host gets with it."""
    if use.name.lower().strip() in quiet:
        return []
    if use.file is None:
        return [_not_found(use)] if _acts(use) else []
    file = _looked_at(use.file, use.stamp)
    if file is not None and file.flaw:
        return [
            _finding(
                "LG306",
                use,
                f"the file of LoRA {_quoted(use)} cannot be read: {file.flaw}",
                {"file": _short(use.file.name)},
            )
        ]
    other = _made_for_another(use, file, places) if file is not None else None
    if other is not None:
        return [other]
    if reach is None or reach.layers == 0:
        return [_without_effect(use, file, reach)] if _acts(use) and not (file and file.bundled) else []
    partial = _partial(use, file, reach, places) if file is not None else None
    return [partial] if partial is not None else []


# The file.


@dataclass(frozen=True)
class _File:
    """What its header tells.

    flaw: why it cannot be read, else empty. layers: the names of the LoRA's layers, dots as underscores. core: what
    those of them come to that are not in a text encoder. remarks: why no host can apply all of it. bundled: whether
    it brings textual inversions along.
    """

    flaw: str = ""
    verdict: Verdict = field(default_factory=Verdict)
    layers: tuple[str, ...] = ()
    core: Core | None = None
    remarks: tuple[str, ...] = ()
    bundled: bool = False


def _looked_at(path: Path, stamp: tuple[int, int]) -> _File | None:
    """None for what is not even called a safetensors file; a pickle has no header, and is not opened to look for one.

    stamp: the file's, so that a replaced one is looked at again; a file without a stamp could not be looked at before.
    """
    if path.suffix.lower() != ".safetensors":
        return None
    return _remembered(path, stamp) if any(stamp) else _look_at(path)


@lru_cache(maxsize=_FILES)
def _remembered(path: Path, _stamp: tuple[int, int]) -> _File:
    return _look_at(path)


def _look_at(path: Path) -> _File:
    try:
        return _told(read_header(path))
    except UnreadableFile as flaw:
        return _File(flaw=str(flaw))


def _told(header: Header) -> _File:
    found = family_of(header)
    layers = layers_of(header.tensors) if found.kind == LORA else []
    core = [layer for layer in layers if not is_text_layer(layer.path)]
    return _File(
        verdict=found,
        layers=tuple(layer.path for layer in layers[:_LAYERS]),
        core=core_of(core) if core else None,
        remarks=tuple(remarks_on(layers)) if layers else (),
        bundled=bool(bundled_in(header)),
    )


# Another family.


def _made_for_another(use: LoraUse, file: _File, places: Sequence[Place]) -> Finding | None:
    """By shapes and names of layers alone, not by what the trainer has noted down, which can be wrong."""
    own = file.core
    if own is None or not (own.families or own.contexts):
        return None
    model = core_of(sampling_layers(places))
    apart = bool(own.families and model.families and not own.families & model.families)
    pair = _widths_apart(own, model) or (_families_apart(own, model) if apart else None)
    if pair is None:
        return None
    made_for = _spoken(own.families) if apart or not model.families else ""
    loaded = _spoken(model.families) if apart or not own.families else ""
    theirs, ours = pair
    saw = (
        f"LoRA {_quoted(use)} was made for {made_for or 'another model'} ({theirs.describe()}),"
        f" the model is {loaded or 'not that wide'} ({ours.describe()})"
    )
    evidence: dict[str, Primitive] = {
        "made_for": ", ".join(sorted(own.families)),
        "model": ", ".join(sorted(model.families)),
        "tensor": on_one_line(theirs.tensor, 120),
        "shape": _shape(theirs),
        "model_tensor": on_one_line(ours.tensor, 120),
        "model_shape": _shape(ours),
    }
    return _finding("LG304", use, saw, evidence)


def _widths_apart(own: Core, model: Core) -> tuple[Evidence, Evidence] | None:
    """A LoRA's cross-attention and a model's, whichever they are, when they take text of different widths."""
    if not own.contexts or not model.contexts or own.contexts.keys() & model.contexts.keys():
        return None
    theirs, ours = (next(iter(core.contexts.values())) for core in (own, model))
    return _takes(theirs), _takes(ours)


def _takes(width: Width) -> Evidence:
    return Evidence(width.name, width.entry.shape, f"{width.note}which takes text {width.value} wide")


def _families_apart(own: Core, model: Core) -> tuple[Evidence, Evidence] | None:
    theirs, ours = own.against(model.families), model.against(own.families)
    return (theirs, ours) if theirs is not None and ours is not None else None


# No effect, or not all of it.


def _not_found(use: LoraUse) -> Finding:
    saw = f"LoRA {_quoted(use)} is asked for, and the WebUI has no file of that name"
    return _finding("LG302", use, saw, {"layers": 0}, *_NO_SUCH_FILE)


def _without_effect(use: LoraUse, file: _File | None, reach: Reach | None) -> Finding:
    why = "the WebUI applies none of its layers" if reach else "the WebUI has not loaded its file"
    if file is not None and file.verdict.kind == LORA:
        counted = f"the WebUI applies none of its {len(file.layers)} layers"
        why = "; ".join([counted if reach else why, *file.remarks])
    elif file is not None:
        kind = file.verdict.kind.replace("_", " ")
        why = "its file holds no layers of a LoRA"
        if kind != UNKNOWN:
            why = f"its file holds no LoRA, but is of the kind {kind}: {file.verdict.describe()}"
    evidence: dict[str, Primitive] = {"layers": len(file.layers) if file else None}
    return _finding("LG302", use, f"LoRA {_quoted(use)} is asked for, and {why}", evidence)


def _partial(use: LoraUse, file: _File, reach: Reach, places: Sequence[Place]) -> Finding | None:
    whole = len(file.layers)
    if reach.layers is None or reach.layers >= whole or _is_part(reach.layers, file.layers, places):
        return None
    missing = _missing(file.layers, reach.layers, reach, places)
    example = f"; {on_one_line(missing, 120)} is not among them" if missing else ""
    saw = f"LoRA {_quoted(use)} has {whole} layers, of which the loaded model has {reach.layers}{example}"
    evidence: dict[str, Primitive] = {"layers": whole, "applied": reach.layers, "missing": on_one_line(missing, 120)}
    return _finding("LG303", use, "; ".join([saw, *file.remarks]), evidence)


def _is_part(count: int, layers: Sequence[str], places: Sequence[Place]) -> bool:
    """Whether so many are all, or all but the text encoders', or these alone: leaving one of both alone is an option of
    the hosts, SD.Next's default, and a matter of the strengths. The model may have several of them as one."""
    fused = any(_ONE.search(name) for place in places for name in weights_of(place.owner))
    text = {path for path in layers if is_text_layer(path)}
    least = [_least(part) if fused else len(part) for part in (layers, text, {*layers} - text)]
    return count >= least[0] or count in (*least, len(text), len(layers) - len(text))


def _least(layers: Iterable[str]) -> int:
    """How many layers of the model these are where it has several as one. UNets never have."""
    return len({path if is_unet_layer(path) else _PART_OF_ONE.sub("", path) for path in layers})


def _missing(layers: Sequence[str], applied: int, reach: Reach, places: Sequence[Place]) -> str:
    """One layer that is not applied; empty where file and model call their layers differently, so that it cannot be
    told."""
    known: set[str] = set()
    for place in places:
        told = None if reach.weights is None else reach.weights.get(place.component, frozenset())
        names = list(weights_of(place.owner) if told is None else told)
        known.update(name.replace(".", "_") for name in layers_named(names))
    unknown = [path for path in layers if path not in known and _PREFIX.sub("", path, count=1) not in known]
    return unknown[0] if len(unknown) == len(layers) - applied else ""


# Wording.


def _finding(
    code: str, use: LoraUse, saw: str, evidence: dict[str, Primitive], cause: str = "", permanent_fix: str = ""
) -> Finding:
    named: dict[str, Primitive] = {"lora": _short(use.name), **evidence, "cause_key": on_one_line(use.name, 255)}
    return Finding(code, _GUARD, _GUARD, "", saw, named, cause, permanent_fix)


def _acts(use: LoraUse) -> bool:
    """Whether the request gives it any strength; what is no number is a strength that changes with the steps."""
    given = [one for one in use.strengths if one is not None]
    return not given or any(given)


def _spoken(families: Iterable[str]) -> str:
    return " or ".join(SPOKEN[one] for one in sorted(families))


def _shape(evidence: Evidence) -> str:
    return on_one_line(str(list(evidence.shape or ())), 60)


def _quoted(use: LoraUse) -> str:
    return f'"{_short(use.name)}"'


def _short(name: str) -> str:
    return on_one_line(name, 60)
