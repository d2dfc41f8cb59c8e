"""Every kind of model file is told by its header: one header-only file for each row of what is known about formats."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lib_guard.files.families import EncoderNeed, EncoderOffer, Evidence, Verdict, family_of
from lib_guard.files.header import Header, TensorEntry, read_header

Shapes = Mapping[str, tuple[int, ...]]


def write(folder: Path, shapes: Shapes, metadata: Mapping[str, str] | None = None, dtype: str = "F16") -> Path:
    """A file of these shapes: a real header, and zeros that the file system does not store."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + _bytes(shape, dtype)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    path = folder / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    size = {"F16": 2, "BF16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1}[dtype]
    for length in shape:
        size *= length
    return size


def header(shapes: Shapes, metadata: Mapping[str, str] | None = None, dtype: str = "F16") -> Header:
    """The same without a file."""
    return Header({name: TensorEntry(dtype, shape, 0, 0) for name, shape in shapes.items()}, dict(metadata or {}))


def verdict_of(shapes: Shapes, metadata: Mapping[str, str] | None = None) -> Verdict:
    return family_of(header(shapes, metadata))


# Layers as the algorithms write them.


def lora(layer: str, into: int, out: int, rank: int = 8, conv: bool = False) -> dict[str, tuple[int, ...]]:
    more = (1, 1) if conv else ()
    return {
        f"{layer}.lora_down.weight": (rank, into, *more),
        f"{layer}.lora_up.weight": (out, rank, *more),
        f"{layer}.alpha": (),
    }


def peft(layer: str, into: int, out: int, rank: int = 8) -> dict[str, tuple[int, ...]]:
    return {f"{layer}.lora_A.weight": (rank, into), f"{layer}.lora_B.weight": (out, rank)}


def old_diffusers(layer: str, into: int, out: int, rank: int = 4) -> dict[str, tuple[int, ...]]:
    return {f"{layer}_lora.down.weight": (rank, into), f"{layer}_lora.up.weight": (out, rank)}


def loha(layer: str, into: int, out: int, rank: int = 8) -> dict[str, tuple[int, ...]]:
    return {
        f"{layer}.hada_w1_a": (out, rank),
        f"{layer}.hada_w1_b": (rank, into),
        f"{layer}.hada_w2_a": (out, rank),
        f"{layer}.hada_w2_b": (rank, into),
        f"{layer}.alpha": (),
    }


