"""Start and reload of the host, in the real hosts' order of events."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr
from fastapi import FastAPI

from modules import api, extra_networks, extra_networks_lora, script_callbacks, scripts, sd_models, shared, ui


def start() -> None:
    """Reset what an earlier host in this process left, register the built-in networks, execute the scripts."""
    sd_models.unload_model_weights()
    extra_networks.extra_network_registry.clear()
    extra_networks.register_extra_network(extra_networks_lora.ExtraNetworkLora())
    script_callbacks.clear_callbacks()
    load_scripts()


def load_scripts() -> None:
    """Execute the script files and make the instances of both tabs."""
    scripts.load_scripts()
    for is_img2img in (False, True):
        scripts.runner(is_img2img).initialize_scripts()


def unload_scripts() -> None:
    """Tell the extensions that their scripts go, and forget their callbacks."""
    script_callbacks.before_reload_callback()
    script_callbacks.script_unloaded_callback()
    script_callbacks.clear_callbacks()


def build(restart: Callable[[], None]) -> FastAPI:
    """The page and the API as one app. Extensions add their routes in `on_app_started`."""
    app = FastAPI(title="demo")
    script_callbacks.before_ui_callback()
    shared.demo = ui.create_ui(restart)
    api.setup(app, restart)
    # Before the page is mounted at "/", which would hide every route added later.
    script_callbacks.app_started_callback(shared.demo, app)
    return gr.mount_gradio_app(app, shared.demo, path="/")
