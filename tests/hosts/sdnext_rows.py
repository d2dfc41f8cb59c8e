"""Requests and steps that the rows on SD.Next share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from harness.keeper import Host
from harness.proof import BASE, INIT, MASK, fresh
from harness.server import Answer

SD15 = "Diffusers/tiny-sd15"
SDXL = "Diffusers/tiny-sdxl"
SDXL_FIX = "Diffusers/tiny-sdxl-fp16fix"
SD3 = "Diffusers/tiny-sd3"
REFINER = "Diffusers/tiny-sdxl-refiner"
CONTROLNET = "tiny-sd15-controlnet"

_HIRES: dict[str, Any] = {**BASE, "enable_hr": True, "hr_scale": 1.5, "hr_force": True, "hr_denoising_strength": 0.5}
HIRES_PIXEL: dict[str, Any] = {**_HIRES, "hr_resize_mode": 1, "hr_upscaler": "Resize Lanczos"}
HIRES_LATENT: dict[str, Any] = {**_HIRES, "hr_resize_mode": 1, "hr_upscaler": "Latent Bilinear"}

#: The refiner takes over half way (Settings > Model Loading > Refiner model names it).
REFINED: dict[str, Any] = {**BASE, "steps": 4, "enable_hr": True, "refiner_steps": 2, "refiner_start": 0.5}
#: What SD.Next calls "Base" is in the models' folder (models/sdnext.py).
IP_ADAPTER: dict[str, Any] = {"ip_adapter": [{"adapter": "Base", "images": INIT["init_images"], "scale": 0.8}]}

#: The detection model that the probe puts in the place of a YOLO network.
DETECTOR = "lib-guard-detector"
#: The Detailer on, and the same request without its pass.
DETAILER: dict[str, Any] = {
    **BASE,
    "detailer_enabled": True,
    "detailer_steps": 2,
    "detailer_strength": 0.6,
    "detailer_resolution": 64,
}
NO_DETAILER: dict[str, Any] = BASE

ENCODING: dict[str, tuple[str, dict[str, Any]]] = {
    "img2img": ("img2img", {**BASE, **INIT}),
    "inpaint": ("img2img", {**BASE, **MASK}),
    "hires": ("txt2img", HIRES_PIXEL),
}


def select(host: Host, checkpoint: str) -> Host:
    """The host with this checkpoint, its weights as they are on the disk."""
    host.options(sd_model_checkpoint=checkpoint)
    fresh(host)
    return host


def detecting(host: Host) -> Host:
    """The host with a detection model for the Detailer, and that one chosen."""
    host.probe("detector", name=DETECTOR)
    host.options(detailer_models=[DETECTOR])
    return host


def control(host: Host, models: Sequence[str] = ()) -> Answer:
    """One picture from another by what the Control tab's button calls, with a unit for each ControlNet."""
    names = {"width": "width_before", "height": "height_before", "init_images": "inputs"}
    body = {names.get(key, key): value for key, value in {**BASE, **INIT}.items()}
    return Answer(200, host.probe("control", models=list(models), **body), "")


@contextmanager
def options(host: Host, values: dict[str, Any], after: dict[str, Any]) -> Iterator[None]:
    """The host with these options, and afterwards with those."""
    host.options(**values)
    try:
        yield
    finally:
        host.options(**after)
