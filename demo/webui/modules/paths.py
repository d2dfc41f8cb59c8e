"""Where things are. `configure` sets the folders; nothing is created before that."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

#: The folder that holds `modules`, named as in A1111.
script_path = str(Path(__file__).resolve().parent.parent)


@dataclass
class Folders:
    """`data` holds config.json, `models` the checkpoints; `extensions` are the extension folders in loading order."""

    data: Path = Path()
    models: Path = Path()
    extensions: list[Path] = field(default_factory=list)


folders = Folders()


def configure(data: Path, models: Path, extensions: list[Path]) -> None:
    """Point the host at its folders."""
    folders.data, folders.models, folders.extensions = data, models, list(extensions)


def files(folder: str, suffix: str) -> dict[str, Path]:
    """The model files of one kind by name without suffix, such as `files("Lora", ".safetensors")`."""
    return {path.stem: path for path in sorted((folders.models / folder).glob("*" + suffix))}


def subfolders(folder: str) -> dict[str, Path]:
    """The model folders of one kind by name."""
    return {path.name: path for path in sorted((folders.models / folder).glob("*")) if path.is_dir()}
