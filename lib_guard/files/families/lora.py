"""LoRA files of every algorithm: which model they were trained on.

Order of the rules and their sources: invoke-ai/InvokeAI configs/lora.py (`_get_base_or_raise`), AUTOMATIC1111 #12221,
ComfyUI comfy/model_detection.py; the rest is with each group of rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..header import Header
from .core import core_rules
from .layers import Layer, algorithms_of, layers_of
from .metadata import metadata_rules
from .text import is_text_layer, text_rules
from .transformers import is_control
from .verdict import CHROMA, FLUX1, LORA, Verdict, settle, verdict

_BUNDLED = "bundle_emb."


def lora_verdict(header: Header) -> Verdict | None:
    """What a LoRA was trained on; None when the file is no LoRA.

    It is one when more than half of its tensors belong to changed layers: a model with a few tensors that happen to be
    called so is none.
    """
    layers = layers_of(header.tensors)
    bundled = bundled_in(header)
    if not layers or sum(len(layer.parts) for layer in layers) * 2 <= len(header.tensors) - len(bundled):
        return None
    rules = [*core_rules(layers), *text_rules(layers), *metadata_rules(header.metadata)]
    variant = algorithms_of(layers) + (", FLUX.1 control" if is_control(layers) else "")
    remarks = [*remarks_on(layers), *_remarks_on_bundled(bundled)]
    return _by_default(verdict(LORA, settle(rules), variant, remarks))


def _by_default(found: Verdict) -> Verdict:
    """Chroma's layers are FLUX.1's but for one part, which few train. Nearly all such files are FLUX.1's."""
    if set(found.candidates) != {FLUX1, CHROMA}:
        return found
    remarks = (*found.remarks, "a Chroma LoRA can look the same")
    return replace(found, family=FLUX1, confidence="likely", remarks=remarks)


def bundled_in(header: Header) -> list[str]:
    """The tensors of textual inversions that a LoRA's file brings along."""
    return [name for name in header.tensors if name.startswith(_BUNDLED)]


def remarks_on(layers: Sequence[Layer]) -> Iterator[str]:
    """What keeps a LoRA of these layers from being applied wholly, whatever the model: each a clause."""
    missing = [layer.missing for layer in layers if not layer.whole]
    if missing:
        yield f"it is damaged: {missing[0]}" + (f", and {len(missing) - 1} more of this kind" if missing[1:] else "")
    if all(is_text_layer(layer.path) for layer in layers):
        yield "it changes text encoders only: what loads a UNet's layers alone does nothing with it"


def _remarks_on_bundled(bundled: Sequence[str]) -> Iterator[str]:
    if bundled:
        names = {name.removeprefix(_BUNDLED).partition(".")[0] for name in bundled}
        yield f"it brings {len(names)} textual inversion{'s' if len(names) > 1 else ''} along"
