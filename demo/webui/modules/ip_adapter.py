"""IP-Adapters through diffusers' own loader: an image encoder beside the model, and projections inside its UNet.

Adapters and encoder stay until a request asks for others or for none, and the encoder even then: that is how WebUIs
save themselves from loading gigabytes anew for every picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import CLIPVisionModelWithProjection

from modules import errors, paths, sd_models

if TYPE_CHECKING:
    from modules.processing import StableDiffusionProcessing


def apply(p: StableDiffusionProcessing) -> None:
    """Bring the model into the state that a request asks for. Raises ValueError for an unknown adapter."""
    pipe, names = sd_models.model_data.get_sd_model(), wanted(p)
    if names == getattr(pipe, "loaded_ip_adapters", []):
        return
    if names:
        load(pipe, names)
    else:
        remove(pipe)


def arguments(p: StableDiffusionProcessing, pipe: Any) -> dict[str, Any]:
    """What a pipeline of the request is to be called with: the one picture for each adapter."""
    return {"ip_adapter_image": [p.ip_adapter_image] * len(wanted(p))} if wanted(p) else {}


def wanted(p: StableDiffusionProcessing) -> list[str]:
    """The adapters that a request asks for."""
    return [p.ip_adapter] if isinstance(p.ip_adapter, str) else list(p.ip_adapter or ())


def load(pipe: Any, names: list[str]) -> None:
    """Load adapters, and the last one's image encoder if there is none. Raises ValueError for an unknown one."""
    for name in names:
        if not file_of(name).is_file():
            raise ValueError(f"no IP-Adapter is called {name!r}")
    if pipe.image_encoder is None:
        load_encoder(pipe, encoder_of(names[-1]))
    pipe.load_ip_adapter(
        str(_folder()),
        subfolder="models",
        weight_name=[file_of(name).name for name in names],
        image_encoder_folder=None,
        local_files_only=True,
    )
    pipe.loaded_ip_adapters = names


def load_encoder(pipe: Any, folder: Path) -> None:
    """Load an image encoder into the model."""
    encoder = CLIPVisionModelWithProjection.from_pretrained(str(folder), torch_dtype=pipe.dtype, local_files_only=True)
    pipe.register_modules(image_encoder=encoder.to(pipe.device))


def remove(pipe: Any) -> None:
    """Take all adapters out; the image encoder stays for the next one."""
    pipe.loaded_ip_adapters = []
    encoder, extractor = pipe.image_encoder, pipe.feature_extractor
    try:
        pipe.set_ip_adapter_scale(0)
        pipe.unload_ip_adapter()
    except ValueError as error:
        # diffusers takes one strength for one adapter only (loaders/ip_adapter.py:301).
        errors.display(error, "IP-Adapter")
    pipe.register_modules(image_encoder=encoder, feature_extractor=extractor)


def file_of(name: str) -> Path:
    """An adapter's file, whether it is there or not."""
    return _folder() / "models" / f"{name}.safetensors"


def encoder_of(name: str) -> Path:
    """The folder of the image encoder that goes with an adapter: the repository keeps ViT-bigG with SDXL's."""
    return encoders()[1 if name.endswith(("vit-G", "sdxl")) else 0]


def encoders() -> tuple[Path, Path]:
    """The folders of the image encoders: for SD1.5's adapters, and for SDXL's."""
    return _folder() / "models" / "image_encoder", _folder() / "sdxl_models" / "image_encoder"


def _folder() -> Path:
    return paths.folders.models / "IP-Adapter"
