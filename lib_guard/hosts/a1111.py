"""AUTOMATIC1111's WebUI.

Of version 1.10.1 (82a973c0) this relies on:
  sd_models.model_data.sd_model         the loaded model or None, sd_models.py:719; `shared.sd_model` would load it
  sd_model.first_stage_model            the VAE of all three families (SD1/2 ldm, SDXL sgm, SD3 sd3_impls.py:358)
  .encode / .decode                     plain methods; `forward` is never called (ddpm.py:826, sgm diffusion.py:118,
                                        sd3_model.py:59); with --medvram instance attributes, lowvram.py:136-137
  .encoder, .quant_conv, .post_quant_conv, .decoder
                                        called through __call__, autoencoder.py:82-91; SD3 has no quant convolutions
  processing.process_images_inner       works on the request as its local `p`, processing.py:863
  StableDiffusionProcessing.close       always called, by `contextlib.closing` in UI and API, processing.py:404, :1466;
                                        where X/Y/Z works on copies of the request, on the first one only
  devices.cond_cast_unet                what the functional LoRA path does to every layer's input, devices.py:132
  networks.network_forward              that path, extensions-builtin/Lora/networks.py:543: it casts the input of every
                                        Conv2d, Linear, GroupNorm and LayerNorm of the process, the VAE's too, because
                                        the layers' classes are patched (lora_patches.py:9)
  layer.network_layer_name              set on every layer a network can change, and on none of the VAE, networks.py:130
  sd_model.cond_stage_model             the text encoder of SD1/2 and the three of SD3, called through __call__
                                        (ddpm.py:667, sd3_model.py:54); where textual inversions are put in
                                        (sd_hijack.py:345-366) is inside of it
  sd_hijack.model_hijack.embedding_db.word_embeddings
                                        the textual inversions by name, each with its `vec`: one tensor, or for SDXL one
                                        by encoder; the host loads them all in float32 (textual_inversion.py:293-306)
  sd_model.conditioner.embedders        SDXL's, called one by one (sgm encoders/modules.py:130); those of size and crop
                                        hold no weights
  sd_model.model.diffusion_model        the UNet or SD3's transformer, called through __call__ (ddpm.py:1331)
  sd_models.reload_model_weights        exchanges the model, in mid-generation for a refiner
                                        (sd_samplers_common.py:196) and for hires fix (processing.py:1360)
A ControlNet of sd-webui-controlnet is called inside of the UNet's forward, which it replaces on the instance, so that
the UNet's boundary is around it. TAESD and the approximate previews are models of their own
(sd_samplers_common.py:50-53) and are left alone.

Of the extension Regional Prompter (be623452) this knows:
  scripts/latent.py:33 setuploras       sets `opts.lora_functional` and `torch.nn.Linear.forward` for a generation;
                                        what was there goes to its globals orig_lora_functional, orig_Linear_forward
  scripts/latent.py:745 unloadlorafowards, rp.py:710 unloader
                                        put them back in `postprocess`, or in the next request without the extension;
                                        after two failures in a row what was kept is what the first one left
  scripts/rp.py:735                     sets `opts.batch_cond_uncond` to False while it is active
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from ..findings import Finding, Repair
from ..tensors.dtypes import dtype_name, is_compute
from ..tensors.layers import is_compiled
from .a1111_encoder import A1111UnitEncoders
from .a1111_lora import A1111LoraHandling
from .base import DECODE, Arrival, Boundary, Detour, Shield
from .diffusers import vae_boundaries
from .encoder_handling import UnitEncoders
from .ldm import LdmHost
from .lora_handling import LoraHandling
from .seams import Seam
from .webui import COMMON_SEAMS

#: The setting that turns the functional path on, as the Settings page calls it (Lora/scripts/lora_script.py:56).
_OLD_METHOD = 'Settings > Compatibility > "Lora/Networks: use old method ..." (lora_functional)'

#: What Regional Prompter sets for the length of a generation, and the values that it sets.
_BORROWED_OPTIONS: dict[str, bool] = {"lora_functional": True, "batch_cond_uncond": False}

#: Stands for an option that is not in the settings, because the user never changed it.
_UNSET = object()


class A1111Host(LdmHost):
    """See the module's docstring."""

    name = "AUTOMATIC1111"
    seams = (
        *COMMON_SEAMS,
        Seam("modules.sd_models", "model_data", "modules/sd_models.py:719", "holds the loaded model as `sd_model`"),
        Seam("modules.processing", "process_images_inner", "modules/processing.py:863", "a generation", ("p",)),
        Seam(
            "modules.processing",
            "StableDiffusionProcessing.close",
            "modules/processing.py:404",
            "called at the end of every request, also of a failed one",
        ),
        Seam("modules.shared", "cmd_opts", "modules/shared.py:7", "the flags it was started with"),
        Seam("modules.launch_utils", "git_tag", "modules/launch_utils.py:74", "the version"),
        Seam(
            "modules.devices",
            "cond_cast_unet",
            "modules/devices.py:132",
            "what the functional LoRA path does to a layer's input",
            ("input",),
            ("precision",),
        ),
        Seam(
            "modules.sd_models",
            "reload_model_weights",
            "modules/sd_models.py:940",
            "loads a model, also in the middle of a generation",
            guards=("precision", "finite"),
        ),
        Seam(
            "modules.extra_networks",
            "extra_network_registry",
            "modules/extra_networks.py:11",
            "the Lora extension's `activate`",
            guards=("lora",),
        ),
        Seam(
            "modules.processing",
            "StableDiffusionProcessing.cached_c",
            "modules/processing.py:180",
            "a cache of encoded prompts, which every request holds",
            guards=("lora",),
        ),
        Seam(
            "modules.sd_samplers_cfg_denoiser",
            "CFGDenoiser",
            "modules/sd_samplers_cfg_denoiser.py:34",
            "counts the calls of the UNet as `step` and `steps`",
            guards=("finite",),
        ),
    )

    def __init__(self) -> None:
        super().__init__()
        self._clean: _Borrowed | None = None
        self._lora_handling = A1111LoraHandling()
        self._encoder_handling = A1111UnitEncoders()

    @property
    def title(self) -> str:  # type: ignore[override] # read when it is said, behind the check of the seams
        """See `Host`."""
        return f"AUTOMATIC1111 {_version()}"

    @classmethod
    def is_here(cls) -> bool:
        """See `WebUiHost`. Forge and its kin have `modules_forge`, SD.Next has `modules.modeldata`."""
        if find_spec("modules_forge") is not None or find_spec("modules.modeldata") is not None:
            return False
        import modules

        if getattr(modules, "EMBEDDED_HOST", False) or find_spec("modules.sd_hijack") is None:
            return False
        from modules import sd_models

        return hasattr(sd_models, "model_data")

    @classmethod
    def is_folder(cls, folder: Path) -> bool:
        """See `WebUiHost`."""
        own = ("webui.py", "modules/sd_models.py", "modules/sd_hijack.py", "extensions-builtin/Lora/networks.py")
        other = ("modules_forge", "modules/modeldata.py")
        return all((folder / name).is_file() for name in own) and not any((folder / name).exists() for name in other)

    def connect(self, begin: Callable[[Any], None], end: Callable[[Any], None]) -> None:
        """See `Host`. Scripts run in every generation; beside that the host tells of every load (sd_models.py:864,
        :994) and of every VAE (sd_vae.py:280)."""
        from modules import script_callbacks

        script_callbacks.on_model_loaded(self._lora_handling.loaded)

    def boundaries(self) -> Sequence[Boundary]:
        """See `Host`."""
        from modules import sd_models

        model = sd_models.model_data.sd_model
        called = [*_text_encoders(model), *_denoiser(model)]
        vae = vae_boundaries(getattr(model, "first_stage_model", None))
        return [*(one for one in called if not is_compiled(one.owner)), *vae]

    def arrivals(self) -> Sequence[Arrival]:
        """See `Host`."""
        from modules import sd_models

        return [Arrival(sd_models, "reload_model_weights")]

    def shields(self) -> Sequence[Shield]:
        """See `Host`. None without the Lora extension, whose module this is."""
        networks = sys.modules.get("networks")
        return [Shield(networks, "network_forward", _detour)] if hasattr(networks, "network_forward") else ()

    def lora_handling(self) -> LoraHandling:
        """See `Host`."""
        return self._lora_handling

    def encoder_handling(self) -> UnitEncoders:
        """See `Host`."""
        return self._encoder_handling

    def remember(self, request: Any) -> None:
        """See `Host`. While Regional Prompter's patch is in place the state is its own, not the user's."""
        super().remember(request)
        if _regional_prompter() is None:
            self._clean = _Borrowed.now()

    def left_behind(self, put_back: bool) -> Sequence[tuple[Finding, Repair | None]]:
        """See `Host`. Its patch is the proof that Regional Prompter was in it; its `lactive`, or a generation that is
        being worked on, that it may still need it."""
        extension = _regional_prompter()
        if extension is None or self._clean is None or (extension["lactive"] and _is_generating()):
            return ()
        return [(self._clean.finding(), self._clean.put_back(extension) if put_back else None)]

    def explain(self, finding: Finding) -> Finding:
        """See `Host`."""
        if finding.code in ("LG104", "LG105"):
            return _explain_functional(finding, self.options())
        if finding.code in ("LG101", "LG102"):
            return _explain_declared(finding)
        explained = _EXPLAINED.get(finding.code)
        return explained(finding) if explained is not None and not finding.cause else finding


