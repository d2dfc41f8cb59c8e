"""IP-Adapters and image encoders that were not made for each other.

Which projection takes what is that of `files/families/ip_adapter.py` and its sources. Errors as reported: vladmandic/
sdnext #2798, cubiq/ComfyUI_IPAdapter_plus #14, #25, #69, #237, #477, XLabs-AI/x-flux-comfyui #153.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..files.families.ip_adapter import BY_EMBEDS, BY_HIDDEN, FACE_WIDTH
from ..files.families.verdict import (
    EMBEDS,
    HIDDEN,
    INSIGHTFACE,
    SPOKEN_ENCODERS,
    VIT_BIGG,
    VIT_H,
    VIT_L,
    VIT_L_336,
)
from .explanation import INSPECT, Explanation, Hit, cure
from .shapes import Mismatch, Product, mismatches, products


@dataclass(frozen=True)
class _Projection:
    """tensor: the one that takes what the encoder gives. takes, makes: its columns and rows. output: of the encoder.

    encoder: the one that it was trained on. name: what adapters of this kind are called.
    """

    tensor: str
    takes: int
    makes: int
    output: str
    encoder: str
    name: str


_PLAIN, _PLUS, _FULL = "proj.weight", "proj_in.weight", "proj.0.weight"
_FACE_PLUS = "perceiver_resampler.proj_in.weight"

#: 1280 is in it twice over: ViT-bigG's embedding for plain ones, ViT-H's hidden states for the others.
_PROJECTIONS = (
    _Projection(_PLAIN, 1024, 3072, EMBEDS, VIT_H, "SD1.5"),
    _Projection(_PLAIN, 1280, 3072, EMBEDS, VIT_BIGG, "SD1.5 (ViT-G)"),
    _Projection(_PLAIN, 1280, 8192, EMBEDS, VIT_BIGG, "SDXL"),
    _Projection(_PLAIN, 1024, 8192, EMBEDS, VIT_H, "SDXL (ViT-H)"),
    _Projection(_PLAIN, 768, 16384, EMBEDS, VIT_L, "FLUX.1 (XLabs)"),
    _Projection(_PLAIN, 768, 65536, EMBEDS, VIT_L, "FLUX.1 (XLabs v2)"),
    _Projection(_PLUS, 1280, 768, HIDDEN, VIT_H, "SD1.5 plus"),
    _Projection(_PLUS, 1280, 1280, HIDDEN, VIT_H, "SDXL plus"),
    _Projection(_PLUS, 1024, 2048, HIDDEN, VIT_L_336, "Kolors plus"),
    _Projection(_FULL, 1280, 1280, HIDDEN, VIT_H, "SD1.5 full face"),
    _Projection(_FACE_PLUS, 1280, 768, HIDDEN, VIT_H, "SD1.5 FaceID plus"),
    _Projection(_FACE_PLUS, 1280, 2048, HIDDEN, VIT_H, "SDXL FaceID plus"),
    _Projection(_FULL, FACE_WIDTH, 1024, EMBEDS, INSIGHTFACE, "FaceID"),
)

#: The base model by the rows of a plain projection: 4 tokens, each as wide as the text.
_PLAIN_BASES = {3072: "SD1.5", 4096: "SD2", 8192: "SDXL", 16384: "FLUX.1"}

#: What leads to a projection where the whole adapter is one module.
_PREFIX = re.compile(r"\A(?:image_proj|image_proj_model|ip_adapter_proj_model)\.")
#: Tensors inside a resampler, whose sizes come from the base model and from no encoder.
_INSIDE = re.compile(r"\A(?:perceiver_resampler\.)?(?:latents|layers\.\d{1,2}\.0\.to_(?:q|kv|out)\.weight)\Z")
_LOADING = "Error(s) in loading state_dict"

#: A picture is 256 patches and one place for the whole; at 336 pixels 576 and one.
_PLACES, _PLACES_336 = 257, 577
#: More pictures than anyone gives one adapter; a prompt has 77 rows.
_PICTURES, _PROMPT = 64, 77


def projection_product(text: str) -> Iterator[Hit]:
    """A projection that was given what another image encoder gives, as a matrix product that cannot be."""
    for product in products(text):
        output = _output(product.rows)
        fit = [
            one for one in _PROJECTIONS if (one.takes, one.makes, one.output) == (product.takes, product.makes, output)
        ]
        there = _encoder(product.given, output, product.rows)
        if fit and there and product.given != product.takes:
            yield Hit(product.at, _wrong_encoder(fit, there, _shown(product, fit[0], there)))


def projection_sizes(text: str) -> Iterator[Hit]:
    """A projection's file that does not fit into what the program has built for it, as sizes that differ."""
    start = 0
    for part in text.split(_LOADING):
        found = list(mismatches(part))
        inside = [one for one in found if _INSIDE.match(_PREFIX.sub("", one.name))]
        hits = [_built_otherwise(inside[0])] if inside else [hit for one in found for hit in _taken_otherwise(one)]
        yield from (Hit(start + hit.at, hit.explanation) for hit in hits)
        start += len(part) + len(_LOADING)


