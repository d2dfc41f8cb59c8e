"""Two precisions in one operation, and precisions that a device cannot compute in.

The wordings are torch's, of its CPU, CUDA and MPS builds over the years, and xformers'. Which part of the model it was
is mostly not in the text: then it is not said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .explanation import Explanation, Hit, before, cure

_DTYPE = r"((?:struct )?[\w.:]{1,40})"


@dataclass(frozen=True)
class _Wording:
    """pattern: with a group for each dtype, where they are told. said: what that means, with the dtypes."""

    pattern: re.Pattern[str]
    said: str


_WORDINGS = (
    _Wording(
        re.compile(rf"Input type \({_DTYPE}\) and (?:bias|weight) type \({_DTYPE}\) should be the same"),
        "a convolution was given {0}, and its weights are {1}",
    ),
    _Wording(
        re.compile(rf"expected scalar type {_DTYPE} but found {_DTYPE}\b"),
        "an operation wanted {0} and found {1}",
    ),
    _Wording(
        re.compile(rf"mat1 and mat2 must have the same dtype, but got {_DTYPE} and {_DTYPE}\b"),
        "a linear layer's product is of {0} and {1}",
    ),
    _Wording(
        re.compile(rf"expected m(?:at)?1 and m(?:at)?2 to have the same dtype, but got: {_DTYPE} != {_DTYPE}"),
        "a linear layer's product is of {0} and {1}",
    ),
    _Wording(
        re.compile(rf"query\.dtype: {_DTYPE} key\.dtype ?: {_DTYPE} (?:and )?value\.dtype: {_DTYPE}"),
        "an attention's query is {0}, its keys are {1} and its values {2}",
    ),
    _Wording(
        re.compile(r"input types 'tensor<[\dx?]{0,40}x(b?f\d\d)>' and 'tensor<[\dx?]{0,40}x(b?f\d\d)>' are not", re.I),
        "an operation on a Mac's GPU met {0} and {1}",
    ),
)
#: The same without dtypes, as some versions have it.
_BARE = (
    _Wording(
        re.compile(r"mat1 and mat2 must have the same dtype(?!, but got)|expected m(?:at)?1 and m(?:at)?2 to have the"),
        "the two sides of a linear layer's product differ in dtype",
    ),
    _Wording(
        re.compile(r"expected query, key,? and value to have the same dtype|Query/Key/Value should either all", re.I),
        "an attention's query, keys and values differ in dtype",
    ),
    _Wording(
        re.compile(r"mixed dtype \(CPU\): expect (?:parameter|input) to have scalar type of Float"),
        "a norm on the CPU was given a tensor and weights of two dtypes, of which one is float32",
    ),
)

#: Parts of a dtype's name, the longer ones first: Half, torch.cuda.HalfTensor, c10::Half, MPSHalfType, f16 ...
_NAMES = (
    ("bfloat16", "bfloat16"),
    ("bf16", "bfloat16"),
    ("float8", "float8"),
    ("float16", "float16"),
    ("half", "float16"),
    ("f16", "float16"),
    ("float64", "float64"),
    ("double", "float64"),
    ("float", "float32"),
    ("f32", "float32"),
)

_DECODE = re.compile(r"decode_first_stage|post_quant_conv|vae\.decode|decode_latents")
_ENCODE = re.compile(r"encode_first_stage|vae\.encode|encode_vae_image")

_INDEX_PUT = re.compile(
    r"Index put requires the source and destination dtypes match,"
    rf" got {_DTYPE} for the destination and {_DTYPE} for the source"
)
_CONSTANT = re.compile(
    r"input types 'tensor<(?:\d{1,7}x){0,6}1x(b?f\d\d)>' and 'tensor<1x(b?f\d\d)>' are not broadcast", re.I
)
_NO_KERNEL = re.compile(r"\b(\w{1,60})\"? not implemented for '(Half|BFloat16|Float8_\w{1,20})'")
_INFERENCE = "Cannot set version_counter for inference tensor"


def mixed_dtypes(text: str) -> Iterator[Hit]:
    """An operation whose operands differ in dtype.

    Messages that name other types than floating ones, or one dtype twice (then it is the device that differs), are of
    other faults.
    """
    constants = {found.start() for found in _CONSTANT.finditer(text)}
    for wording in _WORDINGS:
        for found in wording.pattern.finditer(text):
            names = [dtype_name(name) for name in found.groups()]
            if all(names) and len(set(names)) > 1 and found.start() not in constants:
                yield Hit(found.start(), _mixed(text, found.start(), wording.said.format(*names)))
    yield from _bare(text)


def _bare(text: str) -> Iterator[Hit]:
    for wording in _BARE:
        for found in wording.pattern.finditer(text):
            told = any(w.pattern.search(text, found.start(), found.end() + 200) for w in _WORDINGS)
            if not told:
                yield Hit(found.start(), _mixed(text, found.start(), wording.said))


def _mixed(text: str, at: int, shown: str) -> Explanation:
    code = _code(before(text, at))
    part = "The VAE" if code != "LG112" else "A part of the model"
    open_ = "" if code != "LG112" else " Which part it is, the text does not tell; its traceback's last lines do."
    return Explanation(
        code,
        f"{part} is in another precision than what it is given, or holds weights of two.{open_}",
        shown,
        cure(code, "load every part of the model in one precision, or let the program compute under autocast."),
    )


def _code(call: str) -> str:
    decode, encode = bool(_DECODE.search(call)), bool(_ENCODE.search(call))
    if decode == encode:
        return "LG112"
    return "LG101" if decode else "LG102"


def dtype_name(text: str) -> str:
    """A floating dtype as torch calls it, from any of the ways in which messages spell it; empty for another type."""
    spelled = text.lower()
    return next((name for part, name in _NAMES if part in spelled), "")


def embedding_dtype(text: str) -> Iterator[Hit]:
    """An embedding that is written among the tokens of a text encoder in another dtype: rinongal/textual_inversion
    #43."""
    for found in _INDEX_PUT.finditer(text):
        into, from_ = dtype_name(found[1]), dtype_name(found[2])
        if into and from_ and into != from_:
            yield Hit(found.start(), _embedding(into, from_))


