"""Boundaries of a diffusers pipeline, and the host whose model is one: the embedded host of `demo/`.

Of diffusers (0.39) this relies on:
  AutoencoderKL.encode / .decode        plain methods, autoencoder_kl.py:171, :214; the pipelines call only these
  .quant_conv, .post_quant_conv         None where the config says use_quant_conv=False (SD3, Flux)
  .encoder, .decoder, the two above     called through __call__, so hooks fire; tiling calls them once a tile
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..findings import Finding
from ..tensors.layers import is_compiled, is_compiled_itself
from .base import DECODE, ENCODE, Boundary, VaeBoundary
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


#: The pipelines convert such a VAE to float32 themselves; some never convert it back
#: (pipeline_controlnet_inpaint_sd_xl.py:1856, pipeline_aura_flow.py:661, diffusers #8391).
_UPCAST_LEFT = "The pipeline converted the VAE to float32 (its config says force_upcast) and did not convert it back."
_UPCAST_FIX = "Use a VAE that works in half precision and whose config says so, such as an fp16-fix one."


class DiffusersHost(WebUiHost):
    """The embedded host."""

    title = "the embedded host"
    seams = (
        *COMMON_SEAMS,
        Seam("modules.sd_models", "model_data", "demo/webui/modules/sd_models.py", "holds the pipeline as `sd_model`"),
    )

    @classmethod
    def is_here(cls) -> bool:
        """See `WebUiHost`."""
        import modules

        return bool(getattr(modules, "EMBEDDED_HOST", False))

    def boundaries(self) -> Sequence[Boundary]:
        """See `Host`."""
        from modules import sd_models

        return vae_boundaries(getattr(sd_models.model_data.sd_model, "vae", None))

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
