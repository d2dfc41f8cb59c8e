"""SD.Next. Every line number is of commit 058a7f0c (2026-07-23).

How it differs from AUTOMATIC1111, as far as LibGuard sees it:
  - Errors of a generation are swallowed and no callback of a Script follows (processing_diffusers.py); the callback
    `on_after_process` is called in a `finally`, always (processing.py:235).
  - The Control tab and `/sdapi/v1/control` run no Script of an extension (scripts_manager.py:384); only
    `on_before_process` and `on_after_process` are called.
  - The Detailer works behind `postprocess_batch`, within the same request (processing.py:320, detailer.py:264).
  - `shared.sd_model` is a property that loads the model (shared.py), `modeldata.model_data.sd_model` is what is there.
  - Its console is a logger whose handlers every other logger is given when the host is up (webui.py:432).
  - The pipeline's class changes within a generation (sd_models.set_diffuser_pipe, sd_models.py:1304) and its components
    stay. They are exchanged by `reload_model_weights`, which also loads the refiner when it is first asked for
    (modeldata.py:205), and by `ipadapter.apply`. ControlNets are loaded before a generation begins (control/run.py:430)
    and belong to the pipeline then.
  - Prompts are encoded within the generation (processing_diffusers.py:152), by calls of the text encoders.
  - `state.sampling_steps` is 0 in a pass's first step: `state.begin('Inference')` has set it back
    (processing_diffusers.py:185, processing_callbacks.py:90).
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..findings import Finding
from .base import DECODE, Arrival, Boundary
from .checkout import commit_of
from .diffusers import pipeline_boundaries
from .encoder_handling import PipelineEncoders
from .lora_handling import LoraHandling
from .sdnext_encoder import SdNextEncoders
from .sdnext_lora import SdNextLoraHandling
from .seams import Seam
from .webui import COMMON_SEAMS, WebUiHost

#: The title under which LibGuard's Script runs.
_SCRIPT = "libguard"

#: The labels that SD.Next shows (ui_definitions.py:211-215, :239-242), by its option names.
_VAE_PAGE = "Settings > Variational Auto Encoder"
_FULL_PRECISION = f'{_VAE_PAGE} > "Full precision (--no-half-vae)"'
_UPCASTING = f'{_VAE_PAGE} > "VAE upcasting"'
_DEVICE_PRECISION = 'Settings > Compute Settings > "Device precision type"'
_QUANTIZATION = 'Settings > Model Quantization > "Quantization enabled"'
_VAE_MODEL = f'{_VAE_PAGE} > "VAE model"'
_OFFLINE = 'Settings > Huggingface > "Force offline mode"'
_RELOAD = 'System > "Reload model"'

#: The settings that put another part into the loaded model (ui_definitions.py:96, :225): component, option, label.
_CHOSEN_PARTS = (
    ("text_encoder", "sd_text_encoder", 'Settings > Text Encoder > "Text encoder model"'),
    ("unet", "sd_unet", 'Settings > Model Loading > "UNET model"'),
    ("transformer", "sd_unet", 'Settings > Model Loading > "UNET model"'),
)
_UNCHOSEN = (None, "", "None", "Default")

#: Functions that bring components within a generation, by module and name.
_ARRIVALS = (("modules.sd_models", "reload_model_weights"), ("modules.ipadapter", "apply"))


class SdNextHost(WebUiHost):
    """SD.Next on diffusers."""

    name = "SD.Next"
    seams = (
        # modules/scripts.py takes everything over from scripts_manager.py with an asterisk.
        *(replace(seam, set_at_run_time=seam.module == "modules.scripts") for seam in COMMON_SEAMS),
        Seam(
            "modules.scripts_manager",
            "AlwaysVisible",
            "modules/scripts_manager.py:22",
            "what modules.scripts hands on",
        ),
        Seam(
            "modules.modeldata",
            "model_data.sd_model",
            "modules/modeldata.py:185",
            "the loaded pipeline, or None",
            set_at_run_time=True,
        ),
        Seam(
            "modules.modeldata",
            "ModelData.get_sd_model",
            "modules/modeldata.py:196",
            "loads; not to be called",
        ),
        Seam("modules.script_callbacks", "on_before_process", "modules/script_callbacks.py:393", "a request begins"),
        Seam("modules.script_callbacks", "on_after_process", "modules/script_callbacks.py:398", "a request has ended"),
        Seam("modules.processing", "process_images_inner", "modules/processing.py:436", "runs the Scripts"),
        Seam(
            "modules.scripts_manager",
            "ScriptRunner.process",
            "modules/scripts_manager.py:656",
            "hands a Script its args before anything is computed",
            parameters=("p",),
        ),
        Seam(
            "modules.processing_vae",
            "full_vae_decode",
            "modules/processing_vae.py:89",
            "calls `vae.decode`; the pipelines call `vae.encode`",
            guards=("precision", "finite"),
        ),
        Seam(
            "modules.sd_models",
            "reload_model_weights",
            "modules/sd_models.py:1479",
            "loads model and refiner, also in the middle of a generation",
            guards=("precision", "finite"),
        ),
        Seam(
            "modules.ipadapter",
            "apply",
            "modules/ipadapter.py:297",
            "brings and exchanges image encoder and image projection",
            ("pipe", "p"),
            ("precision", "finite", "encoder"),
        ),
        Seam(
            "modules.ipadapter",
            "load_image_encoder",
            "modules/ipadapter.py:174",
            "loads an image encoder by an adapter's name",
            ("pipe", "adapter_names"),
            ("encoder",),
        ),
        Seam(
            "modules.processing_diffusers",
            "set_pipeline_args",
            "modules/processing_diffusers.py:10",
            "what the pipeline is called with",
            ("p", "model"),
            ("encoder",),
        ),
        Seam(
            "modules.lora.lora_common",
            "loaded_networks",
            "modules/lora/lora_common.py:19",
            "the LoRAs of the request; each has a name and a `network_on_disk.filename`",
            guards=("finite", "lora"),
        ),
        Seam(
            "modules.lora.extra_networks_lora",
            "ExtraNetworkLora.activate",
            "modules/lora/extra_networks_lora.py:191",
            "loads, removes and applies a request's LoRAs",
            ("params_list",),
            ("lora",),
        ),
        Seam(
            "modules.lora.lora_apply",
            "network_apply_weights",
            "modules/lora/lora_apply.py:237",
            "puts a layer back from its copy",
            ("updown", "ex_bias", "device"),
            ("lora",),
        ),
    )

    def __init__(self) -> None:
        self._lora_handling = SdNextLoraHandling()
        self._encoder_handling = SdNextEncoders()
        self._ends: list[tuple[weakref.ref[Any], Callable[[], None]]] = []

    @classmethod
    def is_here(cls) -> bool:
        """See `WebUiHost`. The model's holder is SD.Next's alone, and is imported before any script."""
        holder = sys.modules.get("modules.modeldata")
        shared = sys.modules.get("modules.shared")
        return hasattr(holder, "model_data") and bool(getattr(shared, "native", False))

    @classmethod
    def is_folder(cls, folder: Path) -> bool:
        """See `WebUiHost`."""
        return all((folder / name).is_file() for name in ("modules/modeldata.py", "installer.py", "webui.py"))

    @property
    def title(self) -> str:  # type: ignore[override] # read when it is said, not when the class is made
        """See `Host`."""
        import modules

        commit = next((commit_of(Path(place).parent) for place in modules.__path__), "")
        return f"SD.Next {commit[:8]}".strip()

    def connect(self, begin: Callable[[Any], None], end: Callable[[Any], None]) -> None:
        """See `Host`. A Script's `process` follows `on_before_process`, and brings the args of the request; so a
        request is only begun here when none will follow."""
        from modules import script_callbacks

        def before(request: Any) -> None:
            if not _runs_script(request):
                begin(request)

        def after(request: Any) -> None:
            if not _runs_script(request) and not _failed():
                end(request)
            self._end(request)

        script_callbacks.on_before_process(before)
        script_callbacks.on_after_process(after)

    def boundaries(self) -> Sequence[Boundary]:
        """See `Host`. Asking `shared` for model or refiner would load them (modeldata.py:185, :202)."""
        from modules import modeldata

        model = pipeline_boundaries(modeldata.model_data.sd_model)
        shared = {id(boundary.owner) for boundary in model}
        refiner = [one for one in pipeline_boundaries(modeldata.model_data.sd_refiner) if id(one.owner) not in shared]
        return [*model, *(replace(one, component=f"{one.component}_refiner") for one in refiner)]

    def arrivals(self) -> Sequence[Arrival]:
        """See `Host`."""
        places = [(sys.modules.get(module), name) for module, name in _ARRIVALS]
        return [Arrival(place, name) for place, name in places if hasattr(place, name)]

    def step(self) -> tuple[int, int]:
        """See `Host`. In the first step only the pipeline knows how many there are."""
        from modules import modeldata, shared

        done = int(shared.state.sampling_step or 0)
        steps = int(shared.state.sampling_steps or getattr(modeldata.model_data.sd_model, "num_timesteps", 0) or 0)
        return (min(done + 1, steps), steps) if steps else (0, 0)

    def loras(self) -> Sequence[tuple[str, Path]]:
        """See `Host`. The list is the one of the last request that brought any, or that took them away."""
        from modules.lora import lora_common

        return [(str(one.name), Path(one.network_on_disk.filename)) for one in lora_common.loaded_networks]

    def lora_handling(self) -> LoraHandling:
        """See `Host`."""
        return self._lora_handling

    def encoder_handling(self) -> PipelineEncoders:
        """See `Host`."""
        return self._encoder_handling

    def tab(self, request: Any) -> str:
        """See `Host`. The request's class is named for it (processing_class.py); all have `init_images`."""
        name = type(request).__name__
        return next((tab for tab in ("control", "img2img") if tab in name.lower()), "txt2img")

    def on_end(self, request: Any, call: Callable[[], None]) -> None:
        """See `Host`. `on_after_process` is the only place that is always come to."""
        self._ends = [(held, end) for held, end in self._ends if held() is not None]
        self._ends.append((weakref.ref(request), call))

    def _end(self, request: Any) -> None:
        ended = [call for held, call in self._ends if held() is request]
        self._ends = [(held, call) for held, call in self._ends if held() is not None and held() is not request]
        for call in ended:
            call()

    def explain(self, finding: Finding) -> Finding:
        """See `Host`. A cause that names an extension stays."""
        if finding.code in ("LG101", "LG102") and finding.evidence.get("component") == "float32":
            return self._about_float32(finding)
        about = {
            "LG104": self._about_quantized,
            "LG111": self._about_parts,
            "LG112": self._about_controlnet,
            "LG201": self._about_overflow,
            "LG202": self._about_latent,
            "LG203": self._about_broken_vae,
            "LG405": self._about_missing_encoder,
        }.get(finding.code)
        return finding if about is None else about(finding)

    def _about_quantized(self, finding: Finding) -> Finding:
        """SD.Next's upcast of a half VAE converts what is not quantized (processing_vae.py:113)."""
        chosen = self.options().get("sdnq_quantize_weights")
        if not isinstance(chosen, Sequence) or "VAE" not in chosen or finding.evidence.get("component") != "float32":
            return finding
        return replace(
            finding,
            cause=f"The VAE is quantized ({_QUANTIZATION}) and upcast to float32 for decode, which does not reach the"
            " quantized layers: they go on unpacking to half.",
            permanent_fix=f'{_QUANTIZATION} without VAE, or {_UPCASTING} "false", or {_DEVICE_PRECISION} "BF16".',
        )

    def _about_parts(self, finding: Finding) -> Finding:
        """The part that a setting has put into the model, where one has; else what loads it anew."""
        for component, option, label in _CHOSEN_PARTS:
            chosen = self.options().get(option)
            if finding.component.startswith(component) and chosen not in _UNCHOSEN and not finding.cause:
                return replace(
                    finding,
                    cause=f'{label} is "{chosen}", which holds weights of another precision than the rest.',
                    permanent_fix=f'{label} "Default", or a file of one precision; then {_RELOAD}.',
                )
        return replace(
            finding,
            permanent_fix=f"{_RELOAD}. If it comes back: a checkpoint of one precision, or System > Extensions: switch"
            " off the one that converts the part.",
        )

    def _about_controlnet(self, finding: Finding) -> Finding:
        """Control units take the precision of the host's start (ui_control_helpers.py:37), whatever is chosen later."""
        if not finding.component.startswith(("controlnet", "adapter")) or finding.cause:
            return replace(finding, permanent_fix=f"One precision for all: {_DEVICE_PRECISION}, then restart SD.Next.")
        return replace(
            finding,
            cause="Control units load their models in the precision that SD.Next was started with, and the model has"
            " another one since.",
            permanent_fix=f"{_DEVICE_PRECISION} as the model's, then restart SD.Next.",
        )

    def _about_overflow(self, finding: Finding) -> Finding:
        """SD.Next upcasts float16 VAEs only, and only in decode (processing_vae.py:107); SDXL's pipelines upcast in
        encode too, by the same mark in the VAE's config."""
        dtype = finding.evidence.get("dtype")
        if dtype != "float16":
            return replace(finding, permanent_fix=f'{_DEVICE_PRECISION} "FP32", or another VAE ({_VAE_MODEL}).')
        wider = f'{_DEVICE_PRECISION} "BF16" or "FP32", or an fp16-fix VAE ({_VAE_MODEL}).'
        switched_off = self.options().get("diffusers_vae_upcast") == "false"
        because = f'{_UPCASTING} is "false"' if switched_off else "its config says that it needs no upcasting"
        if finding.direction != DECODE:
            return replace(finding, permanent_fix=wider)
        return replace(
            finding,
            cause=f"The VAE is decoded in float16, since {because}.",
            permanent_fix=f'{_UPCASTING} "true"; or {wider}',
        )

    def _about_latent(self, finding: Finding) -> Finding:
        if finding.evidence.get("loras") or self.options().get("cuda_dtype") in ("FP32", "BF16"):
            return finding
        return replace(
            finding, permanent_fix=f'{_DEVICE_PRECISION} "BF16" or "FP32", and lower strengths of the LoRAs.'
        )

    def _about_broken_vae(self, finding: Finding) -> Finding:
        chosen = self.options().get("sd_vae", "Automatic")
        return replace(finding, permanent_fix=f'{_VAE_MODEL} is "{chosen}": choose another one, then {_RELOAD}.')

    def _about_missing_encoder(self, finding: Finding) -> Finding:
        """SD.Next fetches an encoder when an adapter is used whose name asks for it (ipadapter.py:174), unless it is
        kept from it (ui_definitions.py:652)."""
        return replace(
            finding,
            permanent_fix=f"Have SD.Next fetch the encoder: {_OFFLINE} off, and one picture with this adapter alone.",
        )

    def _about_float32(self, finding: Finding) -> Finding:
        """Why the VAE is in float32 while the model is not, and in which dtype the model is."""
        options = self.options()
        model = finding.evidence.get("caller")
        if options.get("no_half_vae"):
            chosen = options.get("cuda_dtype", "Auto")
            return replace(
                finding,
                cause=f"{_FULL_PRECISION} keeps the VAE in float32 while the model is {model}"
                f' ({_DEVICE_PRECISION} is "{chosen}").',
                permanent_fix=f'{_FULL_PRECISION} off and reload the model, or {_DEVICE_PRECISION} "FP32".',
            )
        if not self._upcasts_by_itself() and options.get("diffusers_vae_upcast") != "true":
            return replace(
                finding,
                cause="The VAE is in float32 and its config says that it needs no upcasting (force_upcast false), so"
                f" the {model} model hands over what it has.",
                permanent_fix=f'Reload the model; if it stays, {_UPCASTING} "true", or {_DEVICE_PRECISION} "FP32".',
            )
        return replace(
            finding,
            cause="The VAE was converted to float32 (its config or"
            f' {_UPCASTING} says so) and was not converted back (processing_vae.py, "upcast_vae").',
            permanent_fix="Use a VAE that works in half precision and whose config says so, such as an fp16-fix one.",
        )

    def _upcasts_by_itself(self) -> bool:
        owner = next((boundary.owner for boundary in self.boundaries() if boundary.component == "vae"), None)
        return bool(getattr(getattr(owner, "config", None), "force_upcast", False))


def _runs_script(request: Any) -> bool:
    """Whether LibGuard's Script is part of a request: the runner of the Control tab holds none of an extension."""
    scripts = getattr(getattr(request, "scripts", None), "alwayson_scripts", None) or ()
    return any(str(script.title()).lower() == _SCRIPT for script in scripts)


def _failed() -> bool:
    """Whether the generation that ends now failed: the callback is called from a `finally` (processing.py:235), and a
    swallowed error interrupts the host's state (processing_diffusers.py)."""
    from modules import shared

    return sys.exc_info()[0] is not None or bool(shared.state.interrupted)
