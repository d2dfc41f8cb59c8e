"""What a guard sees of a WebUI."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..findings import Finding
from .seams import Seam

ENCODE, DECODE = "encode", "decode"


@dataclass(frozen=True)
class Boundary:
    """Where a call crosses from one component's precision into another's.

    component: its name (`vae`). direction: `encode` or `decode`. owner: the component, whose dtypes are counted.
    modules: the parts that are called through `__call__`, by path in the owner, in the order of the call; native hooks
    fire on these. method: the owner's plain method that spans them; hooks never fire on it
    (AUTOMATIC1111 and diffusers alike call `vae.decode(...)`, never `vae(...)`).
    """

    component: str
    direction: str
    owner: torch.nn.Module
    modules: tuple[tuple[str, torch.nn.Module], ...]
    method: str

    @property
    def name(self) -> str:
        """`VAE decode`."""
        return f"{self.component.upper()} {self.direction}"


class Host(Protocol):
    """One WebUI. Looking at it never loads a model and never changes anything."""

    #: As users know it, with its version: `SD.Next 058a7f0`.
    title: str
    #: What of the host LibGuard relies on.
    seams: tuple[Seam, ...]

    def boundaries(self) -> Sequence[Boundary]:
        """The boundaries of the model that is loaded now; empty when none is."""

    def options(self) -> Mapping[str, object]:
        """The host's settings by key, as they are now."""

    def tab(self, request: Any) -> str:
        """`txt2img` or `img2img`, of the host's processing object."""

    def on_end(self, request: Any, call: Callable[[], None]) -> None:
        """Have `call` called when a request has ended, also when it failed: hosts call no callback after a failure."""

    def is_running(self, request: Any) -> bool:
        """Whether the request is still being worked on by the calling thread, below the present call."""

    def write_infotext(self, request: Any, values: Mapping[str, str]) -> None:
        """Have the pictures of a request carry these values."""

    def explain(self, finding: Finding) -> Finding:
        """The finding with its cause and permanent fix in this host's own names, where the host shows them."""
