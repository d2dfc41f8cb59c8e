"""The page: checkpoint at the top, then the tabs, with A1111's element ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
from gradio.components.base import Component

from modules import script_callbacks, shared, ui_generate, ui_head, ui_settings

#: System fonts only: the page must look the same without a network.
FONTS = ["system-ui", "Segoe UI", "sans-serif"]
MONO = ["ui-monospace", "Consolas", "monospace"]


def create_ui(restart: Callable[[], None]) -> gr.Blocks:
    """Build the page from the loaded scripts; `restart` is what the Reload UI button calls."""
    hue = gr.themes.colors.orange
    theme = gr.themes.Default(font=FONTS, font_mono=MONO, primary_hue=hue, secondary_hue=hue)
    with component_callbacks():
        tabs = [(_generation_tab(is_img2img), name, name) for is_img2img, name in enumerate(("txt2img", "img2img"))]
        script_callbacks.ui_settings_callback()
        settings = ui_settings.create(restart)
        tabs += script_callbacks.ui_tabs_callback()
        tabs.append((settings, "Settings", "settings"))
        with gr.Blocks(title="demo", theme=theme, head=ui_head.head(), analytics_enabled=False) as demo:
            ui_settings.quicksettings()
            with gr.Tabs(elem_id="tabs"):
                for blocks, title, tab_id in tabs:
                    with gr.Tab(title, id=tab_id, elem_id=f"tab_{tab_id}"):
                        blocks.render()
            gr.HTML(f"embedded host, {shared.order} order, tiny random models", elem_id="footer")
    return demo


def _generation_tab(is_img2img: bool | int) -> gr.Blocks:
    with gr.Blocks(analytics_enabled=False) as blocks:
        ui_generate.build(bool(is_img2img))
    return blocks


@contextmanager
def component_callbacks() -> Iterator[None]:
    """Fire `on_before_component` and `on_after_component` for every component made in the block."""
    original = Component.__init__

    def announced(self: Component, *args: Any, **kwargs: Any) -> None:
        script_callbacks.before_component_callback(self, **kwargs)
        original(self, *args, **kwargs)
        script_callbacks.after_component_callback(self, **kwargs)

    Component.__init__ = announced  # type: ignore[method-assign]
    try:
        yield
    finally:
        Component.__init__ = original  # type: ignore[method-assign]
