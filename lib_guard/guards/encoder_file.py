"""What an IP-Adapter's file tells, and what is said of it before sampling. Nothing but its header is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..files.families import EncoderNeed, EncoderOffer, family_of
from ..files.families.verdict import EMBEDS, INSIGHTFACE, IP_ADAPTER, SPOKEN_ENCODERS
from ..files.header import TensorEntry, UnreadableFile, read_header
from ..findings import Finding, Primitive
from ..hosts.encoder_handling import AdapterUse
from ..wording import on_one_line

GUARD = "encoder"

#: How many files are remembered.
_FILES = 32

#: An adapter's keys, whose columns are as wide as the text they stand beside.
_TO_KEY = re.compile(r"ip_adapter\.\d{1,4}\.to_k_ip\.weight\Z")


@dataclass(frozen=True)
class AdapterFile:
    """flaw: why it cannot be read, else empty. need: what it takes; None where its header does not tell. text_width:
    how wide the text of the model is that it was made for; None where that is not told."""

    flaw: str = ""
    need: EncoderNeed | None = None
    text_width: int | None = None


def looked_at(use: AdapterUse) -> AdapterFile:
    """What the file of an adapter tells; nothing for what is not called a safetensors file, since a pickle has no
    header, and is not opened to look for one."""
    if use.file is None or use.file.suffix.lower() != ".safetensors":
        return AdapterFile()
    try:
        stat = use.file.stat()
    except OSError as error:
        return AdapterFile(flaw=error.strerror or "it is gone")
    return _remembered(use.file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=_FILES)
def _remembered(path: Path, _size: int, _changed: int) -> AdapterFile:
    try:
        header = read_header(path)
    except UnreadableFile as error:
        return AdapterFile(flaw=str(error))
    verdict = family_of(header)
    if verdict.kind != IP_ADAPTER:
        return AdapterFile()
    flaw = next((remark for remark in verdict.remarks if remark.startswith("it is damaged")), "")
    return AdapterFile(flaw, verdict.need, _text_width(header.tensors))


def _text_width(tensors: Mapping[str, TensorEntry]) -> int | None:
    shapes = (entry.shape for name, entry in tensors.items() if _TO_KEY.match(name))
    return next((shape[1] for shape in shapes if len(shape) == 2), None)


def file_finding(use: AdapterUse, file: AdapterFile, text_width: int | None) -> Finding | None:
    """What is wrong with a file for the loaded model. text_width: of that model; None where it is not known."""
    if file.flaw:
        saw = f"the file of IP-Adapter {quoted(use)} cannot be read: {file.flaw}"
        return finding("LG407", use, saw, {"file": on_one_line(use.file.name if use.file else "", 60)})
    if file.text_width is None or text_width is None or file.text_width == text_width:
        return None
    saw = (
        f"IP-Adapter {quoted(use)} was made for a model whose text is {file.text_width} wide, and that of the loaded"
        f" one is {text_width} wide"
    )
    return finding("LG406", use, saw, {"adapter_width": file.text_width, "model_width": text_width})


# Adapters and encoders in the words of a line.


def finding(code: str, use: AdapterUse, saw: str, evidence: Mapping[str, Primitive]) -> Finding:
    """A finding about one adapter; each adapter is a cause of its own."""
    name = on_one_line(use.name, 60)
    return Finding(code, GUARD, "image_encoder", "", saw, {"adapter": name, **evidence, "cause_key": name})


def quoted(use: AdapterUse) -> str:
    """An adapter's name."""
    return f'"{on_one_line(use.name, 60)}"'


def spoken(offer: EncoderOffer | None) -> str:
    """`OpenCLIP ViT-H`; of a build that nobody knows its widths."""
    if offer is None:
        return "an encoder that is not known"
    if offer.kind in SPOKEN_ENCODERS:
        return SPOKEN_ENCODERS[offer.kind]
    if offer.width is None and offer.hidden is None:
        return "nothing"
    return f"an encoder of {offer.width or 'no'} image_embeds and {offer.hidden} hidden states"


def wanted(need: EncoderNeed) -> str:
    """`OpenCLIP ViT-H`; of one that nobody knows the width."""
    known = SPOKEN_ENCODERS.get(need.kind)
    if need.kind == INSIGHTFACE:
        return "InsightFace and no CLIP"
    name = known or f"an encoder of {need.width} {'image_embeds' if need.output == EMBEDS else 'hidden states'}"
    return f"{name} and InsightFace" if need.face else name


def megabytes(size: int) -> str:
    """`1264 MB`, and `0.4 MB` of small ones."""
    count = size / 1_000_000
    return f"{count:.0f} MB" if count >= 10 else f"{count:.1f} MB"
