"""Rows Z14 and Z15 on AUTOMATIC1111, with sd-webui-controlnet 56cec5b; its own code, tables of a smaller size.

What it brings runs inside of the UNet's forward, which it replaces on the instance: the ControlNet, the IP-Adapter's
layers, and where a unit wants the picture's latent (`reference_only`) the VAE's encode.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from a1111_rows import FLAGS, PIXEL_HIRES, forget, start
from harness.keeper import Host, Keeper
from harness.proof import BASE, INIT, OFF, assert_silent, same

CONTROLNET_VARIABLE = "LIB_GUARD_CONTROLNET"
NARROW = Path(__file__).resolve().parent / "standins" / "narrow"

#: Module and model of a unit, as its users choose them.
CONTROL, REFERENCE = ("none", "control_tiny_sd15"), ("reference_only", "None")
ADAPTER = ("ip-adapter_clip_h", "ip-adapter_sd15")


def controlnet() -> Path:
    """The extension's folder. Skips when it is not named."""
    named = os.environ.get(CONTROLNET_VARIABLE, "")
    if not named:
        pytest.skip(f"set {CONTROLNET_VARIABLE} to the folder of sd-webui-controlnet")
    return Path(named).resolve()


def control(a1111: Keeper, flags: str) -> Host:
    """The host with the extension, whose image encoders are looked for in the data folder."""
    return start(a1111, flags, controlnet(), NARROW, control_net_modules_path="annotators")


def unit(host: Host, chosen: tuple[str, str], **more: Any) -> dict[str, Any]:
    """A request with one ControlNet unit."""
    module, model = chosen
    names = host.get("/controlnet/model_list").json["model_list"]
    # The list shows a hash behind each name.
    full = next((name for name in names if name.split(" [")[0] == model), model)
    image = INIT["init_images"][0]
    asked = {"enabled": True, "module": module, "model": full, "image": image, "weight": 1.0, "processor_res": 64}
    return {**BASE, **more, "alwayson_scripts": {"ControlNet": {"args": [asked]}}}


def silent(host: Host, row_id: str, chosen: tuple[str, str]) -> None:
    """txt2img, hires fix and img2img with a unit; the unit shows in the picture."""
    bodies = [("txt2img", unit(host, chosen)), ("txt2img", unit(host, chosen, **PIXEL_HIRES))]
    assert_silent(host, row_id, [*bodies, ("img2img", unit(host, chosen, **INIT))], lambda: forget(host))
    plain, with_ = (host.generate("txt2img", body, OFF).pictures[:1] for body in (BASE, bodies[0][1]))
    assert not same(plain, with_), "the unit had no effect, so this proves nothing"


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("row_id", ["Z14-A"])
def test_controlnet(a1111: Keeper, flags: str, row_id: str) -> None:
    silent(control(a1111, flags), f"{row_id}-{flags}", CONTROL)


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("row_id", ["Z14-A-reference"])
def test_reference(a1111: Keeper, flags: str, row_id: str) -> None:
    """The VAE encodes in the middle of the UNet's call."""
    silent(control(a1111, flags), f"{row_id}-{flags}", REFERENCE)


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("row_id", ["Z15-A"])
def test_ip_adapter(a1111: Keeper, flags: str, row_id: str) -> None:
    silent(control(a1111, flags), f"{row_id}-{flags}", ADAPTER)
