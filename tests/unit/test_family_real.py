"""The rules against the real architectures, built without weights: no layer alone, and no whole file, is told wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import diffusers
import pytest
import torch
from test_family import clip, header, lokr, lora, peft, verdict_of
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from lib_guard.files.families import EncoderOffer, family_of

CROSS_DOWN, DOWN, CROSS_UP, UP = "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"
ADDED = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "use_linear_projection": True}
SDXL = {
    "down_block_types": (DOWN, CROSS_DOWN, CROSS_DOWN),
    "up_block_types": (CROSS_UP, CROSS_UP, UP),
    "block_out_channels": (320, 640, 1280),
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "projection_class_embeddings_input_dim": 2816,
    "transformer_layers_per_block": [1, 2, 10],
    **ADDED,
}
REFINER = {
    "down_block_types": (DOWN, CROSS_DOWN, CROSS_DOWN, DOWN),
    "up_block_types": (UP, CROSS_UP, CROSS_UP, UP),
    "block_out_channels": (384, 768, 1536, 1536),
    "cross_attention_dim": 1280,
    "attention_head_dim": [6, 12, 24, 24],
    "projection_class_embeddings_input_dim": 2560,
    "transformer_layers_per_block": 4,
    **ADDED,
}
SD2 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}


def sd3(width: int, depth: int) -> nn.Module:
    return diffusers.SD3Transformer2DModel(
        num_layers=depth, num_attention_heads=width // 64, caption_projection_dim=width, joint_attention_dim=4096
    )


UNETS: dict[str, Callable[[], nn.Module]] = {
    "sd15": lambda: diffusers.UNet2DConditionModel(cross_attention_dim=768),
    "sd2": lambda: diffusers.UNet2DConditionModel(**SD2),
    "sdxl": lambda: diffusers.UNet2DConditionModel(**SDXL),
    "sdxl_refiner": lambda: diffusers.UNet2DConditionModel(**REFINER),
}
TRANSFORMERS: dict[str, Callable[[], nn.Module]] = {
    "sd3": lambda: sd3(1536, 24),
    "sd35_large": lambda: sd3(2432, 38),
    "flux1": lambda: diffusers.FluxTransformer2DModel(guidance_embeds=True),
    "pixart": lambda: diffusers.PixArtTransformer2DModel(caption_channels=4096),
}
#: What is not among the families: their layers have names and widths of some that are.
FOREIGN: dict[str, Callable[[], nn.Module]] = {
    "HunyuanVideo": lambda: diffusers.HunyuanVideoTransformer3DModel(),
    "LTX": lambda: diffusers.LTXVideoTransformer3DModel(),
    "AuraFlow": lambda: diffusers.AuraFlowTransformer2DModel(),
    "Kandinsky 3": lambda: diffusers.Kandinsky3UNet(),
    "Stable Video Diffusion": lambda: diffusers.UNetSpatioTemporalConditionModel(),
    "AnimateDiff": lambda: diffusers.MotionAdapter(),
    "CogVideoX": lambda: diffusers.CogVideoXTransformer3DModel(num_layers=2),
}


def built(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


def lora_layers(module: nn.Module, form: str) -> Iterator[dict[str, tuple[int, ...]]]:
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            into, out = layer.in_features, layer.out_features
            if form == "kohya":
                yield lora(f"lora_unet_{name.replace('.', '_')}", into, out)
            elif form == "peft":
                yield peft(f"transformer.{name}", into, out)
            elif not (into % 16 or out % 8):
                yield lokr(f"lycoris_{name.replace('.', '_')}", into, out)
        elif isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and form == "kohya":
            yield lora(f"lora_unet_{name.replace('.', '_')}", layer.in_channels, layer.out_channels, conv=True)


def together(layers: Iterator[dict[str, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
    return {name: shape for layer in layers for name, shape in layer.items()}


@pytest.mark.parametrize("form", ["kohya", "peft", "lokr"])
@pytest.mark.parametrize("family", [*UNETS, *TRANSFORMERS])
def test_a_lora_of_all_layers_is_told_and_none_of_one_layer_is_told_wrong(family, form):
    module = built((UNETS | TRANSFORMERS)[family])
    found = verdict_of(together(lora_layers(module, form)))
    assert (found.kind, found.family) == ("lora", family)
    for layer in lora_layers(module, form):
        found = verdict_of(layer)
        assert found.kind == "lora" and (not found.candidates or family in found.candidates), (layer, found)


@pytest.mark.parametrize("name", FOREIGN)
def test_a_lora_of_another_model_is_unknown(name):
    module = built(FOREIGN[name])
    for form in ("kohya", "peft"):
        found = verdict_of(together(lora_layers(module, form)))
        assert (found.kind, found.family, found.candidates) == ("lora", "unknown", ())


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("family", UNETS)
def test_a_unet_and_its_controlnet_are_told_apart(family):
    unet = built(UNETS[family])
    found = verdict_of(shapes_of(unet))
    assert (found.kind, found.family, found.confidence) == ("checkpoint", family, "certain")
    with torch.device("meta"):
        control = diffusers.ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    shapes = shapes_of(control)
    found = verdict_of(shapes)
    assert (found.kind, found.family, found.confidence) == ("controlnet", family, "certain")
    del shapes["controlnet_cond_embedding.conv_in.weight"]
    assert verdict_of(shapes).kind == "unknown"


@pytest.mark.parametrize(
    ("settings", "offer"),
    [
        ((1024, 24, 4096, 768, 224), EncoderOffer("vit_l", 768, 1024)),
        ((1024, 24, 4096, 768, 336), EncoderOffer("vit_l_336", 768, 1024)),
        ((1280, 32, 5120, 1024, 224), EncoderOffer("vit_h", 1024, 1280)),
        ((1664, 48, 8192, 1280, 224), EncoderOffer("vit_bigg", 1280, 1664)),
    ],
    ids=lambda one: getattr(one, "kind", ""),
)
def test_the_encoders_of_transformers(settings, offer):
    hidden, layers, inner, projected, pixels = settings
    config = CLIPVisionConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=16,
        intermediate_size=inner,
        projection_dim=projected,
        image_size=pixels,
        patch_size=14,
    )
    shapes = shapes_of(built(lambda: CLIPVisionModelWithProjection(config)))
    found = verdict_of(shapes)
    assert (found.offer, found.confidence, found.remarks) == (offer, "certain", ())
    assert shapes.keys() == clip(hidden, layers, projected).keys()


@pytest.mark.parametrize(
    ("channels", "candidates"),
    [(4, ("sd15", "sd2", "sdxl", "sdxl_refiner")), (16, ("flux1", "sd3", "sd35_large"))],
)
def test_the_vaes_of_diffusers(channels, candidates):
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    quant = {"use_quant_conv": channels == 4, "use_post_quant_conv": channels == 4}
    sizes = {"block_out_channels": (128, 256, 512, 512), "latent_channels": channels}
    found = verdict_of(shapes_of(built(lambda: diffusers.AutoencoderKL(**levels, **sizes, **quant))))
    assert (found.kind, found.candidates) == ("vae", candidates)


def test_a_tiny_model_is_of_its_kind_and_of_no_family():
    sizes = {"block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 32, "norm_num_groups": 8}
    unet = built(lambda: diffusers.UNet2DConditionModel(**sizes, attention_head_dim=4))
    assert family_of(header(shapes_of(unet))).kind == "checkpoint"
    assert family_of(header(shapes_of(unet))).family == "unknown"
