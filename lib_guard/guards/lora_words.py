"""LoRAs and layers in the words of a line."""

from __future__ import annotations

from collections.abc import Mapping

from ..hosts.lora_handling import Asked
from ..wording import on_one_line


def short(name: str) -> str:
    """A LoRA's name."""
    return on_one_line(name, 60)


def listed(asked: Asked) -> str:
    """`add-detail, lcm`; empty where none is asked for."""
    return on_one_line(", ".join(dict.fromkeys(short(use.name) for use in asked.loras)), 200)


def named(asked: Asked) -> str:
    """`the request asks for "add-detail"`, the beginning of a sentence."""
    return f'the request asks for "{listed(asked)}"' if asked.loras else "no LoRA is requested"


def by_component(counts: Mapping[str, int], of: Mapping[str, int] | None = None) -> str:
    """`24 of 72 text encoder layers and 192 of 686 unet layers`."""
    return " and ".join(
        f"{count}{f' of {of[component]}' if of else ''} {component.replace('_', ' ')} layers"
        for component, count in counts.items()
    )
