"""The layers that a LoRA file changes, whatever algorithm and trainer it comes from.

Names of the tensors: KohakuBlueleaf/LyCORIS lycoris/modules (locon.py:29-36, loha.py:18-28, lokr.py:31-43,
glora.py:19-27, diag_oft.py:29, boft.py:44, ia3.py:15, full.py:27, norms.py:14); kohya-ss/sd-scripts
networks/oft.py:249; invoke-ai/InvokeAI configs/lora.py; diffusers loaders/lora_conversion_utils.py:158-260.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ...wording import on_one_line
from ..header import TensorEntry
from .verdict import size

#: How the end of a tensor's name reads -> what the tensor is in its layer. `lora_A` and `.lora.down` are other names of
#: the same matrices.
_ENDS: tuple[tuple[str, str], ...] = (
    (r"\.lora_down\.weight", "down"),
    (r"\.lora_A\.weight", "down"),
    (r"(?:(?<=[._]lora)|(?<=[._]lora\d))\.down\.weight", "down"),
    (r"\.lora_up\.weight", "up"),
    (r"\.lora_B\.weight", "up"),
    (r"(?:(?<=[._]lora)|(?<=[._]lora\d))\.up\.weight", "up"),
    (r"\.lora_mid\.weight", "mid"),
    (r"\.lora_B\.bias", "bias"),
    (r"\.(hada_w[12]_[ab]|hada_t[12])", ""),
    (r"\.(lokr_w[12](?:_[ab])?|lokr_t2)", ""),
    (r"\.([ab][12]|bm)\.weight", ""),
    (r"\.(oft_blocks|rescale|on_input|diff_b|diff|w_norm|b_norm|dora_scale|alpha)", ""),
    (r"\.lora_magnitude_vector(?:\.weight)?", "dora_scale"),
)

_END = re.compile("(?:" + "|".join(f"(?P<e{number}>{pattern})" for number, (pattern, _) in enumerate(_ENDS)) + r")\Z")
#: No name of a tensor's part is longer.
_LONGEST_END = 40

#: Algorithm -> the sets of parts of which one set is a whole layer; the first algorithm that has a part there counts.
_ALGORITHMS: tuple[tuple[str, tuple[frozenset[str], ...]], ...] = (
    ("LoRA", (frozenset({"down", "up"}),)),
    ("LoHa", (frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),)),
    (
        "LoKr",
        tuple(
            frozenset({*first, *second})
            for first in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
            for second in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
        ),
    ),
    ("GLoRA", (frozenset({"a1", "a2", "b1", "b2"}),)),
    ("OFT", (frozenset({"oft_blocks"}),)),
    ("(IA)^3", (frozenset({"on_input", "weight"}),)),
    ("full difference", (frozenset({"diff"}),)),
    ("norm difference", (frozenset({"w_norm"}),)),
)

#: What old diffusers and XLabs put between a layer's name and the matrix.
_OWN_END = re.compile(r"_lora\d?\Z")

#: Names that other models' tensors may end in as well; alone they make no LoRA.
_COMMON = frozenset({"a1", "a2", "b1", "b2"})


@dataclass(frozen=True)
class Width:
    """How wide a layer is, and the tensor that tells. note: what else is needed to see it, as a clause, or nothing."""

    value: int
    name: str
    entry: TensorEntry
    note: str = ""


@dataclass(frozen=True)
class Part:
    """One tensor of a layer."""

    name: str
    entry: TensorEntry


@dataclass(frozen=True)
class Layer:
    """One changed layer. name: as in the file. path: the same with underscores for dots, which is what rules look at.
    parts: its tensors by what they are in it."""

    name: str
    path: str
    algorithm: str
    parts: Mapping[str, Part]

    @property
    def whole(self) -> bool:
        """Whether every tensor that its algorithm needs is there."""
        needed = dict(_ALGORITHMS)[self.algorithm]
        return any(parts <= self.parts.keys() for parts in needed)

    @property
    def first(self) -> Part:
        """One of its tensors, for where only the name matters; a matrix before a number."""
        parts = list(self.parts.values())
        return next((part for part in parts if part.entry.shape), parts[0])

    @property
    def missing(self) -> str:
        """What is missing of it, as a clause; empty when it is whole."""
        if self.whole:
            return ""
        lacking = min((parts - self.parts.keys() for parts in dict(_ALGORITHMS)[self.algorithm]), key=len)
        return f"{on_one_line(self.first.name, 120)} is there without its {' and '.join(sorted(lacking))}"

    def width_in(self) -> Width | None:
        """How wide its input is; None where the algorithm does not tell."""
        if self.algorithm == "LoKr":
            return self._product(1, "_b")
        if self.algorithm == "GLoRA":
            return self._glora()
        return self._sized({"LoRA": "down", "LoHa": "hada_w1_b", "full difference": "diff"}.get(self.algorithm, ""), 1)

    def width_out(self) -> Width | None:
        """How wide its output is; None where the algorithm does not tell."""
        if self.algorithm == "LoKr":
            return self._product(0, "_a")
        if self.algorithm == "OFT":
            return self._blocks()
        return self._sized({"LoRA": "up", "LoHa": "hada_w1_a", "full difference": "diff"}.get(self.algorithm, ""), 0)

    def width_square(self) -> Width | None:
        """How wide it is where input and output are equally wide."""
        if self.algorithm == "(IA)^3":
            return self._vector()
        return self.width_in() or self.width_out()

    def _sized(self, role: str, axis: int) -> Width | None:
        part = self.parts.get(role)
        value = size(part.entry, axis) if part and len(part.entry.shape) >= 2 else None
        return Width(value, part.name, part.entry) if part and value else None

    def _product(self, axis: int, half: str) -> Width | None:
        """LoKr: the sizes of both factors multiply. Either may be given as a product itself."""
        first = self.parts.get("lokr_w1") or self.parts.get("lokr_w1" + half)
        second = self.parts.get("lokr_w2") or self.parts.get("lokr_w2" + half)
        if first is None or second is None or min(len(first.entry.shape), len(second.entry.shape)) < 2:
            return None
        value = first.entry.shape[axis] * second.entry.shape[axis]
        note = f"with {second.name.rpartition('.')[2]} {list(second.entry.shape)} that makes {value}; "
        return Width(value, first.name, first.entry, note)

    def _glora(self) -> Width | None:
        """a1 and a2 lead from the input to the rank and back, b1 and b2 to the output; older files swap each pair."""
        parts = [self.parts.get(role) for role in ("a1", "a2", "b1", "b2")]
        a1, a2, b1, b2 = (part.entry.shape if part and len(part.entry.shape) >= 2 else (0, 0) for part in parts)
        inner = {a1[1], a2[0], b1[1], b2[0]}
        outer = {a1[0], a2[1], b1[0], b2[1]}
        axis = 0 if len(inner) == 1 else 1 if len(outer) == 1 else None
        first = parts[0]
        return Width(first.entry.shape[axis], first.name, first.entry) if first and axis is not None else None

    def _blocks(self) -> Width | None:
        """OFT turns the output in blocks, [count, size, size]; BOFT does it repeatedly, [times, count, size, size]."""
        part = self.parts.get("oft_blocks")
        if part is None or len(part.entry.shape) not in (3, 4):
            return None
        count, length = part.entry.shape[-3], part.entry.shape[-1]
        return Width(count * length, part.name, part.entry, f"{count} blocks of {length} make {count * length}; ")

    def _vector(self) -> Width | None:
        part = self.parts.get("weight")
        return Width(max(part.entry.shape), part.name, part.entry) if part and part.entry.shape else None


def layers_of(tensors: Mapping[str, TensorEntry]) -> list[Layer]:
    """The layers that a file changes, in its order; none when it is no LoRA."""
    found: dict[str, dict[str, Part]] = {}
    for name, entry in tensors.items():
        end = _END.search(name, max(0, len(name) - _LONGEST_END))
        if end is not None and end.start():
            found.setdefault(name[: end.start()], {})[_role(end)] = Part(name, entry)
    for name, parts in found.items():
        weight = f"{name}.weight"
        if "on_input" in parts and weight in tensors:
            parts["weight"] = Part(weight, tensors[weight])
    layers = (_layer(name, parts) for name, parts in found.items())
    return [layer for layer in layers if layer is not None]


def algorithms_of(layers: Iterable[Layer]) -> str:
    """`LoRA`, `LoKr with DoRA`: the algorithms of a file."""
    names: dict[str, None] = {}
    dora = False
    for layer in layers:
        blocks = layer.parts.get("oft_blocks")
        kind = "BOFT" if blocks and len(blocks.entry.shape) == 4 else "Diag-OFT"
        names[kind if layer.algorithm == "OFT" else layer.algorithm] = None
        dora = dora or "dora_scale" in layer.parts
    return " and ".join(names) + (" with DoRA" if dora and names else "")


def _role(end: re.Match[str]) -> str:
    for number, (pattern, role) in enumerate(_ENDS):
        text = end.group(f"e{number}")
        if text is not None:
            inner = re.fullmatch(pattern, text)
            return role or (inner.group(1) if inner else "")
    return ""


def _layer(name: str, parts: Mapping[str, Part]) -> Layer | None:
    for algorithm, needed in _ALGORITHMS:
        own = frozenset().union(*needed)
        there = own & parts.keys()
        if there and (there - _COMMON or own <= parts.keys()):
            return Layer(name, _OWN_END.sub("", name.replace(".", "_")), algorithm, parts)
    return None
