"""Makes a Stable Diffusion 1.5 checkpoint of random weights, a second one with another VAE, and LoRAs.

forge_maker.py OUT: run by Forge's interpreter in Forge's folder; OUT is filled (`Stable-diffusion`, `Lora`).
"""

import json
import sys
from pathlib import Path

OUT = Path(sys.argv[1])
sys.argv = [sys.argv[0], "--always-cpu"]
sys.path[:0] = [str(Path.cwd()), str(Path.cwd() / "packages_3rdparty")]

import torch  # noqa: E402 - the path comes first
import transformers  # noqa: E402
from backend.nn.unet import IntegratedUNet2DConditionModel  # noqa: E402
from backend.nn.vae import IntegratedAutoencoderKL  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

CONFIGS = Path("backend/huggingface/runwayml/stable-diffusion-v1-5")
UNET = {
    "in_channels": 4,
    "model_channels": 320,
    "out_channels": 4,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "num_heads": 8,
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "context_dim": 768,
}
LORAS = {"redlora": 11, "bluelora": 12}
RANK, LOUDNESS = 4, 0.15


def parts():
    """The three parts on the meta device: only names and shapes are wanted."""
    vae = IntegratedAutoencoderKL.load_config(CONFIGS / "vae" / "config.json")
    text = transformers.CLIPTextConfig.from_pretrained(CONFIGS / "text_encoder")
    with torch.device("meta"):
        return {
            "model.diffusion_model.": IntegratedUNet2DConditionModel(**UNET),
            "first_stage_model.": IntegratedAutoencoderKL.from_config(vae),
            "cond_stage_model.transformer.": transformers.CLIPTextModel(text),
        }


def filled(model, prefix, seed):
    """Weights that let prompt and seed be seen in the picture, by name in the checkpoint."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, parameter in model.named_parameters():
        shape = parameter.shape
        if len(shape) > 1:
            fan = shape[1:].numel()
            value = torch.randn(shape, generator=generator) * (0.02 if "embedding" in name else 0.6 / fan**0.5)
        elif name.endswith("weight"):
            value = torch.ones(shape)
        else:
            value = torch.randn(shape, generator=generator) * 0.02
        found[prefix + name] = value.half()
    return found


def kohya_name(path):
    """`input_blocks.1.1.transformer_blocks...` as LoRA files name it."""
    words = path.split(".")
    if words[0] == "input_blocks":
        index = int(words[1]) - 1
        block = f"down_blocks_{index // 3}_attentions_{index % 3}"
    elif words[0] == "output_blocks":
        index = int(words[1])
        block = f"up_blocks_{index // 3}_attentions_{index % 3}"
    else:
        block = "mid_block_attentions_0"
    return "_".join(["lora_unet", block, *words[words.index("transformer_blocks") :]])


def lora(unet, text, seed):
    """A LoRA on every linear layer of the transformer blocks and of the text encoder."""
    layers = {kohya_name(path): layer for path, layer in unet.named_modules() if "transformer_blocks" in path}
    layers |= {f"lora_te_{path.replace('.', '_')}": layer for path, layer in text.named_modules()}
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, layer in layers.items():
        if isinstance(layer, torch.nn.Linear):
            down = torch.randn(RANK, layer.in_features, generator=generator)
            up = torch.randn(layer.out_features, RANK, generator=generator)
            found[f"{name}.lora_down.weight"] = (down * LOUDNESS).half()
            found[f"{name}.lora_up.weight"] = (up * LOUDNESS).half()
            found[f"{name}.alpha"] = torch.tensor(float(RANK))
    return found


def main():
    places = {name: OUT / name for name in ("Stable-diffusion", "Lora")}
    for place in places.values():
        place.mkdir(parents=True)
    models = parts()
    tensors = {}
    for seed, (prefix, model) in enumerate(models.items()):
        tensors |= filled(model, prefix, seed)
    for name, seed in (("randomsd15", 1), ("othersd15", 21)):
        tensors |= filled(models["first_stage_model."], "first_stage_model.", seed)
        save_file(tensors, places["Stable-diffusion"] / f"{name}.safetensors", metadata={"format": "pt"})
    unet, _, text = models.values()
    for name, seed in LORAS.items():
        about = {"ss_base_model_version": "sd_v1", "ss_network_module": "networks.lora", "ss_network_dim": str(RANK)}
        save_file(lora(unet, text, seed), places["Lora"] / f"{name}.safetensors", metadata=about)
    print(json.dumps(sorted(str(path.relative_to(OUT)) for path in OUT.rglob("*"))))


main()
