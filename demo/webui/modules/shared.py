"""The state that all parts of the host share."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from modules import paths
from modules.options import OptionInfo, Options, options_section
from modules.shared_state import State

__all__ = ["OptionInfo", "cmd_opts", "configure", "options_section", "options_templates", "opts", "order", "state"]

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    sd_model: DiffusionPipeline | None

#: The checkpoint of a host without settings, if it is there.
FIRST_CHECKPOINT = "tiny-sd15"

#: "a1111" or "sdnext": whose callback order and failure behaviour the host follows.
order = "a1111"
cmd_opts = Namespace(api=True, no_half=False, no_half_vae=False, data_dir="", nowebui=False)
opts = Options()
state = State()
options_templates: dict[str, OptionInfo] = {}
#: The Gradio Blocks being served, None before the first page is built.
demo: gr.Blocks | None = None


def __getattr__(name: str) -> Any:
    # As in the real hosts, reading `shared.sd_model` loads the model when there is none.
    if name == "sd_model":
        from modules import sd_models

        return sd_models.model_data.get_sd_model()
    raise AttributeError(f"module 'modules.shared' has no attribute {name!r}")


def configure(data: Path, host_order: str) -> None:
    """Reset everything for a host that follows `host_order` and keeps its settings in `data`."""
    global order
    if host_order not in ("a1111", "sdnext"):
        raise ValueError(f"order is 'a1111' or 'sdnext', not {host_order!r}")
    order = host_order
    cmd_opts.data_dir = str(data)
    options_templates.clear()
    options_templates.update(_templates())
    opts.reset(options_templates, data / "config.json")
    state.__dict__.clear()


def _templates() -> dict[str, OptionInfo]:
    # Imported late: sd_models imports this module.
    from modules import controlnet, devices, extra_networks_lora, memory, previews, sd_models

    found = list(paths.subfolders("Stable-diffusion"))
    first = FIRST_CHECKPOINT if FIRST_CHECKPOINT in found else next(iter(found), "")
    reload, apply = sd_models.reload_model_weights, sd_models.apply_vae_options
    dtypes = {"choices": list(devices.DTYPES)}
    of_controlnet = {"choices": [controlnet.AS_MODEL, *devices.DTYPES]}
    storage, offload = {"choices": list(memory.STORAGE)}, {"choices": list(memory.OFFLOAD)}
    methods = {"choices": extra_networks_lora.METHODS}
    kinds = {"choices": list(previews.KINDS)}
    return {
        "sd_model_checkpoint": OptionInfo(
            first, "Stable Diffusion checkpoint", gr.Dropdown, checkpoint_choices, reload, ("sd", "Stable Diffusion")
        ),
        **options_section(
            ("vae", "Precision and VAE"),
            {
                "cuda_dtype": OptionInfo("FP32", "Device precision type", gr.Radio, dtypes, reload),
                "no_half_vae": OptionInfo(False, "Full precision VAE (--no-half-vae)", gr.Checkbox, None, reload),
                "vae_tiling": OptionInfo(False, "VAE tiling", gr.Checkbox, None, apply),
                "vae_slicing": OptionInfo(False, "VAE slicing", gr.Checkbox, None, apply),
                "controlnet_dtype": OptionInfo(
                    controlnet.AS_MODEL, "ControlNet precision type", gr.Radio, of_controlnet
                ),
            },
        ),
        **options_section(
            ("memory", "Memory"),
            {
                "unet_storage": OptionInfo(
                    next(iter(memory.STORAGE)), "Storage of the UNet's weights", gr.Radio, storage, reload
                ),
                "offload_mode": OptionInfo(memory.OFFLOAD[0], "Offload", gr.Radio, offload, reload),
            },
        ),
        **options_section(
            ("lora", "LoRA"),
            {"lora_method": OptionInfo(extra_networks_lora.METHODS[0], "How LoRAs are applied", gr.Radio, methods)},
        ),
        **options_section(
            ("ui", "Live previews"),
            {
                "live_previews": OptionInfo(False, "Show live previews", gr.Checkbox),
                "show_progress_type": OptionInfo(previews.FULL, "Live preview method", gr.Radio, kinds),
            },
        ),
    }


def checkpoint_choices() -> dict[str, list[str]]:
    """The checkpoint dropdown's arguments."""
    return {"choices": list(paths.subfolders("Stable-diffusion"))}
