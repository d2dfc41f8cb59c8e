"""The reported faults, each with what provokes it, the request that shows it, and the clean picture.

Nothing is raised here on purpose: a fault is a setting that users have, or a weight in another dtype than its
neighbours, and what fails is diffusers or torch.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from PIL import Image, ImageDraw

from demo.bench import Bench, Reply

HEALTHY = {"sd_model_checkpoint": "tiny-sd15", "cuda_dtype": "FP32", "no_half_vae": False}
SIZE = 64
PROMPT = "a red cat on a green chair"


@dataclass(frozen=True)
class Call:
    """One request: "txt2img" or "img2img", and its body without script arguments."""

    endpoint: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """One row of the check."""

    id: str
    #: One sentence, as a user would say it.
    title: str
    #: The settings that provoke it, or that it needs.
    options: dict[str, Any]
    request: Call
    #: What is done to the loaded VAE.
    damage: Callable[[Any], None] | None = None
    #: Requests that come before the one that fails, in the same session.
    before: tuple[Call, ...] = ()
    #: Whether a healthy configuration gives a picture to compare with.
    comparable: bool = True

    def provoke(self, bench: Bench) -> None:
        """Bring the host into the state in which the request fails."""
        bench.options(**{**HEALTHY, **self.options})
        if self.damage is not None:
            with torch.no_grad():
                self.damage(bench.shared.sd_model.vae)

    def heal(self, bench: Bench) -> None:
        """Back to healthy settings and weights fresh from the disk."""
        # Unloaded first, so that the weights come back once, with the next setting or request.
        bench.post("/sdapi/v1/unload-checkpoint")
        bench.options(**HEALTHY)

    def run(self, bench: Bench, scripts: dict[str, Any]) -> Reply:
        """Send the requests in order, with `scripts` as their script arguments; the last one's answer.

        A failure of an earlier request is the answer as well.
        """
        for call in self.before:
            reply = send(bench, call, scripts)
            if reply.status != 200:
                return reply
        return send(bench, self.request, scripts)

    def reference(self, bench: Bench, scripts: dict[str, Any]) -> list[np.ndarray] | None:
        """The clean pictures: the same state and request, by a caller that minds the VAE's dtype.

        The fault must be provoked. `scripts` switches LibGuard off. Raises RuntimeError when the reference fails.
        """
        if not self.comparable:
            return None
        with aligned(bench.shared.sd_model.vae):
            reply = self.run(bench, scripts)
        found = pictures(reply)
        if not found:
            raise RuntimeError(f"{self.id}: the reference gave no picture: {reply.json}")
        return found


def send(bench: Bench, call: Call, scripts: dict[str, Any]) -> Reply:
    """Send one request."""
    return bench.post(f"/sdapi/v1/{call.endpoint}", {**call.body, "alwayson_scripts": scripts})


def pictures(reply: Reply) -> list[np.ndarray]:
    """The pictures of an answer, each (height, width, 3) uint8; none after a failure."""
    if reply.status != 200:
        return []
    files = [io.BytesIO(base64.b64decode(text)) for text in reply.json["images"]]
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


class _Posterior:
    """A latent distribution that computes in its own dtype and hands its samples over in the caller's."""

    def __init__(self, inner: Any, dtype: torch.dtype) -> None:
        self._inner, self._dtype = inner, dtype

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        return self._inner.sample(generator).to(self._dtype)

    def mode(self) -> torch.Tensor:
        return self._inner.mode().to(self._dtype)


@contextmanager
def aligned(vae: Any) -> Iterator[None]:
    """What a correct caller does: speak to the VAE in the dtype it has, and take its latents back in one's own."""
    encode, decode = vae.encode, vae.decode

    def aligned_encode(x: torch.Tensor, return_dict: bool = True) -> Any:
        dtype = vae.encoder.conv_in.weight.dtype
        inner = encode(x.to(dtype), return_dict=False)[0]
        posterior = _Posterior(inner, x.dtype)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def aligned_decode(z: torch.Tensor, return_dict: bool = True, generator: Any = None) -> Any:
        return decode(z.to(vae.decoder.conv_in.weight.dtype), return_dict=return_dict, generator=generator)

    vae.encode, vae.decode = aligned_encode, aligned_decode
    try:
        yield
    finally:
        # The instance attributes only; the class's methods come to light again.
        del vae.encode, vae.decode


def _init_image() -> str:
    image = Image.linear_gradient("L").resize((SIZE, SIZE)).convert("RGB")
    ImageDraw.Draw(image).ellipse((12, 16, 44, 52), fill=(200, 60, 40))
    return _base64(image)


def _mask() -> str:
    image = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(image).rectangle((16, 16, 48, 48), fill=255)
    return _base64(image)


