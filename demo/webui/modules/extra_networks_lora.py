"""LoRA through diffusers' own loader, in the three ways in which hosts use it (option `lora_method`).

`adapters`: layers beside the weights, taken out again with `unload_lora_weights`. `fused`: merged into the weights,
and merged out of them by subtraction with `unfuse_lora`. `fused for good`: merged, and the adapters dropped at once, as
SD.Next does with `lora_fuse_diffusers` (lora_load.py:340); nothing takes these out again.
"""

from __future__ import annotations

from typing import Any

from modules import errors, paths, shared
from modules.extra_networks import ExtraNetwork, ExtraNetworkParams

METHODS = ["adapters", "fused", "fused for good"]


class ExtraNetworkLora(ExtraNetwork):
    """`<lora:file:weight>`; what is loaded is remembered on the pipeline that carries it, as (name, weight) pairs."""

    def __init__(self) -> None:
        super().__init__("lora")

    def activate(self, p: Any, params_list: list[ExtraNetworkParams]) -> None:
        """Load, weigh or unload adapters. A name without a file is reported and left out."""
        pipe = shared.sd_model
        wanted = [pair for pair in map(name_and_weight, params_list) if _known(pair[0])]
        loaded: list[tuple[str, float]] = getattr(pipe, "loaded_loras", [])
        if wanted == loaded:
            return
        names = [name for name, _ in wanted]
        if names != [name for name, _ in loaded] or shared.opts.lora_method != "adapters":
            take_out(pipe)
            _load(pipe, names)
        present = {adapter for adapters in _adapters(pipe).values() for adapter in adapters}
        usable = [(name, weight) for name, weight in wanted if adapter_name(name) in present]
        if usable:
            pipe.set_adapters([adapter_name(name) for name, _ in usable], [weight for _, weight in usable])
            pipe.lora_layers = {name: _layers(pipe, adapter_name(name)) for name, _ in usable}
            _fuse(pipe)
        pipe.loaded_loras = wanted


def name_and_weight(params: ExtraNetworkParams) -> tuple[str, float]:
    """What a tag asks for."""
    weight = params.positional[1] if len(params.positional) > 1 else "1"
    return params.positional[0], float(weight)


def adapter_name(name: str) -> str:
    """PEFT keeps adapters in a ModuleDict, whose keys may not hold a dot."""
    return name.replace(".", "_")


def take_out(pipe: Any) -> None:
    """Bring the pipeline to no LoRA, as far as diffusers remembers any."""
    if pipe.num_fused_loras:
        pipe.unfuse_lora()
    pipe.unload_lora_weights()
    pipe.loaded_loras, pipe.lora_layers = [], {}


def _known(name: str) -> bool:
    if name in paths.files("Lora", ".safetensors"):
        return True
    errors.report(f"Couldn't find Lora with name {name}")
    return False


def _adapters(pipe: Any) -> dict[str, list[str]]:
    # A file made for another family may load nothing at all, which diffusers only says at `set_adapters`.
    return pipe.get_list_adapters() if hasattr(pipe, "get_list_adapters") else {}


def _load(pipe: Any, names: list[str]) -> None:
    """A file that fits no layer, or none of this size, is reported and left out (SD.Next modules/lora/lora_load.py:296,
    A1111 extensions-builtin/Lora/networks.py `load_networks`)."""
    for name in names:
        path = paths.files("Lora", ".safetensors")[name]
        try:
            # Folder and file apart: offline, diffusers insists on being told the file.
            pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=adapter_name(name))
        except (RuntimeError, ValueError) as error:
            errors.display(error, f"loading network {path}")


def _layers(pipe: Any, adapter: str) -> dict[str, list[str]]:
    """The layers that an adapter changes, by component."""
    return {
        component: [path for path, layer in module.named_modules() if adapter in getattr(layer, "lora_A", ())]
        for component, module in pipe.components.items()
        if hasattr(module, "named_modules")
    }


def _fuse(pipe: Any) -> None:
    if shared.opts.lora_method == "adapters":
        return
    pipe.fuse_lora()
    if shared.opts.lora_method == "fused for good":
        pipe.unload_lora_weights()
