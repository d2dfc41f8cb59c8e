"""LoRAs of which the program does not know all tensors; the names of these tell why.

Names by algorithm: KohakuBlueleaf/LyCORIS modules/. Errors as reported: AUTOMATIC1111/stable-diffusion-webui #8360,
Comfy-Org/ComfyUI #1144, #3518, #6381, lllyasviel/stable-diffusion-webui-forge #838, #1537 (`load_lora_for_models`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .explanation import INSPECT, Explanation, Hit, cure

#: In the middle may stand the file's name and folder. What follows is a list, of which the beginning is looked at.
_LISTED = re.compile(r"failed to match keys when loading (?:lora|lyco|network)\b", re.IGNORECASE)
_NOT_LOADED = re.compile(r"lora key not loaded\b", re.IGNORECASE)
_VERSION = re.compile(r"lora version mismatch\b", re.IGNORECASE)
_LIST, _KEY, _NAME = 4_000, 300, 300
#: A log has a line for each tensor; the first ones tell.
_LINES = 200


@dataclass(frozen=True)
class _Kind:
    """pattern: what shows it in a tensor's name. name: what it is called."""

    pattern: re.Pattern[str]
    name: str


_ALGORITHMS = (
    _Kind(re.compile(r"\.on_input\b"), "an (IA)^3"),
    _Kind(re.compile(r"\.lokr_(?:w[12]|t2)"), "a LoKr"),
    _Kind(re.compile(r"\.hada_(?:w[12]_[ab]|t[12])\b"), "a LoHa"),
    _Kind(re.compile(r"\.oft_(?:blocks|diag)\b|\boft_unet_"), "an OFT"),
    _Kind(re.compile(r"\.dora_scale\b|\.lora_magnitude_vector\b"), "a DoRA"),
    _Kind(re.compile(r"\.[ab][12]\.weight\b"), "a GLoRA"),
    _Kind(
        re.compile(r"lora_unet_\w{1,80}(?:samplers_0_conv|resnets_\d_conv[12]|_conv_shortcut|_(?:in|out)_layers_\d)\b"),
        "a LoCon, with layers at convolutions",
    ),
)
_TEXT_ENCODERS = (
    _Kind(re.compile(r"\blora_te2_|\btext_encoder_2\."), "the second text encoder"),
    _Kind(re.compile(r"\blora_te3_|\btext_encoder_3\."), "the third text encoder"),
    _Kind(re.compile(r"\blora_te1?_|\btext_encoder\."), "the text encoder"),
)
#: SDXL has no attention in its first block and its last.
_NOT_SDXL = re.compile(r"\blora_unet_(?:down_blocks_0_attentions|up_blocks_3_attentions)_\d_\w{1,80}\.lora_")
#: In the name of a file, which may lie.
_IN_NAME = re.compile(r"(?<![a-z])(diag-?oft|boft|oft|lokr|loha|glora|ia3|dora)(?![a-z])", re.IGNORECASE)


def keys_unknown(text: str) -> Iterator[Hit]:
    """Tensors of a LoRA that the program has no place for; silent where their names do not tell why."""
    for pattern, reach in ((_LISTED, _LIST), (_NOT_LOADED, _KEY)):
        found = [one for _, one in zip(range(_LINES), pattern.finditer(text))]
        keys = " ".join(text[one.end() : one.end() + reach] for one in found)
        if found and (explanation := _of_keys(keys)):
            yield Hit(found[0].start(), explanation)


def _of_keys(keys: str) -> Explanation | None:
    algorithm = _first(_ALGORITHMS, keys)
    part = _first(_TEXT_ENCODERS, keys)
    if algorithm:
        return _algorithm(*algorithm, part)
    if part:
        return _part_left_out(*part)
    other = _NOT_SDXL.search(keys)
    return _older_family(other[0]) if other else None


def _first(kinds: tuple[_Kind, ...], keys: str) -> tuple[str, str] | None:
    """The first kind that a name shows, and what of the name shows it."""
    return next(((kind.name, found[0]) for kind in kinds if (found := kind.pattern.search(keys))), None)


def _algorithm(name: str, shown: str, part: tuple[str, str] | None) -> Explanation:
    where = f" at {part[0]}" if part else ""
    also = f", and {part[1]}" if part else ""
    return Explanation(
        "LG303",
        f"The file is {name}. The program, or its version, does not apply such layers{where}, and leaves them out.",
        f"a name that was not matched has {_cut(shown)} in it{also}",
        cure("LG303", f"update the program, or use the file where such layers are known. {INSPECT}"),
    )


def _part_left_out(name: str, shown: str) -> Explanation:
    return Explanation(
        "LG303",
        f"The LoRA's layers for {name} are left out: the loader was given the model without {name}, or the model has"
        " none by that name. With a loader for the model only that is as it should be.",
        f"a name that was not matched has {_cut(shown)} in it, which is {name}'s",
        cure("LG303", f"use a loader that is given the text encoders as well, or leave it at that. {INSPECT}"),
    )


def _older_family(shown: str) -> Explanation:
    return Explanation(
        "LG304",
        "The LoRA was made for SD1.5 or SD2, and the model in place has no such layers, as SDXL has none.",
        f"a name that was not matched, {_cut(shown)}, is of attention in a block where SDXL has none",
        cure("LG304", f"leave that LoRA out, or load a model that it was made for. {INSPECT}"),
    )


def too_many_unknown(text: str) -> Iterator[Hit]:
    """Forge's refusal of a whole LoRA, which is worded as if it were about versions."""
    for found in _VERSION.finditer(text):
        name = text[found.end() : found.end() + _NAME].partition(".safetensors")[0]
        named = _IN_NAME.search(name)
        yield Hit(found.start(), _refused(named[1] if named else ""))


def _refused(algorithm: str) -> Explanation:
    named = (
        f" The file's name speaks of {algorithm}, an algorithm which that program may not know." if algorithm else ""
    )
    own = f"; this one has {algorithm} in its own" if algorithm else ""
    return Explanation(
        "LG302",
        "More than 12 of the file's tensors have names that the program does not know, so it refuses the whole LoRA."
        " That is no matter of versions: they are newer layers, or of an algorithm that it does not know, or of another"
        f" family of models.{named}",
        f"Forge says it of any file with more than 12 names without a match{own}",
        cure("LG302", f"update the program, or use the LoRA in one that knows its algorithm. {INSPECT}"),
    )


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"
