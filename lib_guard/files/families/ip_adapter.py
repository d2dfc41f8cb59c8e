"""IP-Adapter files: which model they are made for, and which image encoder their projection was trained on.

Shapes: tencent-ailab/IP-Adapter ip_adapter/resampler.py, ip_adapter.py, ip_adapter_faceid.py. Pairing with encoders:
Mikubill/sd-webui-controlnet scripts/ipadapter/presets.py, cubiq/ComfyUI_IPAdapter_plus utils.py and IPAdapterPlus.py:
262-266. Order of the tests: diffusers loaders/unet.py `_convert_ip_adapter_image_proj_to_diffusers`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from ..header import Header, TensorEntry
from .verdict import (
    EMBEDS,
    FLUX1,
    HIDDEN,
    INSIGHTFACE,
    IP_ADAPTER,
    KOLORS,
    SD2,
    SD15,
    SDXL,
    SIGLIP,
    SPOKEN_ENCODERS,
    UNKNOWN,
    VIT_BIGG,
    VIT_H,
    VIT_L,
    VIT_L_336,
    Clue,
    EncoderNeed,
    Evidence,
    Settled,
    Verdict,
    clue,
    settle,
    size,
    verdict,
)

#: Width of the text context that the adapter's keys stand beside.
_CONTEXT = {768: SD15, 1024: SD2, 2048: SDXL}

#: An encoder by the width of its embedding, and by the width of its hidden states. 1280 is in both.
BY_EMBEDS = {768: VIT_L, 1024: VIT_H, 1280: VIT_BIGG}
BY_HIDDEN = {1024: VIT_L, 1152: SIGLIP, 1280: VIT_H, 1664: VIT_BIGG}
FACE_WIDTH = 512

_PROJECTION, _KEYS = "image_proj.", "ip_adapter."
_TO_KEY = re.compile(r"ip_adapter\.\d{1,4}\.to_k_ip\.weight\Z")
_XLABS, _XLABS_KEY = "ip_adapter_proj_model.", ".processor.ip_adapter_double_stream_k_proj.weight"
_XLABS_CONTEXT = 4096


@dataclass(frozen=True)
class _Form:
    """One build of the projection.

    decides: how the name of the tensor begins that shows it. takes: the tensor whose columns are what it is given.
    output: of the encoder. context: the tensor whose rows are the text context. face: whether a face's embedding is
    needed as well. tells_kolors: the tensor that is wider in Kolors' files; empty where there are none of this build.
    """

    name: str
    decides: str
    takes: str
    output: str
    context: str
    face: bool = False
    tells_kolors: str = ""


#: In the order in which diffusers asks.
_FORMS = (
    _Form("plain", "proj.weight", "proj.weight", EMBEDS, "norm.weight"),
    _Form("full face", "proj.3.weight", "proj.0.weight", HIDDEN, "proj.3.weight"),
    _Form(
        "FaceID plus",
        "perceiver_resampler.",
        "perceiver_resampler.proj_in.weight",
        HIDDEN,
        "perceiver_resampler.proj_out.weight",
        face=True,
        tells_kolors="perceiver_resampler.layers.0.0.to_out.weight",
    ),
    _Form("FaceID", "norm.weight", "proj.0.weight", EMBEDS, "norm.weight", face=True),
    _Form("plus", "latents", "proj_in.weight", HIDDEN, "proj_out.weight", tells_kolors="layers.0.0.to_out.weight"),
)


def ip_adapter_verdict(header: Header) -> Verdict | None:
    """What an IP-Adapter is made for and what it needs; None when the file is none."""
    tensors = header.tensors
    if f"{_XLABS}proj.weight" in tensors:
        return _xlabs(tensors)
    if not any(_TO_KEY.match(name) for name in tensors) and not all(
        any(name.startswith(prefix) for name in tensors) for prefix in (_PROJECTION, _KEYS)
    ):
        return None
    image = {name.removeprefix(_PROJECTION): entry for name, entry in tensors.items() if name.startswith(_PROJECTION)}
    form = next((form for form in _FORMS if any(name.startswith(form.decides) for name in image)), None)
    if form is None:
        broken = "it is damaged, or of a kind that is not known: there is no image projection in it that is"
        return verdict(IP_ADAPTER, settle(_families(tensors, image, None)), remarks=(broken,))
    return _with_form(form, tensors, image)


def _with_form(form: _Form, tensors: Mapping[str, TensorEntry], image: Mapping[str, TensorEntry]) -> Verdict:
    settled = settle(_families(tensors, image, form))
    name, remarks = form.name, []
    if form.name == "FaceID":
        name = _faceid_name(image)
    if form.name == "FaceID plus":
        remarks.append("plus and plusv2 differ in a switch that no file holds")
    need, kolors = _need(form, image), settled.family == KOLORS
    if need is not None and kolors:
        need = replace(need, kind=VIT_L_336 if need.kind == VIT_L else UNKNOWN)
    if need is None:
        remarks.append(f"it is damaged: {_PROJECTION}{form.takes} is missing")
    result = verdict(IP_ADAPTER, _with_need(settled, form, image, need), name, remarks)
    return replace(result, need=need)


def _families(
    tensors: Mapping[str, TensorEntry], image: Mapping[str, TensorEntry], form: _Form | None
) -> Iterator[Iterable[Clue]]:
    kolors = list(_kolors(image))
    contexts = {**_CONTEXT, 2048: KOLORS} if kolors else _CONTEXT
    # Without the tensor that would tell Kolors, what is as wide as SDXL need not be SDXL.
    sure = form is None or not form.tells_kolors or form.tells_kolors in image
    yield kolors
    yield [
        clue(family, name, entry, f"its text context is {entry.shape[1]} wide", certain=sure)
        for name, entry in tensors.items()
        if _TO_KEY.match(name) and len(entry.shape) == 2 and (family := contexts.get(entry.shape[1]))
    ]
    context = image.get(form.context) if form else None
    width = size(context, 0)
    if form and context and width in contexts:
        said = f"it makes tokens {width} wide, as the text context is"
        yield [clue(contexts[width], _PROJECTION + form.context, context, said, certain=False)]


def _kolors(image: Mapping[str, TensorEntry]) -> Iterator[Clue]:
    """Kolors' text is as wide as SDXL's, its projections are wider."""
    widths = {"plus": 2048, "FaceID plus": 4096}
    for name, width in ((form.tells_kolors, widths[form.name]) for form in _FORMS if form.tells_kolors):
        entry = image.get(name)
        if entry is not None and size(entry, 0) == width:
            yield clue(KOLORS, _PROJECTION + name, entry, f"Kolors' image projection is {width} wide")


def _need(form: _Form, image: Mapping[str, TensorEntry]) -> EncoderNeed | None:
    width = size(image.get(form.takes), 1)
    if width is None:
        return None
    if form.name == "FaceID" or width == FACE_WIDTH:
        return EncoderNeed(INSIGHTFACE if width == FACE_WIDTH else UNKNOWN, width, EMBEDS)
    kind = (BY_EMBEDS if form.output == EMBEDS else BY_HIDDEN).get(width, UNKNOWN)
    return EncoderNeed(kind, width, form.output, form.face)


def _with_need(settled: Settled, form: _Form, image: Mapping[str, TensorEntry], need: EncoderNeed | None) -> Settled:
    entry = image.get(form.takes)
    if need is None or entry is None:
        return settled
    said = f"it takes {need.output} of {need.width}"
    if need.kind in SPOKEN_ENCODERS:
        result = "embedding" if need.output == EMBEDS else "hidden state"
        said = f"the {result} of {SPOKEN_ENCODERS[need.kind]} is {need.width} wide"
    return replace(settled, evidence=(*settled.evidence, Evidence(_PROJECTION + form.takes, entry.shape, said)))


def _faceid_name(image: Mapping[str, TensorEntry]) -> str:
    """A portrait makes 16 tokens of a face, FaceID 4."""
    rows, width = size(image.get("proj.2.weight"), 0), size(image.get("norm.weight"), 0)
    return "FaceID portrait" if rows and width and rows == 16 * width else "FaceID"


def _xlabs(tensors: Mapping[str, TensorEntry]) -> Verdict:
    name = f"{_XLABS}proj.weight"
    entry = tensors[name]
    width, rows = size(entry, 1), size(entry, 0) or 0
    keys = [
        clue(FLUX1, key, found, "FLUX.1 is 3072 wide and its text 4096")
        for key, found in tensors.items()
        if key.endswith(_XLABS_KEY) and found.shape == (3072, _XLABS_CONTEXT)
    ]
    norm = tensors.get(f"{_XLABS}norm.weight")
    tokens = [clue(FLUX1, name, entry, "its tokens are 4096 wide, as FLUX.1's text is", certain=False)]
    settled = settle([keys, tokens if norm is not None and norm.shape == (_XLABS_CONTEXT,) else []])
    version = {4: "XLabs v1", 16: "XLabs v2"}.get(rows // _XLABS_CONTEXT, "XLabs")
    need = EncoderNeed(BY_EMBEDS.get(width, UNKNOWN), width, EMBEDS) if width else None
    return replace(verdict(IP_ADAPTER, settled, version), need=need)
