"""Boundaries of a diffusers pipeline, and the host whose model is one: the embedded host of `demo/`.

Of diffusers (0.39) this relies on:
  AutoencoderKL.encode / .decode        plain methods, autoencoder_kl.py:171, :214; the pipelines call only these
  .quant_conv, .post_quant_conv         None where the config says use_quant_conv=False (SD3, Flux)
  .encoder, .decoder, the two above     called through __call__, so hooks fire; tiling calls them once a tile
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..findings import Finding
from ..tensors.layers import is_compiled, is_compiled_itself
from .base import DECODE, ENCODE, Arrival, Boundary, VaeBoundary
from .encoder_handling import PipelineEncoders
from .lora_handling import LoraHandling
from .seams import Seam
from .webui import COMMON_SEAMS, WebUiHost

#: Which parts of a VAE a direction runs through, in that order.
_VAE_PARTS = {ENCODE: ("encoder", "quant_conv"), DECODE: ("post_quant_conv", "decoder")}


def vae_boundaries(vae: object) -> list[VaeBoundary]:
    """The two boundaries of a VAE, found by its parts' names, whatever class it has.

    A compiled or scripted VAE is left alone: a mode inside a compiled region would break or recompile it.
    """
    if not isinstance(vae, torch.nn.Module) or is_compiled_itself(vae):
        return []
    found = []
    for direction, names in _VAE_PARTS.items():
        parts = tuple((name, part) for name in names if isinstance(part := getattr(vae, name, None), torch.nn.Module))
        if parts and callable(getattr(vae, direction, None)) and not any(is_compiled(part) for _, part in parts):
            found.append(VaeBoundary("vae", vae, direction, parts, direction))
    return found


#: The components of a pipeline that are called through `__call__`, in the order of a generation; there may be several
#: of a kind (`text_encoder_2`, `transformer_2`).
_CALLED = ("text_encoder", "image_encoder", "controlnet", "adapter", "unet", "transformer")

#: Where a container holds its members, which it calls one by one: diffusers' MultiControlNetModel
#: (multicontrolnet.py:30) and its like, and MultiAdapter (adapter.py:45).
_MEMBERS = {"controlnet": "nets", "adapter": "adapters"}


def pipeline_boundaries(pipe: object) -> list[Boundary]:
    """The boundaries of a pipeline, by its components' own names, its VAE's among them; none of what is no pipeline.

    Looked for among its attributes: `components` raises where a host has set one without registering it. Some
    pipelines hold another one, which has what they lack (SD.Next's processing_vae.py:91). A part that is reached in two
    ways is named once.
    """
    own = {**_attributes(getattr(pipe, "pipe", None)), **_attributes(pipe)}
    found: dict[int, Boundary] = {}
    for kind in _CALLED:
        for name in sorted(name for name in own if re.fullmatch(rf"{kind}(_\d+)?", name)):
            for boundary in _called(kind, name, own[name]):
                found.setdefault(id(boundary.owner), boundary)
    return [*found.values(), *vae_boundaries(own.get("vae"))]


def _attributes(pipe: object) -> dict[str, object]:
    return {name: value for name, value in getattr(pipe, "__dict__", {}).items() if value is not None}


def _called(kind: str, name: str, part: object) -> list[Boundary]:
    """The boundaries of one component, members and inner parts among them; none of one that is compiled."""
    modules = [one for one in _members(kind, part) if isinstance(one, torch.nn.Module) and not is_compiled(one)]
    inner = [layer for one in modules for layer in _image_projections(one)] if kind in ("unet", "transformer") else []
    return [*_numbered("image_projection", inner), *_numbered(name, modules)]


def _members(kind: str, part: object) -> Iterable[object]:
    if isinstance(part, (list, tuple)):
        return part
    held = getattr(part, _MEMBERS[kind], None) if kind in _MEMBERS else None
    return held if isinstance(held, torch.nn.ModuleList) else (part,)


def _image_projections(denoiser: torch.nn.Module) -> list[torch.nn.Module]:
    """What projects an IP-Adapter's image embeddings: a layer for each adapter (embeddings.py:2577), or SD3's one
    (transformer_sd3.py:297). The same attribute holds other things too, such as Kolors' text projection."""
    layers = getattr(getattr(denoiser, "encoder_hid_proj", None), "image_projection_layers", ())
    only = getattr(denoiser, "image_proj", None)
    return [*layers, *([only] if isinstance(only, torch.nn.Module) else [])]


def _numbered(name: str, modules: Iterable[torch.nn.Module]) -> list[Boundary]:
    """Boundaries of one kind: `controlnet`, `controlnet_2`, ..."""
    return [Boundary(name if n == 1 else f"{name}_{n}", module) for n, module in enumerate(modules, start=1)]


#: The pipelines convert such a VAE to float32 themselves; some never convert it back
#: (pipeline_controlnet_inpaint_sd_xl.py:1856, pipeline_aura_flow.py:661, diffusers #8391).
_UPCAST_LEFT = "The pipeline converted the VAE to float32 (its config says force_upcast) and did not convert it back."
_UPCAST_FIX = "Use a VAE that works in half precision and whose config says so, such as an fp16-fix one."


#: What helps in the embedded host when half precision does not suffice.
_PRECISION_FIXES = {
    "LG201": 'Settings > "no_half_vae" on, or "cuda_dtype" BF16.',
    "LG202": 'Settings > "cuda_dtype" BF16 or FP32, or a lower strength of the LoRAs.',
}


class DiffusersHost(WebUiHost):
    """The embedded host."""

    title = "the embedded host"
    seams = (
        *COMMON_SEAMS,
        Seam("modules.sd_models", "model_data", "demo/webui/modules/sd_models.py", "holds the pipeline as `sd_model`"),
    )

    def __init__(self) -> None:
        # Imported here: it builds on this file.
        from .diffusers_encoder import DiffusersEncoders
        from .diffusers_lora import DiffusersLoraHandling

        self._lora_handling = DiffusersLoraHandling()
        self._encoder_handling = DiffusersEncoders()

    @classmethod
    def is_here(cls) -> bool:
        """See `WebUiHost`."""
        import modules

        return bool(getattr(modules, "EMBEDDED_HOST", False))

    def boundaries(self) -> Sequence[Boundary]:
        """See `Host`."""
        from modules import sd_models

        data = sd_models.model_data
        controlnets = _numbered("controlnet", data.controlnets.values())
        refiner = [] if data.refiner is None else [Boundary("unet_2", data.refiner[1])]
        beside = [one for one in (*controlnets, *refiner) if not is_compiled(one.owner)]
        return [*pipeline_boundaries(data.sd_model), *beside]

    def arrivals(self) -> Sequence[Arrival]:
        """See `Host`."""
        from modules import controlnet, ip_adapter, refiner

        return [Arrival(controlnet, "load"), Arrival(refiner, "load"), Arrival(ip_adapter, "apply")]

    def loras(self) -> Sequence[tuple[str, Path]]:
        """See `Host`."""
        from modules import paths, sd_models

        files = paths.files("Lora", ".safetensors")
        loaded = getattr(sd_models.model_data.sd_model, "loaded_loras", ())
        return [(name, files[name]) for name, _ in loaded if name in files]

    def lora_handling(self) -> LoraHandling:
        """See `Host`."""
        return self._lora_handling

    def encoder_handling(self) -> PipelineEncoders:
        """See `Host`."""
        return self._encoder_handling

    def explain(self, finding: Finding) -> Finding:
        """See `Host`."""
        if finding.code in ("LG101", "LG102") and finding.evidence.get("component") == "float32":
            return self._explain_float_vae(finding)
        if finding.code == "LG112" and finding.component.startswith("controlnet"):
            return self._explain_controlnet(finding)
        if finding.code in _PRECISION_FIXES:
            return replace(finding, permanent_fix=finding.permanent_fix or self._fix(finding))
        return finding

    def _fix(self, finding: Finding) -> str:
        if finding.evidence.get("loras") or self.options().get("cuda_dtype") != "FP16":
            return ""
        return _PRECISION_FIXES[finding.code]

    def _explain_controlnet(self, finding: Finding) -> Finding:
        chosen = self.options().get("controlnet_dtype")
        if chosen not in ("FP32", "FP16", "BF16"):
            return finding
        return replace(
            finding,
            cause=f'The option "controlnet_dtype" loads ControlNets in {chosen}, the model is {self._model_dtype()}.',
            permanent_fix='Settings > "controlnet_dtype" As the model.',
        )

    def _model_dtype(self) -> object:
        return self.options().get("cuda_dtype")

    def _explain_float_vae(self, finding: Finding) -> Finding:
        if self.options().get("no_half_vae"):
            return replace(
                finding,
                cause='The option "no_half_vae" keeps the VAE in float32 while the model is not.',
                permanent_fix='Settings > "no_half_vae" off, or "cuda_dtype" FP32.',
            )
        if self._upcasts_by_itself():
            return replace(finding, cause=_UPCAST_LEFT, permanent_fix=_UPCAST_FIX)
        return finding

    def _upcasts_by_itself(self) -> bool:
        from modules import sd_models

        config = getattr(getattr(sd_models.model_data.sd_model, "vae", None), "config", None)
        return bool(getattr(config, "force_upcast", False))
