"""The VAE precision that a user chooses: the picture is that of a VAE converted to it, and no weight is."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any

import numpy as np
import pytest
import torch

from demo.check import OFF
from demo.correct_caller import spoken_to
from demo.faults import ENCODING, HEALTHY, TXT2IMG, pictures, send

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CALLS = {"txt2img": TXT2IMG, "img2img": ENCODING["img2img"]}


@contextmanager
def converted(vae: Any, dtype: torch.dtype) -> Iterator[None]:
    """A VAE of the same weights in `dtype`, and a caller that minds that; a decoded picture is rounded no further."""
    other = copy.deepcopy(vae).to(dtype)
    with spoken_to(vae, other, dict.fromkeys(("encode", "decode"), lambda: dtype)):
        decode = vae.decode

        def unrounded(z: torch.Tensor, **kwargs: Any) -> Any:
            widest = reduce(torch.promote_types, (dtype, vae.dtype, z.dtype))
            return (decode(z, **{**kwargs, "return_dict": False})[0].to(widest),)

        vae.decode = unrounded
        yield


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("chosen", DTYPES)
@pytest.mark.parametrize("no_half_vae", [False, True], ids=["", "float-vae"])
@pytest.mark.parametrize("model", ["tiny-sd15/FP16", "tiny-sd15/BF16", "tiny-sd15/FP32", "tiny-sdxl-fp16fix/FP16"])
def test_the_chosen_precision_is_that_of_a_converted_vae(bench, model, no_half_vae, chosen, kind):
    name, _, dtype = model.partition("/")
    bench.options(**{**HEALTHY, "sd_model_checkpoint": name, "cuda_dtype": dtype, "no_half_vae": no_half_vae})
    vae = bench.shared.sd_model.vae
    before = {key: tensor.clone() for key, tensor in vae.state_dict().items()}
    reply = send(bench, CALLS[kind], {"LibGuard": {"args": [True, "fix", chosen]}})
    assert all(t.dtype is before[key].dtype and torch.equal(t, before[key]) for key, t in vae.state_dict().items())
    with converted(vae, DTYPES[chosen]):
        reference = send(bench, CALLS[kind], OFF)
    assert np.array_equal(pictures(reply)[0], pictures(reference)[0])
