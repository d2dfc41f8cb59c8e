"""What the tests share: the repository on the path, tiny VAEs, and one embedded host at a time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from demo import bench as benches  # noqa: E402 - the path comes first
from demo.faults import HEALTHY  # noqa: E402


def _cpu_computes_in_half() -> bool:
    """Older versions of torch have no float16 kernels for the CPU; then what a test needs cannot be shown there."""
    try:
        torch.conv2d(*[torch.ones(1, 1, 2, 2, dtype=torch.float16)] * 2)
    except RuntimeError:
        return False
    return True


CPU_COMPUTES_IN_HALF = _cpu_computes_in_half()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Iterator[None]:
    try:
        return (yield)
    except RuntimeError as error:
        if CPU_COMPUTES_IN_HALF or "not implemented for 'Half'" not in str(error):
            raise
        pytest.skip(f"torch {torch.__version__} on a CPU: {error}")


class BenchKeeper:
    """Keeps one embedded host running, and starts another when a test wants the callbacks in another order."""

    def __init__(self) -> None:
        self._bench: benches.Bench | None = None
        self._order = ""

    def get(self, order: str = "a1111") -> benches.Bench:
        if self._bench is None or self._order != order:
            self.close()
            self._bench, self._order = benches.start(benches.DEFAULT_DATA, order=order), order
        return self._bench

    def close(self) -> None:
        if self._bench is not None:
            self._bench.close()
            self._bench = None


@pytest.fixture(scope="session")
def bench_keeper() -> Iterator[BenchKeeper]:
    keeper = BenchKeeper()
    yield keeper
    keeper.close()


@pytest.fixture
def bench(bench_keeper: BenchKeeper) -> benches.Bench:
    """The embedded host in AUTOMATIC1111's order of callbacks, with a freshly loaded default model."""
    return healthy(bench_keeper.get("a1111"))


@pytest.fixture
def sdnext_bench(bench_keeper: BenchKeeper) -> benches.Bench:
    """The embedded host in SD.Next's order of callbacks."""
    return healthy(bench_keeper.get("sdnext"))


def healthy(bench: benches.Bench) -> benches.Bench:
    """The host with its default options and model weights as on disk."""
    bench.options(**HEALTHY)
    bench.post("/sdapi/v1/reload-checkpoint")
    return bench


@pytest.fixture
def make_vae() -> Callable[[], torch.nn.Module]:
    """Makes the same tiny AutoencoderKL each time, float32."""
    from diffusers import AutoencoderKL

    def make() -> torch.nn.Module:
        torch.manual_seed(0)
        return AutoencoderKL(
            block_out_channels=(32, 32),
            norm_num_groups=8,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
        ).eval()

    return make
