"""The txt2img and img2img tabs."""

from __future__ import annotations

import html
import time
from collections.abc import Callable
from typing import Any

import gradio as gr

from modules import call_queue, errors, paths, scripts, shared, ui_paste
from modules.processing import Processed, StableDiffusionProcessingImg2Img, StableDiffusionProcessingTxt2Img
from modules.ui_components import InputAccordion

UPSCALERS = ["Latent", "Lanczos"]

#: What an infotext sets, by the name of the field.
PASTE = {
    "prompt": "Prompt",
    "negative_prompt": "Negative prompt",
    "steps": "Steps",
    "cfg_scale": "CFG scale",
    "seed": "Seed",
    "width": "Size-1",
    "height": "Size-2",
    "denoising_strength": "Denoising strength",
    "hr_scale": "Hires upscale",
    "hr_upscaler": "Hires upscaler",
    "enable_hr": lambda parameters: "Hires upscaler" in parameters,
}


class _Tab:
    """A tab while it is built: its name as id prefix, and its controls by the parameter they set."""

    def __init__(self, is_img2img: bool) -> None:
        self.is_img2img = is_img2img
        self.name = "img2img" if is_img2img else "txt2img"
        self.fields: dict[str, Any] = {}
        self.buttons: dict[str, gr.Button] = {}

    def add(self, name: str, component: type, elem_id: str = "", **arguments: Any) -> None:
        """Make the control of parameter `name`."""
        self.fields[name] = component(elem_id=f"{self.name}_{elem_id or name}", **arguments)


def build(is_img2img: bool) -> None:
    """Build a tab inside the current Blocks."""
    tab, runner = _Tab(is_img2img), scripts.runner(is_img2img)
    _toprow(tab)
    with gr.Row(equal_height=False):
        with gr.Column(elem_id=f"{tab.name}_settings"):
            if is_img2img:
                _init_images(tab)
            _sampling(tab)
            if not is_img2img:
                _hires(tab)
            with gr.Group(elem_id=f"{tab.name}_script_container"):
                runner.setup_ui()
        with gr.Column(elem_id=f"{tab.name}_results"):
            gallery = gr.Gallery(label="Output", elem_id=f"{tab.name}_gallery", columns=2, height=400, format="png")
            info = gr.HTML(elem_id=f"html_info_{tab.name}")
            log = gr.HTML(elem_id=f"html_log_{tab.name}")
    inputs = [*tab.fields.values(), *runner.inputs]
    tab.buttons["generate"].click(_generate(is_img2img, list(tab.fields)), inputs, [gallery, info, log])
    # Outside the queue, where they would wait for the very job that they are to end.
    tab.buttons["interrupt"].click(shared.state.interrupt, queue=False, show_progress="hidden")
    tab.buttons["skip"].click(shared.state.skip, queue=False, show_progress="hidden")
    pasted = [(tab.fields[name], key) for name, key in PASTE.items() if name in tab.fields]
    ui_paste.connect(tab.buttons["paste"], tab.fields["prompt"], [*pasted, *runner.infotext_fields])


def _toprow(tab: _Tab) -> None:
    box = {"show_label": False, "container": False, "lines": 3}
    with gr.Row(elem_id=f"{tab.name}_toprow", equal_height=False):
        with gr.Column(scale=6):
            tab.add("prompt", gr.Textbox, placeholder="Prompt", value="a photo of a red cat", **box)
            tab.add("negative_prompt", gr.Textbox, "neg_prompt", placeholder="Negative prompt", **box)
        with gr.Column(scale=1, min_width=250, elem_id=f"{tab.name}_actions_column"):
            generate = gr.Button("Generate", variant="primary", elem_id=f"{tab.name}_generate")
            with gr.Row():
                interrupt = gr.Button("Interrupt", size="sm", min_width=90, elem_id=f"{tab.name}_interrupt")
                skip = gr.Button("Skip", size="sm", min_width=60, elem_id=f"{tab.name}_skip")
                paste = gr.Button("\N{SOUTH WEST ARROW}", size="sm", min_width=30, elem_id="paste")
    tab.buttons = {"generate": generate, "interrupt": interrupt, "skip": skip, "paste": paste}


