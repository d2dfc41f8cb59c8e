"""The `<kind:name:...>` tags of a prompt."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

TAG = re.compile(r"<(\w+):([^>]+)>")


class ExtraNetworkParams:
    """What stands behind the kind: positional items and name=value items, all as text."""

    def __init__(self, items: list[str] | None = None) -> None:
        self.items = items or []
        self.positional = [item for item in self.items if "=" not in item]
        self.named = dict(item.split("=", 1) for item in self.items if "=" in item)

    def __repr__(self) -> str:
        return f"ExtraNetworkParams({self.items})"


class ExtraNetwork:
    """A kind of extra network, registered under its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def activate(self, p: Any, params_list: list[ExtraNetworkParams]) -> None:
        """Bring the model into the state that `params_list` asks for; an empty list means none."""
        raise NotImplementedError

    def deactivate(self, p: Any) -> None:
        """Called after the generation."""


NetworkData = dict[str, list[ExtraNetworkParams]]

extra_network_registry: dict[str, ExtraNetwork] = {}


def register_extra_network(network: ExtraNetwork) -> None:
    """Make a kind known under its name."""
    extra_network_registry[network.name] = network


def parse_prompt(prompt: str) -> tuple[str, NetworkData]:
    """The prompt without its tags, and the tags by kind."""
    data: NetworkData = defaultdict(list)
    for match in TAG.finditer(prompt):
        data[match.group(1)].append(ExtraNetworkParams(match.group(2).split(":")))
    return TAG.sub("", prompt), data


def parse_prompts(prompts: list[str]) -> tuple[list[str], NetworkData]:
    """As `parse_prompt`; as in A1111 only the first prompt's tags count for the batch."""
    parsed = [parse_prompt(prompt) for prompt in prompts]
    return [text for text, _ in parsed], parsed[0][1] if parsed else defaultdict(list)


def activate(p: Any, data: NetworkData) -> None:
    """Activate every registered kind, the unnamed ones with an empty list, then tell the scripts (A1111 only)."""
    for name, network in extra_network_registry.items():
        network.activate(p, data.get(name, []))
    if p.scripts is not None:
        p.scripts.after_extra_networks_activate(p, **p.batch_arguments(), extra_network_data=data)


def deactivate(p: Any, data: NetworkData | None) -> None:
    """Deactivate every registered kind."""
    for network in extra_network_registry.values():
        network.deactivate(p)
