"""A person at Forge's page: the guard off, the picture is lost; the guard on, it is there, and the status says why."""

from __future__ import annotations

import base64
import re
import time
from pathlib import Path
from typing import Any

import pytest
from forge_rows import fresh_vae
from harness.keeper import Host, Keeper
from harness.kinds import KINDS
from harness.proof import INIT

from demo import browser

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not browser.find(), reason="no Chromium: install one, or name it in LIB_GUARD_BROWSER"),
]

#: The page is large, and Forge loads its model with the first request.
MILLISECONDS = 240_000


def start(forge: Keeper) -> Host:
    """Forge, allowed to hand out its own scripts: run on another data folder it refuses to (cmd_args.py:93)."""
    return forge(flags=("--gradio-allowed-path", str(KINDS["forge"].folder())))


def damaged(host: Host) -> None:
    """A VAE in half that is believed to be in float32: decode and encode fail."""
    fresh_vae(host)
    host.probe.damage("half_state")


def opened(page: Any, host: Host) -> None:
    page.set_default_timeout(MILLISECONDS)
    page.goto(f"http://127.0.0.1:{host.port}", timeout=MILLISECONDS)
    page.wait_for_selector("#txt2img_generate")


def small(page: Any, tab: str) -> None:
    """Settings that a CPU can do."""
    values = {"steps": 2, "width": 64, "height": 64}
    for name, value in values.items():
        field = page.locator(f"#{tab}_{name} input[type=number]")
        field.fill(str(value))
        field.press("Tab")


def choose(page: Any, tab: str, name: str, label: str) -> None:
    page.locator(f"#script_{tab}_libguard_{name}").get_by_label(label, exact=True).click()


def generate(page: Any, tab: str) -> None:
    page.fill(f"#{tab}_prompt textarea", "a red cat")
    page.click(f"#{tab}_generate")


def badge_says(page: Any, tab: str, text: str) -> None:
    page.wait_for_function(
        "([tab, text]) => document.querySelector(`.lib-guard-${tab} .lib-guard-badge`)?.textContent === text",
        arg=[tab, text],
    )


def finished(host: Host, generations: int) -> None:
    """Return when so many generations of the page are over; the status is renewed when one begins, too."""
    deadline = time.monotonic() + MILLISECONDS / 1000
    while [one["outcome"] for one in host.probe.ledger()].count("running") or len(host.probe.ledger()) < generations:
        assert time.monotonic() < deadline, host.tail()
        time.sleep(0.5)


def test_txt2img(forge: Keeper) -> None:
    host, errors = start(forge), []
    damaged(host)
    with browser.page() as page:
        page.on("pageerror", lambda error: errors.append(str(error)))
        opened(page, host)
        label = page.locator("#txt2img_script_container .lib-guard-txt2img .label-wrap")
        assert label.count() == 1
        assert not page.locator("#script_txt2img_libguard_precision").is_visible(), "the accordion is closed at first"
        label.click()
        small(page, "txt2img")

        choose(page, "txt2img", "precision", "Off")
        generate(page, "txt2img")
        page.wait_for_selector("#html_log_txt2img .error")
        assert "Input type (float) and bias type (c10::Half)" in page.inner_text("#html_log_txt2img")

        choose(page, "txt2img", "precision", "Fix")
        generate(page, "txt2img")
        page.wait_for_selector("#txt2img_gallery img")
        page.wait_for_selector(".lib-guard-txt2img .lib-guard-repaired")
        status = page.inner_text("#script_txt2img_libguard_status")
        assert "LG101" in status and "decoded in float16" in status and "vae_dtype, float32" not in status
        assert "--vae-in-fp16" in status
        badge_says(page, "txt2img", "1 repaired")
        assert "LibGuard: LG101" in page.inner_text("#html_info_txt2img")

        fresh_vae(host)
        generate(page, "txt2img")
        finished(host, generations=3)
        badge_says(page, "txt2img", "")
        assert "nothing was wrong" in page.inner_text("#script_txt2img_libguard_status")
    assert [error for error in errors if "lib_guard" in error] == []


def test_img2img(forge: Keeper, tmp_path: Path) -> None:
    host = start(forge)
    damaged(host)
    picture = tmp_path / "picture.png"
    picture.write_bytes(base64.b64decode(INIT["init_images"][0]))
    with browser.page() as page:
        opened(page, host)
        page.get_by_role("tab", name=re.compile("^img2img$", re.IGNORECASE)).first.click()
        page.locator("#img2img_script_container .lib-guard-img2img .label-wrap").click()
        page.locator("#script_img2img_libguard_precision").wait_for(state="visible")
        page.locator("#img2img_image input[type=file]").first.set_input_files(str(picture))
        small(page, "img2img")
        generate(page, "img2img")
        page.wait_for_selector("#img2img_gallery img")
        badge_says(page, "img2img", "2 repaired")
        status = page.inner_text("#script_img2img_libguard_status")
        assert "LG101" in status and "LG102" in status
