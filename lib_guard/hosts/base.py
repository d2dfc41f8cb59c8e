"""What a guard sees of a WebUI."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..findings import Finding, Repair
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


@dataclass(frozen=True)
class Boundary:
    """Where a call crosses from one component's precision into another's.

    component: its name (`vae`). direction: `encode` or `decode`. owner: the component, whose dtypes are counted.
    modules: the parts that are called through `__call__`, by path in the owner, in the order of the call; native hooks
    fire on these. method: the owner's plain method that spans them; hooks never fire on it
    (AUTOMATIC1111 and diffusers alike call `vae.decode(...)`, never `vae(...)`). entry: the host's cast around it,
    where that goes by a declaration and not by the component itself.
    """

    component: str
    direction: str
    owner: torch.nn.Module
    modules: tuple[tuple[str, torch.nn.Module], ...]
    method: str
    entry: Entry | None = None

    @property
    def name(self) -> str:
        """`VAE decode`."""
        return f"{self.component.upper()} {self.direction}"


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
        """The boundaries of the model that is loaded now; empty when none is."""

    def shields(self) -> Sequence[Shield]:
        """The functions that a component's layers are to be led around, where there are such."""

    def options(self) -> Mapping[str, object]:
        """The host's settings by key, as they are now."""

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

    def explain(self, finding: Finding) -> Finding:
        """The finding with its cause and permanent fix in this host's own names, where the host shows them."""