def _text_encoders(model: Any) -> list[Boundary]:
    """SDXL's `conditioner` is its `cond_stage_model` too (sd_hijack.py:230), and holds them one by one."""
    held = getattr(getattr(model, "conditioner", None), "embedders", None)
    found = held if isinstance(held, torch.nn.ModuleList) else [getattr(model, "cond_stage_model", None)]
    encoders = [one for one in found if isinstance(one, torch.nn.Module) and next(one.parameters(), None) is not None]
    return [Boundary(f"text_encoder_{n}" if n > 1 else "text_encoder", one) for n, one in enumerate(encoders, 1)]


def _denoiser(model: Any) -> list[Boundary]:
    found = getattr(getattr(model, "model", None), "diffusion_model", None)
    if not isinstance(found, torch.nn.Module):
        return []
    return [Boundary("transformer" if hasattr(found, "joint_blocks") else "unet", found)]


def _version() -> str:
    from modules import launch_utils

    return str(launch_utils.git_tag()).removeprefix("v")


def _detour(layer: torch.nn.Module, given: torch.Tensor, original: Callable[..., Any]) -> Detour | None:
    """The way around `networks.network_forward`, whose parameters these are, for a layer that no network can change.

    What it would cast to is asked of the host itself, with a tensor of no elements.
    """
    if getattr(layer, "network_layer_name", None) is not None or not _is_loaded() or not is_compute(given):
        return None
    from modules import devices

    cast = devices.cond_cast_unet(given.new_empty(0)).dtype
    return None if cast == given.dtype else Detour(layer, given.dtype, cast, partial(original, layer, given))