def _embedding(into: str, from_: str) -> Explanation:
    return Explanation(
        "LG113",
        f"A textual-inversion embedding of {from_} is put among the tokens of a text encoder that runs in {into}.",
        f"tensors of {from_} are written into places of one of {into}",
        cure("LG113", f"convert the embedding to {into} when it is loaded, or run the text encoder in {from_}."),
    )


def norm_on_mac(text: str) -> Iterator[Hit]:
    """A Mac's own norm, which adds a single number of its own in float32: Comfy-Org/ComfyUI #1352, #3084."""
    for found in _CONSTANT.finditer(text):
        given, constant = dtype_name(found[1]), dtype_name(found[2])
        if given != constant:
            yield Hit(found.start(), _norm(found[0], given, constant))


def _norm(message: str, given: str, constant: str) -> Explanation:
    encoder = "; 257 rows are those of a CLIP image encoder" if "x257x1x" in message else ""
    return Explanation(
        "",
        f"A norm on a Mac's GPU has a constant of its own in {constant}, and was given {given}: this torch, or this"
        " macOS, cannot compute the norm in that precision.",
        f"one side is a single number in {constant}, the other one number for each row in {given}{encoder}",
        f"Run that part of the model in {constant} (without --force-fp16 or the like), or update torch and macOS.",
    )


def without_kernel(text: str) -> Iterator[Hit]:
    """A dtype that the device has no kernel for."""
    for found in _NO_KERNEL.finditer(text):
        yield Hit(found.start(), _kernel(found[1], found[2]))


def _kernel(operation: str, dtype: str) -> Explanation:
    name = dtype_name(dtype)
    if name == "float8":
        cause = (
            "An operation was to be computed in float8, in which weights are only kept: there is no kernel for"
            " it. Something has taken the dtype of the stored weights for the one to compute in."
        )
        elsewhere = (
            "use the model, or the part that fails (a LoRA's or an IP-Adapter's), in float16 or bfloat16, without the"
            " option that computes in float8; a newer version of the program may convert by itself."
        )
    else:
        cause = f"The device, with this torch, has no kernel that computes this operation in {name}."
        elsewhere = (
            f"run that part in float32{' (--no-half)' if name == 'float16' else ''}, on the GPU, or update torch."
        )
    shown = f"{operation} is not there in {name}"
    return Explanation("LG114", cause, shown, cure("LG114", elsewhere))


def inference_tensor(text: str) -> Iterator[Hit]:
    """Weights that were made in inference mode: Haoming02/sd-webui-forge-classic #1288."""
    at = text.find(_INFERENCE)
    if at >= 0:
        yield Hit(
            at,
            Explanation(
                "",
                "Weights that were made in inference mode are written to, or replaced, outside of it: mostly by a LoRA"
                " that is merged into them.",
                "a tensor of inference mode was to be counted as changed, which only normal ones can be",
                "Update the program; until then use LoRAs with a model file that is not quantized (no scaled float8),"
                " or the program's other way of applying LoRAs.",
            ),
        )
