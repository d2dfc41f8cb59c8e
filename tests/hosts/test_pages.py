"""A person at the pages of AUTOMATIC1111 and SD.Next: the accordion is there, and its status is renewed by itself."""

from __future__ import annotations

from typing import Any

import pytest
from a1111_rows import start
from harness.keeper import Host, Keeper
from harness.page import NEEDS_BROWSER, badge_says, finished, generate, opened, small, status_says

from demo import browser

pytestmark = NEEDS_BROWSER


def open_accordion(page: Any) -> None:
    for tab in ("txt2img", "img2img"):
        assert page.locator(f"#{tab}_script_container .lib-guard-{tab}").count() == 1
    switch = page.locator("#script_txt2img_libguard_precision")
    assert not switch.is_visible(), "the accordion is closed at first"
    page.locator(".lib-guard-txt2img .label-wrap").first.click()
    switch.wait_for(state="visible")


def prove_status(host: Host) -> None:
    """A damaged VAE, then a healthy one: the header and the status tell the two apart, without a click."""
    errors: list[str] = []
    with browser.page() as page:
        page.on("pageerror", lambda error: errors.append(str(error)))
        opened(page, host)
        open_accordion(page)
        small(page, "txt2img")
        host.probe.damage("half_decoder")
        generate(page, "txt2img")
        finished(host, generations=1)
        badge_says(page, "txt2img", "1 repaired")
        assert "LG103" in page.inner_text("#script_txt2img_libguard_status")

        host.probe.damage("float_decoder")
        generate(page, "txt2img")
        finished(host, generations=2)
        badge_says(page, "txt2img", "")
        status_says(page, "txt2img", "nothing was wrong")
    assert [error for error in errors if "lib_guard" in error] == []


@pytest.mark.parametrize("row_id", ["A-page"])
def test_automatic1111(a1111: Keeper, row_id: str) -> None:
    try:
        prove_status(start(a1111, "full"))
    finally:
        a1111.close()


@pytest.mark.parametrize("row_id", ["S-page"])
def test_sdnext(sdnext: Keeper, row_id: str) -> None:
    try:
        prove_status(sdnext())
    finally:
        sdnext.close()
