"""The paste button: reads an infotext from the prompt box and sets the controls that it names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from modules import infotext_utils, script_callbacks


def connect(button: gr.Button, prompt: gr.Textbox, fields: Sequence[tuple[Any, Any]]) -> None:
    """Let `button` set each component of `fields`, pairs of a component and a label or a function of the parameters."""

    def paste(text: str) -> list[Any]:
        parameters = infotext_utils.parse_generation_parameters(text)
        script_callbacks.infotext_pasted_callback(text, parameters)
        return [_update(component, key, parameters) for component, key in fields]

    button.click(paste, [prompt], [component for component, _ in fields], show_progress="hidden")


def _update(component: Any, key: Any, parameters: dict[str, Any]) -> Any:
    value = key(parameters) if callable(key) else parameters.get(key)
    # A function may answer with an update of its own.
    if value is None or isinstance(value, dict):
        return gr.update() if value is None else value
    return gr.update(value=_as_type_of(component.value, value))


def _as_type_of(current: Any, value: Any) -> Any:
    """Infotexts hold text only; the control's present value says what it means."""
    if isinstance(current, bool):
        return value is True or str(value).lower() in ("true", "1")
    if isinstance(current, (int, float)):
        number = float(value)
        return int(number) if number.is_integer() else number
    return value