def lokr(layer: str, into: int, out: int) -> dict[str, tuple[int, ...]]:
    return {f"{layer}.lokr_w1": (8, 16), f"{layer}.lokr_w2": (out // 8, into // 16), f"{layer}.alpha": ()}


def lokr_factored(layer: str, into: int, out: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{layer}.lokr_w1_a": (8, 4),
        f"{layer}.lokr_w1_b": (4, 16),
        f"{layer}.lokr_w2_a": (out // 8, 4),
        f"{layer}.lokr_w2_b": (4, into // 16),
    }


def glora(layer: str, into: int, out: int, rank: int = 8) -> dict[str, tuple[int, ...]]:
    return {
        f"{layer}.a1.weight": (into, rank),
        f"{layer}.a2.weight": (rank, into),
        f"{layer}.b1.weight": (out, rank),
        f"{layer}.b2.weight": (rank, into),
    }


def old_glora(layer: str, into: int, out: int, rank: int = 8) -> dict[str, tuple[int, ...]]:
    return {
        f"{layer}.a1.weight": (rank, into),
        f"{layer}.a2.weight": (into, rank),
        f"{layer}.b1.weight": (rank, into),
        f"{layer}.b2.weight": (out, rank),
    }


def full(layer: str, into: int, out: int) -> dict[str, tuple[int, ...]]:
    return {f"{layer}.diff": (out, into), f"{layer}.diff_b": (out,)}


def dora(layer: str, into: int, out: int) -> dict[str, tuple[int, ...]]:
    return {**lora(layer, into, out), f"{layer}.dora_scale": (out, 1)}


def peft_dora(layer: str, into: int, out: int) -> dict[str, tuple[int, ...]]:
    return {**peft(layer, into, out), f"{layer}.lora_magnitude_vector": (out,)}


def oft(layer: str, _into: int, out: int) -> dict[str, tuple[int, ...]]:
    return {f"{layer}.oft_blocks": (8, out // 8, out // 8), f"{layer}.alpha": ()}


def boft(layer: str, _into: int, out: int) -> dict[str, tuple[int, ...]]:
    return {f"{layer}.oft_blocks": (3, 8, out // 8, out // 8), f"{layer}.rescale": (out, 1)}


def ia3(layer: str, _into: int, out: int) -> dict[str, tuple[int, ...]]:
    return {f"{layer}.weight": (out, 1), f"{layer}.on_input": ()}


ALGORITHMS = {
    "LoRA": lora,
    "LoRA of PEFT": peft,
    "LoRA of old diffusers": old_diffusers,
    "LoHa": loha,
    "LoKr": lokr,
    "LoKr, factored": lokr_factored,
    "GLoRA": glora,
    "GLoRA, older": old_glora,
    "full difference": full,
    "LoRA with DoRA": dora,
    "LoRA of PEFT with DoRA": peft_dora,
}
#: They turn or scale the output, so the width of the context is nowhere in the file; that of self-attention is.
OUTPUT_ALGORITHMS = {"Diag-OFT": oft, "BOFT": boft, "(IA)^3": ia3}

LDM_CROSS = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
CROSS = {
    "kohya, LDM names": LDM_CROSS,
    "kohya": "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k",
    "kohya OFT": "oft_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k",
    "LyCORIS": "lycoris_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k",
    "diffusers": "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "PEFT": "base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "processor": "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_k",
    "values": "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v",
}
CONTEXTS = {768: "sd15", 1024: "sd2", 2048: "sdxl", 1280: "sdxl_refiner"}


@pytest.mark.parametrize("width", CONTEXTS)
@pytest.mark.parametrize("names", CROSS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_lora_is_told_by_the_width_of_its_text_context(tmp_path, algorithm, names, width):
    path = write(tmp_path, ALGORITHMS[algorithm](CROSS[names], width, 640))
    found = family_of(read_header(path))
    assert (found.kind, found.family, found.confidence) == ("lora", CONTEXTS[width], "certain")
    assert found.variant == algorithm.replace(" of PEFT", "").replace(" of old diffusers", "").partition(",")[0]
    assert found.candidates == (CONTEXTS[width],) and found.remarks == ()


def test_the_evidence_is_a_clause_for_the_console():
    found = verdict_of(lora(LDM_CROSS, 2048, 640, rank=32))
    assert found.evidence == (
        Evidence(f"{LDM_CROSS}.lora_down.weight", (32, 2048), "SDXL's text context is 2048 wide"),
    )
    assert found.describe() == f"{LDM_CROSS}.lora_down.weight is [32, 2048], SDXL's text context is 2048 wide"


def test_a_product_is_told_with_both_its_factors():
    assert verdict_of(lokr(LDM_CROSS, 2048, 640)).describe() == (
        f"{LDM_CROSS}.lokr_w1 is [8, 16], with lokr_w2 [80, 128] that makes 2048; SDXL's text context is 2048 wide"
    )


SELF = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.mark.parametrize("algorithm", OUTPUT_ALGORITHMS)
def test_what_scales_the_output_is_told_by_self_attention_as_far_as_that_goes(algorithm):
    make = OUTPUT_ALGORITHMS[algorithm]
    found = verdict_of(make(SELF, 640, 640))
    assert (found.kind, found.family, found.variant) == ("lora", "unknown", algorithm)
    assert found.candidates == ("sd15", "sd2", "sdxl") and found.confidence == "certain"
    assert verdict_of(make(SELF, 640, 640), {"ss_base_model_version": "sdxl_base_v1-0"}).family == "sdxl"
    assert verdict_of(make(SELF, 768, 768)).family == "sdxl_refiner"


def layers(*names: str, into: int = 640, out: int = 640) -> dict[str, tuple[int, ...]]:
    return {name: shape for layer in names for name, shape in lora(layer, into, out).items()}


TE = "text_model_encoder_layers_0_self_attn_q_proj"
FLUX = "lora_unet_double_blocks_0_img"
SD3_JOINT = "lora_unet_joint_blocks_{}_x_block_attn_qkv"
BUNDLE = {"bundle_emb.token.string_to_param.*": (4, 768)}

#: What -> shapes, family, and what may follow: the candidates where the family is unknown, words of variant or remarks.
LORAS: dict[str, tuple[Shapes, str, Any]] = {
    "text encoder of SD1": (layers(f"lora_te_{TE}", into=768, out=768), "sd15", "text encoders only"),
    "text encoder of SD2": (layers(f"lora_te_{TE}", into=1024, out=1024), "sd2", "text encoders only"),
    "text encoder of SD1, scaled": (ia3(f"lora_te_{TE}", 768, 768), "sd15", "text encoders only"),
    "both text encoders of SDXL": (
        {**lora(f"lora_te1_{TE}", 768, 768), **lora(f"lora_te2_{TE}", 1280, 1280)},
        "sdxl",
        "text encoders only",
    ),
    "text encoders of SD3": (
        {
            **lora(f"lora_te1_{TE}", 768, 768),
            **lora(f"lora_te2_{TE}", 1280, 1280),
            **lora("lora_te3_encoder_block_0_layer_0_SelfAttention_q", 4096, 4096),
        },
        "unknown",
        ("sd3", "sd35_large"),
    ),
    "text encoders of Flux, older": (
        {
            **lora(f"lora_te1_{TE}", 768, 768),
            **lora("lora_te2_encoder_block_0_layer_0_SelfAttention_q", 4096, 4096),
        },
        "flux1",
        "text encoders only",
    ),
    "CLIP-L alone, kohya": (lora(f"lora_te1_{TE}", 768, 768), "unknown", ("flux1", "sd3", "sd35_large", "sdxl")),
    "CLIP-L alone, diffusers": (
        peft("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", 768, 768),
        "unknown",
        ("flux1", "sd15", "sd3", "sd35_large", "sdxl"),
    ),
    "OpenCLIP-H, diffusers": (
        peft("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", 1024, 1024),
        "sd2",
        "text encoders only",
    ),
    "deep in an LDM block": (
        layers("lora_unet_input_blocks_7_1_transformer_blocks_2_attn1_to_q", into=1280, out=1280),
        "sdxl",
        "",
    ),
    "deep in a middle block": (
        layers("lora_unet_middle_block_1_transformer_blocks_9_ff_net_0_proj", into=1280, out=10240),
        "sdxl",
        "",
    ),
    "deep in a diffusers block": (
        layers("lora_unet_down_blocks_2_attentions_0_transformer_blocks_5_attn1_to_q", into=1280, out=1280),
        "sdxl",
        "",
    ),
    "deep in a refiner's block": (
        layers("lora_unet_down_blocks_2_attentions_0_transformer_blocks_3_attn1_to_q", into=1536, out=1536),
        "sdxl_refiner",
        "",
    ),
    "deep, but how wide is not known": (
        oft("lora_unet_down_blocks_2_attentions_0_transformer_blocks_2_ff_net_0_proj", 1280, 10240),
        "unknown",
        ("sdxl", "sdxl_refiner"),
    ),
    "attention in SD's first block": (
        layers("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", into=320, out=320),
        "unknown",
        ("sd15", "sd2"),
    ),
    "attention in SD's last block": (
        layers("unet.up_blocks.3.attentions.1.transformer_blocks.0.ff.net.2", into=1280, out=320),
        "unknown",
        ("sd15", "sd2"),
    ),
    "attention in SD's first LDM block": (
        layers("lora_unet_input_blocks_1_1_transformer_blocks_0_ff_net_2", into=1280, out=320),
        "unknown",
        ("sd15", "sd2"),
    ),
    "attention in SDXL's innermost up block": (
        layers("lora_unet_up_blocks_0_attentions_0_transformer_blocks_0_ff_net_2", into=5120, out=1280),
        "sdxl",
        "",
    ),
    "projection by convolution": (
        lora("lora_unet_mid_block_attentions_0_proj_in", 1280, 1280, conv=True),
        "sd15",
        "",
    ),
    "projection by a matrix": (
        lora("lora_unet_mid_block_attentions_0_proj_in", 1280, 1280),
        "unknown",
        ("sd2", "sdxl", "sdxl_refiner"),
    ),
    "projection by a matrix in SD's first block": (
        lora("lora_unet_down_blocks_0_attentions_0_proj_in", 320, 320),
        "sd2",
        "",
    ),
    "SDXL confined to blocks that look alike": (layers(SELF), "unknown", ("sd15", "sd2", "sdxl")),
    "SD3 medium, kohya": (layers(SD3_JOINT.format(0), into=1536, out=4608), "sd3", ""),
    "SD3.5 large, kohya": (layers(SD3_JOINT.format(0), into=2432, out=7296), "sd35_large", ""),
    "SD3.5 large by its depth": (oft(SD3_JOINT.format(37), 2432, 7296), "sd35_large", ""),
    "SD3 by names alone": (oft(SD3_JOINT.format(3), 1536, 4608), "unknown", ("sd3", "sd35_large")),
    "SD3 medium, context": (layers("lora_unet_joint_blocks_0_context_block_mlp_fc1", into=1536, out=6144), "sd3", ""),
    "SD3 medium, diffusers": (peft("transformer.transformer_blocks.0.attn.add_q_proj", 1536, 1536), "sd3", ""),
    "SD3.5 large, diffusers": (
        peft("transformer.transformer_blocks.0.attn.add_q_proj", 2432, 2432),
        "sd35_large",
        "",
    ),
    "FLUX.1, kohya": (
        {**lora(f"{FLUX}_attn_qkv", 3072, 9216, 16), **lora(f"{FLUX}_mlp_0", 3072, 12288, 16)},
        "flux1",
        "Chroma",
    ),
    "FLUX.1, kohya, with modulation": (
        {**lora(f"{FLUX}_mlp_0", 3072, 12288), **lora(f"{FLUX}_mod_lin", 3072, 18432)},
        "flux1",
        "",
    ),
    "FLUX.1, kohya, with text encoder": (
        {**lora(f"{FLUX}_mlp_0", 3072, 12288), **lora(f"lora_te1_{TE}", 768, 768)},
        "flux1",
        "",
    ),
    "FLUX.1, BFL names": (
        {
            **peft("diffusion_model.double_blocks.0.img_mlp.0", 3072, 12288),
            **peft("diffusion_model.single_blocks.0.modulation.lin", 3072, 9216),
        },
        "flux1",
        "",
    ),
    "FLUX.1, diffusers": (peft("transformer.single_transformer_blocks.0.proj_out", 15360, 3072), "flux1", "Chroma"),
    "FLUX.1, OneTrainer": (lora("lora_transformer_single_transformer_blocks_0_proj_out", 15360, 3072), "flux1", ""),
    "FLUX.1, XLabs": (
        {
            f"double_blocks.0.processor.{name}.{end}.weight": shape
            for name in ("qkv_lora1", "qkv_lora2")
            for end, shape in (("down", (16, 3072)), ("up", (9216, 16)))
        },
        "flux1",
        "",
    ),
    "FLUX.1 control": (
        {
            **peft("img_in", 128, 3072, 128),
            "img_in.lora_B.bias": (3072,),
            **peft("double_blocks.0.img_mlp.0", 3072, 12288, 128),
            "double_blocks.0.img_attn.norm.key_norm.scale": (128,),
        },
        "flux1",
        "FLUX.1 control",
    ),
    "FLUX.2 Klein 4B": (lora(f"{FLUX}_mlp_0", 3072, 18432), "flux2", ""),
    "FLUX.2 Klein 4B, single blocks": (lora("lora_unet_single_blocks_0_linear1", 3072, 27648), "flux2", ""),
    "FLUX.2, 4096 wide": (lora(f"{FLUX}_attn_qkv", 4096, 12288), "flux2", ""),
    "FLUX.2, 6144 wide": (peft("diffusion_model.double_blocks.0.img_attn.qkv", 6144, 18432), "flux2", ""),
    "FLUX.2, single block": (lora("lora_unet_single_blocks_47_linear1", 6144, 55296), "flux2", ""),
    **{
        f"FLUX.2, text of {width}": (peft("diffusion_model.txt_in", width, 3072), "flux2", "")
        for width in (7680, 12288, 15360)
    },
    **{
        f"FLUX.2, pooled text of {width}": (peft("diffusion_model.vector_in.in_layer", width, 3072), "flux2", "")
        for width in (2560, 4096, 5120)
    },
    "FLUX.2, diffusers, single": (
        peft("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj", 3072, 27648),
        "flux2",
        "",
    ),
    "FLUX.2, diffusers, double": (peft("transformer.transformer_blocks.0.ff.linear_in", 6144, 36864), "flux2", ""),
    "Chroma": (
        {
            **lora(f"{FLUX}_mlp_0", 3072, 12288),
            **lora("lora_unet_distilled_guidance_layer_in_proj", 64, 5120),
        },
        "chroma",
        "",
    ),
    **{
        f"PixArt, {prefix}": (
            {
                **peft(f"{prefix}transformer_blocks.0.attn2.to_k", 1152, 1152),
                **peft(f"{prefix}{conditioning}", 1152, 6912),
            },
            "pixart",
            "",
        )
        for prefix, conditioning in (
            ("transformer.", "adaln_single.linear"),
            ("base_model.model.", "caption_projection.linear_1"),
            ("unet.base_model.model.", "adaln_single.linear"),
        )
    },
    "Z-Image": (peft("diffusion_model.layers.0.attention.qkv", 3840, 11520), "z_image", ""),
    "Z-Image, diffusers": (peft("transformer.layers.0.attention.to_q", 3840, 3840), "z_image", ""),
    "Z-Image, kohya": (lora("lora_unet__layers_0_attention_out", 3840, 3840), "z_image", ""),
    "Z-Image's refiner": (peft("diffusion_model.noise_refiner.0.attention.qkv", 3840, 11520), "z_image", ""),
    "Lumina 2": (peft("diffusion_model.layers.0.attention.qkv", 2304, 3840), "lumina2", ""),
    "a refiner by names alone": (
        oft("diffusion_model.context_refiner.0.attention.qkv", 3840, 3840),
        "unknown",
        ("lumina2", "z_image"),
    ),
    "Qwen-Image": (peft("transformer.transformer_blocks.0.img_mlp.net.0.proj", 3072, 12288), "qwen_image", ""),
    "Qwen-Image by names alone": (
        peft("transformer.transformer_blocks.0.img_mlp.net.2", 12288, 3072),
        "qwen_image",
        "",
    ),
    "Wan": (
        {
            **peft("diffusion_model.blocks.0.cross_attn.q", 5120, 5120),
            **full("diffusion_model.patch_embedding", 16, 5120),
        },
        "wan",
        "",
    ),
    "Krea-2": (peft("diffusion_model.txtfusion.0.attn.qkv", 2560, 7680), "krea2", ""),
    "Krea-2, another name": (lora("lora_unet_time_mod_proj", 256, 2048), "krea2", ""),
    "with a textual inversion": ({**lora(LDM_CROSS, 768, 640), **BUNDLE}, "sd15", "1 textual inversion"),
    "a norm": ({"lora_unet_mid_block_norm.w_norm": (640,), "lora_unet_mid_block_norm.b_norm": (640,)}, "unknown", ()),
}


@pytest.mark.parametrize("name", LORAS)
def test_a_lora_of_each_family(tmp_path, name):
    shapes, family, more = LORAS[name]
    found = family_of(read_header(write(tmp_path, shapes)))
    assert (found.kind, found.family) == ("lora", family)
    if isinstance(more, tuple):
        assert found.candidates == more
    else:
        assert family in found.candidates and found.evidence and found.confidence != "none"
        assert more in f"{found.variant} {' '.join(found.remarks)}"


#: Layers whose names or widths others share: no family may come of them.
NOT_TOLD: dict[str, Shapes] = {
    "FLUX's attention, which HunyuanVideo has too": lora(f"{FLUX}_attn_qkv", 3072, 9216),
    "HunyuanVideo": {
        **lora(f"{FLUX}_attn_qkv", 3072, 9216),
        **lora(f"{FLUX}_mlp_fc1", 3072, 12288),
        **peft("transformer.single_transformer_blocks.0.proj_out", 15360, 3072),
    },
    "HunyuanVideo by its depth": {
        **peft("transformer.single_transformer_blocks.0.proj_out", 15360, 3072),
        **peft("transformer.single_transformer_blocks.39.proj_out", 15360, 3072),
    },
    "LTX, whose text is as wide as SDXL's": peft("diffusion_model.transformer_blocks.0.attn2.to_k", 2048, 2048),
    "DiT, which is as wide as PixArt": peft("transformer.transformer_blocks.0.attn1.to_q", 1152, 1152),
    "Sana, which is as wide as PixArt": {
        **peft("transformer.transformer_blocks.0.attn2.to_k", 1152, 1152),
        **peft("transformer.caption_projection.linear_1", 2304, 1152),
        **peft("transformer.transformer_blocks.0.ff.conv_inverted", 1152, 5760),
    },
    "a UNet for video, whose text is as wide as SD2's": {
        **peft("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", 1024, 320),
        **peft("unet.down_blocks.0.attentions.0.temporal_transformer_blocks.0.attn2.to_k", 1024, 320),
    },
    "AnimateDiff": lora("lora_unet_down_blocks_0_motion_modules_0_temporal_transformer_proj_in", 320, 320),
    "Kandinsky, with attention where SDXL has some": peft("up_blocks.0.attentions.0.attention.0.to_key", 1536, 1536),
    "a tiny model": lora(LDM_CROSS, 32, 64),
    "attention as wide as FLUX.1's and Qwen-Image's": peft(
        "transformer.transformer_blocks.0.attn.add_q_proj", 3072, 3072
    ),
    "layers of a language model": peft("model.layers.0.self_attn.q_proj", 3840, 3840),
}


@pytest.mark.parametrize("name", NOT_TOLD)
def test_what_several_families_share_is_unknown(name):
    found = verdict_of(NOT_TOLD[name])
    assert (found.kind, found.family, found.candidates, found.confidence) == ("lora", "unknown", (), "none")
    assert found.describe() == "nothing in its header tells what it is"


# Metadata, which narrows, and never overrules.

VERSIONS = {
    ("ss_base_model_version", "sd_v1"): "sd15",
    ("ss_base_model_version", "sd_v2"): "sd2",
    ("ss_base_model_version", "sd_v2_v"): "sd2",
    ("ss_base_model_version", "sdxl_base_v1-0"): "sdxl",
    ("ss_base_model_version", "flux1"): "flux1",
    ("ss_base_model_version", "chroma"): "chroma",
    ("ss_v2", "True"): "sd2",
    ("modelspec.architecture", "stable-diffusion-v1/lora"): "sd15",
    ("modelspec.architecture", "stable-diffusion-v2-512/lora"): "sd2",
    ("modelspec.architecture", "stable-diffusion-v2-768-v/lora"): "sd2",
    ("modelspec.architecture", "stable-diffusion-xl-v1-base/lora"): "sdxl",
    ("modelspec.architecture", "stable-diffusion-3-medium/lora"): "unknown",
    ("modelspec.architecture", "flux-1-dev/lora"): "flux1",
    ("modelspec.architecture", "lumina-2"): "lumina2",
    ("modelspec.architecture", "swanky-anima-flux-1"): "unknown",
    ("ss_v2", "False"): "unknown",
}


@pytest.mark.parametrize(("note", "family"), VERSIONS.items(), ids=lambda one: str(one))
def test_metadata_decides_where_the_tensors_do_not(note, family):
    found = verdict_of({"lora_unet_x.w_norm": (4,), "lora_unet_x.b_norm": (4,)}, dict([note]))
    assert found.family == family and found.confidence in ("likely", "none")
    if family != "unknown":
        assert found.describe() == f'metadata {note[0]} says "{note[1]}"'


def test_metadata_never_overrules_a_shape_and_its_lie_is_told():
    found = verdict_of(lora(LDM_CROSS, 2048, 640), {"ss_base_model_version": "sd_v1", "ss_v2": "False"})
    assert (found.family, found.confidence) == ("sdxl", "certain")
    assert found.remarks == ('though metadata ss_base_model_version says "sd_v1"',)


def test_metadata_breaks_the_tie_between_flux_and_chroma():
    shapes = lora(f"{FLUX}_mlp_0", 3072, 12288)
    assert verdict_of(shapes, {"ss_base_model_version": "chroma"}).family == "chroma"
    found = verdict_of(shapes)
    assert (found.family, found.confidence, found.candidates) == ("flux1", "likely", ("chroma", "flux1"))


def test_a_file_that_contradicts_itself_is_unknown_and_says_so():
    other = "lora_unet_output_blocks_3_1_transformer_blocks_0_attn2_to_k"
    found = verdict_of({**lora(LDM_CROSS, 2048, 640), **lora(other, 768, 640)})
    assert (found.kind, found.family, found.confidence) == ("lora", "unknown", "none")
    assert "contradicts itself" in found.remarks[0] and LDM_CROSS in found.remarks[0] and other in found.remarks[0]


@pytest.mark.parametrize("orphan", ["lora_up", "lora_down"])
def test_half_a_layer_is_damage_not_another_kind(orphan):
    shapes = {**lora(LDM_CROSS, 2048, 640), **lora(SELF, 640, 640)}
    shapes = {name: shape for name, shape in shapes.items() if not (SELF in name and orphan in name)}
    found = verdict_of(shapes)
    assert (found.kind, found.family) == ("lora", "sdxl")
    assert (
        found.remarks[0].startswith("it is damaged: ")
        and SELF in found.remarks[0]
        and "without its" in found.remarks[0]
    )


def test_a_model_with_a_few_tensors_called_like_a_loras_is_none():
    shapes = {**UNET_SD15, **peft("model.diffusion_model.out.2", 320, 4)}
    assert verdict_of(shapes).kind == "checkpoint"


# IP-Adapters.


def keys(width: int, hidden: int = 320) -> dict[str, tuple[int, ...]]:
    return {f"ip_adapter.1.{part}.weight": (hidden, width) for part in ("to_k_ip", "to_v_ip")}


def projection(**tensors: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"image_proj.{name.replace('__', '.')}": shape for name, shape in tensors.items()}


def plain(rows: int, columns: int, width: int) -> dict[str, tuple[int, ...]]:
    return {**projection(proj__weight=(rows, columns), norm__weight=(width,)), **keys(width)}


def plus(hidden: int, into: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        **projection(
            latents=(1, 16, hidden),
            proj_in__weight=(hidden, into),
            proj_out__weight=(width, hidden),
            layers__0__0__to_q__weight=(hidden, hidden),
            layers__0__0__to_kv__weight=(2 * hidden, hidden),
            layers__0__0__to_out__weight=(hidden, hidden),
        ),
        **keys(width),
    }


def faceid(rows: int, width: int, with_lora: bool = True) -> dict[str, tuple[int, ...]]:
    more = {f"ip_adapter.0.to_q_lora.{end}.weight": (128, 320) for end in ("down", "up")} if with_lora else {}
    return {
        **projection(proj__0__weight=(1024, 512), proj__2__weight=(rows, 1024), norm__weight=(width,)),
        **keys(width),
        **more,
    }


def faceid_plus(rows: int, hidden: int, into: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        **faceid(rows, width),
        **projection(
            perceiver_resampler__proj_in__weight=(hidden, into),
            perceiver_resampler__proj_out__weight=(width, hidden),
            perceiver_resampler__layers__0__0__to_out__weight=(hidden, hidden),
        ),
    }


def xlabs(rows: int) -> dict[str, tuple[int, ...]]:
    return {
        "ip_adapter_proj_model.proj.weight": (rows, 768),
        "ip_adapter_proj_model.norm.weight": (4096,),
        "double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight": (3072, 4096),
    }


FULL_FACE = {
    **projection(proj__0__weight=(1280, 1280), proj__2__weight=(768, 1280), proj__3__weight=(768,)),
    **keys(768),
}
FACE = EncoderNeed("insightface", 512, "image_embeds")
HIDDEN = "hidden_states[-2]"

IP_ADAPTERS: dict[str, tuple[Shapes, str, str, EncoderNeed]] = {
    "sd15": (plain(3072, 1024, 768), "sd15", "plain", EncoderNeed("vit_h", 1024, "image_embeds")),
    "sd15_vit-G": (plain(3072, 1280, 768), "sd15", "plain", EncoderNeed("vit_bigg", 1280, "image_embeds")),
    "plus_sd15": (plus(768, 1280, 768), "sd15", "plus", EncoderNeed("vit_h", 1280, HIDDEN)),
    "full-face_sd15": (FULL_FACE, "sd15", "full face", EncoderNeed("vit_h", 1280, HIDDEN)),
    "sdxl": (plain(8192, 1280, 2048), "sdxl", "plain", EncoderNeed("vit_bigg", 1280, "image_embeds")),
    "sdxl_vit-h": (plain(8192, 1024, 2048), "sdxl", "plain", EncoderNeed("vit_h", 1024, "image_embeds")),
    "plus_sdxl_vit-h": (plus(1280, 1280, 2048), "sdxl", "plus", EncoderNeed("vit_h", 1280, HIDDEN)),
    "plus for ViT-bigG": (plus(1280, 1664, 2048), "sdxl", "plus", EncoderNeed("vit_bigg", 1664, HIDDEN)),
    "plus for ViT-L": (plus(768, 1024, 768), "sd15", "plus", EncoderNeed("vit_l", 1024, HIDDEN)),
    "plain for ViT-L": (plain(3072, 768, 768), "sd15", "plain", EncoderNeed("vit_l", 768, "image_embeds")),
    "plain for SD2": (plain(4096, 1024, 1024), "sd2", "plain", EncoderNeed("vit_h", 1024, "image_embeds")),
    "plus for SigLIP": (plus(1280, 1152, 768), "sd15", "plus", EncoderNeed("siglip", 1152, HIDDEN)),
    "faceid_sd15": (faceid(3072, 768), "sd15", "FaceID", FACE),
    "faceid-plus_sd15": (
        faceid_plus(3072, 768, 1280, 768),
        "sd15",
        "FaceID plus",
        EncoderNeed("vit_h", 1280, HIDDEN, True),
    ),
    "faceid-portrait_sd15": (faceid(12288, 768, False), "sd15", "FaceID portrait", FACE),
    "faceid_sdxl": (faceid(8192, 2048), "sdxl", "FaceID", FACE),
    "faceid-plusv2_sdxl": (
        faceid_plus(8192, 2048, 1280, 2048),
        "sdxl",
        "FaceID plus",
        EncoderNeed("vit_h", 1280, HIDDEN, True),
    ),
    "faceid-portrait_sdxl": (faceid(32768, 2048, False), "sdxl", "FaceID portrait", FACE),
    "XLabs v1": (xlabs(16384), "flux1", "XLabs v1", EncoderNeed("vit_l", 768, "image_embeds")),
    "XLabs v2": (xlabs(65536), "flux1", "XLabs v2", EncoderNeed("vit_l", 768, "image_embeds")),
    "Kolors plus": (plus(2048, 1024, 2048), "kolors", "plus", EncoderNeed("vit_l_336", 1024, HIDDEN)),
    "Kolors faceid": (
        faceid_plus(8192, 4096, 1024, 2048),
        "kolors",
        "FaceID plus",
        EncoderNeed("vit_l_336", 1024, HIDDEN, True),
    ),
}


@pytest.mark.parametrize("name", IP_ADAPTERS)
def test_an_ip_adapter_is_told_with_the_encoder_that_it_needs(tmp_path, name):
    shapes, family, variant, need = IP_ADAPTERS[name]
    found = family_of(read_header(write(tmp_path, shapes)))
    assert (found.kind, found.family, found.confidence) == ("ip_adapter", family, "certain")
    assert (found.variant, found.need) == (variant, need)
    assert ("plusv2" in " ".join(found.remarks)) == (variant == "FaceID plus")


def test_the_need_is_among_the_evidence():
    clauses = [evidence.describe() for evidence in verdict_of(plain(3072, 1280, 768)).evidence]
    assert clauses == [
        "ip_adapter.1.to_k_ip.weight is [320, 768], its text context is 768 wide",
        "image_proj.proj.weight is [3072, 1280], the embedding of OpenCLIP ViT-bigG is 1280 wide",
    ]


def test_an_adapter_for_an_encoder_that_is_not_known_says_so():
    found = verdict_of(plain(128, 40, 32))
    assert (found.kind, found.family, found.need) == (
        "ip_adapter",
        "unknown",
        EncoderNeed("unknown", 40, "image_embeds"),
    )


@pytest.mark.parametrize("gone", ["image_proj.", "ip_adapter."])
def test_an_adapter_without_one_of_its_halves_is_never_taken_for_something_else(gone):
    found = verdict_of({name: shape for name, shape in plain(3072, 1024, 768).items() if not name.startswith(gone)})
    if gone == "image_proj.":
        assert (found.kind, found.family, found.need) == ("ip_adapter", "sd15", None) and "damaged" in found.remarks[0]
    else:
        assert found.kind == "unknown"


# Image encoders.


def clip(hidden: int, count: int, width: int | None, places: int = 257) -> dict[str, tuple[int, ...]]:
    """An encoder as transformers writes it: 16 tensors for each layer, 7 beside them, and the projection."""
    names = [f"{norm}.{end}" for norm in ("layer_norm1", "layer_norm2") for end in ("weight", "bias")]
    names += [f"self_attn.{part}_proj.{end}" for part in "qkv" for end in ("weight", "bias")]
    names += ["self_attn.out_proj.weight", "self_attn.out_proj.bias"]
    names += [f"mlp.{part}.{end}" for part in ("fc1", "fc2") for end in ("weight", "bias")]
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (hidden,),
        "vision_model.embeddings.patch_embedding.weight": (hidden, 3, 14, 14),
        "vision_model.embeddings.position_embedding.weight": (places, hidden),
    }
    shapes |= {
        f"vision_model.{n}.{e}": (hidden,) for n in ("pre_layrnorm", "post_layernorm") for e in ("weight", "bias")
    }
    shapes |= {f"vision_model.encoder.layers.{n}.{name}": (hidden,) for n in range(count) for name in names}
    return shapes | ({"visual_projection.weight": (width, hidden)} if width else {})


def open_clip(hidden: int, count: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        "visual.conv1.weight": (hidden, 3, 14, 14),
        "visual.positional_embedding": (257, hidden),
        "visual.proj": (hidden, width),
        "visual.ln_pre.weight": (hidden,),
        **{f"visual.transformer.resblocks.{n}.attn.in_proj_weight": (3 * hidden, hidden) for n in range(count)},
    }


ENCODERS: dict[str, tuple[Shapes, EncoderOffer]] = {
    "ViT-L": (clip(1024, 24, 768), EncoderOffer("vit_l", 768, 1024)),
    "ViT-H": (clip(1280, 32, 1024), EncoderOffer("vit_h", 1024, 1280)),
    "ViT-bigG": (clip(1664, 48, 1280), EncoderOffer("vit_bigg", 1280, 1664)),
    "ViT-L 336": (clip(1024, 24, 768, places=577), EncoderOffer("vit_l_336", 768, 1024)),
    "ViT-L of OpenCLIP": (open_clip(1024, 24, 768), EncoderOffer("vit_l", 768, 1024)),
    "ViT-H of OpenCLIP": (open_clip(1280, 32, 1024), EncoderOffer("vit_h", 1024, 1280)),
    "ViT-bigG of OpenCLIP": (open_clip(1664, 48, 1280), EncoderOffer("vit_bigg", 1280, 1664)),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_an_image_encoder_is_told_whatever_it_is_called(tmp_path, name):
    shapes, offer = ENCODERS[name]
    path = write(tmp_path, shapes).rename(tmp_path / "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors")
    found = family_of(read_header(path))
    assert (found.kind, found.family, found.offer, found.confidence) == ("image_encoder", offer.kind, offer, "certain")
    assert found.remarks == ()


@pytest.mark.parametrize(("name", "count"), [("ViT-L", 392), ("ViT-H", 520), ("ViT-bigG", 776)])
def test_the_number_of_tensors_shows_a_whole_encoder(name, count):
    shapes = dict(ENCODERS[name][0])
    assert len(shapes) == count
    assert verdict_of({**shapes, "vision_model.embeddings.position_ids": (1, 257)}).remarks == ()
    del shapes["vision_model.encoder.layers.3.mlp.fc1.bias"]
    assert verdict_of(shapes).remarks == (f"it is damaged: of {count} tensors {count - 1} are there",)


def test_an_encoder_that_is_none_of_the_known_ones_is_unknown():
    for shapes in (clip(768, 12, 512), clip(1280, 32, 512), clip(1280, 40, 1024), {**clip(1024, 24, 768), **PATCH_16}):
        found = verdict_of(shapes)
        assert (found.kind, found.family, found.offer.kind) == ("image_encoder", "unknown", "unknown")


PATCH_16 = {"vision_model.embeddings.patch_embedding.weight": (1024, 3, 16, 16)}


def test_an_encoder_without_projection_or_layers_says_so():
    found = verdict_of(clip(1280, 32, None))
    assert (found.family, found.confidence) == ("vit_h", "likely") and "no projection" in found.remarks[0]
    found = verdict_of(clip(1280, 30, 1024))
    assert (found.family, found.confidence) == ("vit_h", "likely") and "of 32 layers 30" in found.remarks[0]


def test_siglip_is_not_taken_for_a_clip():
    shapes = clip(1152, 27, None, places=729)
    shapes = {name: shape for name, shape in shapes.items() if "pre_layrnorm" not in name}
    found = verdict_of({**shapes, "vision_model.head.probe": (1, 1, 1152)})
    assert (found.family, found.confidence, found.offer) == ("siglip", "likely", EncoderOffer("siglip", None, 1152))


#: Adapter -> the one encoder that it works with. 1280 fits in two places and is right in one.
PAIRS = {
    "sd15": "ViT-H",
    "sd15_vit-G": "ViT-bigG",
    "plus_sd15": "ViT-H",
    "full-face_sd15": "ViT-H",
    "sdxl": "ViT-bigG",
    "plus_sdxl_vit-h": "ViT-H",
    "plus for ViT-bigG": "ViT-bigG",
    "faceid-plus_sd15": "ViT-H",
    "faceid_sd15": "",
    "XLabs v1": "ViT-L",
    "Kolors plus": "ViT-L 336",
}


@pytest.mark.parametrize("adapter", PAIRS)
def test_an_adapter_takes_its_own_encoder_and_no_other(adapter):
    need = IP_ADAPTERS[adapter][3]
    names = ("ViT-L", "ViT-H", "ViT-bigG", "ViT-L 336")
    assert [name for name in names if need.met_by(ENCODERS[name][1])] == [
        name for name in names if name == PAIRS[adapter]
    ]


# VAEs.


def vae(channels: int, style: str = "LDM", depth: int = 2, quant: bool = True) -> dict[str, tuple[int, ...]]:
    kernel = (3,) * depth
    inner = "up.0.block.0.conv1" if style == "LDM" else "up_blocks.0.resnets.0.conv1"
    shapes = {
        "encoder.conv_out.weight": (2 * channels, 512, *kernel),
        "decoder.conv_in.weight": (512, channels, *kernel),
        f"decoder.{inner}.weight": (128, 128, *kernel),
    }
    after = {"post_quant_conv.weight": (channels, channels, *(1,) * depth)}
    return {**shapes, **after} if quant else shapes


FOUR = ("sd15", "sd2", "sdxl", "sdxl_refiner")
VAES: dict[str, tuple[Shapes, tuple[str, ...]]] = {
    "4 channels, LDM": (vae(4), FOUR),
    "4 channels, diffusers": (vae(4, "diffusers"), FOUR),
    "4 channels, as in a checkpoint": ({f"first_stage_model.{name}": shape for name, shape in vae(4).items()}, FOUR),
    "4 channels, another prefix": ({f"vae.{name}": shape for name, shape in vae(4).items()}, FOUR),
    "16 channels": (vae(16, quant=False), ("flux1", "sd3", "sd35_large")),
    "32 channels": (vae(32), ("flux2",)),
    "FLUX.2 by its norm": ({**vae(32), "bn.running_mean": (128,)}, ("flux2",)),
    "16 channels and time": (vae(16, depth=3, quant=False), ("qwen_image", "wan")),
    "16 channels and time, Wan's names": (
        {
            "encoder.conv1.weight": (96, 3, 3, 3, 3),
            "decoder.conv1.weight": (384, 16, 3, 3, 3),
            "decoder.middle.0.residual.0.gamma": (384, 1, 1, 1),
            "conv2.weight": (16, 16, 1, 1, 1),
        },
        ("qwen_image", "wan"),
    ),
    "48 channels and time": (vae(48, depth=3, quant=False), ("wan",)),
    "7 channels": (vae(7), ()),
    "channels that do not agree": ({**vae(4), "post_quant_conv.weight": (8, 8, 1, 1)}, ()),
}


@pytest.mark.parametrize("name", VAES)
def test_a_vae_is_told_by_its_latents(tmp_path, name):
    shapes, candidates = VAES[name]
    found = family_of(read_header(write(tmp_path, shapes)))
    assert (found.kind, found.candidates) == ("vae", candidates)
    assert found.family == (candidates[0] if len(candidates) == 1 else "unknown")
    assert found.variant.endswith("names of diffusers" if "diffusers" in name else "names of LDM")


def test_a_vaes_metadata_narrows_it_down():
    found = verdict_of(vae(4), {"modelspec.architecture": "stable-diffusion-xl-v1-base/vae"})
    assert (found.family, found.confidence) == ("sdxl", "likely")


# Checkpoints.

CORE = "model.diffusion_model."
VAE_AND_TEXT = {
    "first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3),
    "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight": (77, 768),
}


def unet(block: str, width: int, channels: int = 4) -> dict[str, tuple[int, ...]]:
    return {
        f"{CORE}input_blocks.0.0.weight": (320, channels, 3, 3),
        f"{CORE}input_blocks.{block}.transformer_blocks.0.attn2.to_k.weight": (320, width),
        f"{CORE}output_blocks.0.0.in_layers.0.weight": (2560,),
        f"{CORE}out.2.weight": (4, 320, 3, 3),
        **VAE_AND_TEXT,
    }


UNET_SD15 = unet("2.1", 768)
EMBEDDER = "conditioner.embedders.{}.model.transformer.resblocks.9.mlp.c_proj.bias"


def core(**tensors: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {CORE + name.replace("__", "."): shape for name, shape in tensors.items()} | VAE_AND_TEXT


def joint(depth: int, positions: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{CORE}joint_blocks.0.context_block.adaLN_modulation.1.bias": (6 * width,),
        f"{CORE}joint_blocks.{depth - 1}.x_block.mlp.fc1.weight": (4 * width, width),
        f"{CORE}pos_embed": (1, positions, width),
        **VAE_AND_TEXT,
    }


def flux(channels: int = 64, **more: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return core(
        double_blocks__0__img_attn__norm__key_norm__scale=(128,),
        img_in__weight=(3072, channels),
        final_layer__linear__weight=(64, 3072),
        **more,
    )


def alone(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix(CORE): shape for name, shape in shapes.items() if name.startswith(CORE)}


POOLED = {"vector_in__in_layer__weight": (3072, 768)}
GUIDANCE = {"guidance_in__in_layer__weight": (3072, 256), **POOLED}
CHECKPOINTS: dict[str, tuple[Shapes, str, str]] = {
    "SD1": (UNET_SD15, "sd15", ""),
    "SD2": (unet("2.1", 1024), "sd2", ""),
    "SDXL": (unet("4.1", 2048), "sdxl", ""),
    "SDXL refiner": (unet("4.1", 1280), "sdxl_refiner", ""),
    "SD1 inpaint": (unet("2.1", 768, 9), "sd15", "inpaint"),
    "SDXL inpaint": (unet("4.1", 2048, 9), "sdxl", "inpaint"),
    "SD1 pix2pix": (unet("2.1", 768, 8), "sd15", "instruct-pix2pix"),
    "SD2 depth": (unet("2.1", 1024, 5), "sd2", "depth"),
    "SDXL by its text encoder": (core(x__weight=(1,)) | {EMBEDDER.format(1): (1280,)}, "sdxl", ""),
    "refiner by its text encoder": (core(x__weight=(1,)) | {EMBEDDER.format(0): (1280,)}, "sdxl_refiner", ""),
    "UNet alone": (alone(UNET_SD15), "sd15", "alone"),
    "UNet of diffusers": (
        {
            "conv_in.weight": (320, 4, 3, 3),
            "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": (640, 2048),
            "up_blocks.0.resnets.0.conv1.weight": (1280, 2560, 3, 3),
            "conv_out.weight": (4, 320, 3, 3),
        },
        "sdxl",
        "alone",
    ),
    "SD3 medium": (joint(24, 36864, 1536), "sd3", "SD3 medium"),
    "SD3.5 medium": (joint(24, 147456, 1536), "sd3", "SD3.5 medium"),
    "SD3.5 large": (joint(38, 36864, 2432), "sd35_large", ""),
    "FLUX.1 dev": (flux(**GUIDANCE), "flux1", "dev"),
    "FLUX.1 schnell": (flux(**POOLED), "flux1", "schnell"),
    "FLUX.1 by the row's one tensor": (flux(), "flux1", "schnell"),
    "FLUX.1 fill": (flux(384, **GUIDANCE), "flux1", "fill"),
    "FLUX.1 depth": (flux(128, **GUIDANCE), "flux1", "depth or canny"),
    "FLUX.1, transformer alone": (alone(flux(**GUIDANCE)), "flux1", "alone"),
    "FLUX.2": (flux(single_stream_modulation__lin__weight=(18432, 6144)), "flux2", ""),
    "FLUX.2, the other name": (flux(double_stream_modulation_img__lin__weight=(36864, 6144)), "flux2", ""),
    "Chroma": (flux(distilled_guidance_layer__in_proj__bias=(5120,)), "chroma", ""),
    "PixArt": (core(t_block__1__weight=(6912, 1152)), "pixart", ""),
    "PixArt, diffusers": (
        {
            "transformer_blocks.0.attn1.to_q.weight": (1152, 1152),
            "proj_out.weight": (32, 1152),
            "pos_embed.proj.weight": (1152, 4, 2, 2),
            "pos_embed.proj.bias": (1152,),
            "adaln_single.emb.timestep_embedder.linear_1.weight": (1152, 256),
            "adaln_single.emb.timestep_embedder.linear_1.bias": (1152,),
        },
        "pixart",
        "alone",
    ),
    "Lumina 2": (core(cap_embedder__0__weight=(2304,), layers__0__x=(1,)), "lumina2", ""),
    "Z-Image": (
        core(cap_embedder__0__weight=(2560,), layers__0__adaLN_modulation__0__weight=(15360, 256)),
        "z_image",
        "",
    ),
    "a model of another kind": (core(something__weight=(1,)), "unknown", ""),
    "of seven channels": (unet("2.1", 1024, 7), "unknown", ""),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_of_each_family(tmp_path, name):
    shapes, family, variant = CHECKPOINTS[name]
    found = family_of(read_header(write(tmp_path, shapes)))
    assert (found.kind, found.family) == ("checkpoint", family)
    assert variant in found.variant if variant else not found.variant
    assert all(evidence.tensor in shapes for evidence in found.evidence)
    assert bool(found.evidence) == (family != "unknown")


def test_a_checkpoint_says_what_it_lacks():
    assert verdict_of(UNET_SD15).remarks == ()
    assert verdict_of({n: s for n, s in UNET_SD15.items() if n.startswith(CORE)}).remarks == (
        "it holds no VAE",
        "it holds no text encoder",
    )
    assert verdict_of(alone(UNET_SD15)).remarks == ()


def test_packed_numbers_are_not_taken_for_a_width():
    """Four bits make two numbers one byte: what is 768 wide there is not SD1.5."""
    assert family_of(header(UNET_SD15, dtype="U8")).family == "unknown"
    assert family_of(header(UNET_SD15, dtype="F8_E4M3")).family == "sd15"


# ControlNets and T2I-Adapters.

HINT = {"input_hint_block.0.weight": (16, 3, 3, 3), "zero_convs.0.0.weight": (320, 320, 1, 1)}
COND = {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3), "controlnet_mid_block.bias": (1280,)}
LDM_CONTEXT = "input_blocks.5.1.transformer_blocks.0.attn2.to_k.weight"
CONTEXT = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
CLASSES = {"label_emb.0.0.bias": (1280,)}
ADDED = {"add_embedding.linear_1.weight": (1280, 2816)}
DEEP = "down_blocks.2.attentions.0.transformer_blocks.9.norm3.weight"
LAST_BLOCK = "input_blocks.11.0.in_layers.0.weight"
SPARSE = {"down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": (320,)}
LLLITE = "lllite_unet_input_blocks_{}_1_transformer_blocks_{}_attn1_to_q.{}.0.weight"

CONTROLNETS: dict[str, tuple[Shapes, str, str, str]] = {
    "LDM SD1": ({**HINT, LDM_CONTEXT: (640, 768)}, "controlnet", "sd15", "LDM"),
    "LDM SD2": ({**HINT, LDM_CONTEXT: (640, 1024)}, "controlnet", "sd2", "LDM"),
    "LDM SD1, prefixed": (
        {f"control_model.{name}": shape for name, shape in {**HINT, LDM_CONTEXT: (640, 768)}.items()},
        "controlnet",
        "sd15",
        "LDM",
    ),
    "LDM SDXL, full": (
        {**HINT, **CLASSES, "input_blocks.8.1.transformer_blocks.9.norm3.weight": (1280,)},
        "controlnet",
        "sdxl",
        "full size",
    ),
    "LDM SDXL, middle": (
        {**HINT, **CLASSES, "input_blocks.8.1.transformer_blocks.0.norm3.weight": (1280,)},
        "controlnet",
        "sdxl",
        "middle size",
    ),
    "LDM SDXL, small": ({**HINT, **CLASSES}, "controlnet", "sdxl", "small size"),
    "diffusers SD1": ({**COND, CONTEXT: (640, 768)}, "controlnet", "sd15", "diffusers"),
    "diffusers SD2": ({**COND, CONTEXT: (640, 1024)}, "controlnet", "sd2", "diffusers"),
    "diffusers SDXL": ({**COND, **ADDED, CONTEXT: (640, 2048), DEEP: (1280,)}, "controlnet", "sdxl", "diffusers"),
    "diffusers SDXL, small": ({**COND, **ADDED}, "controlnet", "sdxl", "diffusers"),
    "union": (
        {**COND, **ADDED, "control_add_embedding.linear_1.bias": (1280,), "task_embedding": (6, 320)},
        "controlnet",
        "sdxl",
        "union, diffusers",
    ),
    "union, LDM": (
        {**HINT, **CLASSES, "control_add_embedding.linear_1.bias": (1280,), "task_embedding": (6, 320)},
        "controlnet",
        "sdxl",
        "union, LDM",
    ),
    "difference": ({**HINT, LDM_CONTEXT: (640, 768), "difference": ()}, "controlnet", "sd15", "difference, LDM"),
    "Control-LoRA SD1": ({**HINT, "lora_controlnet": (), LAST_BLOCK: (1280,)}, "controlnet", "sd15", "Control-LoRA"),
    "Control-LoRA SDXL": (
        {
            **HINT,
            "lora_controlnet": (),
            "input_blocks.4.1.transformer_blocks.0.attn2.to_k.down": (128, 2048),
            "input_blocks.4.1.transformer_blocks.0.attn2.to_k.up": (640, 128),
        },
        "controlnet",
        "sdxl",
        "Control-LoRA",
    ),
    "Control-LoRA SDXL by what it lacks": ({**HINT, "lora_controlnet": ()}, "controlnet", "sdxl", "Control-LoRA"),
    "SparseCtrl": ({**SPARSE, **COND}, "controlnet", "sd15", "SparseCtrl"),
    "LLLite": (
        {LLLITE.format(7, n, part): (16, 1280) for n in range(10) for part in ("down", "mid", "up")},
        "controlnet",
        "sdxl",
        "LLLite",
    ),
    "LLLite in blocks that look alike": ({LLLITE.format(4, 0, "down"): (16, 640)}, "controlnet", "unknown", "LLLite"),
    "XLabs": (
        {
            "controlnet_blocks.0.weight": (3072, 3072),
            "pos_embed_input.weight": (3072, 64),
            "input_hint_block.0.weight": (16, 3, 3, 3),
        },
        "controlnet",
        "flux1",
        "XLabs",
    ),
    "InstantX": (
        {"controlnet_blocks.0.weight": (3072, 3072), "controlnet_x_embedder.weight": (3072, 64)},
        "controlnet",
        "flux1",
        "InstantX",
    ),
    "of another transformer": ({"controlnet_blocks.0.weight": (1536, 1536)}, "controlnet", "unknown", ""),
    **{
        f"T2I-Adapter, {channels} channels": (
            {"conv_in.weight": (320, channels, 3, 3), "body.0.block2.weight": (320, 320, 1, 1)},
            "t2i_adapter",
            family,
            "full",
        )
        for channels, family in ((64, "sd15"), (192, "sd15"), (256, "sdxl"), (768, "sdxl"), (100, "unknown"))
    },
    "T2I-Adapter, diffusers": (
        {
            "adapter.conv_in.weight": (320, 768, 3, 3),
            "adapter.body.0.resnets.0.block1.weight": (320, 320, 3, 3),
            "adapter.body.0.resnets.0.block2.weight": (320, 320, 1, 1),
        },
        "t2i_adapter",
        "sdxl",
        "full",
    ),
    "T2I-Adapter light": ({"body.0.in_conv.weight": (320, 192, 1, 1)}, "t2i_adapter", "sd15", "light"),
    "T2I style adapter": ({"style_embedding": (1, 8, 1024), "proj": (1024, 768)}, "t2i_adapter", "sd15", "style"),
}


@pytest.mark.parametrize("name", CONTROLNETS)
def test_a_controlnet_or_t2i_adapter_of_each_build(tmp_path, name):
    shapes, kind, family, variant = CONTROLNETS[name]
    found = family_of(read_header(write(tmp_path, shapes)))
    assert (found.kind, found.family) == (kind, family) and variant in found.variant
    assert all(evidence.tensor in shapes or evidence.shape is None for evidence in found.evidence)


def test_the_middle_blocks_bias_is_no_evidence():
    """It is 1280 long in SD1.5's ControlNets too; who reads a width from it calls them SDXL."""
    assert verdict_of(COND).family == "unknown"


def test_a_difference_says_that_it_is_none_by_itself():
    assert "differences" in verdict_of(CONTROLNETS["difference"][0]).remarks[0]


def test_a_style_adapter_needs_an_encoder():
    assert verdict_of(CONTROLNETS["T2I style adapter"][0]).need == EncoderNeed("vit_l", 1024, "last_hidden_state")


# Textual inversions.

EMBEDDINGS: dict[str, tuple[Shapes, str]] = {
    "SD1": ({"emb_params": (4, 768)}, "sd15"),
    "SD2": ({"emb_params": (4, 1024)}, "sd2"),
    "of no known width": ({"emb_params": (4, 1280)}, "unknown"),
    "once a pickle, SD1": ({"string_to_param.*": (4, 768)}, "sd15"),
    "once a pickle, SD2": ({"string_to_param.*": (4, 1024)}, "sd2"),
    "once a pickle, SDXL": ({"string_to_param.*": (4, 1280)}, "sdxl"),
    "SDXL": ({"clip_l": (4, 768), "clip_g": (4, 1280)}, "sdxl"),
    "half of SDXL": ({"clip_g": (4, 1280)}, "unknown"),
    "swapped": ({"clip_l": (4, 1280), "clip_g": (4, 768)}, "unknown"),
}


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_a_textual_inversion_is_told_by_its_width(tmp_path, name):
    shapes, family = EMBEDDINGS[name]
    found = family_of(read_header(write(tmp_path, shapes)))
    assert (found.kind, found.family) == ("embedding", family)


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"a": (4,)},
        {"clip_l": (4, 768), "other": (4,)},
        {"encoder.block.0.weight": (4, 4), "decoder.block.0.weight": (4, 4), "shared.weight": (4, 4)},
        {"vision_model.x": (4,)},
        {"<script>alert(1)</script>.lora": (4,)},
    ],
    ids=str,
)
def test_anything_else_is_unknown(shapes):
    assert verdict_of(shapes) == Verdict()


#: All rows, for the tests of what becomes of a damaged header.
ROWS: dict[str, Shapes] = {
    **{f"lora, {name}": row[0] for name, row in LORAS.items()},
    **{f"lora, {name}": make(LDM_CROSS, 2048, 640) for name, make in ALGORITHMS.items()},
    **{f"ip_adapter, {name}": row[0] for name, row in IP_ADAPTERS.items()},
    **{f"image_encoder, {name}": row[0] for name, row in ENCODERS.items()},
    **{f"vae, {name}": row[0] for name, row in VAES.items()},
    **{f"checkpoint, {name}": row[0] for name, row in CHECKPOINTS.items()},
    **{f"{row[1]}, {name}": row[0] for name, row in CONTROLNETS.items()},
    **{f"embedding, {name}": row[0] for name, row in EMBEDDINGS.items()},
}
