"""The words in which it is said what a model file is, and how clues become a verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ...wording import on_one_line
from ..header import TensorEntry

#: Kinds of files.
LORA, IP_ADAPTER, IMAGE_ENCODER, VAE = "lora", "ip_adapter", "image_encoder", "vae"
CHECKPOINT, CONTROLNET, T2I_ADAPTER, EMBEDDING = "checkpoint", "controlnet", "t2i_adapter", "embedding"

#: What is neither guessed nor known: a kind, a family, an encoder.
UNKNOWN = "unknown"

#: Families of models. Files of one family are made for one another.
SD15, SD2, SDXL, SDXL_REFINER = "sd15", "sd2", "sdxl", "sdxl_refiner"
SD3, SD35_LARGE = "sd3", "sd35_large"
FLUX1, FLUX2, CHROMA = "flux1", "flux2", "chroma"
PIXART, LUMINA2, Z_IMAGE, QWEN_IMAGE, WAN, KREA2, KOLORS = (
    "pixart",
    "lumina2",
    "z_image",
    "qwen_image",
    "wan",
    "krea2",
    "kolors",
)

#: What they are called in a sentence.
SPOKEN = {
    SD15: "SD1.5",
    SD2: "SD2",
    SDXL: "SDXL",
    SDXL_REFINER: "the SDXL refiner",
    SD3: "SD3 and SD3.5 medium",
    SD35_LARGE: "SD3.5 large",
    FLUX1: "FLUX.1",
    FLUX2: "FLUX.2",
    CHROMA: "Chroma",
    PIXART: "PixArt",
    LUMINA2: "Lumina 2",
    Z_IMAGE: "Z-Image",
    QWEN_IMAGE: "Qwen-Image",
    WAN: "Wan",
    KREA2: "Krea-2",
    KOLORS: "Kolors",
}

#: Image encoders, which are families of their own.
VIT_L, VIT_L_336, VIT_H, VIT_BIGG, SIGLIP = "vit_l", "vit_l_336", "vit_h", "vit_bigg", "siglip"
#: No CLIP at all but a face's embedding.
INSIGHTFACE = "insightface"

#: What they are called in a sentence.
SPOKEN_ENCODERS = {
    VIT_L: "CLIP ViT-L",
    VIT_L_336: "CLIP ViT-L 336",
    VIT_H: "OpenCLIP ViT-H",
    VIT_BIGG: "OpenCLIP ViT-bigG",
    SIGLIP: "SigLIP",
    INSIGHTFACE: "InsightFace",
}

#: certain: shapes say so, or names that one family alone has. likely: metadata, names, or a shape that others may
#: share. none: nothing says anything.
Confidence = Literal["certain", "likely", "none"]

#: What an image encoder hands over: its projected embedding, or the hidden states before or after its last layer.
EMBEDS, HIDDEN, LAST = "image_embeds", "hidden_states[-2]", "last_hidden_state"


@dataclass(frozen=True)
class Evidence:
    """One tensor that decided, and what was expected of it.

    shape: None where it is not a shape that decided; `expected` then says by itself what was found.
    """

    tensor: str
    shape: tuple[int, ...] | None
    expected: str

    def describe(self) -> str:
        """`..._attn2_to_k.lora_down.weight is [32, 2048], SDXL's text context is 2048 wide`; on one line."""
        name = on_one_line(self.tensor, 120)
        if self.shape is None:
            return f"{name} {self.expected}"
        return f"{name} is {on_one_line(str(list(self.shape)), 60)}, {self.expected}"


@dataclass(frozen=True)
class EncoderOffer:
    """An image encoder: its kind, the width of its projected embedding (None without projection), its hidden width."""

    kind: str
    width: int | None
    hidden: int | None


@dataclass(frozen=True)
class EncoderNeed:
    """What an adapter's image projection was trained on.

    kind: the encoder, `insightface` where it is no CLIP, `unknown` where no known one has this width. width: of what it
    is given. output: which of the encoder's results that is; it tells apart who is meant by 1280: ViT-bigG's embedding
    or ViT-H's hidden states. face: whether a face's embedding is needed beside it.
    """

    kind: str
    width: int
    output: str
    face: bool = False

    def met_by(self, offer: EncoderOffer) -> bool:
        """Whether that encoder is the one: of this kind, and as wide at the place that is used.

        Where one of the two is of a build that nobody knows, the width alone decides.
        """
        if INSIGHTFACE in (self.kind, offer.kind):
            return self.kind == offer.kind
        known = UNKNOWN not in (self.kind, offer.kind)
        same = self.width == (offer.width if self.output == EMBEDS else offer.hidden)
        return same and (self.kind == offer.kind or not known)

    def describe(self) -> str:
        """`OpenCLIP ViT-H, its image_embeds of 1024`."""
        kind = SPOKEN_ENCODERS.get(self.kind, "an encoder that is not known")
        return f"{kind}, its {self.output} of {self.width}{', and InsightFace' if self.face else ''}"


@dataclass(frozen=True)
class Verdict:
    """What a file is.

    kind: one of the kinds, or `unknown`. family: the model family it is made for (of an image encoder: which one it
    is), or `unknown`. candidates: every family that is possible; empty when nothing is known, more than one where a
    header cannot tell them apart. confidence: of the family, and of the candidates where there is none. evidence: the
    tensors that decided, weightiest first. variant: what of its kind it is, in a few words. remarks: what else is worth
    saying, each a clause. need: of an adapter that projects an image's embedding; None where its file does not tell.
    offer: of an image encoder.
    """

    kind: str = UNKNOWN
    family: str = UNKNOWN
    confidence: Confidence = "none"
    evidence: tuple[Evidence, ...] = ()
    candidates: tuple[str, ...] = ()
    variant: str = ""
    remarks: tuple[str, ...] = ()
    need: EncoderNeed | None = None
    offer: EncoderOffer | None = None

    def describe(self) -> str:
        """What decided, as one clause."""
        return self.evidence[0].describe() if self.evidence else "nothing in its header tells what it is"


@dataclass(frozen=True)
class Clue:
    """One thing seen and the families it leaves.

    weight: as in a verdict.
    """

    families: frozenset[str]
    evidence: Evidence
    weight: Literal["certain", "likely"] = "certain"


@dataclass(frozen=True)
class Settled:
    """What clues come to."""

    candidates: tuple[str, ...]
    confidence: Confidence
    evidence: tuple[Evidence, ...]
    remarks: tuple[str, ...]

    @property
    def family(self) -> str:
        """The one family that is left, or `unknown`."""
        return self.candidates[0] if len(self.candidates) == 1 else UNKNOWN


def clue(families: Iterable[str] | str, name: str, entry: TensorEntry, expected: str, certain: bool = True) -> Clue:
    """A clue from one tensor's shape."""
    left = frozenset([families]) if isinstance(families, str) else frozenset(families)
    return Clue(left, Evidence(name, entry.shape, expected), "certain" if certain else "likely")


