"""Rows P01 to P06 on AUTOMATIC1111: each fails without LibGuard and is clean with it, in the same run.

img2img encodes before the request's LoRAs are activated (processing.py:921), while those of the one before still are:
so a LoRA request comes first there. (Regional Prompter leaves none behind.)

Clean means: the picture is the one that the same host gives, without LibGuard, when it believes inside the VAE that no
LoRA is loaded. None reaches into a VAE, so this is what its layers compute where nobody casts their input.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from a1111_rows import GRID, LATENT_HIRES, PIXEL_HIRES, RED, calm, forget, loaded, prompter, regions, settle, start
from harness.keeper import Host, Keeper
from harness.previews import previews
from harness.proof import BASE, INIT, MASK, OFF, ON, TABLE, Result, Row, assert_cured, digest, same

REPORTED = "Input type (c10::Half) and bias type (float) should be the same"
UNALIKE = "no_networks_in_vae"

REGIONAL = [
    Row("P01-A-txt2img", "Regional Prompter Latent + LoRA, --upcast-sampling --no-half-vae", "txt2img", regions()),
    Row("P01-A-img2img", "the same, img2img", "img2img", regions(**INIT)),
    Row("P02-A-pixel", "the same, hires fix with a pixel upscaler", "txt2img", regions(**PIXEL_HIRES)),
    Row("P02-A-latent", "the same, hires fix with a latent upscaler", "txt2img", regions(**LATENT_HIRES)),
]

OLD_METHOD = [
    Row("P04-A-txt2img", "option lora_functional + LoRA, --upcast-sampling --no-half-vae", "txt2img", RED),
    Row("P04-A-img2img", "the same, img2img", "img2img", {**RED, **INIT}, before=(("txt2img", RED),)),
    Row("P04-A-inpaint", "the same, inpaint", "img2img", {**RED, **MASK}, before=(("txt2img", RED),)),
    Row("P04-A-hires", "the same, hires fix", "txt2img", {**RED, **PIXEL_HIRES}),
    Row("P04-A-batch", "the same, two batches of two", "txt2img", {**RED, "batch_size": 2, "n_iter": 2}),
]


def cured(host: Host, row: Row, codes: set[str], prepare: Any = None) -> Result:
    """`assert_cured` with the reference of the module's docstring, and the error that was reported."""
    whole = Row(**{**vars(row), "healthy": UNALIKE})
    result = assert_cured(host, whole, codes, prepare or (lambda: calm(host)))
    assert REPORTED in result.without
    return result


@pytest.mark.parametrize("row", REGIONAL, ids=lambda row: row.id)
def test_regional_prompter(a1111: Keeper, row: Row) -> None:
    host = start(a1111, "mac", prompter())
    cured(host, row, {"LG105"})
    directions = {entry["direction"] for entry in host.probe.entries()}
    assert directions == ({"encode", "decode"} if row.id == "P02-A-pixel" else {"decode"})
    assert "Regional Prompter (Latent)" in host.said()[-1] and "Use LoHa or other" in host.said()[-1]


@pytest.mark.parametrize("row", OLD_METHOD, ids=lambda row: row.id)
def test_old_method(a1111: Keeper, row: Row) -> None:
    host = start(a1111, "mac", lora_functional=True)
    cured(host, row, {"LG105"})
    assert "lora_functional" in host.said()[-1] and "--upcast-sampling --no-half-vae" in host.said()[-1]


@contextmanager
def healthy(host: Host) -> Iterator[None]:
    """The reference of the module's docstring."""
    host.probe(UNALIKE, on=True)
    try:
        yield
    finally:
        host.probe(UNALIKE, on=False)


@pytest.mark.parametrize("row_id", ["P04-A-xyz"])
def test_grid(a1111: Keeper, row_id: str) -> None:
    """An X/Y/Z grid swallows the errors of its cells (xyz_grid.py:727): HTTP 200, and the cells are blank."""
    host, body = start(a1111, "mac", lora_functional=True), {**RED, **GRID}
    result = TABLE.add(host, Result(row_id, "the same, an X/Y/Z grid"))
    calm(host)
    with healthy(host):
        reference = host.generate("txt2img", body, OFF).pictures
    calm(host)
    mark = host.mark()
    without = host.generate("txt2img", body, OFF).pictures
    assert host.output()[mark:].count(f"RuntimeError: {REPORTED}") == 4 and not same(without, reference)
    calm(host)
    number = host.probe.generation()
    with_ = host.generate("txt2img", body, ON).pictures
    result.without, result.with_, result.reference = (
        f"HTTP 200, blank cells: {REPORTED}",
        digest(with_),
        digest(reference),
    )
    assert with_ and same(with_, reference)
    cells = host.probe.since(number)
    assert [[entry["code"] for entry in cell["entries"]] for cell in cells] == [["LG105"]] * 4
    assert {cell["outcome"] for cell in cells} == {"finished"} and host.probe.marks() == []
    result.codes, result.passed = "LG105", True


