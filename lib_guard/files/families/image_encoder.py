"""CLIP's image encoders: which one a file holds, whatever it is called.

Sizes: Mikubill/sd-webui-controlnet annotator/clipvision/__init__.py, re-checked on encoders built without weights
(transformers). Names: ComfyUI comfy/clip_vision.py `convert_to_transformers`. A file of ViT-bigG by the name of ViT-H:
cubiq/ComfyUI_IPAdapter_plus #752.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..header import Header, TensorEntry
from .verdict import (
    IMAGE_ENCODER,
    SIGLIP,
    SPOKEN_ENCODERS,
    UNKNOWN,
    VIT_BIGG,
    VIT_H,
    VIT_L,
    VIT_L_336,
    EncoderOffer,
    Evidence,
    Settled,
    Verdict,
    size,
    verdict,
)


@dataclass(frozen=True)
class _Build:
    """width: of the projected embedding. tensors: in a whole file of transformers' form."""

    kind: str
    width: int
    layers: int
    tensors: int


#: By hidden width.
BUILDS = {
    1024: _Build(VIT_L, 768, 24, 392),
    1280: _Build(VIT_H, 1024, 32, 520),
    1664: _Build(VIT_BIGG, 1280, 48, 776),
}
#: Places of the picture's patches and one for the whole: 224 and 336 pixels in squares of 14.
_PLACES, PLACES_336 = 257, 577


@dataclass(frozen=True)
class _Names:
    """How a library calls what decides. axis: along which the projection's tensor is as wide as the embedding."""

    start: str
    patches: str
    places: str
    projection: str
    axis: int
    layer: re.Pattern[str]


_TRANSFORMERS = _Names(
    "vision_model.",
    "vision_model.embeddings.patch_embedding.weight",
    "vision_model.embeddings.position_embedding.weight",
    "visual_projection.weight",
    0,
    re.compile(r"vision_model\.encoder\.layers\.(\d{1,4})\."),
)
_OPEN_CLIP = _Names(
    "visual.",
    "visual.conv1.weight",
    "visual.positional_embedding",
    "visual.proj",
    1,
    re.compile(r"visual\.transformer\.resblocks\.(\d{1,4})\."),
)


def image_encoder_verdict(header: Header) -> Verdict | None:
    """Which image encoder a file holds; None when it holds none."""
    names = next((names for names in (_TRANSFORMERS, _OPEN_CLIP) if _layer_count(names, header.tensors)), None)
    if names is None:
        return None
    if names is _TRANSFORMERS and _is_siglip(header.tensors):
        return _siglip(header.tensors)
    patches, projection = header.tensors.get(names.patches), header.tensors.get(names.projection)
    hidden, width = size(patches, 0), size(projection, names.axis)
    offer = EncoderOffer(UNKNOWN, width, hidden)
    build = BUILDS.get(hidden or 0)
    if patches is None or build is None or patches.shape[1:] != (3, 14, 14):
        return replace(verdict(IMAGE_ENCODER, Settled((), "none", (), ())), offer=offer)
    return _known(names, header.tensors, build, patches, offer)


def _known(
    names: _Names, tensors: Mapping[str, TensorEntry], build: _Build, patches: TensorEntry, offer: EncoderOffer
) -> Verdict:
    count = _layer_count(names, tensors)
    evidence = Evidence(names.patches, patches.shape, f"{SPOKEN_ENCODERS[build.kind]} is {offer.hidden} wide inside")
    wrong = [
        f"its projection is {offer.width} wide, not {build.width}" if offer.width not in (None, build.width) else "",
        f"it has {count} layers, not {build.layers}" if count > build.layers else "",
    ]
    if any(wrong):
        remark = f"it is none of the known ones: {' and '.join(filter(None, wrong))}"
        return replace(verdict(IMAGE_ENCODER, Settled((), "none", (evidence,), (remark,))), offer=offer)
    places = size(tensors.get(names.places), 0)
    kind = VIT_L_336 if build.kind == VIT_L and places == PLACES_336 else build.kind
    whole = offer.width is not None and count == build.layers and places in (_PLACES, PLACES_336)
    settled = Settled((kind,), "certain" if whole else "likely", (evidence,), ())
    remarks = [
        "it has no projection, and so no image_embeds" if offer.width is None else "",
        f"it is damaged: of {build.layers} layers {count} are there" if count < build.layers else "",
        _lacking(names, tensors, build) if whole else "",
    ]
    result = verdict(IMAGE_ENCODER, settled, remarks=filter(None, remarks))
    return replace(result, offer=replace(offer, kind=kind))


def _layer_count(names: _Names, tensors: Mapping[str, TensorEntry]) -> int:
    return len({found.group(1) for name in tensors if (found := names.layer.match(name))})


def _lacking(names: _Names, tensors: Mapping[str, TensorEntry], build: _Build) -> str:
    """The number of tensors is a check of the whole. Old files hold the positions' numbers as one more."""
    if names is not _TRANSFORMERS:
        return ""
    own = [name for name in tensors if name.startswith(names.start) and not name.endswith(".position_ids")]
    count = len(own) + 1
    return f"it is damaged: of {build.tensors} tensors {count} are there" if count < build.tensors else ""


def _is_siglip(tensors: Mapping[str, TensorEntry]) -> bool:
    """SigLIP has a head in place of CLIP's projection, and no norm before its first layer (`pre_layrnorm`, sic)."""
    return _TRANSFORMERS.projection not in tensors and any(name.startswith("vision_model.head.") for name in tensors)


def _siglip(tensors: Mapping[str, TensorEntry]) -> Verdict:
    patches = tensors.get(_TRANSFORMERS.patches)
    said = "of SigLIP, which has a head in place of a projection"
    evidence = (Evidence(_TRANSFORMERS.patches, patches.shape, said),) if patches else ()
    result = verdict(IMAGE_ENCODER, Settled((SIGLIP,), "likely", evidence, ()))
    return replace(result, offer=EncoderOffer(SIGLIP, None, size(patches, 0)))
