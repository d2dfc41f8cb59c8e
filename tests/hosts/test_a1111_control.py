"""Rows Z14 and Z15 on AUTOMATIC1111, with sd-webui-controlnet 56cec5b.

What it brings runs inside of the UNet's forward, which it replaces on the instance: the ControlNet, the IP-Adapter's
layers, and where a unit wants the picture's latent (`reference_only`) the VAE's encode.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from a1111_rows import FLAGS, PIXEL_HIRES, SMALL_CLIP, calm, controlnet, start, unit
from harness.keeper import Host, Keeper
from harness.proof import BASE, INIT, OFF, assert_silent, same

NARROW = Path(__file__).resolve().parent / "standins" / "narrow"


def control(a1111: Keeper, flags: str) -> Host:
    return start(a1111, flags, controlnet(), SMALL_CLIP, NARROW)


def listed(host: Host, name: str) -> str:
    """A model's name as the extension lists it, with its hash."""
    names = host.get("/controlnet/model_list").json["model_list"]
    return next(one for one in names if one.split(" [")[0] == name)


def silent(host: Host, row_id: str, body: dict[str, Any]) -> None:
    """txt2img, hires fix and img2img with a unit that shows in the picture; and a request without it afterwards.

    Once ahead: building the unit's model draws random numbers, and img2img encodes with what is left of them.
    """
    calls = [("txt2img", body), ("txt2img", {**body, **PIXEL_HIRES}), ("img2img", {**body, **INIT}), ("txt2img", BASE)]
    for endpoint, asked in calls:
        host.generate(endpoint, asked, OFF)
    # What encode draws comes from a generator that the request before has left behind.
    assert_silent(host, row_id, calls, lambda: calm(host))
    plain, with_ = (host.generate("txt2img", one, OFF).pictures[0] for one in (BASE, body))
    assert not same([plain], [with_]), "the unit had no effect, so this proves nothing"


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("row_id", ["Z14-A"])
def test_controlnet(a1111: Keeper, flags: str, row_id: str) -> None:
    host = control(a1111, flags)
    silent(host, f"{row_id}-{flags}", unit(module="none", model=listed(host, "control_sd15")))


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("row_id", ["Z14-A-reference"])
def test_reference(a1111: Keeper, flags: str, row_id: str) -> None:
    """The VAE encodes in the middle of the UNet's call."""
    silent(control(a1111, flags), f"{row_id}-{flags}", unit(module="reference_only", threshold_a=0.5))


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("row_id", ["Z15-A"])
def test_ip_adapter(a1111: Keeper, flags: str, row_id: str) -> None:
    host = control(a1111, flags)
    silent(host, f"{row_id}-{flags}", unit(module="ip-adapter_clip_h", model=listed(host, "ip-adapter_sd15")))