@pytest.mark.parametrize("row_id", ["P01-A-previews"])
def test_previews(a1111: Keeper, row_id: str) -> None:
    """Live previews are decoded in another thread in the middle of sampling, and neither disturbs the other.

    The reference is made without them: it empties a list of the host's, which the sampling would see.
    """
    host, body = start(a1111, "mac", prompter()), regions(steps=8)
    result = TABLE.add(host, Result(row_id, "Regional Prompter Latent + LoRA, live previews"))
    calm(host)
    with healthy(host):
        reference = host.generate("txt2img", body, OFF).pictures
    host.options(show_progress_type="Full", live_previews_enable=True, show_progress_every_n_steps=1)
    try:
        calm(host)
        with previews(host) as none:
            without = host.generate("txt2img", body, OFF)
        assert REPORTED in without.text and none == []
        calm(host)
        with previews(host) as seen:
            with_ = host.generate("txt2img", body, ON).pictures
    finally:
        host.options(show_progress_type="Approx NN", show_progress_every_n_steps=10)
    result.without, result.with_, result.reference = f"HTTP 500: {REPORTED}", digest(with_), digest(reference)
    assert seen, "no preview was decoded, so they prove nothing"
    (entry,) = host.probe.entries()
    assert with_ and same(with_, reference) and entry["code"] == "LG105" and entry["count"] > 1
    result.codes, result.passed = "LG105", True


@pytest.mark.parametrize("row_id", ["P03-A"])
def test_two_failures(a1111: Keeper, row_id: str) -> None:
    """Two failures with LibGuard off leave the host broken; the first request with LibGuard heals it."""
    host = start(a1111, "mac", prompter())
    settle(host)
    users = host.probe("borrowed")
    clean = host.generate("txt2img", RED, OFF).pictures
    result = TABLE.add(host, Result(row_id, "P01 twice, then ordinary LoRA requests", reference=digest(clean)))
    settle(host)
    for _ in range(2):
        assert REPORTED in host.generate("txt2img", regions(), OFF).text
    broken = host.generate("txt2img", RED, OFF)
    assert REPORTED in broken.text, "it does not fail without LibGuard, so it proves nothing"
    result.without = f"HTTP {broken.status}: {REPORTED}, until restart"
    assert host.probe("borrowed") != users

    mark = host.mark()
    first = host.generate("txt2img", RED, ON)
    result.with_, result.codes = digest(first.pictures), " ".join(e["code"] for e in host.probe.entries())
    assert same(first.pictures, clean) and result.codes == "LG106"
    assert len(host.said(mark)) == 1 and "Regional Prompter" in host.said(mark)[0]
    assert host.probe("borrowed") == users

    # For good: also without LibGuard, and in the file when the user saves a setting.
    forget(host)
    assert same(host.generate("txt2img", RED, OFF).pictures, clean)
    assert host.probe("borrowed") == users
    host.options(samples_format="png")
    saved = json.loads((host.data / "config.json").read_text(encoding="utf-8"))
    assert saved.get("lora_functional", False) is False and saved.get("batch_cond_uncond", True) is True
    result.passed = True


@pytest.mark.parametrize("row_id", ["P03-A-error"])
def test_another_error(a1111: Keeper, row_id: str) -> None:
    """With LibGuard on, a generation that fails for another reason leaves nothing behind."""
    host = start(a1111, "mac", prompter())
    settle(host)
    users = host.probe("borrowed")
    for scripts in (OFF, ON):
        host.probe.at_step(1, "raise")
        try:
            assert host.generate("txt2img", regions(), scripts).status == 500
        finally:
            host.probe.at_step(0, "nothing")
        if scripts is OFF:
            assert host.probe("borrowed") != users, "nothing is left behind without LibGuard, so it proves nothing"
            host.generate("txt2img", BASE, OFF)
    assert host.probe("borrowed") == users
    assert [entry["code"] for entry in host.probe.entries()] == ["LG106"] and host.probe.marks() == []


@pytest.mark.parametrize("row_id", ["P05-A"])
def test_upcast_after_nans(a1111: Keeper, row_id: str) -> None:
    host = loaded(a1111(flags=("--precision", "half"), lora_functional=True))

    def provoke() -> None:
        host.probe("upcast_vae", on=False)
        settle(host)
        host.probe("upcast_vae", on=True)

    try:
        row = Row(row_id, "--precision half, VAE upcast after NaNs, lora_functional + LoRA", "txt2img", RED)
        cured(host, row, {"LG105"}, provoke)
    finally:
        host.probe("upcast_vae", on=False)


DAMAGES = ["half_decoder", "half_data", "half_state", "half_weight", "bfloat_block"]


@pytest.mark.parametrize("how", DAMAGES, ids=lambda how: f"P06-A-{how}")
def test_partly_converted(a1111: Keeper, how: str) -> None:
    host = start(a1111, "full")

    def provoke() -> None:
        settle(host)
        host.probe.damage(how)

    row = Row(f"P06-A-{how}", f"VAE partly converted: {how}", "txt2img", BASE, comparable=False)
    assert_cured(host, row, {"LG101", "LG103"}, provoke)
    line = host.said()[-1]
    assert "decoded in float" in line
    if how in ("half_data", "half_state"):
        assert "says that it is float32 and is float16" in line, "the WebUI casts to what it says"
    settle(host)
