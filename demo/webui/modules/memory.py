"""What saves memory: weights that are stored in fewer bits than they are computed in, and components that come to the
device only while they work. The device is the CPU here, so nothing is saved; the hooks are the real ones."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import cpu_offload

from modules import devices, shared

STORAGE = {"As computed": None, "float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
OFFLOAD = ("none", "model", "sequential")


def apply(pipe: Any) -> None:
    """Do to a freshly loaded model what the options ask for."""
    storage = STORAGE[shared.opts.unet_storage]
    if storage is not None:
        part = pipe.unet if getattr(pipe, "unet", None) is not None else pipe.transformer
        part.enable_layerwise_casting(storage_dtype=storage, compute_dtype=devices.dtype)
    if shared.opts.offload_mode == "model":
        pipe.enable_model_cpu_offload(device=devices.device)
    elif shared.opts.offload_mode == "sequential":
        _offload_layers(pipe)


def _offload_layers(pipe: Any) -> None:
    """As `enable_sequential_cpu_offload` does, which on a CPU fails in accelerate (modeling.py:384): there it takes the
    stored weights for the ones on the device, so they get copies. LoRAs cannot be loaded then, nor with the other mode:
    diffusers takes the hooks off for that and cannot put them back without an accelerator."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            weights = {name: tensor.clone() for name, tensor in part.state_dict().items()}
            cpu_offload(part, devices.device, offload_buffers=bool(part._parameters), state_dict=weights)
