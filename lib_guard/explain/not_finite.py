"""Numbers that are not finite: black pictures.

The wording is that of AUTOMATIC1111/stable-diffusion-webui modules/devices.py `test_for_nans`, and numpy's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .explanation import Explanation, Hit, cure

_PRODUCED = re.compile(r"a tensor with (?:all )?NaNs was produced in (VAE|UNet)\b", re.IGNORECASE)
_RAISED = "NansException"
_CAST = "invalid value encountered in cast"


def nans_produced(text: str) -> Iterator[Hit]:
    """The WebUI's own check, which says in which part."""
    found = None
    for found in _PRODUCED.finditer(text):
        yield Hit(found.start(), _in_vae() if found[1].lower() == "vae" else _in_unet())
    at = text.find(_RAISED)
    if found is None and at >= 0:
        yield Hit(at, _somewhere("the WebUI's check for NaN has failed"))


def cast_of_nan(text: str) -> Iterator[Hit]:
    """numpy's warning, where a picture becomes whole numbers."""
    at = text.find(_CAST)
    if at >= 0:
        yield Hit(at, _somewhere("numbers that became a picture's whole numbers were inf or NaN"))


def _in_vae() -> Explanation:
    return Explanation(
        "LG201",
        "The VAE overflowed: its activations grew past the largest number of its dtype (65504 in float16). If it runs"
        " in float32 already, its file is broken (LG203).",
        "the NaN were found behind the VAE",
        cure(
            "LG201",
            "run the VAE in float32 or bfloat16 (--no-half-vae), or use one that works in half precision (an fp16-fix"
            " one).",
        ),
    )


def _in_unet() -> Explanation:
    return Explanation(
        "LG202",
        "The latent is not finite: the UNet overflowed in its precision, sampling diverged, or a LoRA's or the model's"
        " file holds inf or NaN.",
        "the NaN were found behind the UNet, before any VAE",
        cure(
            "LG202",
            "run the UNet in bfloat16 or float32 (--no-half, --upcast-sampling), leave out LoRAs, lower their"
            " strengths. `python -m lib_guard inspect FILE` finds numbers that are not finite in a file.",
        ),
    )


def _somewhere(shown: str) -> Explanation:
    return Explanation(
        "",
        "Numbers that are not finite came up, which is a black picture. Whether the VAE overflowed or the latent was"
        " bad before it, this text does not tell.",
        shown,
        "In a WebUI with LibGuard: it tells which (LG201, LG202), and computes a VAE's overflow anew in float32."
        " Elsewhere: run the VAE in float32 first; if the picture stays black, run the UNet in bfloat16 or float32, and"
        " leave out LoRAs.",
    )
