"""Models as hosts have them loaded: real names and widths, few layers, no weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain

import diffusers
import torch
from torch import nn

from lib_guard.hosts.lora_handling import Place

Layers = Mapping[str, nn.Module]


def place(owner: nn.Module, component: str = "unet", prefix: str = "") -> Place:
    return Place(component, owner, "some checkpoint", (), prefix)


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


def named(layers: Layers) -> nn.Module:
    """A module that holds these layers under these names, as AUTOMATIC1111's and Forge's models do."""
    root = nn.Module()
    for name, layer in layers.items():
        *path, last = name.split(".")
        owner = root
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.add_module(last, layer)
    return root


# Names of diffusers.

CROSS_DOWN, DOWN, CROSS_UP, UP = "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"
_ADDED = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "use_linear_projection": True}


def _sd(context: int, linear: bool) -> nn.Module:
    return diffusers.UNet2DConditionModel(
        down_block_types=(CROSS_DOWN, CROSS_DOWN, DOWN),
        up_block_types=(UP, CROSS_UP, CROSS_UP),
        block_out_channels=(320, 640, 1280),
        layers_per_block=1,
        cross_attention_dim=context,
        use_linear_projection=linear,
    )


def _sdxl() -> nn.Module:
    return diffusers.UNet2DConditionModel(
        down_block_types=(DOWN, CROSS_DOWN, CROSS_DOWN),
        up_block_types=(CROSS_UP, CROSS_UP, UP),
        block_out_channels=(320, 640, 1280),
        layers_per_block=1,
        cross_attention_dim=2048,
        attention_head_dim=[5, 10, 20],
        transformer_layers_per_block=1,
        projection_class_embeddings_input_dim=2816,
        **_ADDED,
    )


def _flux() -> nn.Module:
    return diffusers.FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)


# Names of the models' own code.


def _attention(block: str, width: int, context: int, conv: bool) -> dict[str, nn.Module]:
    inner = f"{block}.transformer_blocks.0"
    projections = {f"{block}.proj_{end}": _projection(width, conv) for end in ("in", "out")}
    square = [f"{inner}.attn1.to_{one}" for one in ("q", "k", "v", "out.0")] + [f"{inner}.attn2.to_q"]
    crossing = {f"{inner}.attn2.to_{one}": nn.Linear(context, width) for one in ("k", "v")}
    return {**projections, **{name: nn.Linear(width, width) for name in square}, **crossing}


def _projection(width: int, conv: bool) -> nn.Module:
    return nn.Conv2d(width, width, 1) if conv else nn.Linear(width, width)


def _ldm(blocks: Mapping[str, int], context: int, conv: bool) -> nn.Module:
    first = {"input_blocks.0.0": nn.Conv2d(4, 320, 3)}
    return named(dict(chain(first.items(), *(_attention(*one, context, conv).items() for one in blocks.items()))))


_LDM_SD = {"input_blocks.1.1": 320, "input_blocks.4.1": 640, "middle_block.1": 1280, "output_blocks.9.1": 320}
_LDM_SDXL = {"input_blocks.4.1": 640, "input_blocks.7.1": 1280, "middle_block.1": 1280, "output_blocks.0.1": 1280}


def _bfl() -> nn.Module:
    width = 3072
    double = {
        f"double_blocks.0.{side}_{layer}": nn.Linear(width, out)
        for side in ("img", "txt")
        for layer, out in {"attn.qkv": 3 * width, "attn.proj": width, "mod.lin": 6 * width, "mlp.0": 4 * width}.items()
    }
    single = {"linear1": (width, 7 * width), "linear2": (5 * width, width), "modulation.lin": (width, 3 * width)}
    ends = {"img_in": nn.Linear(64, width), "txt_in": nn.Linear(4096, width), "vector_in.in_layer": nn.Linear(768, 1)}
    return named({**ends, **double, **{f"single_blocks.0.{name}": nn.Linear(*one) for name, one in single.items()}})


#: Family -> a model of it, with the names of diffusers and with its own.
DIFFUSERS: dict[str, Callable[[], nn.Module]] = {
    "sd15": lambda: _sd(768, linear=False),
    "sd2": lambda: _sd(1024, linear=True),
    "sdxl": _sdxl,
    "flux1": _flux,
}
OWN: dict[str, Callable[[], nn.Module]] = {
    "sd15": lambda: _ldm(_LDM_SD, 768, conv=True),
    "sd2": lambda: _ldm(_LDM_SD, 1024, conv=False),
    "sdxl": lambda: _ldm(_LDM_SDXL, 2048, conv=False),
    "flux1": _bfl,
}


def layers(module: nn.Module) -> list[tuple[str, int, int, bool]]:
    """Name, width in, width out, and whether it is a convolution of 1 by 1: what a LoRA of it needs to know."""
    found = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            found.append((name, layer.in_features, layer.out_features, False))
        elif isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
            found.append((name, layer.in_channels, layer.out_channels, True))
    return found