def _output(rows: int) -> str:
    """Which output of an encoder has so many rows; empty when none has."""
    if rows % _PLACES == 0 or rows % _PLACES_336 == 0:
        return HIDDEN
    return EMBEDS if rows <= _PICTURES and rows % _PROMPT else ""


def _encoder(width: int, output: str, rows: int = 0) -> str:
    """Whose output is so wide, as it is spoken; empty when nobody's that is known."""
    if output == HIDDEN:
        kind = VIT_L_336 if rows and rows % _PLACES_336 == 0 and width == 1024 else BY_HIDDEN.get(width)
    else:
        kind = INSIGHTFACE if width == FACE_WIDTH else BY_EMBEDS.get(width)
    return SPOKEN_ENCODERS[kind] if kind else ""


def _wrong_encoder(fit: Sequence[_Projection], there: str, evidence: str) -> Explanation:
    needed = SPOKEN_ENCODERS[fit[0].encoder]
    face = SPOKEN_ENCODERS[INSIGHTFACE] in (needed, there)
    code = "LG402" if face else "LG401"  # a face is not brought by a model's encoder but by a preprocessor
    cause = (
        f"The image encoder in place is {there or 'not the one that the IP-Adapter needs'}: the IP-Adapter, of the"
        f" kind {' or '.join(one.name for one in fit)}, was made for {needed}."
    )
    elsewhere = (
        f"load {needed} for this adapter, or an adapter that was made for {there or 'the encoder in place'}. Go by no"
        f" file's name: {INSPECT}"
    )
    return Explanation(code, cause, evidence, cure(code, elsewhere))


def _shown(product: Product, fit: _Projection, there: str) -> str:
    return (
        f"the projection is {product.takes}x{product.makes} and takes {fit.output} of {product.takes},"
        f" {SPOKEN_ENCODERS[fit.encoder]}'s; it was given {product.rows}x{product.given}, and {product.given} is"
        f" {there}'s"
    )


def _taken_otherwise(one: Mismatch) -> Iterator[Hit]:
    """The sizes at a projection's entrance: its columns are the encoder's, its rows the base model's."""
    tensor = _PREFIX.sub("", one.name)
    if len(one.file) != 2 or len(one.model) != 2 or one.file == one.model:
        return
    fit = next((p for p in _PROJECTIONS if (p.tensor, p.makes, p.takes) == (tensor, *one.file)), None)
    if fit is None or fit.encoder == INSIGHTFACE:
        return
    # In a full face's projection the encoder decides the rows as well.
    square = tensor == _FULL and one.file[0] == one.file[1] and one.model[0] == one.model[1]
    if square or one.file[0] == one.model[0]:
        there = _encoder(one.model[1], fit.output)
        yield Hit(one.at, _wrong_encoder([fit], there, _sizes(one, fit, there)))
    elif tensor == _PLAIN and one.model[0] in _PLAIN_BASES:
        yield Hit(one.at, _other_base(one, fit))


def _sizes(one: Mismatch, fit: _Projection, there: str) -> str:
    whose = f"{there}'s" if there else "no known encoder's"
    return (
        f"the file's {fit.tensor} is {_spoken(one.file)}: it takes {fit.output} of {one.file[1]},"
        f" {SPOKEN_ENCODERS[fit.encoder]}'s; from the encoder in place the program has built {_spoken(one.model)},"
        f" and {one.model[1]} is {whose}"
    )


def _other_base(one: Mismatch, fit: _Projection) -> Explanation:
    base, built = _PLAIN_BASES.get(one.file[0], fit.name), _PLAIN_BASES[one.model[0]]
    evidence = (
        f"the file's {fit.tensor} is {_spoken(one.file)}: it makes {base}'s tokens; the program has built"
        f" {_spoken(one.model)} for {built}"
    )
    cause = f"The IP-Adapter was made for {base}, and the model in place is of the family {built}."
    return Explanation("LG406", cause, evidence, cure("LG406", f"use an adapter for {built}. {INSPECT}"))


def _built_otherwise(one: Mismatch) -> Hit:
    file, model = one.file, one.model
    tokens = "latents" in one.name and len(file) == len(model) == 3 and file[::2] == model[::2]
    what = "for another number of tokens" if tokens else "for an adapter of another base model or kind"
    explanation = Explanation(
        "",
        f"The program has built another kind of projection than the IP-Adapter's file holds, {what}. No image encoder"
        " changes that.",
        f"{_PREFIX.sub('', one.name)}, which lies inside the projection, is {_spoken(file)} in the file and"
        f" {_spoken(model)} in what was built",
        "Use the adapter for the base model that it was made for, and let the program load it as the kind that it is:"
        f" some go by the file's name, so keep the original one. {INSPECT}",
    )
    return Hit(one.at, explanation)


def _spoken(shape: tuple[int, ...]) -> str:
    return str(list(shape))
