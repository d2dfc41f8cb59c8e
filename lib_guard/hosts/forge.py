"""Forge and its kin: reForge, Forge Classic, Forge Neo.

Of Forge (dfdcbab6, 2.0.1v1.10.1) this relies on:
  modules_forge.forge_version.version   the version, by which the kin are told apart (`neo`, `classic`, `1.` reForge);
                                        for display only, everything else is looked for on the objects
  sd_models.model_data.sd_model         FakeInitialModel before the first request (sd_models.py:397), None while and
                                        after a load that failed (:484); loaded in `process_images`
                                        (processing.py:836), so that `process` sees the model
  sd_model.forge_objects_original       what was loaded; `forge_objects` is replaced by shallow copies of it within a
                                        generation (processing.py:937, 957, 1373, 1518, 1851), which share the VAE
  sd_model.first_stage_model            None here (diffusion_engine/base.py:58)
  forge_objects.vae                     the VAE's wrapper, patcher/vae.py:55: `.first_stage_model`, `.vae_dtype`
  VAE.decode_inner, .encode_inner       cast what comes to `.vae_dtype` (patcher/vae.py:141, 177; tiled :109, :121) and
                                        call the next; reForge and Classic do both in `.decode`, `.encode`
  first_stage_model.decode, .encode     plain methods, nn/vae.py:304, :292; `encode` returns latents that are drawn
  .encoder, .quant_conv, .post_quant_conv, .decoder
                                        called through __call__, nn/vae.py:293-310; the quant convolutions may be None
  forge_objects_original.clip           the text encoders' wrapper, patcher/clip.py:10: `.cond_stage_model` holds
                                        clip_l, clip_g, t5xxl, of each `.transformer` is called through
                                        __call__ (classic_engine.py:133, t5_engine.py:62)
  forge_objects_original.unet           the UNet's wrapper: `.model.diffusion_model` is called through __call__
                                        (modules/k_model.py:45), whatever patches are on it
  sd_models.forge_model_reload          exchanges the model, in mid-generation for a refiner
                                        (sd_samplers_common.py:200) and for hires fix (processing.py:1419)
  layer.parameters_manual_cast          a layer that fits its weights to what it is given (operations.py:143, 153):
                                        unequal dtypes are healthy there, and nothing raises
  VAE.__init__                          brings parameters and `.vae_dtype` to one dtype (patcher/vae.py:79-82), whatever
                                        the file holds; where they differ one of them was changed afterwards
  processing.process_images_inner       works on the request as its local `p`, processing.py:852
  StableDiffusionProcessing.close       always called, by `contextlib.closing` (txt2img.py:97, img2img.py:231,
                                        api.py:481, :552)
A generation from the page runs in the main thread (main_thread.py), one from the API in a worker. `process` runs
outside of `torch.inference_mode()`, the model's weights were made in it: they are never converted here.
TAESD and the approximate previews are models of their own (sd_samplers_common.py:35-56) and are left alone.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..findings import Finding
from ..tensors.layers import is_compiled
from .base import DECODE, ENCODE, Arrival, Boundary, Entry
from .checkout import commit_of
from .diffusers import vae_boundaries
from .encoder_handling import UnitEncoders
from .forge_encoder import ForgeUnitEncoders
from .forge_lora import ForgeLoraHandling
from .ldm import LdmHost
from .lora_handling import LoraHandling
from .seams import Seam
from .webui import COMMON_SEAMS

#: The methods that cast what they hand to the VAE, the innermost first.
_ENTRIES = {DECODE: ("decode_inner", "decode"), ENCODE: ("encode_inner", "encode")}
_DECLARED = "vae_dtype"

_RELOAD = "Choose the checkpoint anew, and be rid of the extension that converts the VAE."


class ForgeHost(LdmHost):
    """See the module's docstring."""

    name = "Forge"
    seams = (
        *COMMON_SEAMS,
        Seam("modules_forge.forge_version", "version", "modules_forge/forge_version.py:1", "which of the kin it is"),
        Seam("modules.sd_models", "model_data", "modules/sd_models.py:408", "holds the loaded model as `sd_model`"),
        Seam("modules.processing", "process_images_inner", "modules/processing.py:852", "a generation", ("p",)),
        Seam(
            "modules.processing",
            "StableDiffusionProcessing.close",
            "modules/processing.py:384",
            "called at the end of every request, also of a failed one",
        ),
        Seam(
            "modules.sd_models",
            "forge_model_reload",
            "modules/sd_models.py:473",
            "loads a model, also in the middle of a generation",
            guards=("precision", "finite"),
        ),
        Seam(
            "modules.sd_samplers_cfg_denoiser",
            "CFGDenoiser",
            "modules/sd_samplers_cfg_denoiser.py:30",
            "counts the calls of the UNet as `step` and `steps`",
            guards=("finite",),
        ),
        Seam(
            "modules.extra_networks",
            "extra_network_registry",
            "modules/extra_networks.py:8",
            "the Lora extension's `activate`",
            guards=("lora",),
        ),
        Seam(
            "backend.patcher.lora",
            "LoraLoader.refresh",
            "backend/patcher/lora.py:352",
            "puts weights back and merges into them; reForge and Classic have no such thing",
            ("lora_patches", "offload_device", "force_refresh"),
            ("lora",),
        ),
        Seam(
            "backend.memory_management",
            "unload_model_clones",
            "backend/memory_management.py:552",
            "takes a component's clones for not loaded, so that LoRAs are merged anew",
            ("model",),
            ("lora",),
        ),
        Seam(
            "modules.processing",
            "StableDiffusionProcessing.cached_c",
            "modules/processing.py:176",
            "a cache of encoded prompts, which every request holds",
            guards=("lora",),
        ),
        Seam(
            "modules_forge.shared",
            "supported_preprocessors",
            "modules_forge/shared.py:41",
            "the preprocessors of ControlNet's units, which hold the image encoders",
            guards=("encoder",),
        ),
    )

    def __init__(self) -> None:
        super().__init__()
        self._lora_handling = ForgeLoraHandling()
        self._encoder_handling = ForgeUnitEncoders()

    @property
    def title(self) -> str:  # type: ignore[override] # read when it is said, behind the check of the seams
        """See `Host`."""
        return _title()

    @classmethod
    def is_here(cls) -> bool:
        """See `WebUiHost`. An extension may bring a package of any name, so Forge's must lie beside the host's own."""
        if find_spec("modules.modeldata") is not None or find_spec("modules_forge") is None:
            return False
        import modules

        spec = find_spec("modules_forge.forge_version")
        folders = [Path(place).resolve().parent for place in modules.__path__]
        return spec is not None and bool(spec.origin) and Path(str(spec.origin)).resolve().parents[1] in folders

    @classmethod
    def is_folder(cls, folder: Path) -> bool:
        """See `WebUiHost`."""
        own = ("webui.py", "modules/sd_models.py", "modules_forge/forge_version.py")
        return all((folder / name).is_file() for name in own) and not (folder / "modules/modeldata.py").exists()

    def boundaries(self) -> Sequence[Boundary]:
        """See `Host`. `forge_objects` is only looked at where nothing says what was loaded."""
        vae = _loaded("vae")
        found = vae_boundaries(getattr(vae, "first_stage_model", None))
        called = [one for one in (*_text_encoders(), *_denoiser()) if not is_compiled(one.owner)]
        return [*called, *(replace(boundary, entry=_entry(vae, boundary.direction)) for boundary in found)]

    def arrivals(self) -> Sequence[Arrival]:
        """See `Host`."""
        from modules import sd_models

        return [Arrival(sd_models, "forge_model_reload")]

    def lora_handling(self) -> LoraHandling:
        """See `Host`."""
        return self._lora_handling

    def encoder_handling(self) -> UnitEncoders:
        """See `Host`."""
        return self._encoder_handling

    def explain(self, finding: Finding) -> Finding:
        """See `Host`."""
        if finding.code in ("LG101", "LG102"):
            return _explain_declared(finding)
        if finding.code == "LG103":
            return replace(
                finding,
                cause="Forge brings a whole VAE to one dtype when it loads it (backend/patcher/vae.py), so a part of it"
                " was converted afterwards, by an extension.",
                permanent_fix=_RELOAD,
            )
        if finding.code == "LG302" and not finding.cause and self._lora_handling.gave_up():
            return replace(finding, cause=_GAVE_UP, permanent_fix="Take the other one out of the prompt, or mend it.")
        explained = _EXPLAINED.get(finding.code)
        return explained(finding) if explained is not None and not finding.cause else finding