def settle(rules: Iterable[Iterable[Clue]]) -> Settled:
    """Narrow the families down, rule by rule; an earlier rule is never overruled by a later one.

    Clues of one rule weigh the same: when they leave nothing in common, the file contradicts itself and is unknown.
    """
    possible: frozenset[str] = frozenset()
    evidence: list[Evidence] = []
    remarks: list[str] = []
    certain, disputed = False, False
    for rule in rules:
        clues = distinct(rule)
        said = _common(one.families for one in clues)
        if said is None:
            continue
        sure = said == _common(one.families for one in clues if one.weight == "certain")
        if not said:
            return _contradiction(clues)
        left = possible & said if possible else said
        if not left:
            remarks += [f"though {one.evidence.describe()}" for one in clues]
            disputed = disputed or sure
        elif left != possible or (sure and not certain and left == said):
            evidence += [one.evidence for one in clues]
            certain = sure and (certain or left == said)
            possible = left
    if not possible:
        return Settled((), "none", (), ())
    confidence: Confidence = "certain" if certain and not disputed else "likely"
    return Settled(tuple(sorted(possible)), confidence, tuple(evidence), tuple(remarks))


def _common(families: Iterable[frozenset[str]]) -> frozenset[str] | None:
    """What all have in common; None when there are none."""
    sets = list(families)
    return frozenset.intersection(*sets) if sets else None


def distinct(rule: Iterable[Clue]) -> Sequence[Clue]:
    """One clue for each set of families, a certain one before a likely one."""
    found: dict[frozenset[str], Clue] = {}
    for one in rule:
        known = found.get(one.families)
        if known is None or (known.weight != "certain" and one.weight == "certain"):
            found[one.families] = one
    return list(found.values())


def _contradiction(clues: Sequence[Clue]) -> Settled:
    said = " but ".join(one.evidence.describe() for one in clues[:2])
    return Settled((), "none", tuple(one.evidence for one in clues), (f"it contradicts itself: {said}",))


def verdict(kind: str, settled: Settled, variant: str = "", remarks: Iterable[str] = ()) -> Verdict:
    """A verdict of that kind from what the clues came to."""
    return Verdict(
        kind=kind,
        family=settled.family,
        confidence=settled.confidence,
        evidence=settled.evidence,
        candidates=settled.candidates,
        variant=variant,
        remarks=(*settled.remarks, *remarks),
    )


def with_names(found: Verdict, names: Mapping[str, str]) -> Verdict:
    """The verdict with tensors called as the file calls them, where rules have looked at them without a prefix."""
    evidence = tuple(replace(one, tensor=names.get(one.tensor, one.tensor)) for one in found.evidence)
    return replace(found, evidence=evidence)


def size(entry: TensorEntry | None, axis: int) -> int | None:
    """A tensor's size along an axis; None when there is no such tensor or axis."""
    if entry is None or not -len(entry.shape) <= axis < len(entry.shape):
        return None
    return entry.shape[axis]