def _sampling(tab: _Tab) -> None:
    with gr.Row():
        tab.add("steps", gr.Slider, label="Sampling steps", minimum=1, maximum=20, step=1, value=2)
        tab.add("cfg_scale", gr.Slider, label="CFG Scale", minimum=1, maximum=20, step=0.5, value=7.0)
    with gr.Row():
        tab.add("width", gr.Slider, label="Width", minimum=64, maximum=256, step=16, value=64)
        tab.add("height", gr.Slider, label="Height", minimum=64, maximum=256, step=16, value=64)
    with gr.Row():
        tab.add("n_iter", gr.Slider, "batch_count", label="Batch count", minimum=1, maximum=8, step=1, value=1)
        tab.add("batch_size", gr.Slider, label="Batch size", minimum=1, maximum=8, step=1, value=1)
    with gr.Row():
        tab.add("seed", gr.Number, label="Seed", value=-1, precision=0)
        tab.add("detailer", gr.Checkbox, label="Detailer: sample the middle of the picture anew", value=False)


def _hires(tab: _Tab) -> None:
    with InputAccordion(False, label="Hires. fix", elem_id=f"{tab.name}_hr") as enabled, gr.Row():
        tab.add("hr_upscaler", gr.Dropdown, label="Upscaler", choices=UPSCALERS, value="Latent")
        tab.add("hr_scale", gr.Slider, label="Upscale by", minimum=1, maximum=2, step=0.25, value=1.5)
        tab.add("denoising_strength", gr.Slider, label="Denoising strength", minimum=0, maximum=1, value=0.75)
    tab.fields["enable_hr"] = enabled


def _init_images(tab: _Tab) -> None:
    with gr.Row():
        tab.add("init_images", gr.Image, "image", label="Picture", type="pil", height=240)
        tab.add("mask", gr.Image, label="Mask (white is repainted)", type="pil", height=240)
    with gr.Row():
        tab.add("denoising_strength", gr.Slider, label="Denoising strength", minimum=0, maximum=1, value=0.75)
        nets = ["None", *paths.subfolders("ControlNet")]
        tab.add("controlnet", gr.Dropdown, label="ControlNet (SDXL inpaint)", choices=nets, value="None")


def _generate(is_img2img: bool, names: list[str]) -> Callable[..., tuple[list[Any], str, str]]:
    """The Generate button's function: values of `names`, then of all scripts -> gallery, infotext, log."""

    def run(*values: Any) -> tuple[list[Any], str, str]:
        started = time.perf_counter()
        try:
            processed = call_queue.generate(_processing(is_img2img, names, values), is_img2img, [*values[len(names) :]])
        except Exception as error:  # noqa: BLE001 - whatever a request raises is shown under the gallery, as in A1111
            errors.report("Error completing request", exc_info=True)
            return [], "", f"<div class='error'>{html.escape(f'{type(error).__name__}: {error}')}</div>"
        return processed.images, _paragraph(processed.info, "infotext"), _log(processed, time.perf_counter() - started)

    return run


def _processing(is_img2img: bool, names: list[str], values: tuple[Any, ...]) -> Any:
    fields = dict(zip(names, values))
    fields["seed"] = int(-1 if fields["seed"] is None else fields["seed"])
    if not is_img2img:
        fields["denoising_strength"] = fields["denoising_strength"] if fields["enable_hr"] else None
        return StableDiffusionProcessingTxt2Img(**fields)
    if fields["init_images"] is None:
        raise ValueError("no picture to start from: put one into the Picture box")
    fields["init_images"] = [fields["init_images"]]
    fields["controlnet"] = None if fields["controlnet"] == "None" else fields["controlnet"]
    return StableDiffusionProcessingImg2Img(**fields)


def _log(processed: Processed, seconds: float) -> str:
    return _paragraph(processed.comments, "comments") + f"<div class='performance'>Time taken: {seconds:.2f} sec.</div>"


def _paragraph(text: str, css_class: str) -> str:
    lines = "<br>\n".join(html.escape(line) for line in text.strip().split("\n"))
    return f"<p class='{css_class}'>{lines}</p>" if text else ""
