"""Makes Stable Diffusion 1 checkpoints, LoRAs and a TAESD; run by AUTOMATIC1111's interpreter in its folder.

ldm_maker.py OUT CLIP TOKENS SIZE: OUT is filled (`models/`, `clip/config.json`); CLIP is where `clip` will lie at last.
SIZE is `tiny`, for the rows, or `real`: one checkpoint and one LoRA of the widths that Stable Diffusion 1.5 has.
"""

import json
import sys
from pathlib import Path

OUT, CLIP, TOKENS, IS_TINY = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "tiny"
sys.argv = [sys.argv[0], "--use-cpu", "all", "--no-half"]
sys.path[:0] = [str(Path.cwd()), str(Path.cwd() / "repositories" / "stable-diffusion-stability-ai")]

import torch  # noqa: E402 - the path comes first
from ldm.util import instantiate_from_config  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel  # noqa: E402

#: Of the text encoder and its heads, and of the narrowest level of UNet and VAE.
WIDTH, HEADS, WIDE, VAE_WIDE = (64, 4, 32, 32) if IS_TINY else (768, 12, 320, 128)
CHECKPOINTS = {"tinysd1": 1, "othersd1": 2} if IS_TINY else {"realsd1": 1}
#: Name -> seed, and whether it changes the text encoder. No name is part of another: Regional Prompter looks them up
#: in the prompt as they are.
LORAS = {"redlora": (11, True), "bluelora": (12, True), "greenunet": (13, False)}
RANK, LOUDNESS = 4, 0.25


def text_config():
    """A CLIP text encoder in all its twelve layers."""
    ids = {"bos_token_id": TOKENS - 2, "eos_token_id": TOKENS - 1, "pad_token_id": TOKENS - 1}
    return CLIPTextConfig(
        vocab_size=TOKENS,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=12,
        num_attention_heads=HEADS,
        projection_dim=WIDTH,
        **ids,
    )


def config():
    """The host's own config with these widths."""
    found = OmegaConf.load("configs/v1-inference.yaml")
    parameters = found.model.params
    parameters.unet_config.params.model_channels = WIDE
    parameters.unet_config.params.context_dim = WIDTH
    parameters.first_stage_config.params.ddconfig.ch = VAE_WIDE
    parameters.cond_stage_config.params = {"version": CLIP}
    return found


def parts(settings):
    """UNet, VAE and text encoder with weights that let prompt and seed be seen in the picture."""
    parameters = settings.model.params
    unet, vae = (instantiate_from_config(parameters[f"{name}_config"]) for name in ("unet", "first_stage"))
    text = CLIPTextModel(text_config())
    with torch.no_grad():
        for part in (unet, vae):
            for weight in part.parameters():
                # Output layers that begin at zero would make every prompt the same picture.
                if weight.dim() > 1 and float(weight.abs().max()) == 0:
                    torch.nn.init.normal_(weight, std=0.05)
        # The host divides by the mean of what the text encoder gives: a last norm without bias has a mean of zero.
        torch.nn.init.normal_(text.text_model.final_layer_norm.bias, mean=0.2, std=0.3)
        torch.nn.init.normal_(text.text_model.final_layer_norm.weight, mean=1.0, std=0.2)
    return unet, vae, text


def checkpoint(unet, vae, text):
    """The state dict of a single-file checkpoint, half precision as they are distributed."""
    found = {f"model.diffusion_model.{name}": value for name, value in unet.state_dict().items()}
    found |= {f"first_stage_model.{name}": v for name, v in vae.state_dict().items() if not name.startswith("loss")}
    found |= {f"cond_stage_model.transformer.{name}": value for name, value in text.state_dict().items()}
    half = {name: value.half() if value.is_floating_point() else value for name, value in found.items()}
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    schedule = {"betas": betas.float(), "alphas_cumprod": torch.cumprod(1 - betas, 0).float()}
    return {name: value.contiguous() for name, value in (half | schedule).items()}


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


