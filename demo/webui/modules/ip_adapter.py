"""IP-Adapter through diffusers' own loader: an image encoder beside the model, and a projection inside its UNet."""

from __future__ import annotations

from typing import Any

from PIL import Image

from modules import paths, sd_models


def apply(name: str | None, picture: Image.Image | None) -> dict[str, Any]:
    """Bring the model into the state that a request asks for; returns what its pipelines are to be called with.

    An adapter stays until a request asks for another one or for none. Raises ValueError for an unknown one.
    """
    pipe = sd_models.model_data.get_sd_model()
    if name != getattr(pipe, "loaded_ip_adapter", None):
        if getattr(pipe, "loaded_ip_adapter", None):
            unload(pipe)
        if name:
            load(pipe, name)
    return {"ip_adapter_image": picture} if name else {}


def load(pipe: Any, name: str) -> None:
    """Load an adapter and its image encoder. Raises ValueError for an unknown one."""
    folder = paths.folders.models / "IP-Adapter"
    if not (folder / "models" / f"{name}.safetensors").is_file():
        raise ValueError(f"no IP-Adapter is called {name!r}")
    pipe.load_ip_adapter(str(folder), subfolder="models", weight_name=f"{name}.safetensors", local_files_only=True)
    pipe.loaded_ip_adapter = name


def unload(pipe: Any) -> None:
    """Take the adapter and its image encoder away."""
    pipe.unload_ip_adapter()
    pipe.loaded_ip_adapter = None
