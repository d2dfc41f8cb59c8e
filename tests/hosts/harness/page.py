"""A WebUI's page in a browser: the element ids that all of them have in common."""

from __future__ import annotations

import time
from typing import Any

import pytest

from demo import browser
from harness.keeper import Host

#: For a file of tests that need a browser.
NEEDS_BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(not browser.find(), reason="no Chromium: install one, or name it in LIB_GUARD_BROWSER"),
]

#: The page is large, and some hosts load their model with the first request.
MILLISECONDS = 240_000


def opened(page: Any, host: Host) -> None:
    """Load the host's page."""
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
    """Set one of LibGuard's switches."""
    page.locator(f"#script_{tab}_libguard_{name}").get_by_label(label, exact=True).click()


def generate(page: Any, tab: str) -> None:
    """Press Generate."""
    page.fill(f"#{tab}_prompt textarea", "a red cat")
    page.click(f"#{tab}_generate")


def badge_says(page: Any, tab: str, text: str) -> None:
    """Wait until the accordion's header says this."""
    page.wait_for_function(
        "([tab, text]) => document.querySelector(`.lib-guard-${tab} .lib-guard-badge`)?.textContent === text",
        arg=[tab, text],
    )


def status_says(page: Any, tab: str, text: str) -> None:
    """Wait until the status says this among other things; a running generation has a status of its own."""
    page.wait_for_function(
        "([tab, text]) => document.querySelector(`.lib-guard-${tab} .lib-guard-status`)?.textContent.includes(text)",
        arg=[tab, text],
    )


def finished(host: Host, generations: int) -> None:
    """Return when so many generations of the page are over; the status is renewed when one begins, too."""
    deadline = time.monotonic() + MILLISECONDS / 1000
    while [one["outcome"] for one in host.probe.ledger()].count("running") or len(host.probe.ledger()) < generations:
        assert time.monotonic() < deadline, host.tail()
        time.sleep(0.5)