def lora(unet, text, seed, with_text):
    """A LoRA on every linear layer of the transformer blocks, and of the text encoder where asked for."""
    layers = {kohya_name(path): layer for path, layer in unet.named_modules() if "transformer_blocks" in path}
    if with_text:
        layers |= {f"lora_te_{path.replace('.', '_')}": layer for path, layer in text.named_modules()}
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, layer in layers.items():
        if isinstance(layer, torch.nn.Linear):
            down = torch.randn(RANK, layer.in_features, generator=generator)
            up = torch.randn(layer.out_features, RANK, generator=generator)
            found[f"{name}.lora_down.weight"], found[f"{name}.lora_up.weight"] = down * LOUDNESS, up * LOUDNESS
            found[f"{name}.alpha"] = torch.tensor(float(RANK))
    return found


def write_ip_adapters(folder, unet):
    """IP-Adapters by what they take, each with a seed of its own; two of them by names that lie or say nothing."""
    folder.mkdir()
    write_ip_adapter(folder / "ip-adapter_sd15.safetensors", unet, 16, plain_projection, 1024)
    write_ip_adapter(folder / "ip-adapter_sd15_vit-G.safetensors", unet, 18, plain_projection, 1280)
    write_ip_adapter(folder / "ip-adapter-plus_sd15.safetensors", unet, 19, resampler, 1280)
    # By the extension's table this one takes what ViT-H gives.
    write_ip_adapter(folder / "ip-adapter_sd15_light.safetensors", unet, 20, plain_projection, 1280)
    write_ip_adapter(folder / "mystyle.safetensors", unet, 21, plain_projection, 1024)
    write_ip_adapter(folder / "oldstyle_sd15.pth", unet, 22, plain_projection, 1280)


def write_ip_adapter(file, unet, seed, projection, given):
    """projection: makes the tensors that turn an image's embedding, `given` wide, into tokens."""
    generator = torch.Generator().manual_seed(seed)
    image, found = projection(given, generator), {}
    # Numbered down, up, middle, as the published files are.
    keys = {name: layer for name, layer in unet.named_modules() if name.endswith("attn2.to_k")}
    order = ("input_blocks", "output_blocks", "middle_block")
    for number, name in enumerate(sorted(keys, key=lambda name: order.index(name.split(".")[0]))):
        for part in ("to_k_ip", "to_v_ip"):
            weight = 0.2 * torch.randn(keys[name].weight.shape, generator=generator)
            found[f"{2 * number + 1}.{part}.weight"] = weight.half()
    groups = {"image_proj": {name: value.half() for name, value in image.items()}, "ip_adapter": found}
    if file.suffix == ".pth":
        # As the first ones were published. Of the new format the host knows only what older versions of torch wrote.
        torch.save(groups, file, _use_new_zipfile_serialization=False)
        return
    save_file({f"{group}.{name}": value for group, held in groups.items() for name, value in held.items()}, file)


def plain_projection(given, generator):
    """Four tokens out of one embedding."""
    found = {"proj.weight": 0.05 * torch.randn(4 * WIDTH, given, generator=generator)}
    found["proj.bias"] = 0.05 * torch.randn(4 * WIDTH, generator=generator)
    return found | {"norm.weight": torch.ones(WIDTH), "norm.bias": torch.zeros(WIDTH)}


def resampler(given, generator):
    """The `plus` kind: sixteen tokens out of hidden states (scripts/ipadapter/image_proj_models.py)."""
    inner = 12 * 64

    def linear(rows, columns):
        return torch.randn(rows, columns, generator=generator) / columns**0.5

    found = {"latents": torch.randn(1, 16, WIDTH, generator=generator)}
    found |= {"proj_in.weight": linear(WIDTH, given), "proj_in.bias": torch.zeros(WIDTH)}
    found |= {"proj_out.weight": linear(WIDTH, WIDTH), "proj_out.bias": torch.zeros(WIDTH)}
    norms = ["norm_out"]
    for layer in range(4):
        attention, feed_forward = f"layers.{layer}.0.", f"layers.{layer}.1."
        norms += [f"{attention}norm1", f"{attention}norm2", f"{feed_forward}0"]
        found[f"{attention}to_q.weight"] = linear(inner, WIDTH)
        found[f"{attention}to_kv.weight"] = linear(2 * inner, WIDTH)
        found[f"{attention}to_out.weight"] = linear(WIDTH, inner)
        found[f"{feed_forward}1.weight"] = linear(4 * WIDTH, WIDTH)
        found[f"{feed_forward}3.weight"] = linear(WIDTH, 4 * WIDTH)
    for name in norms:
        found |= {f"{name}.weight": torch.ones(WIDTH), f"{name}.bias": torch.zeros(WIDTH)}
    return found


