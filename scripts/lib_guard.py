"""The glue between a WebUI and LibGuard: hands the host's callbacks on, and holds no logic."""

import sys

from lib_guard.extension import Extension
from lib_guard.ui.settings_page import add_options
from modules import script_callbacks, scripts, shared

EXTENSION = Extension()


class LibGuardScript(scripts.Script):
    """LibGuard in txt2img and img2img. Its script args are `lib_guard.settings.FIELDS`, in that order."""

    def title(self):
        return "LibGuard"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        built = EXTENSION.build_ui("img2img" if is_img2img else "txt2img", self.elem_id)
        self.infotext_fields = built.infotext_fields()
        return built.controls

    def before_process(self, p, *args):
        EXTENSION.prepare(p, args)

    def process(self, p, *args):
        EXTENSION.begin(p, args)

    def process_batch(self, p, *args, **kwargs):
        EXTENSION.settled(p)

    def postprocess_batch(self, p, *args, **kwargs):
        EXTENSION.note(p)

    def postprocess_image(self, p, *args):
        EXTENSION.note(p)

    def postprocess(self, p, *args):
        EXTENSION.note(p)
        EXTENSION.end(p)


def unload():
    EXTENSION.unload()
    # The host executes this file anew, but keeps imported packages: an update would meet its own old code.
    for name in [name for name in sys.modules if name.partition(".")[0] == "lib_guard"]:
        del sys.modules[name]


script_callbacks.on_ui_settings(lambda: add_options(shared))
script_callbacks.on_script_unloaded(unload)
