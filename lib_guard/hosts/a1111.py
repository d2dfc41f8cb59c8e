"""AUTOMATIC1111's WebUI.

Of version 1.10.1 (82a973c0) this relies on:
  sd_models.model_data.sd_model         the loaded model or None, sd_models.py:719; `shared.sd_model` would load it
  sd_model.first_stage_model            the VAE of all three families (SD1/2 ldm, SDXL sgm, SD3 sd3_impls.py:358)
  .encode / .decode                     plain methods; `forward` is never called (ddpm.py:826, sgm diffusion.py:118,
                                        sd3_model.py:59); with --medvram instance attributes, lowvram.py:136-137
  .encoder, .quant_conv, .post_quant_conv, .decoder
                                        called through __call__, autoencoder.py:82-91; SD3 has no quant convolutions
  processing.process_images_inner       works on the request as its local `p`, processing.py:863
  StableDiffusionProcessing.close       always called, by `contextlib.closing` in UI and API, processing.py:404, :1466;
                                        where X/Y/Z works on copies of the request, on the first one only
  devices.cond_cast_unet                what the functional LoRA path does to every layer's input, devices.py:132
  networks.network_forward              that path, extensions-builtin/Lora/networks.py:543: it casts the input of every
                                        Conv2d, Linear, GroupNorm and LayerNorm of the process, the VAE's too, because
                                        the layers' classes are patched (lora_patches.py:9)
  layer.network_layer_name              set on every layer a network can change, and on none of the VAE, networks.py:130
  sd_model.cond_stage_model             the text encoder of SD1/2 and the three of SD3, called through __call__
                                        (ddpm.py:667, sd3_model.py:54); where textual inversions are put in
                                        (sd_hijack.py:345-366) is inside of it
  sd_hijack.model_hijack.embedding_db.word_embeddings
                                        the textual inversions by name, each with its `vec`: one tensor, or for SDXL one
                                        by encoder; the host loads them all in float32 (textual_inversion.py:293-306)
  sd_model.conditioner.embedders        SDXL's, called one by one (sgm encoders/modules.py:130); those of size and crop
                                        hold no weights
  sd_model.model.diffusion_model        the UNet or SD3's transformer, called through __call__ (ddpm.py:1331)
  sd_models.reload_model_weights        exchanges the model, in mid-generation for a refiner
                                        (sd_samplers_common.py:196) and for hires fix (processing.py:1360)
A ControlNet of sd-webui-controlnet is called inside of the UNet's forward, which it replaces on the instance, so that
the UNet's boundary is around it. TAESD and the approximate previews are models of their own
(sd_samplers_common.py:50-53) and are left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..findings import Finding, Repair
from ..tensors.dtypes import is_compute
from ..tensors.layers import is_compiled
from .a1111_causes import explain
from .a1111_encoder import A1111UnitEncoders
from .a1111_lora import A1111LoraHandling
from .base import Arrival, Boundary, Detour, Shield
from .diffusers import vae_boundaries
from .encoder_handling import UnitEncoders
from .ldm import LdmHost
from .lora_handling import LoraHandling
from .regional_prompter import Borrowed, in_force, is_generating
from .seams import Seam
from .webui import COMMON_SEAMS


class A1111Host(LdmHost):
    """See the module's docstring."""

    name = "AUTOMATIC1111"
    seams = (
        *COMMON_SEAMS,
        Seam("modules.sd_models", "model_data", "modules/sd_models.py:719", "holds the loaded model as `sd_model`"),
        Seam("modules.processing", "process_images_inner", "modules/processing.py:863", "a generation", ("p",)),
        Seam(
            "modules.processing",
            "StableDiffusionProcessing.close",
            "modules/processing.py:404",
            "called at the end of every request, also of a failed one",
        ),
        Seam("modules.shared", "cmd_opts", "modules/shared.py:7", "the flags it was started with"),
        Seam("modules.launch_utils", "git_tag", "modules/launch_utils.py:74", "the version"),
        Seam(
            "modules.devices",
            "cond_cast_unet",
            "modules/devices.py:132",
            "what the functional LoRA path does to a layer's input",
            ("input",),
            ("precision",),
        ),
        Seam(
            "modules.sd_models",
            "reload_model_weights",
            "modules/sd_models.py:940",
            "loads a model, also in the middle of a generation",
            guards=("precision", "finite"),
        ),
        Seam(
            "modules.extra_networks",
            "extra_network_registry",
            "modules/extra_networks.py:11",
            "the Lora extension's `activate`",
            guards=("lora",),
        ),
        Seam(
            "modules.processing",
            "StableDiffusionProcessing.cached_c",
            "modules/processing.py:180",
            "a cache of encoded prompts, which every request holds",
            guards=("lora",),
        ),
        Seam(
            "modules.sd_samplers_cfg_denoiser",
            "CFGDenoiser",
            "modules/sd_samplers_cfg_denoiser.py:34",
            "counts the calls of the UNet as `step` and `steps`",
            guards=("finite",),
        ),
    )

    def __init__(self) -> None:
        super().__init__()
        self._clean: Borrowed | None = None
        self._lora_handling = A1111LoraHandling()
        self._encoder_handling = A1111UnitEncoders()

    @property
    def title(self) -> str:  # type: ignore[override] # read when it is said, behind the check of the seams
        """See `Host`."""
        return f"AUTOMATIC1111 {_version()}"

    @classmethod
    def is_here(cls) -> bool:
        """See `WebUiHost`. Forge and its kin have `modules_forge`, SD.Next has `modules.modeldata`."""
        if find_spec("modules_forge") is not None or find_spec("modules.modeldata") is not None:
            return False
        import modules

        if getattr(modules, "EMBEDDED_HOST", False) or find_spec("modules.sd_hijack") is None:
            return False
        from modules import sd_models

        return hasattr(sd_models, "model_data")

    @classmethod
    def is_folder(cls, folder: Path) -> bool:
        """See `WebUiHost`."""
        own = ("webui.py", "modules/sd_models.py", "modules/sd_hijack.py", "extensions-builtin/Lora/networks.py")
        other = ("modules_forge", "modules/modeldata.py")
        return all((folder / name).is_file() for name in own) and not any((folder / name).exists() for name in other)

    def connect(self, begin: Callable[[Any], None], end: Callable[[Any], None]) -> None:
        """See `Host`. Scripts run in every generation; beside that the host tells of every load (sd_models.py:864,
        :994) and of every VAE (sd_vae.py:280)."""
        from modules import script_callbacks

        script_callbacks.on_model_loaded(self._lora_handling.loaded)

    def boundaries(self) -> Sequence[Boundary]:
        """See `Host`."""
        from modules import sd_models

        model = sd_models.model_data.sd_model
        called = [*_text_encoders(model), *_denoiser(model)]
        vae = vae_boundaries(getattr(model, "first_stage_model", None))
        return [*(one for one in called if not is_compiled(one.owner)), *vae]

    def arrivals(self) -> Sequence[Arrival]:
        """See `Host`."""
        from modules import sd_models

        return [Arrival(sd_models, "reload_model_weights")]

    def shields(self) -> Sequence[Shield]:
        """See `Host`. None without the Lora extension, whose module this is."""
        networks = sys.modules.get("networks")
        return [Shield(networks, "network_forward", _detour)] if hasattr(networks, "network_forward") else ()

    def lora_handling(self) -> LoraHandling:
        """See `Host`."""
        return self._lora_handling

    def encoder_handling(self) -> UnitEncoders:
        """See `Host`."""
        return self._encoder_handling

    def remember(self, request: Any) -> None:
        """See `Host`. While Regional Prompter's patch is in place the state is its own, not the user's."""
        super().remember(request)
        if in_force() is None:
            self._clean = Borrowed.now()

    def left_behind(self, put_back: bool) -> Sequence[tuple[Finding, Repair | None]]:
        """See `Host`. Its patch is the proof that Regional Prompter was in it; its `lactive`, or a generation that is
        being worked on, that it may still need it."""
        extension = in_force()
        if extension is None or self._clean is None or (extension["lactive"] and is_generating()):
            return ()
        return [(self._clean.finding(), self._clean.put_back(extension) if put_back else None)]

    def explain(self, finding: Finding) -> Finding:
        """See `Host`."""
        return explain(finding, self.options())


