"""Rows P11, N01 and N02 on a running Forge, and the accordion's VAE precision.

Where weights are stored in another dtype than they are computed in, Forge's layers fit them to what they are given
(backend/operations.py:143), and unequal dtypes are healthy. So what fails is a part that was converted in a UNet whose
weights are computed in as they are stored, which on a CPU is float32.
"""

from __future__ import annotations

from typing import Any

import pytest
from forge_rows import fresh
from harness.keeper import Keeper
from harness.proof import BASE, OFF, ON, TABLE, TITLE, Result, Row, assert_cured, digest, same
from safetensors.numpy import load_file, save_file

#: LibGuard's accordion with "VAE precision" at float32.
CHOSEN: dict[str, Any] = {TITLE: {"args": [True, "fix", "float32"]}}

HALF_VAE = ("--vae-in-fp16",)


@pytest.mark.parametrize("stray", [pytest.param(stray, id=f"P11-F-{stray}") for stray in ("bfloat16", "float16")])
def test_one_block_of_another_dtype(forge: Keeper, stray: str) -> None:
    host = forge()

    def provoke() -> None:
        fresh(host)
        host.probe("convert", component="unet", path="diffusion_model.middle_block", dtype=stray)

    row = Row(f"P11-F-{stray}", f"The UNet's middle block is {stray}", "txt2img", BASE, comparable=False)
    assert_cured(host, row, {"LG111"}, provoke)
    line = host.said()[-1]
    assert "middle_block in " + stray in line and "--unet-in-*" in line
    fresh(host)


@pytest.mark.parametrize("row_id", ["N01-F-txt2img"])
def test_overflow(forge: Keeper, row_id: str) -> None:
    """Forge looks for no NaN: the picture is black, HTTP 200."""
    host = forge(flags=HALF_VAE)
    result = TABLE.add(host, Result(row_id, "A VAE that overflows in float16, --vae-in-fp16"))

    def pictures(scripts: dict[str, Any], copied: bool = False) -> list[Any]:
        fresh(host)
        host.probe.damage("overflow")
        host.probe("float_copy", on=copied)
        found = host.generate("txt2img", BASE, scripts).pictures
        host.probe("float_copy", on=False)
        return found

    reference, without = pictures(OFF, copied=True), pictures(OFF)
    with_ = pictures(ON)
    weights = host.probe.dtypes()["vae"]
    result.without, result.with_, result.reference = "HTTP 200, a black picture", digest(with_), digest(reference)
    result.codes = " ".join(entry["code"] for entry in host.probe.entries())
    assert without and all(picture.std() == 0 for picture in without), "it does not fail without LibGuard"
    assert same(with_, reference) and with_[0].std() > 1 and result.codes == "LG201"
    assert weights.keys() == {"float16"} and "--vae-in-fp16" in host.said()[-1] and host.probe.marks() == []
    fresh(host)
    result.passed = True


@pytest.mark.parametrize("row_id", ["N01-F-chosen"])
def test_chosen_precision(forge: Keeper, row_id: str) -> None:
    host = forge(flags=HALF_VAE)
    result = TABLE.add(host, Result(row_id, "VAE precision float32 in the accordion"))
    fresh(host)
    host.probe("float_copy", on=True)
    reference = host.generate("txt2img", BASE, OFF).pictures
    host.probe("float_copy", on=False)
    without, mark = host.generate("txt2img", BASE, OFF).pictures, host.mark()
    pictures = host.generate("txt2img", BASE, CHOSEN).pictures
    result.without, result.with_, result.reference = digest(without), digest(pictures), digest(reference)
    assert same(pictures, reference) and not same(pictures, without)
    assert host.probe.dtypes()["vae"].keys() == {"float16"} and host.said(mark) == [] and host.probe.entries() == []
    result.passed = True


@pytest.mark.parametrize("row_id", ["N02-F"])
def test_infinite_lora(forge: Keeper, row_id: str) -> None:
    host = forge()
    folder = host.data / "models" / "Lora"
    weights = load_file(folder / "redlora.safetensors")
    name = next(name for name in weights if name.startswith("lora_unet") and name.endswith("lora_up.weight"))
    weights[name][0, 0] = float("inf")
    save_file(weights, folder / "inflora.safetensors")
    body = {**BASE, "prompt": "a red cat <lora:inflora:1>"}
    result = TABLE.add(host, Result(row_id, "A LoRA whose file holds inf"))
    fresh(host)
    without = host.generate("txt2img", body, OFF).pictures
    fresh(host)
    mark = host.mark()
    with_ = host.generate("txt2img", body, ON).pictures
    entries, said = host.probe.entries(), host.said(mark)
    result.without, result.with_, result.codes = "a black picture", digest(with_), " ".join(e["code"] for e in entries)
    assert all(picture.std() == 0 for picture in [*without, *with_]) and without
    assert result.codes == "LG202" and entries[0]["did"] is None and len(said) == 1
    assert (entries[0]["evidence"]["step"], entries[0]["evidence"]["steps"]) == (1, BASE["steps"])
    assert "inflora" in entries[0]["evidence"]["loras"] and host.probe.marks() == []
    fresh(host)
    result.passed = True