def _base64(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


BASE = {"prompt": PROMPT, "negative_prompt": "blurry", "seed": 7, "steps": 2, "width": SIZE, "height": SIZE}
INIT = {"init_images": [_init_image()], "denoising_strength": 0.6}

TXT2IMG = Call("txt2img", BASE)
DETAILER = Call("txt2img", {**BASE, "detailer": True})
INPAINT = Call("img2img", {**BASE, **INIT, "mask": _mask()})
CONTROLNET_INPAINT = Call("img2img", {**INPAINT.body, "controlnet": "tiny-sdxl-controlnet"})
ENCODING = {
    "img2img": Call("img2img", {**BASE, **INIT}),
    "inpaint": INPAINT,
    "hires": Call("txt2img", {**BASE, "enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Lanczos"}),
}


def _half_decoder(vae: Any) -> None:
    vae.decoder.half()


def _half_data(vae: Any) -> None:
    for parameter in vae.parameters():
        parameter.data = parameter.data.half()


def _half_state(vae: Any) -> None:
    vae.load_state_dict({name: tensor.half() for name, tensor in vae.state_dict().items()}, assign=True)


def _half_weight(vae: Any) -> None:
    vae.decoder.conv_in.weight.data = vae.decoder.conv_in.weight.data.half()


def _bfloat_block(vae: Any) -> None:
    vae.decoder.up_blocks[1].to(torch.bfloat16)


def _float_encoder(vae: Any) -> None:
    vae.encoder.float()
    vae.quant_conv.float()


def _mixed_vae() -> list[Fault]:
    rows = {
        "decoder": ("The VAE's decoder was converted to half, the rest was not", _half_decoder),
        "data": ("An extension assigned half weights through .data", _half_data),
        "assign": ("A half VAE file was loaded with load_state_dict(assign=True)", _half_state),
        "bias": ("One convolution has a half weight and a float bias", _half_weight),
        "block": ("One block of the VAE is bfloat16", _bfloat_block),
    }
    return [
        Fault(f"P06-D-{key}", title, {}, TXT2IMG, damage, comparable=False) for key, (title, damage) in rows.items()
    ]


#: Model and title: a float32 VAE beside a 16-bit model.
FLOAT_VAE = {
    "sd15": ("tiny-sd15", "Full precision VAE (--no-half-vae)"),
    "sdxl": ("tiny-sdxl-fp16fix", "SDXL with the fp16-fix VAE in full precision"),
}


def _float_vae_options(model: str, dtype: str) -> dict[str, Any]:
    return {"sd_model_checkpoint": FLOAT_VAE[model][0], "cuda_dtype": dtype, "no_half_vae": True}


def _float_vae() -> list[Fault]:
    return [
        Fault(
            f"P07-D-{model}-{dtype.lower()}-{kind}",
            f"{FLOAT_VAE[model][1]}, {dtype} model: {kind}",
            _float_vae_options(model, dtype),
            request,
        )
        for model in FLOAT_VAE
        for dtype in ("FP16", "BF16")
        for kind, request in ENCODING.items()
    ]


def _detailer() -> list[Fault]:
    rows = [
        Fault(
            f"P08-D-{model}-{dtype.lower()}",
            f"{FLOAT_VAE[model][1]}, {dtype} model: Detailer",
            _float_vae_options(model, dtype),
            DETAILER,
        )
        for model in FLOAT_VAE
        for dtype in ("FP16", "BF16")
    ]
    title = "Only the VAE's encoding half is float32, FP16 model: Detailer"
    return [*rows, Fault("P08-D-sd15-fp16-encoder", title, {"cuda_dtype": "FP16"}, DETAILER, _float_encoder)]


def _never_undone() -> list[Fault]:
    sdxl = {"sd_model_checkpoint": "tiny-sdxl", "cuda_dtype": "FP16"}
    aura = {"sd_model_checkpoint": "tiny-auraflow", "cuda_dtype": "FP16"}
    return [
        Fault("P09-D-sdxl-txt2img", f"{FLOAT_VAE['sdxl'][1]}: txt2img", _float_vae_options("sdxl", "FP16"), TXT2IMG),
        Fault(
            "P09-D-sdxl-controlnet",
            "SDXL ControlNet inpaint leaves its VAE in float32: the next picture",
            sdxl,
            TXT2IMG,
            before=(CONTROLNET_INPAINT,),
        ),
        Fault(
            "P09-D-auraflow",
            "AuraFlow leaves its VAE in float32: the second picture",
            aura,
            TXT2IMG,
            before=(TXT2IMG,),
        ),
    ]


FAULTS: list[Fault] = [*_mixed_vae(), *_float_vae(), *_detailer(), *_never_undone()]
