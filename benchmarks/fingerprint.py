"""What a fingerprint costs: `python dev.py run benchmarks.fingerprint`.

The weights of UNets of Stable Diffusion 1.5's depth (686 tensors in float16) on the CPU, against one plain 64-bit sum
of each of the same tensors, which sees neither order nor place, and against two.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from benchmarks.guards import ROUNDS, ratio
from lib_guard.tensors.fingerprint import fingerprints

#: Four fifths of the original's width, and half of it, where the fixed cost of each tensor weighs more.
WIDTHS = {"1.1 GB": (256, 512, 1024, 1024), "0.4 GB": (160, 320, 640, 640)}


def main() -> None:
    """Print the table."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {ROUNDS} alternating rounds\n")
    print("| speed of fingerprints, of which a plain sum's is 1 | all | those over 32 KiB | these, two sums being 1 |")
    print("|---|---|---|---|")
    for name, widths in WIDTHS.items():
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in speeds(unet(widths)))} |", flush=True)


def speeds(model: nn.Module) -> tuple[float, float, float]:
    """One row of the table."""
    large = nn.ParameterList(weight for weight in model.parameters() if weight.nbytes > 2**15)
    return speed(nn.ParameterList(model.parameters())), speed(large), speed(large, 2)


def unet(widths: tuple[int, ...]) -> nn.Module:
    """Random weights, float16."""
    with torch.device("meta"):
        model = UNet2DConditionModel(block_out_channels=widths, cross_attention_dim=768).half()
    model.to_empty(device="cpu").requires_grad_(False)
    for weight in model.parameters():
        weight.uniform_(-1, 1)
    return model


def speed(weights: nn.ParameterList, sums: int = 1) -> float:
    """How fast fingerprints are, where so many plain sums of the same weights are 1."""

    def plain() -> None:
        for weight in weights:
            for _ in range(sums):
                flat = weight.view(-1)
                flat[: len(flat) // 4 * 4].view(torch.int64).sum()

    return ratio(plain, lambda: fingerprints(weights))


if __name__ == "__main__":
    main()
