"""The embedded host's diffusers folders as SD.Next needs them.

They serve as they are but for SDXL: SD.Next takes pooled embeddings only from a second text encoder that is wider than
768 (prompt_parser_diffusers.py:702), so that one, and the UNet that reads it, are written anew. The IP-Adapter is laid
out as the Hub's cache is, because SD.Next fetches adapters and image encoder from there (ipadapter.py:29, :198).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from demo.bench import DEFAULT_DATA
from demo.models import VERSION, build
from demo.models.sizes import SIZES

#: Where SD.Next looks (Settings > Paths), by the embedded host's folder.
_PLACES = {
    "Stable-diffusion": "Diffusers",
    "Lora": "Lora",
    "embeddings": "embeddings",
    "ControlNet/tiny-sd15-controlnet": "control/controlnet/tiny-sd15-controlnet",
}
_KEPT = DEFAULT_DATA / "models-sdnext"
#: What would be `HF_HUB_CACHE`: it holds the IP-Adapter.
HUB = _KEPT / "huggingface"
#: The repository of IP-Adapters there, and the name of its one revision.
_ADAPTERS, _REVISION = HUB / "models--h94--IP-Adapter", "0" * 40
#: The files of what SD.Next calls Base, Base ViT-G, Light, Plus and Full Face (ipadapter.py:40-45). The last one's
#: holds another family than its name says.
_ADAPTER_FILES = {
    "ip-adapter_sd15": "tiny-ip-adapter_sd15",
    "ip-adapter_sd15_vit-G": "tiny-ip-adapter_sd15_vit-G",
    "ip-adapter_sd15_light": "tiny-ip-adapter_sd15_light",
    "ip-adapter-plus_sd15": "tiny-ip-adapter-plus_sd15",
    "ip-adapter-full-face_sd15": "tiny-ip-adapter_sd15_renamed",
}
#: A checkpoint that brings an image encoder along: ViT-bigG.
WITH_ENCODER = "tiny-sd15-encoder"
#: Raised when what is written here changes.
_OWN_VERSION = f"{VERSION}.5"

_WIDTH = 800


def write_models(folder: Path) -> None:
    """Fill a data folder's `models`."""
    stamp = _KEPT / "version.txt"
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != _OWN_VERSION:
        shutil.rmtree(_KEPT, ignore_errors=True)
        _build()
        stamp.write_text(_OWN_VERSION, encoding="utf-8")
    shutil.copytree(_KEPT, folder)


def _build() -> None:
    built = build(DEFAULT_DATA / "models")
    for source, place in _PLACES.items():
        shutil.copytree(built / source, _KEPT / place)
    for seed, name in enumerate(("tiny-sdxl", "tiny-sdxl-fp16fix", "tiny-sdxl-refiner")):
        # The first two are one model; a refiner is another one.
        _widen(_KEPT / "Diffusers" / name, 61 + 10 * (seed // 2))
    _cache_adapters(built / "IP-Adapter", _ADAPTERS)
    _write_sdxl_adapter(_KEPT / "Diffusers" / "tiny-sdxl", _ADAPTERS / "snapshots" / _REVISION / "sdxl_models")
    _bring_encoder(_KEPT / "Diffusers" / "tiny-sd15", built / "IP-Adapter" / "sdxl_models" / "image_encoder")
    _write_taesd(_KEPT / "TAESD" / "taesd_13_decoder_sd.pth")


def _cache_adapters(source: Path, cache: Path) -> None:
    """Lay adapters and image encoders out as if they had been fetched."""
    place = cache / "snapshots" / _REVISION
    for folder in ("models", "sdxl_models"):
        shutil.copytree(source / folder / "image_encoder", place / folder / "image_encoder")
    for name, file in _ADAPTER_FILES.items():
        shutil.copyfile(source / "models" / f"{file}.safetensors", place / "models" / f"{name}.safetensors")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(_REVISION, encoding="utf-8")


def _write_sdxl_adapter(checkpoint: Path, folder: Path) -> None:
    """What SD.Next calls Base SDXL (ipadapter.py:50), for the UNet that was widened."""
    from diffusers import UNet2DConditionModel

    from demo.models.adapters import plain

    unet = UNet2DConditionModel.from_pretrained(str(checkpoint / "unet"))
    plain(1280)(folder / "ip-adapter_sdxl.safetensors", unet, 111)


def _bring_encoder(checkpoint: Path, encoder: Path) -> None:
    """A copy of a checkpoint with an image encoder in it."""
    place = checkpoint.with_name(WITH_ENCODER)
    shutil.copytree(checkpoint, place)
    shutil.copytree(encoder, place / "image_encoder")
    index = json.loads((place / "model_index.json").read_text(encoding="utf-8"))
    index["image_encoder"] = ["transformers", "CLIPVisionModelWithProjection"]
    (place / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def _widen(checkpoint: Path, first_seed: int) -> None:
    """Write a wide second text encoder and the UNet for it in the place of the narrow ones."""
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    from demo.models.weights import randomize

    text = json.loads((checkpoint / "text_encoder_2" / "config.json").read_text(encoding="utf-8"))
    shape = {"hidden_size": _WIDTH, "intermediate_size": _WIDTH, "num_hidden_layers": 1}
    unet = json.loads((checkpoint / "unet" / "config.json").read_text(encoding="utf-8"))
    made = {
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**{**text, **shape})),
        "unet": UNet2DConditionModel.from_config({**unet, "cross_attention_dim": SIZES.clip_width + _WIDTH}),
    }
    for seed, (name, module) in enumerate(made.items(), first_seed):
        randomize(module, seed)
        shutil.rmtree(checkpoint / name)
        module.to(torch.float16).eval().save_pretrained(str(checkpoint / name))


def _write_taesd(path: Path) -> None:
    """A TAESD decoder of random weights, in the layers' order of its published files (modules/taesd/taesd.py)."""
    import torch

    generator, state = torch.Generator().manual_seed(7), {}

    def convolution(name: str, given: int, made: int, bias: bool = True) -> None:
        state[f"{name}.weight"] = torch.randn(made, given, 3, 3, generator=generator) * 0.04
        if bias:
            state[f"{name}.bias"] = torch.zeros(made)

    convolution("1", 4, 64)
    for block in (3, 4, 5, 8, 9, 10, 13, 14, 15, 18):
        for inner in (0, 2, 4):
            convolution(f"{block}.conv.{inner}", 64, 64)
    for plain in (7, 12, 17):
        convolution(str(plain), 64, 64, bias=False)
    convolution("19", 64, 3)
    path.parent.mkdir(parents=True)
    torch.save(state, path)
