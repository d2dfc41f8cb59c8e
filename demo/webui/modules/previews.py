"""Live previews: the last step's latents as a small picture, decoded in whatever thread asks for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderTiny

from modules import devices, errors, images, paths, sd_models, shared

FULL, APPROXIMATE = KINDS = ("Full", "TAESD")


def preview() -> str | None:
    """The preview as base64, None where there is nothing to show or it fails; sampling goes on meanwhile."""
    latents, model = shared.state.current_latent, sd_models.model_data.sd_model
    if latents is None or model is None:
        return None
    try:
        with torch.no_grad():
            decoded = _decode(model, latents[:1])
    except RuntimeError as error:
        # The real hosts give no preview and go on.
        errors.report(f"Live preview: {error}")
        return None
    return images.to_base64(images.from_tensor((decoded / 2 + 0.5).clamp(0, 1))[0])


def _decode(model: Any, latents: torch.Tensor) -> torch.Tensor:
    if shared.opts.show_progress_type == APPROXIMATE:
        decoded: torch.Tensor = _approximation().decode(latents.to(devices.dtype), return_dict=False)[0]
        return decoded
    full: torch.Tensor = model.vae.decode(latents / model.vae.config.scaling_factor, return_dict=False)[0]
    return full


def _approximation() -> AutoencoderTiny:
    data = sd_models.model_data
    if data.taesd is None:
        folder = paths.subfolders("VAE-approx")["taesd"]
        data.taesd = AutoencoderTiny.from_pretrained(str(folder), torch_dtype=devices.dtype, local_files_only=True)
    return data.taesd