def _is_loaded() -> bool:
    """Whether any network is: without one the path casts nothing (networks.py:549)."""
    return bool(getattr(sys.modules.get("networks"), "loaded_networks", None))


# Regional Prompter.


def _regional_prompter() -> dict[str, Any] | None:
    """The globals of Regional Prompter's latent mode while its patch of `Linear.forward` is in place."""
    found = getattr(torch.nn.Linear.forward, "__globals__", {})
    return found if {"lactive", "orig_lora_functional"} <= found.keys() else None


def _is_generating() -> bool:
    """Whether any thread works on a request."""
    return any(_generates(frame) for frame in sys._current_frames().values())


def _generates(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "process_images_inner":
            return True
        frame = frame.f_back
    return False


@dataclass(frozen=True)
class _Borrowed:
    """What Regional Prompter changes for the length of a generation, as it is without it.

    stored: the options as the settings hold them. effective: their values, which are defaults where nothing is stored.
    """

    stored: Mapping[str, object]
    effective: Mapping[str, object]
    linear_forward: Callable[..., Any]

    @classmethod
    def now(cls) -> _Borrowed:
        from modules import shared

        stored = {key: shared.opts.data.get(key, _UNSET) for key in _BORROWED_OPTIONS}
        return cls(stored, {key: _effective(key) for key in _BORROWED_OPTIONS}, torch.nn.Linear.forward)

    def changed(self) -> list[str]:
        """The options that are now what the extension sets, and were something else."""
        return [key for key, set_to in _BORROWED_OPTIONS.items() if _effective(key) == set_to != self.effective[key]]

    def finding(self) -> Finding:
        left = ", ".join(["torch.nn.Linear.forward", *(f"{key} = {_effective(key)}" for key in self.changed())])
        return Finding(
            "LG106",
            "precision",
            "settings",
            "",
            f"Regional Prompter left {left} behind when a generation failed",
            {"left": left, "cause_key": "Regional Prompter"},
            cause="Regional Prompter (Latent) puts its changes back only after a generation that came through; after"
            " two failures it no longer knows what was there before.",
            permanent_fix="Be rid of the failure (the lines above, or LibGuard left on); without LibGuard restart the"
            " WebUI after it, before settings are saved.",
        )

    def put_back(self, extension: dict[str, Any]) -> Repair:
        """Put it back, in memory only: nothing is written to the settings file.

        The extension's own memory of the option is corrected too, or its next request would bring the value back.
        """
        from modules import shared

        for key in self.changed():
            if self.stored[key] is _UNSET:
                shared.opts.data.pop(key, None)
            else:
                shared.opts.data[key] = self.stored[key]
        torch.nn.Linear.forward = self.linear_forward  # type: ignore[method-assign]
        _forget_conditioning()
        extension["orig_lora_functional"] = bool(self.effective["lora_functional"])
        proven = not self.changed() and torch.nn.Linear.forward is self.linear_forward
        return Repair("put back as before that generation", "compared" if proven else "", 0.0)


def _forget_conditioning() -> None:
    """Empty the host's caches of encoded prompts: their keys (processing.py:440-458) do not tell by which LoRA path the
    text was encoded, and the two paths do not round alike. The lists are those that every request holds (:180)."""
    from modules import processing

    for owner in (processing.StableDiffusionProcessing, processing.StableDiffusionProcessingTxt2Img):
        for name in ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc"):
            cache = vars(owner).get(name)
            if isinstance(cache, list):
                cache[:] = [None] * len(cache)


def _effective(key: str) -> object:
    """An option's value; None where no extension declares it (`lora_functional` comes with the Lora extension)."""
    from modules import shared

    return getattr(shared.opts, key, None)


# Causes and lasting fixes, in this host's own names.


def _explain_functional(finding: Finding, options: Mapping[str, object]) -> Finding:
    extension = _regional_prompter()
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
            cause=f"{_OLD_METHOD} is on: it casts the input of every layer of the process to the UNet's dtype, the"
            f" VAE's too{_started_with()}.",
            permanent_fix=f"Switch off {_OLD_METHOD}.",
        )
    return finding