def _title() -> str:
    """`Forge 2.0.1v1.10.1 dfdcbab6`."""
    import modules

    module = importlib.import_module("modules_forge.forge_version")
    version = str(getattr(module, "version", ""))
    commit = next((commit_of(Path(place).parent) for place in modules.__path__), "")
    return f"{name_of(version)} {commit[:8]}".strip()


def name_of(version: str) -> str:
    """`2.0.1v1.10.1` -> `Forge 2.0.1v1.10.1`; the kin say `neo`, `classic`, or a version that begins with 1."""
    if version.lower() in ("neo", "classic"):
        return f"Forge {version.title()}"
    return f"{'reForge' if version.startswith('1.') else 'Forge'} {version}"


def _loaded(part: str) -> Any:
    """The wrapper of a part of the loaded model, `vae`, `clip` or `unet`; None when no model is loaded."""
    from modules import sd_models

    model = sd_models.model_data.sd_model
    objects = getattr(model, "forge_objects_original", None) or getattr(model, "forge_objects", None)
    return getattr(objects, part, None)


def _text_encoders() -> list[Boundary]:
    held = getattr(_loaded("clip"), "cond_stage_model", None)
    called = [getattr(one, "transformer", None) for one in held.children()] if isinstance(held, torch.nn.Module) else []
    encoders = [one for one in called if isinstance(one, torch.nn.Module)]
    return [Boundary(f"text_encoder_{n}" if n > 1 else "text_encoder", one) for n, one in enumerate(encoders, 1)]


