"""SD.Next. Every line number is of commit 058a7f0c (2026-07-23).

How it differs from AUTOMATIC1111, as far as LibGuard sees it:
  - Errors of a generation are swallowed and no callback of a Script follows (processing_diffusers.py); the callback
    `on_after_process` is called in a `finally`, always (processing.py:235).
  - The Control tab and `/sdapi/v1/control` run no Script of an extension (scripts_manager.py:384); only
    `on_before_process` and `on_after_process` are called.
  - The Detailer works behind `postprocess_batch`, within the same request (processing.py:320, detailer.py:264).
  - `shared.sd_model` is a property that loads the model (shared.py), `modeldata.model_data.sd_model` is what is there.
  - Its console is a logger whose handlers every other logger is given when the host is up (webui.py:432).
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..findings import Finding
from .base import Boundary
from .checkout import commit_of
from .diffusers import vae_boundaries
from .seams import Seam
from .webui import COMMON_SEAMS, WebUiHost

#: The title under which LibGuard's Script runs.
_SCRIPT = "libguard"

#: The labels that SD.Next shows (ui_definitions.py:211-215, :239-242), by its option names.
_VAE_PAGE = "Settings > Variational Auto Encoder"
_FULL_PRECISION = f'{_VAE_PAGE} > "Full precision (--no-half-vae)"'
_UPCASTING = f'{_VAE_PAGE} > "VAE upcasting"'
_DEVICE_PRECISION = 'Settings > Compute Settings > "Device precision type"'


class SdNextHost(WebUiHost):
    """SD.Next on diffusers."""

    name = "SD.Next"
    seams = (
        # modules/scripts.py takes everything over from scripts_manager.py with an asterisk.
        *(replace(seam, set_at_run_time=seam.module == "modules.scripts") for seam in COMMON_SEAMS),
        Seam(
            "modules.scripts_manager",
            "AlwaysVisible",
            "modules/scripts_manager.py:22",
            "what modules.scripts hands on",
        ),
        Seam(
            "modules.modeldata",
            "model_data.sd_model",
            "modules/modeldata.py:185",
            "the loaded pipeline, or None",
            set_at_run_time=True,
        ),
        Seam(
            "modules.modeldata",
            "ModelData.get_sd_model",
            "modules/modeldata.py:196",
            "loads; not to be called",
        ),
        Seam("modules.script_callbacks", "on_before_process", "modules/script_callbacks.py:393", "a request begins"),
        Seam("modules.script_callbacks", "on_after_process", "modules/script_callbacks.py:398", "a request has ended"),
        Seam("modules.processing", "process_images_inner", "modules/processing.py:436", "runs the Scripts"),
        Seam(
            "modules.scripts_manager",
            "ScriptRunner.process",
            "modules/scripts_manager.py:656",
            "hands a Script its args before anything is computed",
            parameters=("p",),
        ),
        Seam(
            "modules.processing_vae",
            "full_vae_decode",
            "modules/processing_vae.py:89",
            "calls `vae.decode`; the pipelines call `vae.encode`",
            guards=("precision",),
        ),
    )

    def __init__(self) -> None:
        self._ends: list[tuple[weakref.ref[Any], Callable[[], None]]] = []

    @classmethod
    def is_here(cls) -> bool:
        """See `WebUiHost`. The model's holder is SD.Next's alone, and is imported before any script."""
        holder = sys.modules.get("modules.modeldata")
        shared = sys.modules.get("modules.shared")
        return hasattr(holder, "model_data") and bool(getattr(shared, "native", False))

    @classmethod
    def is_folder(cls, folder: Path) -> bool:
        """See `WebUiHost`."""
        return all((folder / name).is_file() for name in ("modules/modeldata.py", "installer.py", "webui.py"))

    @property
    def title(self) -> str:  # type: ignore[override] # read when it is said, not when the class is made
        """See `Host`."""
        import modules

        commit = next((commit_of(Path(place).parent) for place in modules.__path__), "")
        return f"SD.Next {commit[:8]}".strip()

    def connect(self, begin: Callable[[Any], None], end: Callable[[Any], None]) -> None:
        """See `Host`. A Script's `process` follows `on_before_process`, and brings the args of the request; so a
        request is only begun here when none will follow."""
        from modules import script_callbacks

        def before(request: Any) -> None:
            if not _runs_script(request):
                begin(request)

        def after(request: Any) -> None:
            if not _runs_script(request) and not _failed():
                end(request)
            self._end(request)

        script_callbacks.on_before_process(before)
        script_callbacks.on_after_process(after)

    def boundaries(self) -> Sequence[Boundary]:
        """See `Host`. Some pipelines hold another one that has the VAE (processing_vae.py:91)."""
        from modules import modeldata

        model = modeldata.model_data.sd_model
        vae = getattr(model, "vae", None)
        return vae_boundaries(vae if vae is not None else getattr(getattr(model, "pipe", None), "vae", None))

    def tab(self, request: Any) -> str:
        """See `Host`. The request's class is named for it (processing_class.py); all have `init_images`."""
        name = type(request).__name__
        return next((tab for tab in ("control", "img2img") if tab in name.lower()), "txt2img")

    def on_end(self, request: Any, call: Callable[[], None]) -> None:
        """See `Host`. `on_after_process` is the only place that is always come to."""
        self._ends = [(held, end) for held, end in self._ends if held() is not None]
        self._ends.append((weakref.ref(request), call))

    def _end(self, request: Any) -> None:
        ended = [call for held, call in self._ends if held() is request]
        self._ends = [(held, call) for held, call in self._ends if held() is not None and held() is not request]
        for call in ended:
            call()

    def explain(self, finding: Finding) -> Finding:
        """See `Host`."""
        if finding.code not in ("LG101", "LG102") or finding.evidence.get("component") != "float32":
            return finding
        return self._about_float32(finding)

    def _about_float32(self, finding: Finding) -> Finding:
        """Why the VAE is in float32 while the model is not, and in which dtype the model is."""
        options = self.options()
        model = finding.evidence.get("caller")
        if options.get("no_half_vae"):
            chosen = options.get("cuda_dtype", "Auto")
            return replace(
                finding,
                cause=f"{_FULL_PRECISION} keeps the VAE in float32 while the model is {model}"
                f' ({_DEVICE_PRECISION} is "{chosen}").',
                permanent_fix=f'{_FULL_PRECISION} off and reload the model, or {_DEVICE_PRECISION} "FP32".',
            )
        if not self._upcasts_by_itself() and options.get("diffusers_vae_upcast") != "true":
            return replace(
                finding,
                cause="The VAE is in float32 and its config says that it needs no upcasting (force_upcast false), so"
                f" the {model} model hands over what it has.",
                permanent_fix=f'Reload the model; if it stays, {_UPCASTING} "true", or {_DEVICE_PRECISION} "FP32".',
            )
        return replace(
            finding,
            cause="The VAE was converted to float32 (its config or"
            f' {_UPCASTING} says so) and was not converted back (processing_vae.py, "upcast_vae").',
            permanent_fix="Use a VAE that works in half precision and whose config says so, such as an fp16-fix one.",
        )

    def _upcasts_by_itself(self) -> bool:
        owner = next((boundary.owner for boundary in self.boundaries()), None)
        return bool(getattr(getattr(owner, "config", None), "force_upcast", False))


def _runs_script(request: Any) -> bool:
    """Whether LibGuard's Script is part of a request: the runner of the Control tab holds none of an extension."""
    scripts = getattr(getattr(request, "scripts", None), "alwayson_scripts", None) or ()
    return any(str(script.title()).lower() == _SCRIPT for script in scripts)


def _failed() -> bool:
    """Whether the generation that ends now failed: the callback is called from a `finally` (processing.py:235), and a
    swallowed error interrupts the host's state (processing_diffusers.py)."""
    from modules import shared

    return sys.exc_info()[0] is not None or bool(shared.state.interrupted)
