"""From parameters to pictures: the calls of the diffusers pipelines.

Nothing here helps with precision. What the pipelines do with dtypes, and where they fail, is their own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from modules import controlnet, extra_networks, images, ip_adapter, refiner, sd_models, shared
from modules.scripts import PostSampleArgs
from modules.shared import state

if TYPE_CHECKING:
    from modules.processing import StableDiffusionProcessing, StableDiffusionProcessingImg2Img

DEFAULT_STRENGTH = 0.75


def txt2img(p: StableDiffusionProcessing) -> torch.Tensor:
    """One pass from noise. Returns (batch, 3, height, width), values 0..1, as all functions here."""
    return _first_pass(p, output_type="pt", last=True)


def _first_pass(p: StableDiffusionProcessing, output_type: str, last: bool) -> torch.Tensor:
    ip_adapter.apply(p)
    _before_sampling(p)
    given = {"width": p.width, "height": p.height}
    if not p.refiner_checkpoint:
        return _run(p, "txt2img", last, output_type=output_type, **given)
    at = p.refiner_switch_at
    latents = _run(p, "txt2img", last=False, output_type="latent", denoising_end=at, **given)
    return _run(p, "refiner", last, output_type=output_type, image=latents, denoising_start=at)


def img2img(p: StableDiffusionProcessingImg2Img) -> torch.Tensor:
    """A pass that starts from the first of `p.init_images`, or inpaints it where `p.mask` is white."""
    size = (p.width, p.height)
    picture = p.init_images[0].convert("RGB").resize(size)
    ip_adapter.apply(p)
    _before_sampling(p)
    if p.mask is None:
        return _run(p, "img2img", last=True, image=picture, **_strength(p))
    values: dict[str, Any] = {"mask_image": p.mask.convert("L").resize(size), "width": p.width, "height": p.height}
    return _run(p, "inpaint", last=True, image=picture, **values, **_strength(p))


def hires(p: Any) -> torch.Tensor:
    """Two passes: small, then enlarged and partly sampled anew. A latent upscaler skips decode and encode between."""
    latent = p.hr_upscaler.startswith("Latent")
    first = _first_pass(p, output_type="latent" if latent else "pt", last=False)
    width, height = (int(side * p.hr_scale) // 16 * 16 for side in (p.width, p.height))
    if latent:
        factor = sd_models.model_data.sd_model.vae_scale_factor
        enlarged: Any = torch.nn.functional.interpolate(first, size=(height // factor, width // factor))
    else:
        enlarged = [image.resize((width, height), Image.Resampling.LANCZOS) for image in images.from_tensor(first)]
    p.extra_generation_params.update({"Hires upscale": p.hr_scale, "Hires upscaler": p.hr_upscaler})
    if shared.order == "a1111":
        if not p.disable_extra_networks:
            extra_networks.activate(p, p.extra_network_data)
        p.call("before_hr")
    _before_sampling(p)
    # In A1111 hires decodes inside sampling, so that `post_sample` gets the decoded pictures.
    strength = _strength(p, p.hr_second_pass_steps)
    decoded = _run(p, "img2img", last=True, post_sample=False, size=(width, height), image=enlarged, **strength)
    return _post_sample(p, decoded)


def _before_sampling(p: StableDiffusionProcessing) -> None:
    if shared.order == "a1111":
        p.call("process_before_every_sampling")


def _post_sample(p: StableDiffusionProcessing, samples: torch.Tensor) -> torch.Tensor:
    args = PostSampleArgs(samples)
    if shared.order == "a1111":
        p.call("post_sample", args)
    return args.samples


def _strength(p: StableDiffusionProcessing, steps: int = 0) -> dict[str, Any]:
    strength = DEFAULT_STRENGTH if p.denoising_strength is None else p.denoising_strength
    # A pipeline runs steps * strength steps, and refuses to run none.
    least = math.ceil(1 / max(strength, 0.01))
    return {"strength": strength, "num_inference_steps": max(steps or p.steps, least)}


def _run(
    p: StableDiffusionProcessing,
    kind: str,
    last: bool,
    post_sample: bool = True,
    size: tuple[int, int] | None = None,
    **kwargs: Any,
) -> Any:
    """Call the pipeline of `kind`; `last` says that this pass is the last one, whose samples go to `post_sample`.

    size: of this pass's pictures where that is not the request's.
    """
    pipe = _pipeline(p, kind, size or (p.width, p.height), kwargs)
    kwargs.update(ip_adapter.arguments(p, pipe))
    steps = kwargs.setdefault("num_inference_steps", p.steps)
    state.sampling_step, state.sampling_steps = 0, steps

    def on_step(running: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        state.sampling_step = step + 1
        state.current_latent = latents = tensors["latents"]
        stop = state.interrupted or state.skipped
        if stop:
            running._interrupt = True
        if last and not p.sampled and (stop or step + 1 == running.num_timesteps):
            p.sampled = True
            latents = _post_sample(p, latents) if post_sample else latents
        return {"latents": latents}

    return pipe(
        prompt=p.prompts,
        negative_prompt=p.negative_prompts,
        guidance_scale=p.cfg_scale,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in p.seeds],
        callback_on_step_end=on_step,
        callback_on_step_end_tensor_inputs=["latents"],
        **{"output_type": "pt", **kwargs},
    ).images


def _pipeline(p: Any, kind: str, size: tuple[int, int], values: dict[str, Any]) -> Any:
    """The pipeline of `kind`; where a ControlNet works in it, its picture is added to the values for the call."""
    if kind == "refiner":
        return refiner.pipeline(p.refiner_checkpoint or "")
    if not p.controlnet:
        return sd_models.pipeline_for(kind)
    picture = p.control_image or p.init_images[0]
    values["image" if kind == "txt2img" else "control_image"] = picture.convert("RGB").resize(size)
    return sd_models.pipeline_for(kind, controlnet.get(p.controlnet))