def write_embedding(folder):
    """A textual inversion of two vectors."""
    folder.mkdir()
    vectors = 0.2 * torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(15))
    save_file({"emb_params": vectors}, folder / "tinystyle.safetensors")


def write_controlnet(folder, unet):
    """A ControlNet of the UNet's own encoder, as sd-webui-controlnet reads it."""
    parts = ("time_embed", "input_blocks", "middle_block")
    found = {name: value for name, value in unet.state_dict().items() if name.startswith(parts)}
    found |= control_layers(unet, torch.Generator().manual_seed(17))
    save_file({name: value.half().contiguous() for name, value in found.items()}, folder / "control_sd15.safetensors")


def control_layers(unet, generator):
    """What a ControlNet has beyond a UNet's encoder (scripts/cldm.py): the way in for the hint, the ways out."""
    found, given, before = {}, 3, 0
    for index, channels in enumerate((16, 16, 32, 32, 96, 96, 256, WIDE)):
        found[f"input_hint_block.{2 * index}.weight"] = 0.1 * torch.randn(channels, given, 3, 3, generator=generator)
        found[f"input_hint_block.{2 * index}.bias"] = torch.zeros(channels)
        given = channels
    outs = []
    for block in unet.input_blocks:
        before = next((layer.out_channels for layer in block if hasattr(layer, "out_channels")), before)
        outs.append(before)
    names = [f"zero_convs.{index}.0" for index in range(len(outs))]
    for name, channels in zip([*names, "middle_block_out.0"], [*outs, outs[-1]]):
        found[f"{name}.weight"] = 0.2 * torch.randn(channels, channels, 1, 1, generator=generator) / channels**0.5
        found[f"{name}.bias"] = torch.zeros(channels)
    return found


def write_taesd(folder):
    """A TAESD of random weights, so that the host looks for none online."""
    from modules import sd_vae_taesd

    folder.mkdir(parents=True)
    for seed, name in enumerate(("decoder", "encoder")):
        torch.manual_seed(seed)
        # The old format: of the new one's files the host knows only those that older versions of torch wrote.
        weights = getattr(sd_vae_taesd, name)(4).state_dict()
        torch.save(weights, folder / f"taesd_{name}.pth", _use_new_zipfile_serialization=False)


def main():
    models, settings = OUT / "models", config()
    for name in ("Stable-diffusion", "Lora"):
        (models / name).mkdir(parents=True)
    text_config().save_pretrained(OUT / "clip")
    for name, seed in CHECKPOINTS.items():
        torch.manual_seed(seed)
        unet, vae, text = parts(settings)
        OmegaConf.save(settings, models / "Stable-diffusion" / f"{name}.yaml")
        save_file(checkpoint(unet, vae, text), models / "Stable-diffusion" / f"{name}.safetensors")
    write_loras(models / "Lora", unet, text)
    if IS_TINY:
        write_ip_adapters(models / "ControlNet", unet)
        write_controlnet(models / "ControlNet", unet)
    write_embedding(models.parent / "embeddings")
    write_taesd(models / "VAE-taesd")
    print(json.dumps(sorted(str(path.relative_to(OUT)) for path in OUT.rglob("*"))))


def write_loras(folder, unet, text):
    """Those that LORAS names, and one that holds inf."""
    for name, (seed, with_text) in LORAS.items():
        about = {"ss_base_model_version": "sd_v1", "ss_network_module": "networks.lora", "ss_output_name": name}
        tensors = lora(unet, text, seed, with_text)
        save_file(tensors, folder / f"{name}.safetensors", metadata={**about, "ss_network_dim": str(RANK)})
    about = {"ss_base_model_version": "sd_v1", "ss_network_module": "networks.lora", "ss_output_name": "inflora"}
    tensors = lora(unet, text, 14, with_text=False)
    next(iter(tensors.values()))[0, 0] = float("inf")
    save_file(tensors, folder / "inflora.safetensors", metadata={**about, "ss_network_dim": str(RANK)})


main()
