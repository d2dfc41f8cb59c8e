"""Callbacks that extensions register at import, and the functions with which the host fires them.

An exception in a callback is printed and swallowed, as in the real hosts.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modules import errors


@dataclass(frozen=True)
class ScriptCallback:
    """A registered function and the file that registered it."""

    script: str
    callback: Callable[..., Any]


_callbacks: dict[str, list[ScriptCallback]] = defaultdict(list)


def _add(category: str, callback: Callable[..., Any]) -> None:
    # Two frames up is the extension: past this function and past the on_... function.
    _callbacks[category].append(ScriptCallback(inspect.stack()[2].filename, callback))


def _fire(category: str, *args: Any, **kwargs: Any) -> list[Any]:
    """Call every callback of `category` in order of registration and return what each returned."""
    entries = list(_callbacks[category])
    if category == "script_unloaded":
        entries.reverse()
    results = []
    for entry in entries:
        try:
            results.append(entry.callback(*args, **kwargs))
        except Exception:  # noqa: BLE001 - an extension must not take the host down; the real hosts print and go on
            errors.report(f"Error executing callback {category} for {entry.script}", exc_info=True)
    return results


def clear_callbacks() -> None:
    """Forget every callback; Reload UI does so before the scripts run anew."""
    _callbacks.clear()


def remove_callbacks_for_function(callback: Callable[..., Any]) -> None:
    """Forget one function, whatever it was registered for."""
    for entries in _callbacks.values():
        entries[:] = [entry for entry in entries if entry.callback is not callback]


def on_before_ui(callback: Callable[[], None], *, name: str | None = None) -> None:
    """Called before the page is built."""
    _add("before_ui", callback)


def on_ui_settings(callback: Callable[[], None], *, name: str | None = None) -> None:
    """Called when the settings are collected; the place for `shared.opts.add_option`."""
    _add("ui_settings", callback)


def on_ui_tabs(callback: Callable[[], Any], *, name: str | None = None) -> None:
    """Called for tabs of one's own: returns [(blocks, title, elem_id)]."""
    _add("ui_tabs", callback)


def on_app_started(callback: Callable[[Any, Any], None], *, name: str | None = None) -> None:
    """Called with (blocks, FastAPI app) when the page is built; the place for routes."""
    _add("app_started", callback)


def on_before_component(callback: Callable[..., None], *, name: str | None = None) -> None:
    """Called with (component, **its arguments) before each component is made."""
    _add("before_component", callback)


def on_after_component(callback: Callable[..., None], *, name: str | None = None) -> None:
    """Called with (component, **its arguments) after each component is made."""
    _add("after_component", callback)


def on_model_loaded(callback: Callable[[Any], None], *, name: str | None = None) -> None:
    """Called with the pipeline after each load; not after Reload UI."""
    _add("model_loaded", callback)


def on_script_unloaded(callback: Callable[[], None], *, name: str | None = None) -> None:
    """Called when the scripts are about to be executed anew."""
    _add("script_unloaded", callback)


def on_before_reload(callback: Callable[[], None], *, name: str | None = None) -> None:
    """Called first when the UI is reloaded."""
    _add("before_reload", callback)


def on_infotext_pasted(callback: Callable[[str, dict[str, Any]], None], *, name: str | None = None) -> None:
    """Called with (infotext, parameters) when an infotext is pasted; may change the parameters."""
    _add("infotext_pasted", callback)


def on_before_process(callback: Callable[[Any], None], *, name: str | None = None) -> None:
    """SD.Next's order only: called with p before each generation."""
    _add("before_process", callback)


def on_after_process(callback: Callable[[Any], None], *, name: str | None = None) -> None:
    """SD.Next's order only: called with p after each generation, also after a failed one."""
    _add("after_process", callback)


def before_ui_callback() -> None:
    """Fire `on_before_ui`."""
    _fire("before_ui")


def ui_settings_callback() -> None:
    """Fire `on_ui_settings`."""
    _fire("ui_settings")


def ui_tabs_callback() -> list[tuple[Any, str, str]]:
    """Fire `on_ui_tabs` and return all tabs."""
    return [tab for tabs in _fire("ui_tabs") for tab in tabs or []]


def app_started_callback(demo: Any, app: Any) -> None:
    """Fire `on_app_started`."""
    _fire("app_started", demo, app)


def before_component_callback(component: Any, **kwargs: Any) -> None:
    """Fire `on_before_component`."""
    _fire("before_component", component, **kwargs)


def after_component_callback(component: Any, **kwargs: Any) -> None:
    """Fire `on_after_component`."""
    _fire("after_component", component, **kwargs)


def model_loaded_callback(sd_model: Any) -> None:
    """Fire `on_model_loaded`."""
    _fire("model_loaded", sd_model)


def script_unloaded_callback() -> None:
    """Fire `on_script_unloaded`, last registered first."""
    _fire("script_unloaded")


def before_reload_callback() -> None:
    """Fire `on_before_reload`."""
    _fire("before_reload")


def infotext_pasted_callback(infotext: str, params: dict[str, Any]) -> None:
    """Fire `on_infotext_pasted`."""
    _fire("infotext_pasted", infotext, params)


def before_process_callback(p: Any) -> None:
    """Fire `on_before_process`."""
    _fire("before_process", p)


def after_process_callback(p: Any) -> None:
    """Fire `on_after_process`."""
    _fire("after_process", p)
