"""Makes the README's pictures from the running demo: `python dev.py run demo.pictures`.

The accordion is photographed in a real browser after a real generation. The console's picture is what that generation
wrote to the console, byte for byte, set in a terminal's look.
"""

from __future__ import annotations

import contextlib
import html
import io
import re
from pathlib import Path

from demo import bench as benches
from demo import browser

FOLDER = benches.REPOSITORY / "docs" / "pictures"
ACCORDION = "#txt2img_script_container .lib-guard-txt2img"
SECONDS = 30_000


class _Terminal(io.StringIO):
    """A console that shows colours."""

    def isatty(self) -> bool:
        return True


def main() -> None:
    """Write `docs/pictures/accordion.png` and `docs/pictures/console.png`."""
    FOLDER.mkdir(exist_ok=True)
    terminal = _Terminal()
    with contextlib.redirect_stderr(terminal):
        bench = benches.start()
        bench.options(sd_model_checkpoint="tiny-sd15", cuda_dtype="FP16", no_half_vae=True)
        try:
            photograph_accordion(bench, FOLDER / "accordion.png")
        finally:
            bench.options(cuda_dtype="FP32", no_half_vae=False)
            bench.close()
    lines = [line for line in terminal.getvalue().splitlines() if "[LibGuard]" in line]
    photograph_console(lines, FOLDER / "console.png")
    print(*lines, sep="\n")


def photograph_accordion(bench: benches.Bench, path: Path) -> None:
    """Open the accordion, generate, and photograph it when its status has come."""
    with browser.page() as page:
        page.goto(bench.url)
        page.click(f"{ACCORDION} .label-wrap", timeout=SECONDS)
        page.fill("#txt2img_prompt textarea", "a red cat on a green chair")
        page.click("#txt2img_generate")
        page.wait_for_selector(f"{ACCORDION} .lib-guard-repaired", timeout=SECONDS)
        page.wait_for_function(f"document.querySelector('{ACCORDION} .lib-guard-badge').textContent", timeout=SECONDS)
        # The pointer would leave a shadow on whatever it rests on.
        page.mouse.move(0, 0)
        page.locator(ACCORDION).screenshot(path=path)


def photograph_console(lines: list[str], path: Path) -> None:
    """Set lines with their colours in a terminal's look, and photograph them."""
    colours = {"33": "#e5c07b", "36": "#56b6c2", "31": "#e06c75"}
    text = html.escape("\n".join(lines))
    for code, colour in colours.items():
        text = re.sub(rf"\x1b\[{code}m(.*?)\x1b\[0m", rf'<b style="color:{colour}">\1</b>', text)
    style = (
        "background:#1e2127;color:#d7dae0;font:14px/1.5 ui-monospace,monospace;padding:14px 18px;width:940px;margin:0"
    )
    with browser.page(width=976, height=400) as page:
        page.set_content(f'<pre style="{style};white-space:pre-wrap">{text}</pre>')
        page.locator("pre").screenshot(path=path)


if __name__ == "__main__":
    main()
