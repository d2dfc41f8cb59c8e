"""What a guard sees of how a host brings IP-Adapters and image encoders together.

Two kinds of hosts. Where a diffusers pipeline samples, there is one image encoder, in the pipeline, for all adapters of
a request (`PipelineEncoders`). Where a ControlNet extension works, each of its units names a preprocessor, which has an
image encoder of its own (`UnitEncoders`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from ..files.families import EncoderNeed, EncoderOffer

#: Of what is left behind: no part of an adapter, but what it was exchanged for.
PLAIN_ATTENTION = "plain attention processors"


@dataclass(frozen=True)
class AdapterUse:
    """One IP-Adapter of a request.

    name: as the request has it. file: what the host reads it from; None when that is not known, or not on disk.
    """

    name: str
    file: Path | None


@dataclass(frozen=True)
class UnitPair:
    """An IP-Adapter and the preprocessor that a unit of a request pairs it with.

    preprocessor: its name, as the user sees it. offer: what its image encoder gives; a kind of `insightface` where it
    looks for faces alone; None where that is not known. face: whether it gives a face's embedding beside an image's.
    need: what the adapter takes, as the host has loaded it; None where it has not.
    """

    adapter: AdapterUse
    preprocessor: str
    offer: EncoderOffer | None
    face: bool = False
    need: EncoderNeed | None = None


@runtime_checkable
class UnitEncoders(Protocol):
    """A host whose ControlNet extension runs IP-Adapters as units."""

    def units(self, request: Any) -> tuple[object, str] | None:
        """The function that hands out a request's enabled units as a list, as owner and name. It may be called several
        times in a generation. None when no such extension is there."""

    def pair(self, unit: Any) -> UnitPair | None:
        """The pair in a unit; None when the unit is about something else, or says itself what it is to be given (an
        image embedding, an automatic choice)."""

    def preprocessor_for(self, need: EncoderNeed) -> str | None:
        """The preprocessor whose image encoder an adapter needs, if all that it needs is on disk. Loads nothing."""

    def with_preprocessor(self, unit: Any, name: str, request: Any) -> Any:
        """A copy of the unit that names another preprocessor, as the rest of the host is to see it."""

    def left_out(self, unit: Any, request: Any) -> None:
        """A unit is not going to be worked on: have the rest of the host not say that it was."""

    def unload_others(self, pairs: Sequence[UnitPair]) -> Mapping[str, int]:
        """Unload the image encoders that none of these pairs uses, where the host would keep them for ever: their
        names, and the bytes that each took."""

    def text_width(self) -> int | None:
        """How wide the text is that the loaded model takes; None when no model is loaded."""


@dataclass(frozen=True)
class Embedding:
    """What an image encoder makes of an adapter's images, as diffusers' `encode_image` returns it.

    image, empty: shape (images, width), or (images, tokens, width) of hidden states; empty is of no image at all.
    """

    image: torch.Tensor
    empty: torch.Tensor


@runtime_checkable
class PipelineEncoders(Protocol):
    """A host whose pipeline holds one image encoder.

    args, kwargs: of the host's function that `adapters` names.
    """

    def adapters(self) -> tuple[object, str] | None:
        """The function that brings a request's adapters into the pipeline, or takes them out where it asks for none, as
        owner and name."""

    def arguments(self) -> tuple[object, str] | None:
        """The function that returns what a pipeline is called with, as owner and name; it is called in each pass."""

    def uses(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[AdapterUse]:
        """The adapters that a call will bring, in their order; empty when it takes them out."""

    def lacks_list(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether the request has None where the function goes through a list of adapters, so that it would raise."""

    def give_empty_list(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Have the request ask for no adapter in the way that the function understands."""

    def encoder(self) -> torch.nn.Module | None:
        """The image encoder in the pipeline."""

    def unload_encoder(self) -> None:
        """Drop it as the host does, so that the next adapter's is loaded."""

    def has_encoder(self, need: EncoderNeed) -> bool:
        """Whether an encoder that meets a need is on disk, where the host looks for encoders."""

    def load_encoder(self, need: EncoderNeed) -> None:
        """Have the host load it into the pipeline, from disk. Raises what the host raises."""

    def projections(self) -> Sequence[torch.nn.Module]:
        """The image projections in the model, in the adapters' order; empty when no adapter is in it."""

    def text_width(self) -> int | None:
        """How wide the text is that the loaded model takes; None when no model is loaded."""

    def remember(self) -> None:
        """Note what the model has where adapters will be put, unless they are there already."""

    def leftovers(self) -> Sequence[str]:
        """What adapters have left in the model: attribute names. To be asked when none is in use."""

    def clear(self) -> None:
        """Put back what was noted, or what a model has that never had adapters; the image encoder stays. The host's
        records say that nothing is loaded."""

    def leave_out(self, places: Sequence[int], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Have a call that is about to come bring all adapters but those at these places."""

    def given(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether the request hands images to the adapters that were brought."""

    def give_up(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Behind the call: have the request go on without adapters."""

    def encode(self, place: int, hidden: bool, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Embedding:
        """What the image encoder in the pipeline makes of the images for the adapter at this place. hidden: its hidden
        states, else its image_embeds."""

    def with_embeddings(self, result: Any, embeddings: Sequence[Embedding], args: Sequence[Any]) -> Any:
        """What `arguments` returned, with these embeddings in the place of images. args: of that function."""

    def has_images_in_vain(self, result: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether the pipeline that is about to be called is handed images, and no adapter is in its model. result,
        args, kwargs: of the function that `arguments` names."""

    def without_images(self, result: Any) -> Any:
        """What `arguments` returned, without the images."""
