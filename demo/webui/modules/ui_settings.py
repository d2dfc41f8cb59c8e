"""The Settings tab, built from the options, and the checkpoint dropdown above the tabs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from modules import call_queue, shared
from modules.options import OptionInfo

#: Which component an option gets that names none, by the type of its default.
BY_TYPE: dict[type, type] = {bool: gr.Checkbox, int: gr.Number, float: gr.Number, str: gr.Textbox}

#: Load the page anew as soon as the server is back.
RELOAD_JS = """() => {
    const again = () => fetch("/").then(() => location.reload(), () => setTimeout(again, 300));
    setTimeout(again, 1500);
}"""


def component(key: str, option: OptionInfo) -> Any:
    """The control of one option, with its value; None for one that has no control."""
    cls = option.component or BY_TYPE.get(type(option.default))
    if cls is None:
        return None
    arguments = {"label": option.label or key, "value": getattr(shared.opts, key), **option.arguments()}
    if option.comment:
        arguments.setdefault("info", option.comment)
    return cls(**arguments, elem_id=f"setting_{key}")


def quicksettings() -> None:
    """The row at the top: the checkpoint."""
    with gr.Row(elem_id="quicksettings"):
        dropdown = component("sd_model_checkpoint", shared.opts.data_labels["sd_model_checkpoint"])
    dropdown.input(lambda name: _apply(["sd_model_checkpoint"], name), [dropdown], show_progress="hidden")


def create(restart: Callable[[], None]) -> gr.Blocks:
    """The Settings tab: a page for each section."""
    controls: dict[str, Any] = {}
    with gr.Blocks(analytics_enabled=False) as blocks:
        with gr.Row(elem_id="settings_header"):
            apply = gr.Button("Apply settings", variant="primary", elem_id="settings_submit")
            reload = gr.Button("Reload UI", elem_id="settings_restart_gradio")
        result = gr.HTML(elem_id="settings_result")
        with gr.Tabs(elem_id="settings"):
            for (section, title), options in _sections().items():
                with gr.Tab(title, elem_id=f"settings_{section}"):
                    made = {key: component(key, option) for key, option in options.items()}
                    controls.update({key: control for key, control in made.items() if control is not None})
        keys = list(controls)
        apply.click(lambda *values: _apply(keys, *values), list(controls.values()), [result])
        reload.click(restart, js=RELOAD_JS, show_progress="hidden")
    return blocks


def _sections() -> dict[tuple[str, str], dict[str, OptionInfo]]:
    """Options by (id, title) of their section; the checkpoint has its place above the tabs."""
    found: dict[tuple[str, str], dict[str, OptionInfo]] = {}
    for key, option in shared.opts.data_labels.items():
        section = option.section or (None, "Other")
        if section[0] is None or key == "sd_model_checkpoint":
            continue
        found.setdefault((section[0], section[1]), {})[key] = option
    return found


def _apply(keys: list[str], *values: Any) -> str:
    with call_queue.queue_lock:
        changed = shared.opts.set_many(dict(zip(keys, values)))
    return f"{len(changed)} settings changed{': ' if changed else ''}{', '.join(changed)}."
