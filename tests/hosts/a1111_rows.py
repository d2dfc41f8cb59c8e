"""What AUTOMATIC1111's rows are made of: how it is started, and the requests."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from harness.keeper import Host, Keeper
from harness.proof import BASE, INIT, OFF

AUTOCAST = Path(__file__).resolve().parent / "standins" / "autocast"
SMALL_CLIP = Path(__file__).resolve().parent / "standins" / "smallclip"

#: Name -> flags. `mac` is what webui-macos-env.sh sets on every Mac, `gpu` the commonest split of dtypes elsewhere.
FLAGS: dict[str, tuple[str, ...]] = {
    "mac": ("--upcast-sampling", "--no-half-vae"),
    "gpu": ("--no-half-vae",),
    "full": ("--no-half",),
}

#: Names the folder of the unmodified extension, at be623452; it must be called sd-webui-regional-prompter.
PROMPTER_VARIABLE = "LIB_GUARD_REGIONAL_PROMPTER"

#: Names the folder of the unmodified extension, at 56cec5b; it must be called sd-webui-controlnet.
CONTROLNET_VARIABLE = "LIB_GUARD_CONTROLNET"

RED = {**BASE, "prompt": "a red cat on a green chair <lora:redlora:1>"}
HIRES = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.6}
PIXEL_HIRES = {**HIRES, "hr_upscaler": "Lanczos"}
LATENT_HIRES = {**HIRES, "hr_upscaler": "Latent"}
#: Steps 1 and 2 against guidance 3 and 4; one picture a cell, and the whole.
GRID: dict[str, Any] = {
    "script_name": "X/Y/Z plot",
    "script_args": [4, "1,2", [], 6, "3,4", [], 0, "", [], True, False, False, False, False, False, False, 0, False],
}


def regions(**more: Any) -> dict[str, Any]:
    """A request of two regions with a LoRA each, in Regional Prompter's Latent mode."""
    columns = ["Matrix", "Columns", "Mask", "Prompt", "1,1", "0.2", False, False, False]
    arguments = [True, False, *columns, "Latent", [False], "0", "0", "0.4", None, "0", "0", False]
    prompt = "a red cat <lora:redlora:1> BREAK a blue dog <lora:bluelora:1>"
    return {**BASE, "prompt": prompt, **more, "alwayson_scripts": {"Regional Prompter": {"args": arguments}}}


def prompter() -> Path:
    """Regional Prompter's folder. Skips when it is not named."""
    return _named(PROMPTER_VARIABLE, "Regional Prompter")


def controlnet() -> Path:
    """sd-webui-controlnet's folder. Skips when it is not named."""
    return _named(CONTROLNET_VARIABLE, "sd-webui-controlnet")


def _named(variable: str, extension: str) -> Path:
    named = os.environ.get(variable, "")
    if not named:
        pytest.skip(f"set {variable} to the folder of {extension}")
    return Path(named).resolve()


def unit(**values: Any) -> dict[str, Any]:
    """A request with one ControlNet unit."""
    picture = INIT["init_images"][0]
    unit = {"enabled": True, "image": picture, "weight": 1.0, "processor_res": 64, "model": "None", **values}
    return {**BASE, "alwayson_scripts": {"ControlNet": {"args": [unit]}}}


def start(a1111: Keeper, flags: str, *extensions: Path, more: tuple[str, ...] = (), **settings: object) -> Host:
    """The host with one of `FLAGS`, and the stand-in for CUDA's autocast where the flags need it."""
    standins = () if flags == "full" else (AUTOCAST,)
    return loaded(a1111(flags=(*FLAGS[flags], *more), extensions=(*standins, *extensions), **settings))


def loaded(host: Host, seconds: float = 120.0) -> Host:
    """The host when its model is there: it loads that in a thread, and may say that it is up before."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            host.probe("own_methods")
        except RuntimeError:
            assert host.alive and time.monotonic() < deadline, host.tail()
            time.sleep(0.2)
        else:
            return host


def calm(host: Host) -> None:
    """Nothing remembered of what came before.

    The ordinary request is for Regional Prompter, which puts back what one failure left in the next request only.
    """
    host.generate("txt2img", BASE, OFF)
    forget(host)


def settle(host: Host) -> None:
    """As `calm`, and the weights as on the disk: loading another checkpoint in between makes the host read them."""
    host.generate("txt2img", BASE, OFF)
    for name in ("othersd1", "tinysd1"):
        host.options(sd_model_checkpoint=f"{name}.safetensors")
    forget(host)


def forget(host: Host) -> None:
    """Encoded prompts are kept between requests, and would make the second of two equal sequences another one."""
    host.probe("forget_conditioning")


def reload_ui(host: Host, seconds: float = 120.0) -> None:
    """Reload UI, and wait until everything is up again."""
    mark = host.mark()
    host.probe("reload_ui")
    deadline = time.monotonic() + seconds
    while host.kind.ready not in host.output()[mark:]:
        assert host.alive and time.monotonic() < deadline, host.tail()
        time.sleep(0.3)
    # The line is printed when the routes are there.
    assert host.get("/lib-guard-probe/ping").status == 200
