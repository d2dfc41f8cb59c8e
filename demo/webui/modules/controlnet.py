"""ControlNets: loaded when first needed, kept as long as the model."""

from __future__ import annotations

import torch
from diffusers import ControlNetModel

from modules import devices, paths, sd_models, shared

#: The option's value for "in the model's dtype".
AS_MODEL = "As the model"


def get(name: str) -> ControlNetModel:
    """The ControlNet of that name in the dtype that the options ask for. Raises ValueError for an unknown name."""
    key = (name, _dtype())
    if key not in sd_models.model_data.controlnets:
        load(*key)
    return sd_models.model_data.controlnets[key]


def load(name: str, dtype: torch.dtype) -> None:
    """Load a ControlNet beside those of other names; the same one in another dtype goes."""
    folder = paths.subfolders("ControlNet").get(name)
    if folder is None:
        raise ValueError(f"no ControlNet is called {name!r}")
    model = ControlNetModel.from_pretrained(str(folder), torch_dtype=dtype, local_files_only=True)
    loaded = sd_models.model_data.controlnets
    for key in [key for key in loaded if key[0] == name]:
        del loaded[key]
    loaded[name, dtype] = model


def _dtype() -> torch.dtype:
    chosen = shared.opts.controlnet_dtype
    return devices.dtype if chosen == AS_MODEL else devices.DTYPES[chosen]
