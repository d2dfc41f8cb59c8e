"""Textual inversion files: how wide their vectors are.

invoke-ai/InvokeAI configs/textual_inversion.py:54-91; AUTOMATIC1111
modules/textual_inversion/textual_inversion.py:296-299.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..header import Header, TensorEntry
from .metadata import metadata_rules
from .verdict import EMBEDDING, SD2, SD15, SDXL, Clue, Verdict, clue, settle, size, verdict

#: `emb_params` knows no third: an SDXL embedding has two tensors.
_WIDTHS, _PICKLED_WIDTHS = {768: SD15, 1024: SD2}, {768: SD15, 1024: SD2, 1280: SDXL}
_ONE, _PICKLED = "emb_params", "string_to_param"
_CLIP_L, _CLIP_G = "clip_l", "clip_g"


def embedding_verdict(header: Header) -> Verdict | None:
    """Which text encoders an embedding was trained for; None when the file is none."""
    tensors = header.tensors
    single = [name for name in tensors if name in (_ONE, _PICKLED) or name.startswith(f"{_PICKLED}.")]
    pair = {_CLIP_L, _CLIP_G} & tensors.keys()
    if not single and (not pair or tensors.keys() - pair):
        return None
    remarks = [f"it is damaged: {_CLIP_L} and {_CLIP_G} belong together"] if len(pair) == 1 and not single else []
    clues = list(_single(tensors, single)) if single else list(_pair(tensors))
    variant = "for two text encoders" if pair and not single else "for one text encoder"
    return verdict(EMBEDDING, settle([clues, *metadata_rules(header.metadata)]), variant, remarks)


def _single(tensors: Mapping[str, TensorEntry], names: list[str]) -> Iterator[Clue]:
    for name in names:
        width = size(tensors[name], -1) or 0
        widths = _WIDTHS if name == _ONE else _PICKLED_WIDTHS
        if width in widths:
            yield clue(widths[width], name, tensors[name], f"the text encoder is {width} wide")


def _pair(tensors: Mapping[str, TensorEntry]) -> Iterator[Clue]:
    widths = {name: size(tensors.get(name), -1) for name in (_CLIP_L, _CLIP_G)}
    if widths == {_CLIP_L: 768, _CLIP_G: 1280}:
        yield clue(SDXL, _CLIP_G, tensors[_CLIP_G], "SDXL's text encoders are 768 and 1280 wide")