def _denoiser() -> list[Boundary]:
    """A UNet, as its own words have it, where it has input and output blocks; else a transformer."""
    found = getattr(getattr(_loaded("unet"), "model", None), "diffusion_model", None)
    if not isinstance(found, torch.nn.Module):
        return []
    return [Boundary("unet" if hasattr(found, "input_blocks") else "transformer", found)]


def _entry(vae: Any, direction: str) -> Entry | None:
    names = (name for name in _ENTRIES[direction] if callable(getattr(vae, name, None)))
    method = next(names, None)
    return Entry(vae, method, _DECLARED) if method and hasattr(vae, _DECLARED) else None


def _explain_declared(finding: Finding) -> Finding:
    """Forge casts what it hands to the VAE to `vae_dtype`; the two differ where one of them was changed later."""
    declared = str(getattr(_loaded("vae"), _DECLARED, "")).removeprefix("torch.")
    component = finding.evidence.get("component")
    if declared in ("", component):
        return finding
    return replace(
        finding,
        cause=f"Forge casts what it hands to the VAE to its vae_dtype, {declared}, and the weights are"
        f" {component}: it loads both alike, so an extension changed one of them{_started_with()}.",
        permanent_fix=f"{_RELOAD} --vae-in-fp16, --vae-in-bf16 and --vae-in-fp32 choose the VAE's precision.",
    )


def _explain_mixed(finding: Finding) -> Finding:
    flags = "--clip-in-*" if finding.component.startswith("text") else "--unet-in-*"
    return replace(
        finding,
        cause="Forge brings a whole component to one dtype when it loads it (backend/loader.py), so a part of it was"
        " converted afterwards, by an extension.",
        permanent_fix=f"{_RELOAD.replace('VAE', 'component')} {flags} choose its precision.",
    )


def _explain_given(finding: Finding) -> Finding:
    return replace(
        finding,
        cause="Forge's layers fit themselves to what they are given, so an extension brought a layer, an attention or"
        " a model of its own that does not.",
        permanent_fix="Switch off the extensions of this request one by one; with --all-in-fp32 all are in float32.",
    )


def _explain_kernel(finding: Finding) -> Finding:
    return replace(finding, permanent_fix="Start with --all-in-fp32, or update torch.")


def _explain_overflow(finding: Finding) -> Finding:
    return replace(
        finding,
        cause=f"The VAE computes in {finding.evidence.get('dtype')}, and grows past it{_started_with()}.",
        permanent_fix="Start with --vae-in-bf16 or --vae-in-fp32, or use a VAE that works in half precision.",
    )


def _explain_latent(finding: Finding) -> Finding:
    if finding.evidence.get("loras"):
        return finding
    return replace(finding, permanent_fix="Start with --unet-in-bf16 or --all-in-fp32, or lower the LoRAs' strengths.")


_GAVE_UP = "Forge applies none of a request's LoRAs when it cannot read one of them."


def _explain_unreadable(finding: Finding) -> Finding:
    """The host moves what it could not read away (modules_forge/patch_basic.py:47)."""
    return replace(
        finding,
        cause="The file is damaged, or is no safetensors file whatever its name says. Forge has put .corrupted behind"
        f" its name. {_GAVE_UP}",
    )


def _explain_broken_vae(finding: Finding) -> Finding:
    return replace(finding, permanent_fix='"VAE / Text Encoder" at the top of the page: choose another VAE.')


def _explain_missing_encoder(finding: Finding) -> Finding:
    return replace(
        finding,
        permanent_fix='Choose the preprocessor of that encoder once ("CLIP-ViT-H (IPAdapter)", "CLIP-ViT-bigG'
        ' (IPAdapter)"), and Forge fetches it into models/ControlNetPreprocessor.',
    )


#: What is known of a finding in this host's names, unless an extension is known to have brought it.
_EXPLAINED: dict[str, Callable[[Finding], Finding]] = {
    "LG111": _explain_mixed,
    "LG112": _explain_given,
    "LG113": _explain_given,
    "LG114": _explain_kernel,
    "LG201": _explain_overflow,
    "LG202": _explain_latent,
    "LG203": _explain_broken_vae,
    "LG306": _explain_unreadable,
    "LG405": _explain_missing_encoder,
}


def _started_with() -> str:
    """` (the WebUI was started with --vae-in-fp16)`, of the flags that choose the VAE's dtype (backend/args.py:24)."""
    chosen = getattr(sys.modules.get("backend.args"), "args", None)
    flags = [f"--{name.replace('_', '-')}" for name in ("vae_in_fp16", "vae_in_bf16", "vae_in_fp32")]
    used = [flag for flag in flags if getattr(chosen, flag[2:].replace("-", "_"), False)]
    return f" (the WebUI was started with {' '.join(used)})" if used else ""
