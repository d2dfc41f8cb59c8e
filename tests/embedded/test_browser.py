"""A person at the page: the guard off, the picture is lost; the guard on, it is there, and the status says why."""

from __future__ import annotations

import pytest

from demo import browser

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not browser.find(), reason="no Chromium: install one, or name it in LIB_GUARD_BROWSER"),
]

ACCORDION = "#txt2img_script_container .lib-guard-txt2img"
SECONDS = 30_000


def choose(page, name: str, label: str) -> None:
    page.locator(f"#script_txt2img_libguard_{name}").get_by_label(label, exact=True).click()


def generate(page) -> None:
    page.fill("#txt2img_prompt textarea", "a red cat")
    page.click("#txt2img_generate")


def test_off_loses_the_picture_and_on_saves_it(bench):
    bench.options(cuda_dtype="FP16", no_half_vae=True)
    errors = []
    with browser.page() as page:
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(bench.url)
        page.wait_for_selector(f"{ACCORDION} .label-wrap", timeout=SECONDS)
        assert not page.locator("#script_txt2img_libguard_precision").is_visible(), "the accordion is closed at first"
        page.click(f"{ACCORDION} .label-wrap")

        choose(page, "precision", "Off")
        generate(page)
        page.wait_for_selector("#html_log_txt2img .error", timeout=SECONDS)
        assert "Input type (c10::Half) and bias type (float)" in page.inner_text("#html_log_txt2img")
        assert page.locator("#txt2img_gallery img").count() == 0

        choose(page, "precision", "Fix")
        generate(page)
        page.wait_for_selector("#txt2img_gallery img", timeout=SECONDS)
        page.wait_for_selector(f"{ACCORDION} .lib-guard-repaired", timeout=SECONDS)
        status = page.inner_text("#script_txt2img_libguard_status")
        assert "LG101" in status and "decoded in float32" in status and "Permanent fix" in status
        page.wait_for_function(
            f"document.querySelector('{ACCORDION} .lib-guard-badge').textContent === '1 repaired'", timeout=SECONDS
        )
        assert "LibGuard: LG101" in page.inner_text("#html_info_txt2img")

        infotext = page.inner_text("#html_info_txt2img")
        choose(page, "precision", "Warn")
        page.fill("#txt2img_prompt textarea", infotext)
        page.click("#paste")
        page.wait_for_function(
            "document.querySelector('#script_txt2img_libguard_precision input:checked').value === 'Fix'",
            timeout=SECONDS,
        )
    assert errors == []


def test_the_settings_page_has_the_defaults(bench):
    with browser.page() as page:
        page.goto(bench.url)
        page.get_by_role("tab", name="Settings").click()
        label = page.get_by_text("Precision guard (default of new pages)")
        label.wait_for(state="attached", timeout=SECONDS)
        assert label.count() == 1 and page.get_by_text("VAE precision (default of new pages)").count() == 1
