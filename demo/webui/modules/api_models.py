"""The bodies of the API's requests."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class Txt2ImgRequest(BaseModel):
    """The fields of A1111's txt2img request that this host knows, `detailer`, and what works beside the model.

    Sizes in pixels; pictures are base64, with or without a data URL's head.
    """

    prompt: str = ""
    negative_prompt: str = ""
    seed: int = -1
    steps: int = 2
    cfg_scale: float = 7.0
    width: int = 64
    height: int = 64
    batch_size: int = 1
    n_iter: int = 1
    denoising_strength: float | None = None
    detailer: bool = False
    enable_hr: bool = False
    hr_scale: float = 2.0
    hr_upscaler: str = "Latent"
    hr_second_pass_steps: int = 0
    controlnet: str | None = None
    control_image: str | None = None
    ip_adapter: str | list[str] | None = None
    ip_adapter_image: str | None = None
    refiner_checkpoint: str | None = None
    refiner_switch_at: float = 0.5
    alwayson_scripts: dict[str, Any] = {}


class Img2ImgRequest(BaseModel):
    """As `Txt2ImgRequest`. White in `mask` is repainted."""

    init_images: list[str]
    mask: str | None = None
    controlnet: str | None = None
    control_image: str | None = None
    ip_adapter: str | list[str] | None = None
    ip_adapter_image: str | None = None
    prompt: str = ""
    negative_prompt: str = ""
    seed: int = -1
    steps: int = 2
    cfg_scale: float = 7.0
    width: int = 64
    height: int = 64
    batch_size: int = 1
    n_iter: int = 1
    denoising_strength: float = 0.75
    detailer: bool = False
    alwayson_scripts: dict[str, Any] = {}
