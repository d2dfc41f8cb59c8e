"""Device and dtypes. The embedded host runs on the CPU; `sd_models` sets the dtypes when it loads a model."""

from __future__ import annotations

import torch

device = torch.device("cpu")
cpu = torch.device("cpu")
dtype = torch.float32
dtype_vae = torch.float32
dtype_unet = torch.float32

DTYPES = {"FP32": torch.float32, "FP16": torch.float16, "BF16": torch.bfloat16}


def configure(name: str, no_half_vae: bool) -> None:
    """Set the dtypes from the options `cuda_dtype` and `no_half_vae`. Raises KeyError for an unknown name."""
    global dtype, dtype_vae, dtype_unet
    dtype = dtype_unet = DTYPES[name]
    dtype_vae = torch.float32 if no_half_vae else dtype
