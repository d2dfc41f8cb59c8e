"""What is said of a LoRA's file, before sampling."""

from __future__ import annotations

from collections.abc import Sequence

from ..findings import Finding
from ..hosts.lora_handling import LoraUse, Place, Reach


def silenced(option: object) -> frozenset[str]:
    """The names that nothing is to be said about."""
    return frozenset()


def lora_file_findings(
    use: LoraUse, reach: Reach | None, places: Sequence[Place], quiet: frozenset[str]
) -> list[Finding]:
    """What is wrong with a LoRA's file for this model."""
    return []
