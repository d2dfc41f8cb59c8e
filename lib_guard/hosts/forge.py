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
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..findings import Finding
from .base import DECODE, ENCODE, Boundary, Entry
from .checkout import commit_of
from .diffusers import vae_boundaries
from .seams import Seam
from .webui import COMMON_SEAMS, WebUiHost

#: The methods that cast what they hand to the VAE, the innermost first.
_ENTRIES = {DECODE: ("decode_inner", "decode"), ENCODE: ("encode_inner", "encode")}
_DECLARED = "vae_dtype"

_RELOAD = "Choose the checkpoint anew, and be rid of the extension that converts the VAE."


class ForgeHost(WebUiHost):
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
    )

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
        vae = _loaded_vae()
        found = vae_boundaries(getattr(vae, "first_stage_model", None))
        return [replace(boundary, entry=_entry(vae, boundary.direction)) for boundary in found]

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
        return finding


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


def _loaded_vae() -> Any:
    """The wrapper of the loaded VAE; None when no model is loaded."""
    from modules import sd_models

    model = sd_models.model_data.sd_model
    objects = getattr(model, "forge_objects_original", None) or getattr(model, "forge_objects", None)
    return getattr(objects, "vae", None)


def _entry(vae: Any, direction: str) -> Entry | None:
    names = (name for name in _ENTRIES[direction] if callable(getattr(vae, name, None)))
    method = next(names, None)
    return Entry(vae, method, _DECLARED) if method and hasattr(vae, _DECLARED) else None


def _explain_declared(finding: Finding) -> Finding:
    """Forge casts what it hands to the VAE to `vae_dtype`; the two differ where one of them was changed later."""
    declared = str(getattr(_loaded_vae(), _DECLARED, "")).removeprefix("torch.")
    component = finding.evidence.get("component")
    if declared in ("", component):
        return finding
    return replace(
        finding,
        cause=f"Forge casts what it hands to the VAE to its vae_dtype, {declared}, and the weights are"
        f" {component}: it loads both alike, so an extension changed one of them{_started_with()}.",
        permanent_fix=f"{_RELOAD} --vae-in-fp16, --vae-in-bf16 and --vae-in-fp32 choose the VAE's precision.",
    )


def _started_with() -> str:
    """` (the WebUI was started with --vae-in-fp16)`, of the flags that choose the VAE's dtype (backend/args.py:24)."""
    chosen = getattr(sys.modules.get("backend.args"), "args", None)
    flags = [f"--{name.replace('_', '-')}" for name in ("vae_in_fp16", "vae_in_bf16", "vae_in_fp32")]
    used = [flag for flag in flags if getattr(chosen, flag[2:].replace("-", "_"), False)]
    return f" (the WebUI was started with {' '.join(used)})" if used else ""
