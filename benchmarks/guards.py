"""What the guards cost: `python dev.py run benchmarks.guards`.

Ratios of two medians that were measured alternately in one run, because machines are noisy and no two are alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from lib_guard.border import Border
from lib_guard.guards import GUARDS, GuardContext
from lib_guard.hosts.base import Boundary
from lib_guard.hosts.diffusers import vae_boundaries
from lib_guard.hosts.webui import WebUiHost
from lib_guard.settings import Settings
from lib_guard.tensors.census import take_census
from lib_guard.tensors.reconcile import Reconcile

ROUNDS = 25
Call = Callable[[], object]


class OneModel(WebUiHost):
    """A host that has these boundaries and nothing else."""

    def __init__(self, boundaries: Sequence[Boundary]) -> None:
        self._boundaries = boundaries

    def boundaries(self) -> Sequence[Boundary]:
        """See `Host`."""
        return self._boundaries

    def step(self) -> tuple[int, int]:
        """See `Host`."""
        return 1, 1


@contextmanager
def guarded(boundaries: Sequence[Boundary], before: Call = lambda: None) -> Iterator[None]:
    """All guards, attached; `before` is done in it and is not timed."""
    context = GuardContext(OneModel(boundaries), Settings(), Border(lambda finding: None), lambda finding, repair: None)
    guards = [kind(context) for kind in GUARDS]
    for guard in guards:
        guard.attach()
    try:
        before()
        yield
    finally:
        for guard in reversed(guards):
            guard.detach()


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    rows = {**vae_rows(), **unet_rows(), **smallest_operation()}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {ROUNDS} alternating rounds\n")
    print("| what | ratio |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value:.3f} |")


def vae_rows() -> dict[str, float]:
    """Encode and decode of a small VAE."""
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    ).eval()
    latents, picture = torch.randn(1, 4, 24, 24), torch.rand(1, 3, 192, 192) * 2 - 1
    half, boundaries = latents.half(), vae_boundaries(vae)

    def attach_and_detach() -> None:
        with guarded(boundaries):
            pass

    return {
        "healthy decode: guarded / plain": ratio(
            lambda: vae.decode(latents), lambda: vae.decode(latents), lambda: guarded(boundaries)
        ),
        "healthy encode: guarded / plain": ratio(
            lambda: vae.encode(picture), lambda: vae.encode(picture), lambda: guarded(boundaries)
        ),
        "attaching to the VAE and detaching / one decode": ratio(attach_and_detach, lambda: vae.decode(latents)),
        "census of the VAE / one decode": ratio(lambda: take_census(vae), lambda: vae.decode(latents)),
        "decode of float16 latents by a float32 VAE: cured / aligned by the caller": ratio(
            lambda: vae.decode(half), lambda: vae.decode(half.float()), lambda: guarded(boundaries)
        ),
    }


def unet_rows() -> dict[str, float]:
    """Calls of a UNet of Stable Diffusion's depth (686 weights) and an eighth of its width."""
    unet = UNet2DConditionModel(
        block_out_channels=(40, 80, 160, 160), cross_attention_dim=96, attention_head_dim=8, norm_num_groups=8
    ).eval()
    sample, text, boundaries = torch.randn(2, 4, 32, 32), torch.randn(2, 77, 96), [Boundary("unet", unet)]

    def step() -> None:
        unet(sample, 500.0, encoder_hidden_states=text)

    def attach_and_detach() -> None:
        with guarded(boundaries):
            pass

    return {
        "first call of a UNet in a generation: guarded / plain": ratio(step, step, lambda: guarded(boundaries)),
        "every further call: guarded / plain": ratio(step, step, lambda: guarded(boundaries, before=step)),
        "attaching to the UNet and detaching / one call": ratio(attach_and_detach, step),
    }


def smallest_operation() -> dict[str, float]:
    """The mode's fixed cost, by itself."""
    numbers = torch.ones(4)

    def additions() -> None:
        for _ in range(1000):
            numbers + numbers

    return {
        "the smallest operation there is (4 numbers added): under the mode / plain": ratio(
            additions, additions, lambda: Reconcile(lambda dtypes: None, lambda mismatch: None)
        )
    }


def ratio(one: Call, other: Call, around_one: Callable[[], AbstractContextManager[object]] = nullcontext) -> float:
    """The median time of `one` over that of `other`. Entering and leaving what is around `one` is not timed."""
    ones, others = [], []
    with torch.no_grad():
        for round_number in range(-2, ROUNDS):
            with around_one():
                spent_on_one = timed(one)
            spent_on_other = timed(other)
            if round_number >= 0:  # the first ones warm up
                ones.append(spent_on_one)
                others.append(spent_on_other)
    return statistics.median(ones) / statistics.median(others)


def timed(call: Call) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
