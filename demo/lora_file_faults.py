"""LoRAs that were made for another family of models than the loaded one: real widths of theirs on the tiny models."""

from __future__ import annotations

from demo.faults import TXT2IMG, Fault
from demo.lora_faults import with_loras

_XL = {"sd_model_checkpoint": "tiny-sdxl"}

#: Row -> the LoRA's family, how a user says it, and the options that load the model.
_ROWS: dict[str, tuple[str, str, dict[str, str]]] = {
    "sdxl-on-sd15": ("sdxl", "A LoRA for SDXL on SD1.5", {}),
    "sd2-on-sd15": ("sd2", "A LoRA for SD2 on SD1.5", {}),
    "flux-on-sdxl": ("flux", "A LoRA for FLUX.1 on SDXL", _XL),
}

LORA_FILE_FAULTS: list[Fault] = [
    Fault(f"L17-D-{key}", title, options, with_loras(f"made-for-{family}:1"), told="LG304", lost=TXT2IMG)
    for key, (family, title, options) in _ROWS.items()
]
