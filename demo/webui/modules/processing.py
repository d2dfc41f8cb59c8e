"""One generation: its parameters, and the order in which the scripts are called."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from modules import detailer, extra_networks, images, infotext_utils, sampling, scripts, sd_models, shared
from modules.shared import state


@dataclass
class StableDiffusionProcessing:
    """The parameters of one request, with A1111's attribute names. Sizes in pixels."""

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
    disable_extra_networks: bool = False
    #: Name of a ControlNet; its picture is `control_image`, in img2img the given picture where there is none.
    controlnet: str | None = None
    control_image: Image.Image | None = None
    #: One name or several; `ip_adapter_image` is for each of them.
    ip_adapter: str | list[str] | None = None
    ip_adapter_image: Image.Image | None = None
    #: Name of a checkpoint whose UNet takes over at that part of the sampling (SDXL, txt2img).
    refiner_checkpoint: str | None = None
    refiner_switch_at: float = 0.5
    do_not_save_samples: bool = True
    override_settings: dict[str, Any] = field(default_factory=dict)
    extra_generation_params: dict[str, Any] = field(default_factory=dict)
    #: SD.Next's order: a script's arguments as the API got them, by title.
    per_script_args: dict[str, Sequence[Any]] = field(default_factory=dict)

    iteration: int = field(default=0, init=False)
    all_prompts: list[str] | None = field(default=None, init=False)
    all_negative_prompts: list[str] | None = field(default=None, init=False)
    all_seeds: list[int] | None = field(default=None, init=False)
    prompts: list[str] = field(default_factory=list, init=False)
    negative_prompts: list[str] = field(default_factory=list, init=False)
    seeds: list[int] = field(default_factory=list, init=False)
    #: None until the first batch's prompts are parsed.
    extra_network_data: extra_networks.NetworkData | None = field(default=None, init=False)
    comments: dict[str, int] = field(default_factory=dict, init=False)
    #: Whether the last step of the batch was reached: tells a failure in sampling from one in decoding.
    sampled: bool = field(default=False, init=False)

    _scripts: scripts.ScriptRunner | None = field(default=None, init=False, repr=False)
    _script_args: Sequence[Any] = field(default=(), init=False, repr=False)
    _set_up: bool = field(default=False, init=False, repr=False)

    @property
    def sd_model(self) -> Any:
        """The loaded pipeline."""
        return shared.sd_model

    @property
    def scripts(self) -> scripts.ScriptRunner | None:
        """The runner, None for a nested generation."""
        return self._scripts

    @scripts.setter
    def scripts(self, value: scripts.ScriptRunner | None) -> None:
        self._scripts = value

    @property
    def script_args(self) -> Sequence[Any]:
        """The arguments of all scripts; A1111's `setup` hook runs when they are set."""
        return self._script_args

    @script_args.setter
    def script_args(self, value: Sequence[Any]) -> None:
        self._script_args = tuple(value)
        if self._scripts is not None and not self._set_up and shared.order == "a1111":
            self._set_up = True
            self._scripts.call("setup", self)

    def comment(self, text: str) -> None:
        """Add a line that is shown under the picture."""
        self.comments[text] = 1

    def close(self) -> None:
        """The end of the generation, also after a failure."""
        self._script_args = ()

    def setup_prompts(self) -> None:
        """Fill `all_prompts`, `all_negative_prompts` and `all_seeds`, one for each picture."""
        count = self.batch_size * self.n_iter
        first = random.randrange(2**32) if self.seed == -1 else int(self.seed)
        self.seed = first
        self.all_prompts = [self.prompt] * count
        self.all_negative_prompts = [self.negative_prompt] * count
        self.all_seeds = [first + index for index in range(count)]

    def take_batch(self, number: int) -> None:
        """Make batch `number` the current one."""
        part = slice(number * self.batch_size, (number + 1) * self.batch_size)
        self.iteration, self.sampled = number, False
        self.prompts = list((self.all_prompts or [])[part])
        self.negative_prompts = list((self.all_negative_prompts or [])[part])
        self.seeds = list((self.all_seeds or [])[part])

    def parse_extra_network_prompts(self) -> None:
        """Take the tags out of `prompts` into `extra_network_data`."""
        self.prompts, self.extra_network_data = extra_networks.parse_prompts(self.prompts)

    def batch_arguments(self) -> dict[str, Any]:
        """The keyword arguments of the callbacks of a batch."""
        return {"batch_number": self.iteration, "prompts": self.prompts, "seeds": self.seeds, "subseeds": self.seeds}

    def call(self, hook: str, *args: Any, **kwargs: Any) -> None:
        """Call a hook of the scripts, if this generation has any."""
        if self._scripts is not None:
            self._scripts.call(hook, self, *args, **kwargs)

    def sample(self) -> torch.Tensor:
        """The pictures of the current batch, (batch, 3, height, width), values 0..1."""
        return sampling.txt2img(self)

    def infotext(self, index: int) -> str:
        """The infotext of picture `index` of the current batch."""
        parameters: dict[str, Any] = {
            "Steps": self.steps,
            "Sampler": type(shared.sd_model.scheduler).__name__.removesuffix("Scheduler"),
            "CFG scale": self.cfg_scale,
            "Seed": self.seeds[index],
            "Size": f"{self.width}x{self.height}",
            "Model": shared.sd_model.sd_checkpoint_info.name,
            "Denoising strength": self.denoising_strength,
            **self.extra_generation_params,
        }
        return infotext_utils.build(self.prompt, self.negative_prompt, parameters)


