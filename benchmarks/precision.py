"""What the precision guard costs, as ratios within one run: `python dev.py run benchmarks.precision`.

Each pair is measured alternately, many times, and the medians are compared, so that a machine's other work falls on
both alike. The VAE is a small AutoencoderKL of the real architecture: the smaller it is, the *worse* the ratios, since
the guard's cost is per operation and not per number.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from diffusers import AutoencoderKL

from lib_guard.border import Border
from lib_guard.guards import GuardContext, PrecisionGuard
from lib_guard.hosts.base import Boundary
from lib_guard.hosts.diffusers import vae_boundaries
from lib_guard.hosts.webui import WebUiHost
from lib_guard.settings import Settings
from lib_guard.tensors.census import take_census
from lib_guard.tensors.reconcile import Reconcile

ROUNDS = 25
Call = Callable[[], object]


class OneVae(WebUiHost):
    """A host that has a VAE and nothing else."""

    def __init__(self, vae: torch.nn.Module) -> None:
        self._vae = vae

    def boundaries(self) -> Sequence[Boundary]:
        """The VAE's two."""
        return vae_boundaries(self._vae)


@contextmanager
def guarded(vae: torch.nn.Module) -> Iterator[None]:
    """The guard, attached."""
    context = GuardContext(OneVae(vae), Settings(), Border(lambda finding: None), lambda finding, repair: None)
    guard = PrecisionGuard(context)
    guard.attach()
    try:
        yield
    finally:
        guard.detach()


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    ).eval()
    latents, picture, numbers = torch.randn(1, 4, 24, 24), torch.rand(1, 3, 192, 192) * 2 - 1, torch.ones(4)
    half = latents.half()

    def decode() -> None:
        vae.decode(latents)

    def attach_and_detach() -> None:
        with guarded(vae):
            pass

    def additions() -> None:
        for _ in range(1000):
            numbers + numbers

    rows = {
        "healthy decode: guarded / plain": ratio(decode, decode, lambda: guarded(vae)),
        "healthy encode: guarded / plain": ratio(
            lambda: vae.encode(picture), lambda: vae.encode(picture), lambda: guarded(vae)
        ),
        "attaching and detaching / one decode": ratio(attach_and_detach, decode),
        "census of the VAE / one decode": ratio(lambda: take_census(vae), decode),
        "decode of float16 latents by a float32 VAE: cured / aligned by the caller": ratio(
            lambda: vae.decode(half), lambda: vae.decode(half.float()), lambda: guarded(vae)
        ),
        "the smallest operation there is (4 numbers added): under the mode / plain": ratio(
            additions, additions, lambda: Reconcile(lambda dtypes: None, lambda mismatch: None)
        ),
    }
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {ROUNDS} alternating rounds\n")
    print("| what | ratio |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value:.3f} |")


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
