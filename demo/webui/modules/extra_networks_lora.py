"""LoRA through diffusers' own loader: adapters beside the weights, taken out again with `unload_lora_weights`."""

from __future__ import annotations

from typing import Any

from modules import errors, paths, shared
from modules.extra_networks import ExtraNetwork, ExtraNetworkParams


class ExtraNetworkLora(ExtraNetwork):
    """`<lora:file:weight>`; what is loaded is remembered on the pipeline that carries it, as (name, weight) pairs."""

    def __init__(self) -> None:
        super().__init__("lora")

    def activate(self, p: Any, params_list: list[ExtraNetworkParams]) -> None:
        """Load, weigh or unload adapters. A name without a file is reported and left out."""
        pipe = shared.sd_model
        wanted = [pair for pair in map(_name_and_weight, params_list) if _known(pair[0])]
        loaded: list[tuple[str, float]] = getattr(pipe, "loaded_loras", [])
        if wanted == loaded:
            return
        if [name for name, _ in wanted] != [name for name, _ in loaded]:
            _reload(pipe, [name for name, _ in wanted])
        present = {adapter for adapters in _adapters(pipe).values() for adapter in adapters}
        usable = [(name, weight) for name, weight in wanted if _adapter(name) in present]
        if usable:
            pipe.set_adapters([_adapter(name) for name, _ in usable], [weight for _, weight in usable])
        pipe.loaded_loras = wanted


def _name_and_weight(params: ExtraNetworkParams) -> tuple[str, float]:
    weight = params.positional[1] if len(params.positional) > 1 else "1"
    return params.positional[0], float(weight)


def _known(name: str) -> bool:
    if name in paths.files("Lora", ".safetensors"):
        return True
    errors.report(f"Couldn't find Lora with name {name}")
    return False


def _adapter(name: str) -> str:
    # PEFT keeps adapters in a ModuleDict, whose keys may not hold a dot.
    return name.replace(".", "_")


def _adapters(pipe: Any) -> dict[str, list[str]]:
    # A file made for another family may load nothing at all, which diffusers only says at `set_adapters`.
    return pipe.get_list_adapters() if hasattr(pipe, "get_list_adapters") else {}


def _reload(pipe: Any, names: list[str]) -> None:
    pipe.unload_lora_weights()
    pipe.loaded_loras = []
    for name in names:
        path = paths.files("Lora", ".safetensors")[name]
        # Folder and file apart: offline, diffusers insists on being told the file.
        pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=_adapter(name))
