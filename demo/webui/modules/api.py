"""The HTTP API under /sdapi/v1, in A1111's form."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Body, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image

from modules import call_queue, errors, images, previews, scripts, sd_models, shared
from modules.api_models import Img2ImgRequest, Txt2ImgRequest
from modules.processing import (
    StableDiffusionProcessing,
    StableDiffusionProcessingImg2Img,
    StableDiffusionProcessingTxt2Img,
)

PREFIX = "/sdapi/v1"

#: The fields of a request that hold one picture.
PICTURES = ("mask", "control_image", "ip_adapter_image")


def setup(app: FastAPI, restart: Callable[[], None]) -> None:
    """Add the routes to `app`; `restart` is called for Reload UI."""
    app.middleware("http")(_errors_as_json)
    routes: dict[str, Callable[..., Any]] = {
        "POST /txt2img": _txt2img,
        "POST /img2img": _img2img,
        "GET /options": _get_options,
        "POST /options": _set_options,
        "GET /progress": _progress,
        "POST /interrupt": _interrupt,
        "POST /skip": _skip,
        "GET /script-info": _script_info,
        "GET /scripts": _scripts,
        "GET /sd-models": _sd_models,
        "POST /unload-checkpoint": _unload,
        "POST /reload-checkpoint": _reload,
    }
    for route, function in routes.items():
        method, path = route.split()
        app.add_api_route(PREFIX + path, function, methods=[method])
    app.add_api_route(PREFIX + "/server-restart", restart, methods=["POST"])


async def _errors_as_json(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    try:
        return await call_next(request)
    except Exception as error:  # noqa: BLE001 - whatever a request raises becomes HTTP 500 in A1111's form
        errors.report(f"API error: {request.method}: {request.url} {type(error).__name__}: {error}", exc_info=True)
        body = {
            "error": type(error).__name__,
            "detail": vars(error).get("detail", ""),
            "body": vars(error).get("body", ""),
            "errors": str(error),
        }
        return JSONResponse(body, status_code=500)


def _txt2img(request: Txt2ImgRequest) -> dict[str, Any]:
    values = request.model_dump(exclude={"alwayson_scripts", *PICTURES})
    p = StableDiffusionProcessingTxt2Img(**values, **_pictures(request))
    return _generate(p, request.alwayson_scripts, is_img2img=False)


def _img2img(request: Img2ImgRequest) -> dict[str, Any]:
    values = request.model_dump(exclude={"alwayson_scripts", "init_images", *PICTURES})
    if not request.init_images:
        raise HTTPException(404, "Init image not found")
    pictures = [_decode(text) for text in request.init_images]
    p = StableDiffusionProcessingImg2Img(**values, init_images=pictures, **_pictures(request))
    return _generate(p, request.alwayson_scripts, is_img2img=True)


def _pictures(request: Txt2ImgRequest | Img2ImgRequest) -> dict[str, Image.Image]:
    given = {name: getattr(request, name, None) for name in PICTURES}
    return {name: _decode(text) for name, text in given.items() if text}


def _decode(text: str) -> Image.Image:
    try:
        return images.from_base64(text)
    except ValueError as error:
        raise HTTPException(500, "Invalid encoded image") from error


def _generate(p: StableDiffusionProcessing, given: dict[str, Any], is_img2img: bool) -> dict[str, Any]:
    args, per_script = _script_arguments(scripts.runner(is_img2img), given)
    processed = call_queue.generate(p, is_img2img, args, per_script)
    pictures = [images.to_base64(image, text) for image, text in zip(processed.images, processed.infotexts)]
    return {"images": pictures, "parameters": {}, "info": processed.js()}


def _script_arguments(runner: scripts.ScriptRunner, given: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of all scripts, and in SD.Next's order also those given, by title.

    A1111 fills up with defaults and cuts what is too long; SD.Next hands a list on as it came. Neither looks at types.
    Raises HTTPException 422 for a name that no script has.
    """
    # The controls' defaults come from calling ui() anew, as in the real hosts: it must have no side effects.
    args = [value for script in runner.alwayson_scripts for value in runner.defaults(script)]
    per_script: dict[str, Any] = {}
    for name, entry in given.items():
        script = runner.find(name)
        if script is None or script.args_from is None or script.args_to is None:
            raise HTTPException(422, f"Script '{name}' not found")
        values = entry.get("args", [])
        if shared.order == "sdnext":
            per_script[script.title()] = values
            continue
        count = min(len(values), script.args_to - script.args_from)
        for index in range(count):
            args[script.args_from + index] = values[index]
    return args, per_script


def _get_options() -> dict[str, Any]:
    return {key: getattr(shared.opts, key) for key in shared.opts.data_labels}


def _set_options(values: dict[str, Any] = Body()) -> None:  # noqa: B008 - FastAPI's way to say "the whole body"
    with call_queue.queue_lock:
        shared.opts.set_many(values)


def _progress() -> dict[str, Any]:
    state = shared.state
    done = state.sampling_step / state.sampling_steps if state.sampling_steps else 0.0
    preview = previews.preview() if shared.opts.live_previews else None
    return {"progress": done, "eta_relative": 0.0, "state": state.dict(), "current_image": preview, "textinfo": None}


def _interrupt() -> dict[str, Any]:
    shared.state.interrupt()
    return {}


def _skip() -> None:
    shared.state.skip()


def _script_info() -> list[dict[str, Any]]:
    return [_describe(runner, script) for runner in _runners() for script in runner.alwayson_scripts]


def _describe(runner: scripts.ScriptRunner, script: scripts.Script) -> dict[str, Any]:
    args = [{"label": getattr(c, "label", None), "value": getattr(c, "value", None)} for c in script.controls or []]
    return {"name": script.title().lower(), "is_alwayson": True, "is_img2img": runner.is_img2img, "args": args}


def _scripts() -> dict[str, list[str]]:
    return {runner.tabname: [s.title().lower() for s in runner.alwayson_scripts] for runner in _runners()}


def _runners() -> list[scripts.ScriptRunner]:
    return [scripts.scripts_txt2img, scripts.scripts_img2img]


def _sd_models() -> list[dict[str, Any]]:
    return [{"title": c.title, "model_name": c.name, "filename": c.filename} for c in sd_models.checkpoints()]


def _unload() -> dict[str, Any]:
    with call_queue.queue_lock:
        sd_models.unload_model_weights()
    return {}


def _reload() -> dict[str, Any]:
    with call_queue.queue_lock:
        sd_models.reload_model_weights(force=True)
    return {}
