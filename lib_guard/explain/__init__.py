"""An error's text, told: what caused it, what of the text shows that, and how to be rid of it.

For errors that came up where LibGuard does not run, and for logs of others. Only the text is looked at. A kind of error
is one rule; `RULES` may stand in any order, since each rule asks for what its error alone has. What no rule knows stays
unknown.
"""

from __future__ import annotations

import re

from .adapter import adapter_left, encoder_missing, image_without_adapter
from .dtypes import embedding_dtype, inference_tensor, mixed_dtypes, norm_on_mac, without_kernel
from .explanation import Explanation, Rule
from .lora_keys import keys_unknown, too_many_unknown
from .not_finite import cast_of_nan, nans_produced
from .projection import projection_product, projection_sizes
from .text_width import lora_sizes, tensor_widths, text_product

__all__ = ["LONGEST", "MOST", "Explanation", "explain"]

#: Of a longer text the end is read: what ended a program stands there.
LONGEST = 200_000
#: A log of a whole day is told by its last faults.
MOST = 8

#: What colours a console, and a Mac's or another terminal's titles, up to their end.
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]{0,30}[A-Za-z]|\][^\x07\x1b]{0,200}\x07)")

RULES: tuple[Rule, ...] = (
    projection_product,
    projection_sizes,
    text_product,
    tensor_widths,
    lora_sizes,
    adapter_left,
    image_without_adapter,
    encoder_missing,
    keys_unknown,
    too_many_unknown,
    mixed_dtypes,
    embedding_dtype,
    norm_on_mac,
    without_kernel,
    inference_tensor,
    nans_produced,
    cast_of_nan,
)


def explain(text: str) -> list[Explanation]:
    """What is known of the errors in a text, in the order in which they stand there; empty when there is none known.

    An error that is there many times is told once.
    """
    line = _on_one_line(text)
    hits = sorted((hit for rule in RULES for hit in rule(line)), key=lambda hit: hit.at)
    told = {(hit.explanation.code, hit.explanation.cause): hit.explanation for hit in reversed(hits)}
    return list(reversed(told.values()))[-MOST:]


def _on_one_line(text: str) -> str:
    """The text's end without colours, and with one space wherever a console or a person has broken a line."""
    return " ".join(_ESCAPES.sub("", text[-LONGEST:]).replace("\0", " ").split())
