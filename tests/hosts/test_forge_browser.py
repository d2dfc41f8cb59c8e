"""A person at Forge's page: the guard off, the picture is lost; the guard on, it is there, and the status says why."""

from __future__ import annotations

import base64
import re
from pathlib import Path

from forge_rows import fresh_vae
from harness.keeper import Host, Keeper
from harness.kinds import KINDS
from harness.page import NEEDS_BROWSER, badge_says, choose, finished, generate, opened, small, status_says
from harness.proof import INIT

from demo import browser

pytestmark = NEEDS_BROWSER


def start(forge: Keeper) -> Host:
    """Forge, allowed to hand out its own scripts: run on another data folder it refuses to (cmd_args.py:93)."""
    return forge(flags=("--gradio-allowed-path", str(KINDS["forge"].folder())))


def damaged(host: Host) -> None:
    """A VAE in half that is believed to be in float32: decode and encode fail."""
    fresh_vae(host)
    host.probe.damage("half_state")


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
        status_says(page, "txt2img", "nothing was wrong")
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
