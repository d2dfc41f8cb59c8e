"""Tiny checkpoints of the real architectures as diffusers folders."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    AutoencoderTiny,
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from demo.models.sizes import SIZES
from demo.models.vocab import CLIP_LENGTH, write_clip, write_t5
from demo.models.weights import randomize

M = TypeVar("M", bound=nn.Module)

#: Real schedulers' settings of the Stable Diffusion families.
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@dataclass
class Folder:
    """One checkpoint folder being written; `index` becomes its model_index.json."""

    path: Path
    index: dict[str, object]

    def add(self, name: str, component: object) -> None:
        """Save `component` under `name`. The library is diffusers or transformers, by the class's module."""
        component.save_pretrained(str(self.path / name))  # type: ignore[attr-defined]
        self.declare(name, type(component).__module__.split(".")[0], type(component).__name__)

    def declare(self, name: str, library: str | None, class_name: str | None) -> None:
        """Enter a component that is on disk already, or that is left out (None)."""
        self.index[name] = [library, class_name]

    def close(self) -> None:
        """Write model_index.json, which makes the folder a checkpoint."""
        (self.path / "model_index.json").write_text(json.dumps(self.index, indent=2) + "\n", encoding="utf-8")


def _folder(path: Path, pipeline: str, **values: object) -> Folder:
    return Folder(path, {"_class_name": pipeline, "_diffusers_version": "0.39.0", **values})


def _ready(module: M, seed: int, dtype: torch.dtype = torch.float32) -> M:
    randomize(module, seed)
    return module.to(dtype).eval()


def _clip_config(vocab: int, act: str = "quick_gelu") -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocab,
        hidden_size=SIZES.clip_width,
        intermediate_size=2 * SIZES.clip_width,
        projection_dim=SIZES.projection,
        num_hidden_layers=SIZES.clip_layers,
        num_attention_heads=SIZES.clip_heads,
        max_position_embeddings=CLIP_LENGTH,
        hidden_act=act,
        bos_token_id=vocab - 2,
        eos_token_id=vocab - 1,
        pad_token_id=vocab - 1,
    )


def vae(seed: int, channels: int = 4, force_upcast: bool = True, quant: bool = True, **values: float) -> AutoencoderKL:
    """An 8x VAE with random float32 weights; `quant=False` leaves out both quant convolutions, as SD3 does."""
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=SIZES.vae_channels,
        latent_channels=channels,
        norm_num_groups=SIZES.norm_groups,
        sample_size=8 * SIZES.sample_size,
        force_upcast=force_upcast,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
        **values,
    )
    return _ready(model, seed)


def _unet_xl_shape() -> dict[str, object]:
    return {
        "block_out_channels": SIZES.unet_xl_channels,
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "cross_attention_dim": SIZES.context_xl,
        "attention_head_dim": (2, 4, 4),
        "norm_num_groups": SIZES.norm_groups,
        "transformer_layers_per_block": 1,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": SIZES.time_id_width,
        "projection_class_embeddings_input_dim": SIZES.added_xl,
    }


def _unet_shape() -> dict[str, object]:
    return {
        "block_out_channels": SIZES.unet_channels,
        "layers_per_block": 1,
        "cross_attention_dim": SIZES.context,
        "attention_head_dim": SIZES.heads,
        "norm_num_groups": SIZES.norm_groups,
    }


def write_sd15(path: Path) -> tuple[nn.Module, nn.Module]:
    """Stable Diffusion 1.5. Returns its UNet and text encoder, whose layer names the LoRA files need."""
    folder = _folder(path, "StableDiffusionPipeline", requires_safety_checker=False)
    vocab = write_clip(path / "tokenizer")
    folder.declare("tokenizer", "transformers", "CLIPTokenizer")
    text = _ready(CLIPTextModel(_clip_config(vocab)), 11)
    unet = UNet2DConditionModel(sample_size=SIZES.sample_size, **_unet_shape())
    folder.add("text_encoder", text)
    folder.add("unet", _ready(unet, 12))
    folder.add("vae", vae(13, scaling_factor=0.18215))
    folder.add("scheduler", DDIMScheduler(**_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1))
    folder.declare("safety_checker", None, None)
    folder.declare("feature_extractor", None, None)
    folder.close()
    return unet, text


def write_sdxl(path: Path, force_upcast: bool, unet_seed: int = 23) -> nn.Module:
    """Stable Diffusion XL, stored in float16 as the published checkpoint is. Returns its UNet."""
    folder = _folder(path, "StableDiffusionXLPipeline", force_zeros_for_empty_prompt=True)
    vocab = write_clip(path / "tokenizer")
    write_clip(path / "tokenizer_2", pad="!")
    for name in ("tokenizer", "tokenizer_2"):
        folder.declare(name, "transformers", "CLIPTokenizer")
    unet = UNet2DConditionModel(
        sample_size=SIZES.sample_size,
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        **_unet_xl_shape(),
    )
    folder.add("text_encoder", _ready(CLIPTextModel(_clip_config(vocab)), 21, torch.float16))
    folder.add("text_encoder_2", _ready(CLIPTextModelWithProjection(_clip_config(vocab, "gelu")), 22, torch.float16))
    folder.add("unet", _ready(unet, unet_seed, torch.float16))
    folder.add("vae", vae(24, force_upcast=force_upcast, scaling_factor=0.13025).half())
    folder.add("scheduler", EulerDiscreteScheduler(**_BETAS, steps_offset=1))
    for name in ("image_encoder", "feature_extractor"):
        folder.declare(name, None, None)
    folder.close()
    return unet


