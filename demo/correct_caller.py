"""The clean pictures: what a pipeline gives when every part is spoken to in the dtype that it has."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from diffusers.models.modeling_outputs import AutoencoderKLOutput


@contextmanager
def aligned(pipeline: Any) -> Iterator[None]:
    """What a correct caller does: speak to the VAE in the dtype it has, and take its latents back in one's own."""
    vae = pipeline.vae
    # Asked anew for each call: some pipelines convert the VAE on the way.
    dtypes = {"encode": lambda: vae.encoder.conv_in.weight.dtype, "decode": lambda: vae.decoder.conv_in.weight.dtype}
    with spoken_to(vae, vae, dtypes):
        yield


def in_float32(*directions: str) -> Callable[[Any], AbstractContextManager[None]]:
    """The picture that a VAE gives whose `directions` are called on a float32 copy of the same weights."""

    def clean(pipeline: Any) -> AbstractContextManager[None]:
        wide = copy.deepcopy(pipeline.vae).float()
        return spoken_to(pipeline.vae, wide, dict.fromkeys(directions, lambda: torch.float32))

    return clean


@contextmanager
def spoken_to(vae: Any, inner: Any, dtypes: Mapping[str, Callable[[], torch.dtype]]) -> Iterator[None]:
    """With the VAE's directions that are named calling those of `inner`, each in a dtype."""
    encode, decode = inner.encode, inner.decode

    def aligned_encode(x: torch.Tensor, return_dict: bool = True) -> Any:
        posterior = _Posterior(encode(x.to(dtypes["encode"]()), return_dict=False)[0], x.dtype)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def aligned_decode(z: torch.Tensor, return_dict: bool = True, generator: Any = None) -> Any:
        return decode(z.to(dtypes["decode"]()), return_dict=return_dict, generator=generator)

    methods = {"encode": aligned_encode, "decode": aligned_decode}
    for name in dtypes:
        setattr(vae, name, methods[name])
    try:
        yield
    finally:
        # The instance attributes only; the class's methods come to light again.
        for name in dtypes:
            delattr(vae, name)


class _Posterior:
    """A latent distribution that computes in its own dtype and hands its samples over in the caller's."""

    def __init__(self, inner: Any, dtype: torch.dtype) -> None:
        self._inner, self._dtype = inner, dtype

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        return self._inner.sample(generator).to(self._dtype)

    def mode(self) -> torch.Tensor:
        return self._inner.mode().to(self._dtype)


@contextmanager
def healed_vectors(pipeline: Any) -> Iterator[None]:
    """What a correct host does: put a textual inversion's vectors in as the encoder's dtype."""
    vectors = pipeline.learnt_vectors
    pipeline.learnt_vectors = vectors.to(pipeline.text_encoder.dtype)
    try:
        yield
    finally:
        pipeline.learnt_vectors = vectors