@dataclass
class StableDiffusionProcessingTxt2Img(StableDiffusionProcessing):
    """A text to image request. `hr_upscaler` "Latent" enlarges latents, any other one the decoded picture."""

    enable_hr: bool = False
    hr_scale: float = 2.0
    hr_upscaler: str = "Latent"
    hr_second_pass_steps: int = 0

    def sample(self) -> torch.Tensor:
        """As in the base class, with the second pass when `enable_hr` is set."""
        return sampling.hires(self) if self.enable_hr else sampling.txt2img(self)


@dataclass
class StableDiffusionProcessingImg2Img(StableDiffusionProcessing):
    """An image to image request; with `mask` (white is repainted) an inpaint request."""

    init_images: list[Image.Image] = field(default_factory=list)
    mask: Image.Image | None = None

    def sample(self) -> torch.Tensor:
        """As in the base class, from the first of `init_images`."""
        return sampling.img2img(self)


class Processed:
    """The result of a generation."""

    def __init__(self, p: StableDiffusionProcessing, images_list: list[Image.Image], infotexts: list[str]) -> None:
        self.images = images_list
        self.infotexts = infotexts
        self.prompt, self.negative_prompt = p.prompt, p.negative_prompt
        self.all_prompts, self.all_seeds, self.seed = p.all_prompts, p.all_seeds, p.seed
        self.extra_generation_params = p.extra_generation_params
        self.comments = "".join(f"{comment}\n" for comment in p.comments)
        self.info = infotexts[0] if infotexts else ""

    def js(self) -> str:
        """The JSON text of the API's `info`."""
        names = ("prompt", "negative_prompt", "all_prompts", "all_seeds", "seed", "infotexts")
        values = {name: getattr(self, name) for name in (*names, "extra_generation_params")}
        return json.dumps({**values, "comments": self.comments}, default=str)


def process_images(p: StableDiffusionProcessing) -> Processed:
    """Run a generation with the callbacks of `shared.order`.

    Raises what sampling or decoding raises; in SD.Next's order RuntimeError, ValueError, AssertionError and everything
    from decoding end in a result without pictures instead.
    """
    # After an unload the model comes back here, so that no script meets a host without one.
    sd_models.model_data.get_sd_model()
    if shared.order == "sdnext":
        from modules import sdnext_order

        return sdnext_order.process_images(p)
    p.call("before_process")
    return process_images_inner(p)


def process_images_inner(p: StableDiffusionProcessing) -> Processed:
    """The generation proper; the Detailer's nested pass starts here."""
    if shared.order == "sdnext":
        from modules import sdnext_order

        return sdnext_order.process_images_inner(p)
    p.setup_prompts()
    p.call("process")
    pictures: list[Image.Image] = []
    infotexts: list[str] = []
    for number in range(p.n_iter):
        state.skipped = False
        if state.interrupted:
            break
        p.take_batch(number)
        batch, texts = _run_batch(p)
        pictures += batch
        infotexts += texts
    extra_networks.deactivate(p, p.extra_network_data)
    processed = Processed(p, pictures, infotexts)
    p.call("postprocess", processed)
    return processed


def _run_batch(p: StableDiffusionProcessing) -> tuple[list[Image.Image], list[str]]:
    arguments = p.batch_arguments()
    p.call("before_process_batch", **arguments)
    p.parse_extra_network_prompts()
    if not p.disable_extra_networks:
        extra_networks.activate(p, p.extra_network_data or {})
    p.call("process_batch", **p.batch_arguments())
    decoded = p.sample()
    p.call("postprocess_batch", decoded, batch_number=p.iteration)
    return finish_batch(p, decoded)


def finish_batch(p: StableDiffusionProcessing, decoded: torch.Tensor) -> tuple[list[Image.Image], list[str]]:
    """From decoded pictures to finished ones, with the callbacks that both hosts have and A1111's own."""
    args = scripts.PostprocessBatchListArgs(list(decoded))
    p.call("postprocess_batch_list", args, batch_number=p.iteration)
    pictures, infotexts = [], []
    for index, picture in enumerate(images.from_tensor(torch.stack(args.images)) if args.images else []):
        detailed = detailer.detail(p, picture, p.seeds[index]) if p.detailer else picture
        pictures.append(_finish_image(p, detailed, index))
        infotexts.append(p.infotext(index))
    return pictures, infotexts


def _finish_image(p: StableDiffusionProcessing, picture: Image.Image, index: int) -> Image.Image:
    args = scripts.PostprocessImageArgs(picture, index)
    p.call("postprocess_image", args)
    if shared.order == "a1111":
        p.call("postprocess_maskoverlay", scripts.PostProcessMaskOverlayArgs(index, None, None))
        p.call("postprocess_image_after_composite", args)
    return args.image
