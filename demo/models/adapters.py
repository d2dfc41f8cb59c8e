"""LoRA, textual inversion and IP-Adapter files for the tiny models, as trainers write them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from demo.models.sizes import SIZES

#: Strong enough that a LoRA at weight 1 is visible in a two-step picture.
STRENGTH = 0.5

#: The attention layers that trainers touch by default.
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


def _targets(module: nn.Module, ends: tuple[str, ...]) -> dict[str, nn.Linear]:
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and name.endswith(tuple("." + end for end in ends))
    }


def _pair(name: str, layer: nn.Linear, seed: int, strength: float = STRENGTH) -> tuple[torch.Tensor, torch.Tensor]:
    """A down matrix (rank, in) and an up matrix (out, rank), float16 as trainers store them."""
    generator = torch.Generator().manual_seed(seed * 7919 + zlib.crc32(name.encode()))
    rank = SIZES.lora_rank
    down = torch.randn(rank, layer.in_features, generator=generator) * layer.in_features**-0.5
    up = torch.randn(layer.out_features, rank, generator=generator) * strength
    return down.half(), up.half()


def write_kohya(
    path: Path, parts: dict[str, nn.Module], seed: int, overflown: bool = False, strength: float = STRENGTH
) -> None:
    """Write a LoRA in kohya's form; `parts` maps its prefixes ("lora_unet", "lora_te") to modules.

    overflown: as after a training that exploded and was saved in float16, which turns what is too large into inf.
    strength: 0 is a LoRA that has not learnt anything yet, since training begins with an up matrix of zeros.
    """
    tensors: dict[str, torch.Tensor] = {}
    for prefix, module in parts.items():
        for name, layer in _targets(module, TEXT_ATTENTION if "_te" in prefix else ATTENTION).items():
            down, up = _pair(prefix + name, layer, seed, strength)
            if overflown:
                up = (up.float() * 60_000).half()
            key = f"{prefix}_{name.replace('.', '_')}"
            tensors[f"{key}.lora_down.weight"] = down
            tensors[f"{key}.lora_up.weight"] = up
            tensors[f"{key}.alpha"] = torch.tensor(float(SIZES.lora_rank), dtype=torch.float16)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"ss_network_module": "networks.lora"})


def write_peft(path: Path, unet: nn.Module, seed: int) -> None:
    """Write a LoRA of the UNet's attention in PEFT's form."""
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in _targets(unet, ATTENTION).items():
        down, up = _pair(name, layer, seed)
        tensors[f"unet.{name}.lora_A.weight"] = down
        tensors[f"unet.{name}.lora_B.weight"] = up
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"format": "pt"})


#: Some layers of each family as its trainers call them, with their real widths in and out.
FAMILIES: dict[str, dict[str, tuple[int, int]]] = {
    "sd2": {
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q": (640, 640),
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k": (1024, 640),
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_v": (1024, 640),
    },
    "sdxl": {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": (640, 640),
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k": (2048, 640),
        "lora_unet_output_blocks_0_1_transformer_blocks_9_attn2_to_v": (2048, 1280),
    },
    "flux": {
        "lora_unet_double_blocks_0_img_attn_qkv": (3072, 9216),
        "lora_unet_double_blocks_0_img_mlp_0": (3072, 12288),
        "lora_unet_single_blocks_0_modulation_lin": (3072, 9216),
    },
}


def write_of_family(path: Path, family: str, seed: int) -> None:
    """Write a LoRA for the real models of a family, which no tiny model is as wide as."""
    tensors: dict[str, torch.Tensor] = {}
    for name, (into, out) in FAMILIES[family].items():
        down, up = _pair(name, nn.Linear(into, out, device="meta"), seed)
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        tensors[f"{name}.alpha"] = torch.tensor(float(SIZES.lora_rank), dtype=torch.float16)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"ss_network_module": "networks.lora"})


def write_embedding(path: Path, width: int, vectors: int, seed: int) -> None:
    """Write a textual inversion of `vectors` tokens, each `width` floats wide."""
    generator = torch.Generator().manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"emb_params": torch.randn(vectors, width, generator=generator)}, path)


def _write_ip_adapter(path: Path, unet: nn.Module, seed: int, projection: dict[str, tuple[int, ...]]) -> None:
    """Write an IP-Adapter in its own form: a projection of what the image encoder gives, and keys and values for each
    cross-attention, numbered 1, 3, 5, ... in the UNet's order."""
    shapes = {f"image_proj.{name}": shape for name, shape in projection.items()}
    crossing = [name for name in unet.attn_processors if name.endswith("attn2.processor")]  # type: ignore[union-attr]
    for number, name in enumerate(crossing):
        shape = tuple(unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape)
        shapes |= {f"ip_adapter.{2 * number + 1}.{part}.weight": shape for part in ("to_k_ip", "to_v_ip")}
    tensors = {name: _noise(name, shape, seed) * shape[-1] ** -0.5 for name, shape in shapes.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.half() for name, tensor in tensors.items()}, path)


def plain(width: int) -> Callable[[Path, nn.Module, int], None]:
    """What writes an adapter that projects an embedding, of this width, for a UNet."""

    def write(path: Path, unet: nn.Module, seed: int) -> None:
        context, tokens = unet.config.cross_attention_dim, SIZES.image_tokens  # type: ignore[union-attr]
        norm = {"norm.weight": (context,), "norm.bias": (context,)}
        shapes = {"proj.weight": (tokens * context, width), "proj.bias": (tokens * context,), **norm}
        _write_ip_adapter(path, unet, seed, shapes)

    return write


def _plus(path: Path, unet: nn.Module, seed: int) -> None:
    """An adapter that resamples ViT-H's hidden states, which are as wide as ViT-bigG's embedding."""
    inner, context, head, depth, tokens = 64, SIZES.context, 64, 4, 16
    shapes: dict[str, tuple[int, ...]] = {
        "latents": (1, tokens, inner),
        "proj_in.weight": (inner, 1280),
        "proj_in.bias": (inner,),
        "proj_out.weight": (context, inner),
        "proj_out.bias": (context,),
        "norm_out.weight": (context,),
        "norm_out.bias": (context,),
    }
    for layer in range(depth):
        attention, feed = f"layers.{layer}.0", f"layers.{layer}.1"
        shapes |= {f"{attention}.norm{n}.{part}": (inner,) for n in (1, 2) for part in ("weight", "bias")}
        shapes |= {f"{attention}.to_q.weight": (head, inner), f"{attention}.to_kv.weight": (2 * head, inner)}
        shapes |= {
            f"{attention}.to_out.weight": (inner, head),
            f"{feed}.0.weight": (inner,),
            f"{feed}.0.bias": (inner,),
        }
        shapes |= {f"{feed}.1.weight": (4 * inner, inner), f"{feed}.3.weight": (inner, 4 * inner)}
    _write_ip_adapter(path, unet, seed, shapes)


#: By name, as the published ones are called.
IP_ADAPTERS: dict[str, Callable[[Path, nn.Module, int], None]] = {
    "tiny-ip-adapter_sd15": plain(1024),
    "tiny-ip-adapter_sd15_light": plain(1024),
    "tiny-ip-adapter_sd15_vit-G": plain(1280),
    "tiny-ip-adapter-plus_sd15": _plus,
    # Its name says ViT-H, its tensors ViT-bigG.
    "tiny-ip-adapter_sd15_renamed": plain(1280),
}


def _noise(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed * 7919 + zlib.crc32(name.encode())))
