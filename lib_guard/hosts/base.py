"""What a guard sees of a WebUI."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ..findings import Finding, Repair
from .encoder_handling import PipelineEncoders, UnitEncoders
from .lora_handling import LoraHandling
from .seams import Seam

ENCODE, DECODE = "encode", "decode"


@dataclass(frozen=True)
class Entry:
    """Where a host casts what it hands to a component, to the dtype that an attribute declares the component to be in.

    owner: has the method and the attribute. method: casts, and calls the boundary's method. declared: the attribute's
    name; its value is a `torch.dtype`, read anew for each call.
    """

    owner: object
    method: str
    declared: str


#: How components are called in a sentence, where that is not their name with spaces (`text_encoder_2`).
_TITLES = {"vae": "VAE", "unet": "UNet", "controlnet": "ControlNet"}


@dataclass(frozen=True)
class Boundary:
    """A component that is called through `__call__`: where a call crosses from one precision into another's.

    component: its name, as diffusers calls it wherever it has one: `text_encoder`, `text_encoder_2`, `unet`,
    `transformer`, `controlnet`, `image_encoder`, `image_projection`; of several a number follows. owner: the component,
    whose dtypes are counted, and on which native hooks fire.
    """

    component: str
    owner: torch.nn.Module

    @property
    def title(self) -> str:
        """The component in a sentence: `VAE`, `text encoder 2`."""
        kind = self.component.split("_")[0]
        return self.component.replace(kind, _TITLES.get(kind, kind), 1).replace("_", " ")

    @property
    def name(self) -> str:
        """The boundary in a sentence; here it is the component."""
        return self.title


@dataclass(frozen=True)
class VaeBoundary(Boundary):
    """One direction of a VAE.

    direction: `encode` or `decode`. modules: the parts that are called through `__call__`, by path in the owner, in
    the order of the call; native hooks fire on these. method: the owner's plain method that spans them; hooks never
    fire on it (AUTOMATIC1111 and diffusers alike call `vae.decode(...)`, never `vae(...)`). entry: the host's cast
    around it, where that goes by a declaration and not by the component itself.
    """

    direction: str
    modules: tuple[tuple[str, torch.nn.Module], ...]
    method: str
    entry: Entry | None = None

    @property
    def name(self) -> str:
        """`VAE decode`."""
        return f"{self.title} {self.direction}"


@dataclass(frozen=True)
class Arrival:
    """A function of the host's through which components come, go or are exchanged within a generation.

    owner, name: where it is (a module, a class or an object), to be wrapped for the length of a generation. A refiner
    that takes the model's place in mid-generation comes so, and a ControlNet that is loaded when it is first needed.
    """

    owner: object
    name: str


@dataclass(frozen=True)
class Detour:
    """One call of a layer that would change the dtype of what passes through it, and the way around.

    layer: whose call it is. given, cast: the dtype that came, and the one that it would be changed to. call: the
    layer's own work, without the change.
    """

    layer: torch.nn.Module
    given: torch.dtype
    cast: torch.dtype
    call: Callable[[], Any]


@dataclass(frozen=True)
class Shield:
    """A function of the host's that layers of several components run through, and that may change dtypes.

    owner, name: where it is, to be replaced for the length of a generation. detour: given the arguments of a call, the
    way around; None where the function would change no dtype and is to run as it is. It holds no state: a preview
    decodes in a thread of its own at the same time.
    """

    owner: object
    name: str
    detour: Callable[..., Detour | None]


class Host(Protocol):
    """One WebUI. Looking at it never loads a model and never changes anything."""

    #: As users know it, with its version: `SD.Next 058a7f0`.
    title: str
    #: What of the host LibGuard relies on.
    seams: tuple[Seam, ...]

    def connect(self, begin: Callable[[Any], None], end: Callable[[Any], None]) -> None:
        """Register what this host needs beside the Script's callbacks. Called once, while the host loads its scripts.

        begin, end: to be called with the request for generations that run no Script: before one, and after one that
        came through.
        """

    def boundaries(self) -> Sequence[Boundary]:
        """The boundaries of the model that is loaded now; empty when none is. Components that it does not have, and
        ones that are compiled, are left out."""

    def arrivals(self) -> Sequence[Arrival]:
        """After which calls `boundaries` may say something else within a generation."""

    def shields(self) -> Sequence[Shield]:
        """The functions that a component's layers are to be led around, where there are such."""

    def options(self) -> Mapping[str, object]:
        """The host's settings by key, as they are now."""

    def step(self) -> tuple[int, int]:
        """The sampling step that is being worked on, counted from 1, and how many there are; zeros outside of
        sampling."""

    def loras(self) -> Sequence[tuple[str, Path]]:
        """The LoRA files that are in use now, as name and file. A hint: hosts lose count after failures."""

    def lora_handling(self) -> LoraHandling | None:
        """How this host puts LoRAs into its model; None where that is not known."""

    def encoder_handling(self) -> UnitEncoders | PipelineEncoders | None:
        """How this host brings IP-Adapters and image encoders together; None where that is not known."""

    def remember(self, request: Any) -> None:
        """A request begins, and no extension's `process` has run yet: note what extensions change for its length."""

    def left_behind(self, put_back: bool) -> Sequence[tuple[Finding, Repair | None]]:
        """What extensions changed for the length of a request that failed, and what is still so, though no request
        needs it any more. put_back: set it back to what was remembered, and verify that."""

    def tab(self, request: Any) -> str:
        """`txt2img` or `img2img`, of the host's processing object."""

    def on_end(self, request: Any, call: Callable[[], None]) -> None:
        """Have `call` called when a request has ended, also when it failed: hosts call no callback after a failure."""

    def is_running(self, request: Any) -> bool:
        """Whether the request is still being worked on by the calling thread, below the present call."""

    def write_infotext(self, request: Any, values: Mapping[str, str]) -> None:
        """Have the pictures of a request carry these values."""

    def comment(self, request: Any, text: str) -> None:
        """Have a line of plain text shown under the pictures of a request; the host escapes it."""

    def explain(self, finding: Finding) -> Finding:
        """The finding with its cause and permanent fix in this host's own names, where the host shows them."""
