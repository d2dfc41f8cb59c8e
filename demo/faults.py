"""The reported faults, each with what provokes it, the request that shows it, and the clean picture.

Nothing is raised here on purpose: a fault is a setting that users have, or a weight in another dtype than its
neighbours, and what fails is diffusers or torch.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from demo.bench import Bench, Reply
from demo.correct_caller import aligned, healed_vectors, in_float32
from demo.damages import (
    bfloat_block,
    converted,
    float_embeddings,
    float_encoder,
    float_text_encoders,
    half_data,
    half_decoder,
    half_state,
    half_weight,
    overflowing,
    written_vectors,
)

#: Every option that a fault or a test changes, as it is on a fresh host.
HEALTHY = {
    "sd_model_checkpoint": "tiny-sd15",
    "cuda_dtype": "FP32",
    "no_half_vae": False,
    "vae_tiling": False,
    "controlnet_dtype": "As the model",
    "unet_storage": "As computed",
    "offload_mode": "none",
    "lora_method": "adapters",
    "live_previews": False,
    "show_progress_type": "Full",
}
SIZE = 64
PROMPT = "a red cat on a green chair"


@dataclass(frozen=True)
class Call:
    """One request: "txt2img" or "img2img", and its body without script arguments; or "options", and what is set."""

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
    #: What is done to the loaded pipeline.
    damage: Callable[[Any], None] | None = None
    #: Requests that come before the one that fails, in the same session.
    before: tuple[Call, ...] = ()
    #: How the pipeline is to be called for the clean picture; None where no healthy way of calling it exists.
    clean: Callable[[Any], AbstractContextManager[None]] | None = aligned
    #: The code of a fault that nobody can repair: its picture is lost, and LibGuard says why.
    told: str = ""
    #: Whether `before` does the harm: the clean picture is then the request's own on fresh weights.
    leaves: bool = False
    #: The request without what is lost silently; without LibGuard both give the same picture.
    lost: Call | None = None

    def provoke(self, bench: Bench) -> None:
        """Bring the host into the state in which the request fails."""
        bench.options(**{**HEALTHY, **self.options})
        if self.damage is not None:
            with torch.no_grad():
                self.damage(bench.shared.sd_model)

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
        """The clean pictures: the same state and request, by a caller that minds the dtypes, or that comes first.

        The fault must be provoked. `scripts` switches LibGuard off. Raises RuntimeError when the reference fails.
        """
        if self.clean is None or self.told:
            return None
        if self.leaves:
            return pictures(send(bench, self.request, scripts))
        with self.clean(bench.shared.sd_model):
            reply = self.run(bench, scripts)
        found = pictures(reply)
        if not found:
            raise RuntimeError(f"{self.id}: the reference gave no picture: {reply.json}")
        return found


def send(bench: Bench, call: Call, scripts: dict[str, Any]) -> Reply:
    """Send one request."""
    if call.endpoint == "options":
        bench.options(**call.body)
        return Reply(200, None)
    return bench.post(f"/sdapi/v1/{call.endpoint}", {**call.body, "alwayson_scripts": scripts})


def pictures(reply: Reply) -> list[np.ndarray]:
    """The pictures of an answer, each (height, width, 3) uint8; none after a failure."""
    if reply.status != 200:
        return []
    files = [io.BytesIO(base64.b64decode(text)) for text in reply.json["images"]]
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


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


OVERDONE = Call("txt2img", {**BASE, "prompt": f"{PROMPT} <lora:tiny-crimson:80>", "steps": 4})
OVERFLOWN = Call("txt2img", {**BASE, "prompt": f"{PROMPT} <lora:tiny-overflown:1>"})


def controlled(controlnet: str) -> Call:
    """txt2img under a ControlNet."""
    return Call("txt2img", {**BASE, "controlnet": controlnet, "control_image": _init_image()})


def adapted(call: Call) -> Call:
    """The request with an IP-Adapter."""
    adapter = {"ip_adapter": "tiny-ip-adapter_sd15", "ip_adapter_image": _init_image()}
    return Call(call.endpoint, {**call.body, **adapter})


def _mixed_vae() -> list[Fault]:
    rows = {
        "decoder": ("The VAE's decoder was converted to half, the rest was not", half_decoder),
        "data": ("An extension assigned half weights through .data", half_data),
        "assign": ("A half VAE file was loaded with load_state_dict(assign=True)", half_state),
        "bias": ("One convolution has a half weight and a float bias", half_weight),
        "block": ("One block of the VAE is bfloat16", bfloat_block),
    }
    return [Fault(f"P06-D-{key}", title, {}, TXT2IMG, damage, clean=None) for key, (title, damage) in rows.items()]


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
    return [*rows, Fault("P08-D-sd15-fp16-encoder", title, {"cuda_dtype": "FP16"}, DETAILER, float_encoder)]


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


SD3 = "tiny-sd3"


def _text_projection() -> list[Fault]:
    rows = {
        "bf16": ("BF16", "text_encoder.text_projection", torch.float16),
        "fp16": ("FP16", "text_encoder.text_projection", torch.bfloat16),
        "bf16-second": ("BF16", "text_encoder_2.text_projection", torch.float16),
    }
    return [
        Fault(
            f"P10-D-{key}",
            f"SD3: a {_short(dtype)} text projection in a {model} text encoder",
            {"sd_model_checkpoint": SD3, "cuda_dtype": model},
            TXT2IMG,
            converted(path, dtype),
            clean=None,
        )
        for key, (model, path, dtype) in rows.items()
    ]


def _short(dtype: torch.dtype) -> str:
    return {torch.float16: "FP16", torch.bfloat16: "BF16", torch.float32: "FP32"}[dtype]


def _mixed_unet() -> list[Fault]:
    blocks = {
        "bf16-block": ("tiny-sd15", "FP16", "unet.mid_block", torch.bfloat16),
        "half-block": ("tiny-sd15", "FP32", "unet.up_blocks.1", torch.float16),
        "sdxl-block": ("tiny-sdxl", "FP16", "unet.down_blocks.1", torch.bfloat16),
        "sd3-block": (SD3, "BF16", "transformer.transformer_blocks.0", torch.float16),
    }
    found = [
        Fault(
            f"P11-D-{key}",
            f"One {_short(dtype)} block in a {precision} {path.partition('.')[0]} ({model})",
            {"sd_model_checkpoint": model, "cuda_dtype": precision},
            TXT2IMG,
            converted(path, dtype),
            clean=None,
        )
        for key, (model, precision, path, dtype) in blocks.items()
    ]
    title = "The text encoders stayed in float32, the UNet is half"
    for model in ("sd15", "sdxl"):
        options = {"sd_model_checkpoint": f"tiny-{model}", "cuda_dtype": "FP16"}
        found.append(Fault(f"P11-D-context-{model}", title, options, TXT2IMG, float_text_encoders, clean=None))
    return found


def _foreign_controlnet() -> list[Fault]:
    rows = [("sd15", "FP16", "FP32"), ("sd15", "FP32", "FP16"), ("sdxl", "BF16", "FP32"), ("sdxl", "FP16", "BF16")]
    return [
        Fault(
            f"P13-D-{model}-{chosen.lower()}-in-{precision.lower()}",
            f"A {chosen} ControlNet beside a {precision} model",
            {"sd_model_checkpoint": f"tiny-{model}", "cuda_dtype": precision, "controlnet_dtype": chosen},
            controlled(f"tiny-{model}-controlnet"),
            clean=None,
        )
        for model, precision, chosen in rows
    ]


def _foreign_vectors() -> list[Fault]:
    half = {"cuda_dtype": "FP16"}
    written = "A textual inversion's float32 vectors are written into a half text encoder"
    kept = "The embeddings of a half text encoder are float32"
    return [
        Fault("P14-D-written", written, half, TXT2IMG, written_vectors, clean=healed_vectors),
        Fault("P14-D-data", kept, half, TXT2IMG, float_embeddings, clean=None),
    ]


def _stored_in_float8() -> list[Fault]:
    options = {"cuda_dtype": "FP16", "no_half_vae": True, "unet_storage": "float8_e4m3fn"}
    return [Fault("P16-D", "A UNet stored in float8, a float32 VAE: img2img", options, ENCODING["img2img"])]


def _overflow() -> list[Fault]:
    decode, encode, both = {"decode": 10_000}, {"encode": 30_000}, {"encode": 30_000, "decode": 30_000}
    rows = {
        "decode": ("A VAE whose decode overflows in half", "tiny-sd15", TXT2IMG, decode),
        "encode": ("A VAE whose encode overflows in half", "tiny-sd15", ENCODING["img2img"], encode),
        "both": ("A VAE that overflows in half both ways", "tiny-sd15", ENCODING["img2img"], both),
        "sd3": ("SD3: a VAE whose decode overflows in half", SD3, TXT2IMG, decode),
    }
    return [
        Fault(
            f"N01-D-{key}",
            title,
            {"sd_model_checkpoint": model, "cuda_dtype": "FP16"},
            request,
            overflowing(**factors),
            clean=in_float32(*factors),
        )
        for key, (title, model, request, factors) in rows.items()
    ]


def _not_finite() -> list[Fault]:
    return [
        Fault("N02-D-file", "A LoRA whose file holds inf", {}, OVERFLOWN, told="LG202"),
        Fault("N02-D-step", "Sampling in half diverges on the way", {"cuda_dtype": "FP16"}, OVERDONE, told="LG202"),
    ]


FAULTS: list[Fault] = [
    *(*_mixed_vae(), *_float_vae(), *_detailer(), *_never_undone()),
    *(*_text_projection(), *_mixed_unet(), *_foreign_controlnet(), *_foreign_vectors(), *_stored_in_float8()),
    *(*_overflow(), *_not_finite()),
]
