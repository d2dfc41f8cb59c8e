"""Boundaries of a diffusers pipeline, and the host whose model is one: the embedded host of `demo/`.

Seams (diffusers 0.39, the embedded host):
  AutoencoderKL.encode / .decode        plain methods, autoencoder_kl.py:250, :305; the pipelines call only these
  .quant_conv, .post_quant_conv         None where the config says use_quant_conv=False (SD3, Flux)
  .encoder, .decoder, the two above     called through __call__, so hooks fire; tiling calls them once a tile
  modules.sd_models.model_data.sd_model the pipeline, None before the first load
  modules.shared.opts.data              the settings
  p.close()                             always called, also after a failure
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from types import FrameType
from typing import Any

import torch

from ..findings import Finding
from .base import DECODE, ENCODE, Boundary

#: Which parts of a VAE a direction runs through, in that order.
_VAE_PARTS = {ENCODE: ("encoder", "quant_conv"), DECODE: ("post_quant_conv", "decoder")}


def vae_boundaries(vae: object) -> list[Boundary]:
    """The two boundaries of a VAE, found by its parts' names, whatever class it has.

    A compiled or scripted VAE is left alone: a mode inside a compiled region would break or recompile it.
    """
    if not isinstance(vae, torch.nn.Module) or _is_compiled(vae):
        return []
    found = []
    for direction, names in _VAE_PARTS.items():
        parts = tuple((name, part) for name in names if isinstance(part := getattr(vae, name, None), torch.nn.Module))
        if parts and callable(getattr(vae, direction, None)) and not any(_is_compiled(part) for _, part in parts):
            found.append(Boundary("vae", direction, vae, parts, direction))
    return found


def _is_compiled(module: torch.nn.Module) -> bool:
    scripted = isinstance(module, torch.jit.ScriptModule)
    return scripted or hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


#: The pipelines convert such a VAE to float32 themselves; some never convert it back
#: (pipeline_controlnet_inpaint_sd_xl.py:1856, pipeline_aura_flow.py:661, diffusers #8391).
_UPCAST_LEFT = "The pipeline converted the VAE to float32 (its config says force_upcast) and did not convert it back."
_UPCAST_FIX = "Use a VAE that works in half precision and whose config says so, such as an fp16-fix one."


class DiffusersHost:
    """The embedded host."""

    title = "the embedded host"

    def missing_seams(self) -> Sequence[str]:
        """See `Host`."""
        from modules import sd_models, shared

        wanted = {
            "modules.sd_models.model_data": hasattr(sd_models, "model_data"),
            "shared.opts": hasattr(shared, "opts"),
        }
        return [f"{name} is missing" for name, there in wanted.items() if not there]

    def boundaries(self) -> Sequence[Boundary]:
        """See `Host`."""
        from modules import sd_models

        return vae_boundaries(getattr(sd_models.model_data.sd_model, "vae", None))

    def options(self) -> Mapping[str, object]:
        """See `Host`."""
        from modules import shared

        options: Mapping[str, object] = shared.opts.data
        return options

    def tab(self, request: Any) -> str:
        """See `Host`."""
        return "img2img" if hasattr(request, "init_images") else "txt2img"

    def on_end(self, request: Any, call: Callable[[], None]) -> None:
        """See `Host`. The request lives for one generation, so its `close` needs no way back."""
        close = request.close

        @wraps(close)
        def close_and_call() -> None:
            try:
                close()
            finally:
                call()

        request.close = close_and_call

    def is_running(self, request: Any) -> bool:
        """See `Host`. A call that works on the request holds it as its local `p`, as every host names it."""
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if frame.f_code.co_name.startswith("process_images") and frame.f_locals.get("p") is request:
                return True
            frame = frame.f_back
        return False

    def write_infotext(self, request: Any, values: Mapping[str, str]) -> None:
        """See `Host`."""
        request.extra_generation_params.update(values)

    def explain(self, finding: Finding) -> Finding:
        """See `Host`."""
        if finding.code not in ("LG101", "LG102") or finding.evidence.get("component") != "float32":
            return finding
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
