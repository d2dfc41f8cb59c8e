"""Loading, switching and unloading of checkpoints, which are diffusers folders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    ControlNetModel,
    DiffusionPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)

from modules import devices, memory, paths, script_callbacks, shared

#: The pipelines that work on an existing picture or with a ControlNet, by the class of the loaded one.
SIBLINGS: dict[str, dict[str, type[DiffusionPipeline]]] = {
    "StableDiffusionPipeline": {
        "img2img": StableDiffusionImg2ImgPipeline,
        "inpaint": StableDiffusionInpaintPipeline,
        "controlnet_txt2img": StableDiffusionControlNetPipeline,
        "controlnet_img2img": StableDiffusionControlNetImg2ImgPipeline,
        "controlnet_inpaint": StableDiffusionControlNetInpaintPipeline,
    },
    "StableDiffusionXLPipeline": {
        "img2img": StableDiffusionXLImg2ImgPipeline,
        "inpaint": StableDiffusionXLInpaintPipeline,
        "controlnet_txt2img": StableDiffusionXLControlNetPipeline,
        "controlnet_img2img": StableDiffusionXLControlNetImg2ImgPipeline,
        "controlnet_inpaint": StableDiffusionXLControlNetInpaintPipeline,
    },
    "StableDiffusion3Pipeline": {
        "img2img": StableDiffusion3Img2ImgPipeline,
        "inpaint": StableDiffusion3InpaintPipeline,
    },
}


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint on disk."""

    name: str
    filename: str

    @property
    def title(self) -> str:
        """The name shown to the user."""
        return self.name

    model_name = title
    name_for_extra = title


class SdModelData:
    """The loaded model: `sd_model` is a diffusers pipeline, or None."""

    def __init__(self) -> None:
        self.sd_model: Any = None
        #: The values of `LOADING` that the model was loaded with.
        self.loaded_as: tuple[Any, ...] | None = None
        self.controlnets: dict[tuple[str, torch.dtype], ControlNetModel] = {}
        #: The refiner's checkpoint and its UNet.
        self.refiner: tuple[str, Any] | None = None
        #: What previews are decoded with.
        self.taesd: AutoencoderTiny | None = None

    def get_sd_model(self) -> Any:
        """The model; loads it when there is none."""
        if self.sd_model is None:
            load_model()
        return self.sd_model


model_data = SdModelData()


def checkpoints() -> list[CheckpointInfo]:
    """The checkpoints of the models folder."""
    return [CheckpointInfo(name, str(path)) for name, path in paths.subfolders("Stable-diffusion").items()]


#: The options that a model is loaded by; a change of one loads it anew.
LOADING = ("sd_model_checkpoint", "cuda_dtype", "no_half_vae", "unet_storage", "offload_mode")


def _wanted() -> tuple[Any, ...]:
    return tuple(getattr(shared.opts, name) for name in LOADING)


def load_model() -> Any:
    """Load what the options name, and fire `on_model_loaded`. Raises ValueError for an unknown checkpoint."""
    wanted = _wanted()
    name = shared.opts.sd_model_checkpoint
    folder = paths.subfolders("Stable-diffusion").get(name)
    if folder is None:
        raise ValueError(f"no checkpoint is called {name!r}; there are {[info.name for info in checkpoints()]}")
    devices.configure(shared.opts.cuda_dtype, bool(shared.opts.no_half_vae))
    vae = AutoencoderKL.from_pretrained(str(folder / "vae"), torch_dtype=devices.dtype_vae, local_files_only=True)
    pipe = DiffusionPipeline.from_pretrained(str(folder), vae=vae, torch_dtype=devices.dtype, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.sd_checkpoint_info = CheckpointInfo(name, str(folder))
    pipe.sd_model_checkpoint = str(folder)
    pipe.loaded_loras = []
    _load_embeddings(pipe)
    memory.apply(pipe)
    model_data.sd_model, model_data.loaded_as = pipe, wanted
    apply_vae_options()
    script_callbacks.model_loaded_callback(pipe)
    return pipe


def _load_embeddings(pipe: Any) -> None:
    """Give every textual inversion its file's name as token. Only SD1.5 takes these one-encoder files."""
    if type(pipe).__name__ != "StableDiffusionPipeline":
        return
    for token, path in paths.files("embeddings", ".safetensors").items():
        pipe.load_textual_inversion(str(path), token=token)


def reload_model_weights(force: bool = False) -> Any:
    """Load anew when an option of `LOADING` changed, or with `force`."""
    if force or model_data.loaded_as != _wanted():
        unload_model_weights()
        return load_model()
    return model_data.sd_model


def unload_model_weights() -> None:
    """Drop the model and all that was loaded beside it."""
    model_data.sd_model = model_data.loaded_as = model_data.refiner = model_data.taesd = None
    model_data.controlnets.clear()


def apply_vae_options() -> None:
    """Bring tiling and slicing of the loaded VAE to what the options say."""
    if model_data.sd_model is None:
        return
    vae = model_data.sd_model.vae
    (vae.enable_tiling if shared.opts.vae_tiling else vae.disable_tiling)()
    (vae.enable_slicing if shared.opts.vae_slicing else vae.disable_slicing)()


def pipeline_for(kind: str, controlnet: ControlNetModel | None = None) -> Any:
    """A pipeline of `kind` ("txt2img", "img2img", "inpaint") that shares the loaded model's components, with
    `controlnet` the one that takes it.

    Raises ValueError when the loaded model has no such pipeline.
    """
    base = model_data.get_sd_model()
    if kind == "txt2img" and controlnet is None:
        return base
    key = kind if controlnet is None else f"controlnet_{kind}"
    cls = SIBLINGS.get(type(base).__name__, {}).get(key)
    if cls is None:
        raise ValueError(f"{type(base).__name__} has no {key} pipeline")
    extra: dict[str, Any] = {} if controlnet is None else {"controlnet": controlnet}
    if "XL" not in cls.__name__ and "Diffusion3" not in cls.__name__:
        extra["requires_safety_checker"] = False
    pipe = cls(**base.components, **extra)
    pipe.set_progress_bar_config(disable=True)
    return pipe
