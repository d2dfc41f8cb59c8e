"""Why a fault came about on AUTOMATIC1111, and what ends it, in the names of its own settings, flags and pages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch

from ..findings import Finding
from ..tensors.dtypes import dtype_name
from .base import DECODE
from .regional_prompter import in_force

#: The setting that turns the functional path on, as the Settings page calls it (Lora/scripts/lora_script.py:56).
OLD_METHOD = 'Settings > Compatibility > "Lora/Networks: use old method ..." (lora_functional)'


def explain(finding: Finding, options: Mapping[str, object]) -> Finding:
    """The finding with cause and fix, where this host's names tell more than its code's. options: the settings."""
    if finding.code in ("LG104", "LG105"):
        return _functional(finding, options)
    if finding.code in ("LG101", "LG102"):
        return _declared(finding)
    explained = _EXPLAINED.get(finding.code)
    return explained(finding) if explained is not None and not finding.cause else finding


def _functional(finding: Finding, options: Mapping[str, object]) -> Finding:
    extension = in_force()
    if extension is not None and extension["lactive"]:
        return replace(
            finding,
            cause="Regional Prompter (Latent) turns the functional LoRA path on, which casts the input of every layer"
            f" of the process to the UNet's dtype, the VAE's too{_started_with()}.",
            permanent_fix='Regional Prompter > options > "Use LoHa or other", or its Attention mode.',
        )
    if options.get("lora_functional"):
        return replace(
            finding,
            cause=f"{OLD_METHOD} is on: it casts the input of every layer of the process to the UNet's dtype, the"
            f" VAE's too{_started_with()}.",
            permanent_fix=f"Switch off {OLD_METHOD}.",
        )
    return finding


def _declared(finding: Finding) -> Finding:
    """The host casts to what the VAE says it is (sd_samplers_common.py:58); the two differ where that is wrong."""
    from modules import sd_models

    vae = getattr(sd_models.model_data.sd_model, "first_stage_model", None)
    declared = getattr(vae, "dtype", None)
    if not isinstance(declared, torch.dtype) or dtype_name(declared) == finding.evidence.get("component"):
        return finding
    return replace(
        finding,
        cause=f"The VAE says that it is {dtype_name(declared)} and is {finding.evidence.get('component')}"
        f"{_started_with()}; the WebUI casts to what it says. SD3 is built so, and an extension that converts weights"
        " one by one leaves it so.",
        permanent_fix="SD3: start without --no-half-vae. Else reload the checkpoint; be rid of what converts the VAE.",
    )


_RELOAD = "Reload the checkpoint (Settings > Actions), and be rid of what converts the part."


def _mixed(finding: Finding) -> Finding:
    """The host loads a checkpoint in one precision (sd_models.py:430), so a part was converted afterwards."""
    return replace(
        finding,
        cause=f"The WebUI loads every part of a checkpoint in one precision{_started_with()}, so something converted"
        " this one afterwards.",
        permanent_fix=_RELOAD,
    )


def _given(finding: Finding) -> Finding:
    return replace(
        finding,
        cause=f"An extension or its model runs in another precision than the checkpoint{_started_with()}.",
        permanent_fix="Switch off the extensions of this request one by one; with --no-half all are in float32.",
    )


def _inside(finding: Finding) -> Finding:
    """Textual inversions of the host's own are float32 (textual_inversion.py:293-306), and it casts what it has put
    together back; but autocast refuses to join half and bfloat16."""
    if not str(finding.evidence.get("place", "")).startswith("modules/sd_hijack.py"):
        return finding
    met = set(str(finding.evidence.get("dtypes", "")).split(", ")) - {str(finding.evidence.get("component"))}
    foreign = [f'"{name}" ({dtype})' for name, dtype in _vectors() if dtype in met]
    if not foreign:
        return finding
    return replace(
        finding,
        cause=f"An extension brought textual inversions in another precision: {', '.join(foreign[:3])}"
        f"{_started_with()}.",
        permanent_fix="Put their files into the embeddings folder: the WebUI reads these in float32, and casts them.",
    )


def _vectors() -> Iterator[tuple[str, str]]:
    """The textual inversions' names and dtypes."""
    hijack = getattr(sys.modules.get("modules.sd_hijack"), "model_hijack", None)
    known = getattr(getattr(hijack, "embedding_db", None), "word_embeddings", {})
    for name, embedding in known.items():
        held = getattr(embedding, "vec", None)
        dtypes = {one.dtype for one in (held.values() if isinstance(held, dict) else [held]) if torch.is_tensor(one)}
        yield from ((str(name), dtype_name(dtype)) for dtype in dtypes)


def _kernel(finding: Finding) -> Finding:
    return replace(finding, permanent_fix="Start with --no-half (on a CPU with --precision full too), or update torch.")


def _overflow(finding: Finding) -> Finding:
    """The host's own fallback is for decode, and converts the VAE for good (processing.py:636-665)."""
    reverts = 'Settings > VAE > "Automatically revert VAE to 32-bit floats"'
    own = f" {reverts} would do the same, and leave the VAE in float32." if finding.direction == DECODE else ""
    return replace(
        finding,
        cause=f"The VAE computes in {finding.evidence.get('dtype')}, and grows past it{_started_with()}.{own}",
        permanent_fix="Start with --no-half-vae, or use a VAE that works in half precision (an fp16-fix one).",
    )


def _latent(finding: Finding) -> Finding:
    if finding.evidence.get("loras"):
        return finding
    return replace(
        finding,
        permanent_fix='Settings > "Upcast cross attention layer to float32" on, or start with --no-half.',
    )


def _broken_vae(finding: Finding) -> Finding:
    return replace(finding, permanent_fix='Settings > VAE > "SD VAE": choose another one.')


def _missing_encoder(finding: Finding) -> Finding:
    return replace(
        finding,
        permanent_fix="Choose the preprocessor of that encoder once (ip-adapter_clip_h, ip-adapter_clip_g), and the"
        " ControlNet extension fetches it.",
    )


#: What is known of a finding in this host's names, unless an extension is known to have brought it.
_EXPLAINED: dict[str, Callable[[Finding], Finding]] = {
    "LG111": _mixed,
    "LG112": _given,
    "LG113": _inside,
    "LG114": _kernel,
    "LG201": _overflow,
    "LG202": _latent,
    "LG203": _broken_vae,
    "LG405": _missing_encoder,
}


def _started_with() -> str:
    """`; the WebUI was started with --upcast-sampling --no-half-vae`, of the flags that split the dtypes."""
    from modules import shared

    flags = [f"--{name.replace('_', '-')}" for name in ("upcast_sampling", "no_half_vae", "no_half") if _is_set(name)]
    flags += ["--precision half"] if getattr(shared.cmd_opts, "precision", "") == "half" else []
    return f" (the WebUI was started with {' '.join(flags)})" if flags else ""


def _is_set(flag: str) -> bool:
    from modules import shared

    return bool(getattr(shared.cmd_opts, flag, False))
