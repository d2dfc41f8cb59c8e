"""What is done to a loaded pipeline: weights in other dtypes than their neighbours, and weights that are too loud."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def half_decoder(pipeline: Any) -> None:
    pipeline.vae.decoder.half()


def half_data(pipeline: Any) -> None:
    for parameter in pipeline.vae.parameters():
        parameter.data = parameter.data.half()


def half_state(pipeline: Any) -> None:
    vae = pipeline.vae
    vae.load_state_dict({name: tensor.half() for name, tensor in vae.state_dict().items()}, assign=True)


def half_weight(pipeline: Any) -> None:
    weight = pipeline.vae.decoder.conv_in.weight
    weight.data = weight.data.half()


def bfloat_block(pipeline: Any) -> None:
    pipeline.vae.decoder.up_blocks[1].to(torch.bfloat16)


def float_encoder(pipeline: Any) -> None:
    pipeline.vae.encoder.float()
    pipeline.vae.quant_conv.float()


def converted(path: str, dtype: torch.dtype) -> Callable[[Any], None]:
    """A part of the pipeline, by its path, in another dtype."""
    component, _, inside = path.partition(".")

    def convert(pipeline: Any) -> None:
        getattr(pipeline, component).get_submodule(inside).to(dtype)

    return convert


def float_text_encoders(pipeline: Any) -> None:
    for name in ("text_encoder", "text_encoder_2"):
        if getattr(pipeline, name, None) is not None:
            getattr(pipeline, name).float()


def float_embeddings(pipeline: Any) -> None:
    """As a trainer or an extension does that keeps the learnt vectors in float32."""
    weight = pipeline.text_encoder.get_input_embeddings().weight
    weight.data = weight.data.float()


def written_vectors(pipeline: Any) -> None:
    """As hosts do that write a textual inversion over its token's place (textual_inversion #43): by index, in the
    dtype that the file has."""
    width = pipeline.text_encoder.config.hidden_size
    pipeline.learnt_vectors = torch.randn(1, width, generator=torch.Generator().manual_seed(5))

    def write(module: Any, args: tuple[Any, ...], output: torch.Tensor) -> None:
        output[:, torch.tensor([2])] = pipeline.learnt_vectors

    pipeline.text_encoder.get_input_embeddings().register_forward_hook(write)


def overflowing(**factors: float) -> Callable[[Any], None]:
    """A VAE whose activations pass 65504 on the way, as those of SDXL's first one do; its weights do not."""

    def scale(pipeline: Any) -> None:
        for name, factor in factors.items():
            first = pipeline.vae.get_submodule({"encode": "encoder.conv_in", "decode": "decoder.conv_in"}[name])
            first.weight.mul_(factor)
            first.bias.mul_(factor)

    return scale
