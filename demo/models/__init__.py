"""Builds the tiny checkpoints and adapters that the embedded host runs on.

Random weights, real architectures, no downloads; the same bytes at every run.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from demo.models import adapters, checkpoints
from demo.models.sizes import SIZES

#: Raised when the files change, so that an older folder is rebuilt.
VERSION = "8"


def build(folder: Path) -> Path:
    """Make `folder` hold every model, and return it. A folder that is up to date is left as it is.

    The layout is A1111's: `Stable-diffusion/`, `Lora/`, `ControlNet/`, `VAE-approx/`, `embeddings/`; in `IP-Adapter/`
    it is that of the adapters' repository.
    """
    stamp = folder / "version.txt"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == VERSION:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _write_all(folder)
    stamp.write_text(VERSION, encoding="utf-8")
    return folder


def _write_all(folder: Path) -> None:
    models, lora = folder / "Stable-diffusion", folder / "Lora"
    unet, text = checkpoints.write_sd15(models / "tiny-sd15")
    unet_xl = checkpoints.write_sdxl(models / "tiny-sdxl", force_upcast=True)
    checkpoints.write_sdxl(models / "tiny-sdxl-fp16fix", force_upcast=False)
    checkpoints.write_sdxl(models / "tiny-sdxl-refiner", force_upcast=True, unet_seed=61)
    checkpoints.write_sd3(models / "tiny-sd3")
    checkpoints.write_auraflow(models / "tiny-auraflow")
    checkpoints.write_controlnet(folder / "ControlNet" / "tiny-sd15-controlnet")
    checkpoints.write_controlnet_xl(folder / "ControlNet" / "tiny-sdxl-controlnet")
    checkpoints.write_taesd(folder / "VAE-approx" / "taesd")
    checkpoints.write_image_encoder(folder / "IP-Adapter" / "models" / "image_encoder", checkpoints.VIT_H)
    checkpoints.write_image_encoder(folder / "IP-Adapter" / "sdxl_models" / "image_encoder", checkpoints.VIT_BIGG)
    for seed, (name, write) in enumerate(adapters.IP_ADAPTERS.items(), 101):
        write(folder / "IP-Adapter" / "models" / f"{name}.safetensors", unet, seed)
    adapters.plain(1280)(folder / "IP-Adapter" / "models" / "tiny-ip-adapter_sdxl.safetensors", unet_xl, 106)
    adapters.write_kohya(lora / "tiny-crimson.safetensors", {"lora_unet": unet, "lora_te": text}, 1)
    adapters.write_peft(lora / "tiny-azure.safetensors", unet, 2)
    adapters.write_kohya(lora / "tiny-xl-amber.safetensors", {"lora_unet": unet_xl}, 3)
    adapters.write_kohya(lora / "tiny-overflown.safetensors", {"lora_unet": unet}, 6, overflown=True)
    adapters.write_kohya(lora / "tiny-nowhere.safetensors", {"lora_unet_elsewhere": unet}, 7)
    adapters.write_kohya(lora / "tiny-idle.safetensors", {"lora_unet": unet}, 8, strength=0.0)
    for seed, family in enumerate(adapters.FAMILIES, 9):
        adapters.write_of_family(lora / f"made-for-{family}.safetensors", family, seed)
    adapters.write_embedding(folder / "embeddings" / "tiny-style.safetensors", SIZES.clip_width, 2, 4)
