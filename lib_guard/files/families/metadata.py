"""What a trainer noted down about the base model. It can be wrong, so it only narrows what the tensors leave open.

Keys and values: kohya-ss/sd-scripts library/model_util.py:1081, library/sdxl_model_util.py:19,
library/flux_utils.py:23, library/sai_model_spec.py:62-80.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from ...wording import on_one_line
from .verdict import CHROMA, FLUX1, FLUX2, LUMINA2, SD2, SD3, SD15, SD35_LARGE, SDXL, SDXL_REFINER, Clue, Evidence

#: Metadata's key -> what its value looks like, whole words only -> the families that leaves. The first match counts.
_SAYINGS: dict[str, tuple[tuple[str, frozenset[str]], ...]] = {
    "ss_base_model_version": (
        (r"sd_v1", frozenset({SD15})),
        (r"sd_v2(_v)?", frozenset({SD2})),
        (r"sdxl_base_.*", frozenset({SDXL})),
        (r"sd3.*", frozenset({SD3, SD35_LARGE})),
        (r"flux1", frozenset({FLUX1})),
        (r"flux2.*", frozenset({FLUX2})),
        (r"chroma", frozenset({CHROMA})),
    ),
    "modelspec.architecture": (
        (r"stable-diffusion-v1(/.*)?", frozenset({SD15})),
        (r"stable-diffusion-v2-(512|768-v)(/.*)?", frozenset({SD2})),
        (r"stable-diffusion-xl-v1-base(/.*)?", frozenset({SDXL})),
        (r"stable-diffusion-xl-v1-refiner(/.*)?", frozenset({SDXL_REFINER})),
        (r"stable-diffusion-3[-.].*", frozenset({SD3, SD35_LARGE})),
        (r"flux-1(-.*)?(/.*)?", frozenset({FLUX1})),
        (r"flux-2(-.*)?(/.*)?", frozenset({FLUX2})),
        (r"chroma(/.*)?", frozenset({CHROMA})),
        (r"lumina-2(/.*)?", frozenset({LUMINA2})),
    ),
    "ss_v2": ((r"True", frozenset({SD2})),),
}


def metadata_rules(metadata: Mapping[str, str]) -> Iterator[Iterable[Clue]]:
    """One rule for each note that names a base model, weightiest first."""
    for key, sayings in _SAYINGS.items():
        value = metadata.get(key, "")
        families = next((families for pattern, families in sayings if re.fullmatch(pattern, value)), None)
        if families:
            yield [Clue(families, Evidence(f"metadata {key}", None, f'says "{on_one_line(value, 60)}"'), "likely")]
