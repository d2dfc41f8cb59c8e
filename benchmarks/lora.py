"""What the LoRA guard costs and saves: `python dev.py run benchmarks.lora`.

On a UNet of the real size of SD1.5's in float16, whose checkpoint is a diffusers folder on the disk (2 GB in the
system's temporary folder while it runs). A LoRA of all attention layers is merged and subtracted again, which leaves
its residue; then the residue is looked for and taken out, and, for comparison, the host's way: the checkpoint is loaded
again. diffusers maps the file into memory, and reads of it only what is used, so its time is none for reading weights.
Ratios of medians of one run.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from lib_guard.guards.lora_ladder import Ladder
from lib_guard.guards.lora_memory import Memory
from lib_guard.hosts.diffusers_lora import DiffusersLoraHandling
from lib_guard.hosts.lora_handling import Asked, Place
from lib_guard.tensors.baseline import Baseline, measure
from lib_guard.tensors.restore import stamp

ROUNDS = 5
ATTENTION = (".to_q.weight", ".to_k.weight", ".to_v.weight", ".to_out.0.weight")


class OneUnet(DiffusersLoraHandling):
    """The embedded host's way with LoRAs, of a UNet by itself."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.unet = load(folder)

    def places(self) -> Sequence[Place]:
        """See `LoraHandling`."""
        files = tuple(sorted(self._folder.glob("*.safetensors")))
        return [Place("unet", self.unet, str(self._folder), files)]

    def copies(self, place: Place) -> Mapping[str, torch.Tensor]:
        """See `LoraHandling`."""
        return {}


def load(folder: Path) -> torch.nn.Module:
    """The host's own loading."""
    model: torch.nn.Module = UNet2DConditionModel.from_pretrained(
        str(folder), torch_dtype=torch.float16, local_files_only=True
    )
    return model


def leave_residue(unet: torch.nn.Module) -> int:
    """Merge a LoRA and subtract it; returns in how many layers there may be a rest."""
    names = 0
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if name.endswith(ATTENTION):
                names += 1
                update = torch.randn(weight.shape[0], 8) @ torch.randn(8, weight.shape[1]) * 0.01
                weight.add_(update.to(weight.dtype)).sub_(update.to(weight.dtype))
    return names


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory(prefix="lib-guard-benchmark-") as temporary:
        folder = Path(temporary)
        # Not randomized: what the numbers are makes no difference to any of this, and takes long.
        UNet2DConditionModel(cross_attention_dim=768).half().save_pretrained(str(folder))
        _measure(OneUnet(folder), folder)


def _measure(host: OneUnet, folder: Path) -> None:
    (place,) = host.places()
    baseline = Baseline(place.origin, tuple((file, *stamp(file)) for file in place.files), "", measure(place.owner))
    looks, repairs, loads, knows = [], [], [], []
    memory, guard, asked = Memory(), object.__new__(type("Guard", (), {"__slots__": ("__weakref__",)})), Asked()
    memory.note(guard, asked, [place])
    layers = 0
    for _ in range(ROUNDS):
        knows.append(seconds(lambda: memory.knows(guard, asked, host.places())))
        layers = leave_residue(host.unet)
        ladder = Ladder(host, [(place, baseline)])
        looks.append(seconds(ladder.strays))
        repairs.append(seconds(lambda ladder=ladder: ladder.climb(asked)))  # type: ignore[misc]
        assert not any(Ladder(host, [(place, baseline)]).strays().values())
        loads.append(seconds(lambda: load(folder)))
    size = sum(p.numel() * p.element_size() for p in host.unet.parameters()) / 1e9
    look, repair, loading, known = (statistics.median(one) for one in (looks, repairs, loads, knows))
    print(f"SD1.5's UNet in float16, {size:.2f} GB, a rest in {layers} layers, medians of {ROUNDS}")
    print(f"loading the checkpoint again                      {loading * 1000:8.1f} ms")
    print(f"looking for the rest                              {look * 1000:8.1f} ms   {look / loading:.1f} of it")
    print(f"taking it out, from the checkpoint's file         {repair * 1000:8.1f} ms   {repair / loading:.1f} of it")
    print(f"the same LoRAs as last time: no tensor is read    {known * 1000:8.3f} ms")


if __name__ == "__main__":
    main()
