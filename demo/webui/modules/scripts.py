"""The base class of scripts, their loading, and the runner that calls them during a generation."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import gradio as gr
import torch
from PIL import Image

from modules import errors, paths, script_loading, shared

AlwaysVisible = object()


class PostSampleArgs:
    """Handed to `post_sample`: the latents, which may be replaced."""

    def __init__(self, samples: torch.Tensor) -> None:
        self.samples = samples


class PostprocessBatchListArgs:
    """Handed to `postprocess_batch_list`: the pictures of a batch, a list that may be changed in place."""

    def __init__(self, images: list[Any]) -> None:
        self.images = images


class PostprocessImageArgs:
    """Handed to the callbacks of one picture: the picture, which may be replaced."""

    def __init__(self, image: Image.Image, index: int = 0) -> None:
        self.image = image
        self.index = index


class PostProcessMaskOverlayArgs:
    """Handed to `postprocess_maskoverlay`."""

    def __init__(self, index: int, mask_for_overlay: Image.Image | None, overlay_image: Image.Image | None) -> None:
        self.index, self.mask_for_overlay, self.overlay_image = index, mask_for_overlay, overlay_image


class Script:
    """Base class of scripts. The callbacks are looked up by name; those not defined here are simply not called."""

    name: str | None = None
    section: str | None = None
    filename = ""
    #: The script's slice of `p.script_args`.
    args_from: int | None = None
    args_to: int | None = None
    alwayson = False
    is_txt2img = False
    is_img2img = False
    tabname: str | None = None
    group: Any = None
    create_group = True
    #: [(component, label or function of the parameters)]: what "paste" sets.
    infotext_fields: list[Any] | None = None
    paste_field_names: list[str] | None = None
    controls: list[Any] | None = None

    def title(self) -> str:
        """The script's name, which also addresses it in the API."""
        raise NotImplementedError

    def show(self, is_img2img: bool) -> Any:
        """`AlwaysVisible` for a script that takes part in every generation."""
        return True

    def ui(self, is_img2img: bool) -> list[Any] | None:
        """Build the controls and return those whose values are the callbacks' arguments."""
        return None

    def elem_id(self, item_id: str) -> str:
        """An element id of the host's form, such as `script_txt2img_libguard_enable`."""
        title = re.sub(r"[^a-z_0-9]", "", self.title().lower().replace(" ", "_"))
        tab = "" if self.show(True) != self.show(False) else ("img2img_" if self.is_img2img else "txt2img_")
        return f"script_{tab}{title}_{item_id}"


@dataclass(frozen=True)
class ScriptClassData:
    """A script class and where it came from."""

    script_class: type[Script]
    path: str
    basedir: str
    module: ModuleType


scripts_data: list[ScriptClassData] = []
_current_basedir = paths.script_path


def basedir() -> str:
    """The folder of the extension that is being loaded; only meaningful while its file is executed."""
    return _current_basedir


def load_scripts() -> None:
    """Execute the scripts of every extension folder, as new modules, and collect their classes."""
    global _current_basedir
    scripts_data.clear()
    for folder in paths.folders.extensions:
        _current_basedir = str(folder)
        for path, module in script_loading.load_folder(folder):
            scripts_data.extend(_classes(module, path, folder))
    _current_basedir = paths.script_path


def _classes(module: ModuleType, path: Path, folder: Path) -> list[ScriptClassData]:
    classes = [value for value in vars(module).values() if inspect.isclass(value)]
    own = [cls for cls in classes if issubclass(cls, Script) and cls.__module__ == module.__name__]
    return [ScriptClassData(cls, str(path), str(folder), module) for cls in own]


class ScriptRunner:
    """The scripts of one tab, in calling order: A1111's by file, SD.Next's by title."""

    def __init__(self, is_img2img: bool) -> None:
        self.is_img2img = is_img2img
        self.tabname = "img2img" if is_img2img else "txt2img"
        self.alwayson_scripts: list[Script] = []
        self.scripts: list[Script] = self.alwayson_scripts
        self.selectable_scripts: list[Script] = []
        #: The controls of all scripts, and the values they start with, in the order of `script_args`.
        self.inputs: list[Any] = []
        self.infotext_fields: list[Any] = []
        self.paste_field_names: list[str] = []

    def initialize_scripts(self) -> None:
        """Make one instance of every always-visible script class. Call before the page is built."""
        self.alwayson_scripts.clear()
        for data in scripts_data:
            script = data.script_class()
            script.filename = data.path
            script.is_txt2img, script.is_img2img = not self.is_img2img, self.is_img2img
            script.tabname = self.tabname
            if script.show(self.is_img2img) is AlwaysVisible:
                script.alwayson = True
                self.alwayson_scripts.append(script)
        if shared.order == "sdnext":
            self.alwayson_scripts.sort(key=lambda script: script.title().lower())

    def setup_ui(self) -> None:
        """Build every script's controls inside the current Blocks and give each its slice of arguments."""
        self.inputs.clear()
        self.infotext_fields.clear()
        self.paste_field_names.clear()
        for script in self.alwayson_scripts:
            with gr.Group(elem_id=f"{self.tabname}_script_{len(self.inputs)}") as script.group:
                script.controls = self._controls(script)
            script.name = script.title().lower()
            script.args_from = len(self.inputs)
            self.inputs += script.controls
            script.args_to = len(self.inputs)
            self.infotext_fields += script.infotext_fields or []
            self.paste_field_names += script.paste_field_names or []

    def _controls(self, script: Script) -> list[Any]:
        try:
            return list(script.ui(self.is_img2img) or [])
        except Exception:  # noqa: BLE001 - as for every callback of a script
            errors.report(f"Error calling: {script.filename}/ui", exc_info=True)
            return []

    def defaults(self, script: Script) -> list[Any]:
        """The values that `script`'s controls start with, from a fresh call of `ui()` as the real APIs do."""
        with gr.Blocks():
            return [control.value for control in self._controls(script)]

    def find(self, name: str) -> Script | None:
        """The script with this title, whatever the case."""
        return next((s for s in self.alwayson_scripts if s.title().lower() == name.lower()), None)

    def _arguments(self, p: Any, script: Script) -> tuple[Any, ...]:
        given = p.per_script_args.get(script.title())
        if given is not None:
            return tuple(given)
        return tuple(p.script_args[script.args_from : script.args_to])

    def call(self, hook: str, p: Any, *args: Any, **kwargs: Any) -> None:
        """Call `hook` of every script as hook(p, *args, *script_args, **kwargs); errors are printed and swallowed."""
        for script in self.alwayson_scripts:
            function = getattr(script, hook, None)
            if function is None:
                continue
            try:
                function(p, *args, *self._arguments(p, script), **kwargs)
            except Exception:  # noqa: BLE001 - a script must not stop a generation; the real hosts print and go on
                errors.report(f"Error running {hook}: {script.filename}", exc_info=True)

    def after_extra_networks_activate(self, p: Any, **kwargs: Any) -> None:
        """Fire the hook of this name, which only A1111 has."""
        if shared.order == "a1111":
            self.call("after_extra_networks_activate", p, **kwargs)


scripts_txt2img = ScriptRunner(is_img2img=False)
scripts_img2img = ScriptRunner(is_img2img=True)


def runner(is_img2img: bool) -> ScriptRunner:
    """The runner of a tab."""
    return scripts_img2img if is_img2img else scripts_txt2img