def _text_encoders(model: Any) -> list[Boundary]:
    """SDXL's `conditioner` is its `cond_stage_model` too (sd_hijack.py:230), and holds them one by one."""
    held = getattr(getattr(model, "conditioner", None), "embedders", None)
    found = held if isinstance(held, torch.nn.ModuleList) else [getattr(model, "cond_stage_model", None)]
    encoders = [one for one in found if isinstance(one, torch.nn.Module) and next(one.parameters(), None) is not None]
    return [Boundary(f"text_encoder_{n}" if n > 1 else "text_encoder", one) for n, one in enumerate(encoders, 1)]


def _denoiser(model: Any) -> list[Boundary]:
    found = getattr(getattr(model, "model", None), "diffusion_model", None)
    if not isinstance(found, torch.nn.Module):
        return []
    return [Boundary("transformer" if hasattr(found, "joint_blocks") else "unet", found)]


def _version() -> str:
    from modules import launch_utils

    return str(launch_utils.git_tag()).removeprefix("v")


def _detour(layer: torch.nn.Module, given: torch.Tensor, original: Callable[..., Any]) -> Detour | None:
    """The way around `networks.network_forward`, whose parameters these are, for a layer that no network can change.

    What it would cast to is asked of the host itself, with a tensor of no elements.
    """
    if getattr(layer, "network_layer_name", None) is not None or not _is_loaded() or not is_compute(given):
        return None
    from modules import devices

    cast = devices.cond_cast_unet(given.new_empty(0)).dtype
    return None if cast == given.dtype else Detour(layer, given.dtype, cast, partial(original, layer, given))


def _is_loaded() -> bool:
    """Whether any network is: without one the path casts nothing (networks.py:549)."""
    return bool(getattr(sys.modules.get("networks"), "loaded_networks", None))
