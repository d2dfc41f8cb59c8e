"""Makes IP-Adapters for Stable Diffusion 1.5 in their real sizes, and the image encoders that they need, of two layers.

forge_encoder_maker.py OUT: run by Forge's interpreter; OUT is filled (`ControlNet`, `ControlNetPreprocessor`). All
weights are random.
"""

import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

OUT = Path(sys.argv[1])

#: By file: hidden width, width of the embedding, and the layer by which Forge knows the encoder (clipvision.py:163).
ENCODERS = {"CLIP-ViT-H-14": (1280, 1024, 30), "CLIP-ViT-bigG": (1664, 1280, 47)}

#: Widths of the UNet's attentions in the order in which IPAdapterPlus.py:762-768 numbers them.
ATTENTIONS = [320, 320, 640, 640, 1280, 1280, 1280, 1280, 1280, 640, 640, 640, 320, 320, 320, 1280]
TEXT, TOKENS = 768, 4


def drawn(shapes, seed):
    """Weights by name."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            value = torch.randn(shape, generator=generator) / torch.Size(shape[1:]).numel() ** 0.5
        elif name.endswith("weight"):
            value = torch.ones(shape)
        else:
            value = torch.randn(shape, generator=generator) * 0.02
        found[name] = value.half()
    return found


def encoder(hidden, width):
    """Names and shapes."""
    config = transformers.CLIPVisionConfig(
        hidden_size=hidden,
        projection_dim=width,
        intermediate_size=256,
        num_attention_heads=16,
        num_hidden_layers=2,
        patch_size=14,
    )
    with torch.device("meta"):
        model = transformers.CLIPVisionModelWithProjection(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def keys():
    """What every adapter puts beside the UNet's own keys and values."""
    parts = {f"{2 * number + 1}.{part}": width for number, width in enumerate(ATTENTIONS) for part in ("to_k", "to_v")}
    return {f"ip_adapter.{name}_ip.weight": (width, TEXT) for name, width in parts.items()}


def plain(width):
    """A projection of the embedding."""
    shapes = {"proj.weight": (TOKENS * TEXT, width), "proj.bias": (TOKENS * TEXT,)}
    return {**shapes, "norm.weight": (TEXT,), "norm.bias": (TEXT,)}


def plus(hidden):
    """A resampler of the hidden states (resampler.py:81)."""
    shapes = {"latents": (1, 16, TEXT), "proj_in.weight": (TEXT, hidden), "proj_in.bias": (TEXT,)}
    shapes |= {"proj_out.weight": (TEXT, TEXT), "proj_out.bias": (TEXT,)}
    shapes |= {"norm_out.weight": (TEXT,), "norm_out.bias": (TEXT,)}
    for number in range(4):
        attention, feed = f"layers.{number}.0.", f"layers.{number}.1."
        for norm in (f"{attention}norm1", f"{attention}norm2", f"{feed}0"):
            shapes |= {f"{norm}.weight": (TEXT,), f"{norm}.bias": (TEXT,)}
        shapes |= {f"{attention}to_q.weight": (TEXT, TEXT), f"{attention}to_kv.weight": (2 * TEXT, TEXT)}
        shapes |= {f"{attention}to_out.weight": (TEXT, TEXT)}
        shapes |= {f"{feed}1.weight": (4 * TEXT, TEXT), f"{feed}3.weight": (TEXT, 4 * TEXT)}
    return shapes


def save(folder, name, tensors):
    place = OUT / folder
    place.mkdir(parents=True, exist_ok=True)
    save_file(tensors, place / f"{name}.safetensors", metadata={"format": "pt"})


def main():
    for seed, (name, (hidden, width, layer)) in enumerate(ENCODERS.items(), 31):
        mark = {f"vision_model.encoder.layers.{layer}.layer_norm1.weight": torch.ones(hidden).half()}
        save("ControlNetPreprocessor", name, {**drawn(encoder(hidden, width), seed), **mark})
    projections = {"_sd15": plain(1024), "_sd15_vit-G": plain(1280), "-plus_sd15": plus(1280)}
    for seed, (name, image) in enumerate(projections.items(), 41):
        projection = {f"image_proj.{part}": shape for part, shape in image.items()}
        save("ControlNet", f"ip-adapter{name}", drawn({**projection, **keys()}, seed))


main()
