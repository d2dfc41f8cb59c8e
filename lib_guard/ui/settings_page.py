"""The page in the host's Settings: the defaults of the accordion, and how much the console says."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..console import LEVELS, OPTION
from ..guards.lora import PARANOID, SILENCED
from ..settings import FIELDS, Settings, shown

SECTION = ("lib_guard", "LibGuard")


def add_options(shared: Any) -> None:
    """Add LibGuard's options to the host's.

    shared: the host's `modules.shared`; every host has `opts.add_option` and `OptionInfo` there.
    """
    fresh = Settings()
    for field in FIELDS:
        component, arguments = (gr.Checkbox, {}) if field.choices is None else (gr.Radio, {"choices": [*field.choices]})
        default = shown(field, getattr(fresh, field.name))
        _add(shared, field.option, default, f"{field.label} (default of new pages)", component, arguments)
    _add(shared, PARANOID, False, "LoRA guard: compare the weights at every request", gr.Checkbox, {})
    _add(shared, SILENCED, "", "LoRA guard: names of LoRAs not to warn about, with commas", gr.Textbox, {})
    _add(shared, OPTION, "normal", "Console", gr.Radio, {"choices": list(LEVELS)})


def _add(shared: Any, key: str, default: Any, label: str, component: Any, arguments: dict[str, Any]) -> None:
    shared.opts.add_option(key, shared.OptionInfo(default, label, component, arguments, section=SECTION))
