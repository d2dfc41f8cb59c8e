"""Random weights that make pictures.

A network with default random weights gives nearly constant pictures: its biases and norms drown the input. Here every
weight is drawn so that a layer keeps the scale of what it is given, which keeps prompt, seed and LoRA visible in the
pixels and stays far away from float16's limits.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import nn

#: How much louder than unit scale some layers speak, by the end of the parameter's name.
GAINS = {
    "to_out.0.weight": 1.5,
    "to_v.weight": 1.5,
    "decoder.conv_out.weight": 1.2,
    "token_embedding.weight": 1.0,
    "position_embedding.weight": 0.1,
}


def randomize(module: nn.Module, seed: int) -> None:
    """Fill every floating parameter of `module` in place.

    Each parameter has a generator of its own, seeded by its name, so a library that renames or reorders layers changes
    only those layers.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not parameter.is_floating_point():
                continue
            generator = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(name.encode()))
            parameter.copy_(_draw(name, parameter, generator))


def _draw(name: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(parameter.shape, generator=generator)
    if parameter.ndim < 2:
        return 1.0 + 0.05 * noise if _is_norm(name) else 0.05 * noise
    gain = next((value for end, value in GAINS.items() if name.endswith(end)), 1.0)
    if name.endswith("embedding.weight") or "register_tokens" in name or "shared.weight" in name:
        return gain * noise
    return gain * noise / math.sqrt(parameter[0].numel())


def _is_norm(name: str) -> bool:
    owner, _, kind = name.rpartition(".")
    return kind in ("weight", "gamma") and ("norm" in owner or "layer_norm" in owner)