def write_sd3(path: Path) -> None:
    """Stable Diffusion 3: three text encoders and a 16-channel VAE without quant convolutions."""
    folder = _folder(path, "StableDiffusion3Pipeline")
    vocab = write_clip(path / "tokenizer")
    write_clip(path / "tokenizer_2", pad="!")
    t5_vocab = write_t5(path / "tokenizer_3")
    for name in ("tokenizer", "tokenizer_2"):
        folder.declare(name, "transformers", "CLIPTokenizer")
    folder.declare("tokenizer_3", "transformers", "T5TokenizerFast")
    for seed, name in ((31, "text_encoder"), (32, "text_encoder_2")):
        folder.add(name, _ready(CLIPTextModelWithProjection(_clip_config(vocab)), seed, torch.float16))
    folder.add("text_encoder_3", _ready(T5EncoderModel(T5Config(**_t5_shape(t5_vocab))), 33, torch.float16))
    transformer = SD3Transformer2DModel(
        sample_size=SIZES.sample_size,
        in_channels=16,
        out_channels=16,
        num_layers=SIZES.dit_layers,
        attention_head_dim=SIZES.head_dim,
        num_attention_heads=SIZES.heads,
        joint_attention_dim=SIZES.t5_width,
        caption_projection_dim=SIZES.heads * SIZES.head_dim,
        pooled_projection_dim=2 * SIZES.projection,
        pos_embed_max_size=32,
    )
    folder.add("transformer", _ready(transformer, 34, torch.float16))
    shape = {"scaling_factor": 1.5305, "shift_factor": 0.0609}
    folder.add("vae", vae(35, channels=16, quant=False, **shape).half())
    folder.add("scheduler", FlowMatchEulerDiscreteScheduler(shift=3.0))
    for name in ("image_encoder", "feature_extractor"):
        folder.declare(name, None, None)
    folder.close()


def write_auraflow(path: Path) -> None:
    """AuraFlow: a UMT5 text encoder, a DiT and SDXL's VAE."""
    folder = _folder(path, "AuraFlowPipeline")
    t5_vocab = write_t5(path / "tokenizer")
    folder.declare("tokenizer", "transformers", "T5TokenizerFast")
    folder.add("text_encoder", _ready(UMT5EncoderModel(UMT5Config(**_t5_shape(t5_vocab))), 41, torch.float16))
    transformer = AuraFlowTransformer2DModel(
        sample_size=SIZES.sample_size,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=SIZES.head_dim,
        num_attention_heads=SIZES.heads,
        joint_attention_dim=SIZES.t5_width,
        caption_projection_dim=SIZES.heads * SIZES.head_dim,
        pos_embed_max_size=256,
    )
    folder.add("transformer", _ready(transformer, 42, torch.float16))
    folder.add("vae", vae(24, scaling_factor=0.13025).half())
    folder.add("scheduler", FlowMatchEulerDiscreteScheduler(shift=1.73))
    folder.close()


def _t5_shape(vocab: int) -> dict[str, object]:
    return {
        "vocab_size": vocab,
        "d_model": SIZES.t5_width,
        "d_kv": SIZES.t5_width // 4,
        "d_ff": 2 * SIZES.t5_width,
        "num_layers": SIZES.t5_layers,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
    }


#: Widths of the layers that a ControlNet's picture goes through first.
_CONDITIONING = (8, 16, 16, 32)


def write_controlnet(path: Path) -> None:
    """An SD1.5 ControlNet. Its zero convolutions are filled too, otherwise it would say nothing."""
    model = ControlNetModel(conditioning_embedding_out_channels=_CONDITIONING, **_unet_shape())
    _ready(model, 52).save_pretrained(str(path))


def write_controlnet_xl(path: Path) -> None:
    """An SDXL ControlNet, filled likewise."""
    model = ControlNetModel(conditioning_embedding_out_channels=_CONDITIONING, **_unet_xl_shape())
    _ready(model, 51, torch.float16).save_pretrained(str(path))


#: CLIP vision encoders by the widths that tell them apart: hidden states, projected embedding, heads.
VIT_H, VIT_BIGG = (1280, 1024, 16), (1664, 1280, 16)


def write_image_encoder(path: Path, widths: tuple[int, int, int]) -> None:
    """A CLIP vision encoder as wide as a real one, but of one layer."""
    hidden, projection, heads = widths
    config = CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=SIZES.clip_width,
        projection_dim=projection,
        num_hidden_layers=1,
        num_attention_heads=heads,
        patch_size=14,
    )
    _ready(CLIPVisionModelWithProjection(config), hidden, torch.float16).save_pretrained(str(path))


def write_taesd(path: Path) -> None:
    """The tiny autoencoder that previews are decoded with."""
    widths = {f"{side}_block_out_channels": (16,) * 4 for side in ("encoder", "decoder")}
    depths = {f"num_{side}_blocks": (1,) * 4 for side in ("encoder", "decoder")}
    _ready(AutoencoderTiny(**widths, **depths), 81).save_pretrained(str(path))
