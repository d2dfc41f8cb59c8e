"""A refiner: a second UNet that takes the sampling over on the way. Loaded when first needed, kept with the model."""

from __future__ import annotations

from typing import Any

from diffusers import UNet2DConditionModel

from modules import devices, paths, sd_models


def pipeline(name: str) -> Any:
    """The pipeline that takes over: the model's own, with the refiner's UNet. Raises ValueError where there is none."""
    pipe = sd_models.pipeline_for("img2img")
    if type(pipe).__name__ != "StableDiffusionXLImg2ImgPipeline":
        raise ValueError(f"{type(pipe).__name__} takes no refiner")
    loaded = sd_models.model_data.refiner
    if loaded is None or loaded[0] != name:
        load(name)
    pipe.unet = sd_models.model_data.refiner[1]
    return pipe


def load(name: str) -> None:
    """Load a checkpoint's UNet as the refiner. Raises ValueError for an unknown one."""
    folder = paths.subfolders("Stable-diffusion").get(name)
    if folder is None:
        raise ValueError(f"no checkpoint is called {name!r}")
    unet = UNet2DConditionModel.from_pretrained(str(folder / "unet"), torch_dtype=devices.dtype, local_files_only=True)
    sd_models.model_data.refiner = name, unet
