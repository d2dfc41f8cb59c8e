"""Requests and steps that the rows on Forge share."""

from __future__ import annotations

from typing import Any

from harness.keeper import Host
from harness.proof import BASE, INIT

#: Without the last one Forge's API ends a request for hires fix with a TypeError (processing.py:1405).
_HIRES: dict[str, Any] = {
    **BASE,
    "enable_hr": True,
    "hr_scale": 1.5,
    "denoising_strength": 0.5,
    "hr_additional_modules": ["Use same choices"],
}
HIRES_PIXEL: dict[str, Any] = {**_HIRES, "hr_upscaler": "Lanczos"}
HIRES_LATENT: dict[str, Any] = {**_HIRES, "hr_upscaler": "Latent"}

#: Forge's own switch for decoding and encoding every picture in tiles; several of them in this size. A picture below
#: 128 pixels it cannot do: "start (64) + length (1) exceeds dimension size (64)" (patcher/vae.py:34).
TILED: dict[str, Any] = {
    "width": 320,
    "height": 128,
    "alwayson_scripts": {"Never OOM Integrated": {"args": [False, True]}},
}
NOT_TILED: dict[str, Any] = {"alwayson_scripts": {"Never OOM Integrated": {"args": [False, False]}}}

REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "txt2img": ("txt2img", BASE),
    "img2img": ("img2img", {**BASE, **INIT}),
    "hires": ("txt2img", HIRES_PIXEL),
    "tiled": ("img2img", {**BASE, **INIT, **TILED}),
}


def seeded(host: Host) -> None:
    """The same noise for what follows: what Forge encodes in img2img it draws without the request's seed."""
    host.probe("seed")


def fresh_vae(host: Host) -> None:
    """The VAE as it was loaded."""
    host.probe("restore")
    seeded(host)


def fresh(host: Host) -> None:
    """Weights as they are on the disk, and no conditioning that another request's LoRA has left."""
    host.probe("load")
    host.probe("forget_conditioning")
    seeded(host)