def _explain_declared(finding: Finding) -> Finding:
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


def _explain_mixed(finding: Finding) -> Finding:
    """The host loads a checkpoint in one precision (sd_models.py:430), so a part was converted afterwards."""
    return replace(
        finding,
        cause=f"The WebUI loads every part of a checkpoint in one precision{_started_with()}, so something converted"
        " this one afterwards.",
        permanent_fix=_RELOAD,
    )


def _explain_given(finding: Finding) -> Finding:
    return replace(
        finding,
        cause=f"An extension or its model runs in another precision than the checkpoint{_started_with()}.",
        permanent_fix="Switch off the extensions of this request one by one; with --no-half all are in float32.",
    )


def _explain_inside(finding: Finding) -> Finding:
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


def _explain_kernel(finding: Finding) -> Finding:
    return replace(finding, permanent_fix="Start with --no-half (on a CPU with --precision full too), or update torch.")


def _explain_overflow(finding: Finding) -> Finding:
    """The host's own fallback is for decode, and converts the VAE for good (processing.py:636-665)."""
    reverts = 'Settings > VAE > "Automatically revert VAE to 32-bit floats"'
    own = f" {reverts} would do the same, and leave the VAE in float32." if finding.direction == DECODE else ""
    return replace(
        finding,
        cause=f"The VAE computes in {finding.evidence.get('dtype')}, and grows past it{_started_with()}.{own}",
        permanent_fix="Start with --no-half-vae, or use a VAE that works in half precision (an fp16-fix one).",
    )


def _explain_latent(finding: Finding) -> Finding:
    if finding.evidence.get("loras"):
        return finding
    return replace(
        finding,
        permanent_fix='Settings > "Upcast cross attention layer to float32" on, or start with --no-half.',
    )


def _explain_broken_vae(finding: Finding) -> Finding:
    return replace(finding, permanent_fix='Settings > VAE > "SD VAE": choose another one.')


def _explain_missing_encoder(finding: Finding) -> Finding:
    return replace(
        finding,
        permanent_fix="Choose the preprocessor of that encoder once (ip-adapter_clip_h, ip-adapter_clip_g), and the"
        " ControlNet extension fetches it.",
    )


#: What is known of a finding in this host's names, unless an extension is known to have brought it.
_EXPLAINED: dict[str, Callable[[Finding], Finding]] = {
    "LG111": _explain_mixed,
    "LG112": _explain_given,
    "LG113": _explain_inside,
    "LG114": _explain_kernel,
    "LG201": _explain_overflow,
    "LG202": _explain_latent,
    "LG203": _explain_broken_vae,
    "LG405": _explain_missing_encoder,
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
