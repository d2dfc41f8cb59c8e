"""CUDA's autocast on a CPU, so that AUTOMATIC1111's mixed-precision paths run on a machine without a GPU.

Part of the tests, never shipped. Scripts are loaded before the model, so the host's files stay as they are:
- `devices.autocast()` and `without_autocast()` use the CPU's autocast in float16, where the host asks for CUDA's and
  would end with "Torch not compiled with CUDA enabled" (modules/devices.py:235);
- group and layer norms run in float32 under it, as they do under CUDA's;
- the branches of modules/sd_hijack_unet.py:130 that are taken where CUDA is there are taken.
"""

import contextlib
import functools

import torch
from torch.nn import functional as F

from modules import devices, sd_hijack_unet
from modules.sd_hijack_utils import CondFunc


def autocast(disable=False):
    """Stands for `devices.autocast`."""
    whole = devices.force_fp16 or devices.dtype == torch.float32 or devices.dtype_inference == torch.float32
    return contextlib.nullcontext() if disable or whole else torch.autocast("cpu", dtype=torch.float16)


def without_autocast(disable=False):
    """Stands for `devices.without_autocast`."""
    on = torch.is_autocast_enabled("cpu") and not disable
    return torch.autocast("cpu", enabled=False) if on else contextlib.nullcontext()


def in_float32(norm):
    """A norm that runs in float32 under autocast."""

    @functools.wraps(norm)
    def call(*args, **kwargs):
        if not torch.is_autocast_enabled("cpu"):
            return norm(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return norm(*(floated(a) for a in args), **{key: floated(value) for key, value in kwargs.items()})

    return call


def floated(value):
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def install():
    """Put all of it in place, once a process: Reload UI executes this file again."""
    if torch.cuda.is_available() or hasattr(devices, "autocast_standin"):
        return
    devices.autocast_standin = True
    devices.autocast, devices.without_autocast = autocast, without_autocast
    F.group_norm, F.layer_norm = in_float32(F.group_norm), in_float32(F.layer_norm)
    upcast = sd_hijack_unet.unet_needs_upcast
    CondFunc(
        "ldm.modules.diffusionmodules.util.GroupNorm32.forward",
        lambda forward, self, *args, **kwargs: forward(self.float(), *args, **kwargs),
        upcast,
    )
    CondFunc(
        "ldm.modules.attention.GEGLU.forward",
        lambda forward, self, x: forward(self.float(), x.float()).to(devices.dtype_unet),
        upcast,
    )


install()
