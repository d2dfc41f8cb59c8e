"""The harness's probe: brings faults into a running WebUI's model, and looks at it. Part of the tests, never shipped.

It loads only in a process that the harness has started (an environment variable holds a token that is new each time),
answers only callers on the loopback that send the token along, and lives on the host's own web application.
"""

from __future__ import annotations

import base64
import copy
import gc
import hashlib
import inspect
import io
import ipaddress
import math
import os
import secrets
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from fastapi import FastAPI, HTTPException, Request
from PIL import Image

from modules import script_callbacks, shared

TOKEN = os.environ.get("LIB_GUARD_PROBE_TOKEN", "")
HEADER = "x-lib-guard-probe"
if len(TOKEN) < 32:
    raise RuntimeError("the probe belongs to LibGuard's tests and does not run in a WebUI that they did not start")


# The loaded model.


def components() -> dict[str, torch.nn.Module]:
    """The parts of the loaded model by name; nothing is loaded for it."""
    model = _model()
    if model is None:
        return {}
    objects = getattr(model, "forge_objects_original", None)
    if objects is not None:
        found = {"unet": objects.unet.model, "vae": objects.vae.first_stage_model}
        return {**found, "clip": objects.clip.cond_stage_model}
    if getattr(model, "first_stage_model", None) is not None:
        return {"model": model, "vae": model.first_stage_model}
    named = getattr(model, "components", {})
    return {name: part for name, part in named.items() if isinstance(part, torch.nn.Module)}


def _model() -> Any:
    if "modules.modeldata" in sys.modules:  # SD.Next: `shared.sd_model` would load it
        return sys.modules["modules.modeldata"].model_data.sd_model
    sd_models = sys.modules.get("modules.sd_models")
    return getattr(getattr(sd_models, "model_data", None), "sd_model", None)


def vae() -> torch.nn.Module:
    """The loaded model's VAE."""
    found = components().get("vae")
    if found is None:
        raise HTTPException(409, "no model with a VAE is loaded")
    return found


def denoiser() -> torch.nn.Module:
    """What is called once a step, or once for each half of the guidance."""
    parts = components()
    if "model" in parts:
        return parts["model"].model.diffusion_model
    found = parts.get("unet") or parts.get("transformer")
    if found is None:
        raise HTTPException(409, "no model is loaded")
    return getattr(found, "diffusion_model", found)


# Faults.


def _blocks(part: Any) -> Any:
    """The decoder's blocks in diffusers' naming or in that of the original code."""
    return part.up_blocks if hasattr(part, "up_blocks") else part.up


def _half_decoder(model: Any) -> None:
    model.decoder.half()


def _half_encoder(model: Any) -> None:
    model.encoder.half()


def _half_data(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.half()


def _half_state(model: Any) -> None:
    model.load_state_dict({name: tensor.half() for name, tensor in model.state_dict().items()}, assign=True)


def _half_weight(model: Any) -> None:
    model.decoder.conv_in.weight.data = model.decoder.conv_in.weight.data.half()


def _bfloat_block(model: Any) -> None:
    _blocks(model.decoder)[1].to(torch.bfloat16)


def _float_encoder(model: Any) -> None:
    model.encoder.float()
    if getattr(model, "quant_conv", None) is not None:
        model.quant_conv.float()


def _float_decoder(model: Any) -> None:
    model.decoder.float()


def _overflow(model: Any) -> None:
    """Weights that half precision can hold, and activations that it cannot: each block adds to what came before, and
    normalizes only what it adds. In float32 the VAE still gives a picture, since the last layers normalize too."""
    for part in (model.encoder, model.decoder):
        weight = part.conv_in.weight
        # By a power of two, which is exact: a float32 copy of these weights holds the same numbers.
        weight.mul_(2.0 ** (15 - math.frexp(float(weight.abs().max()))[1]))


DAMAGES: dict[str, Callable[[Any], None]] = {
    "overflow": _overflow,
    "half_decoder": _half_decoder,
    "half_encoder": _half_encoder,
    "half_data": _half_data,
    "half_state": _half_state,
    "half_weight": _half_weight,
    "bfloat_block": _bfloat_block,
    "float_encoder": _float_encoder,
    "float_decoder": _float_decoder,
}


def damage(how: str) -> dict[str, Any]:
    """Do one of `DAMAGES` to the VAE."""
    model = vae()
    with _changing(model):
        DAMAGES[how](model)
    return dtypes()


@contextmanager
def _changing(model: torch.nn.Module) -> Iterator[None]:
    """Weights that were made in inference mode can only be changed in it."""
    inference = any(parameter.is_inference() for parameter in model.parameters())
    with torch.inference_mode(inference), torch.no_grad():
        yield


def convert(component: str, path: str, dtype: str) -> dict[str, Any]:
    """Convert one module of a component, as an extension would that casts a part by itself."""
    model = components()[component]
    with _changing(model):
        model.get_submodule(path).to(getattr(torch, dtype))
    return dtypes()


# A correct caller, without LibGuard.


class _Posterior:
    """A latent distribution that computes in its own dtype and hands its samples over in the caller's."""

    def __init__(self, inner: Any, dtype: torch.dtype) -> None:
        self._inner, self._dtype = inner, dtype

    def sample(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self._inner.sample(*args, **kwargs).to(self._dtype)

    def mode(self) -> torch.Tensor:
        return self._inner.mode().to(self._dtype)


def _aligned_encode(model: Any, encode: Callable[..., Any]) -> Callable[..., Any]:
    def call(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = encode(x.to(model.encoder.conv_in.weight.dtype), *args, **kwargs)
        if isinstance(result, tuple):
            return (_Posterior(result[0], x.dtype), *result[1:])
        if hasattr(result, "latent_dist"):
            result.latent_dist = _Posterior(result.latent_dist, x.dtype)
            return result
        return _Posterior(result, x.dtype)

    return call


def _aligned_decode(model: Any, decode: Callable[..., Any]) -> Callable[..., Any]:
    def call(z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return decode(z.to(model.decoder.conv_in.weight.dtype), *args, **kwargs)

    return call


def align(on: bool) -> dict[str, Any]:
    """Have encode and decode take any dtype and hand latents back in the caller's; or no longer."""
    model = vae()
    for name, wrap in (("encode", _aligned_encode), ("decode", _aligned_decode)):
        model.__dict__.pop(name, None)
        if on:
            setattr(model, name, wrap(model, getattr(model, name)))
    return {}


def float_copy(on: bool) -> dict[str, Any]:
    """Have a float32 copy of the VAE encode and decode, and hand latents back in the caller's dtype; or no longer."""
    model = vae()
    for name in ("encode", "decode"):
        model.__dict__.pop(name, None)
    if on:
        wide = copy.deepcopy(model).float()
        model.encode, model.decode = _drawing_narrowly(wide.encode), _aligned_decode(wide, wide.decode)
    return {}


def _drawing_narrowly(encode: Callable[..., Any]) -> Callable[..., Any]:
    """The distribution stays of the class that its caller looks for (ldm/models/diffusion/ddpm.py:655)."""

    def call(x: torch.Tensor) -> Any:
        result = encode(x.float())
        draw = result.sample
        result.sample = lambda: draw().to(x.dtype)
        return result

    return call


# AUTOMATIC1111: the functional LoRA path, and what is remembered between requests.


def _without_networks(method: Callable[..., Any]) -> Callable[..., Any]:
    networks = sys.modules["networks"]

    def call(*args: Any, **kwargs: Any) -> Any:
        loaded = list(networks.loaded_networks)
        networks.loaded_networks.clear()
        try:
            return method(*args, **kwargs)
        finally:
            networks.loaded_networks.extend(loaded)

    return call


def no_networks_in_vae(on: bool) -> dict[str, Any]:
    """Have the host believe inside encode and decode that no LoRA is loaded; or no longer.

    No LoRA reaches into a VAE, and without one the functional path casts nothing: what comes out is what the host
    itself computes for a VAE that it leaves alone.
    """
    model = vae()
    for name in ("encode", "decode"):
        model.__dict__.pop(name, None)
        if on:
            setattr(model, name, _without_networks(getattr(model, name)))
    return {}


def forget_networks() -> dict[str, Any]:
    """SD.Next: nothing remembered of LoRAs and of encoded prompts, as after a start."""
    common, cached = sys.modules["modules.lora.lora_common"], sys.modules["modules.sd_hijack_te"]
    common.loaded_networks.clear()
    common.previously_loaded_networks = []
    sys.modules["modules.lora.lora_load"].lora_cache.clear()
    cached.prompt_cache.cache.clear()
    sys.modules["modules.prompt_parser_diffusers"].cache.clear()
    return {}


def find_files() -> dict[str, Any]:
    """Have diffusers look for a LoRA's file in a folder itself, as it does where the Hub may be asked too; nothing is
    asked of it for a file that is here."""
    sys.modules["diffusers.loaders.lora_base"].HF_HUB_OFFLINE = False
    return {}


def other_adapter(path: str) -> dict[str, Any]:
    """SD.Next: an adapter that is no LoRA of a request, named as an IP-Adapter FaceID names its own (diffusers
    ip_adapter.py:248); taken out again with an empty path."""
    pipe = _model()
    if path:
        pipe.load_lora_weights(path, adapter_name="faceid_0")
        pipe.set_adapters(["faceid_0"], adapter_weights=[1.0])
    else:
        pipe.unload_lora_weights()
    return {}


# SD.Next: image encoders.

#: Of each load: how many encoders were in memory then.
_in_memory: list[int] = []
_original_load: list[Any] = []


def encoders_in_memory(on: bool) -> list[int]:
    """Note at each load of an image encoder how many there are already; what was noted since."""
    encoder = sys.modules["transformers"].CLIPVisionModelWithProjection
    noted = list(_in_memory)
    _in_memory.clear()
    if on and not _original_load:
        _original_load.append(encoder.from_pretrained)

        def from_pretrained(*args: Any, **kwargs: Any) -> Any:
            gc.collect()
            _in_memory.append(sum(isinstance(one, encoder) for one in gc.get_objects()))
            return _original_load[0](*args, **kwargs)

        encoder.from_pretrained = from_pretrained
    elif not on and _original_load:
        _original_load.clear()
        del encoder.from_pretrained
    return noted


def encoder_identity() -> int:
    """Which object the pipeline's image encoder is; 0 where there is none."""
    found = getattr(_model(), "image_encoder", None)
    return id(found) if found is not None else 0


def own_encoders(on: bool) -> dict[str, Any]:
    """Have the text-to-image pipeline encode the image of each adapter by the encoder whose widths its projection has;
    or no longer."""
    pipeline = sys.modules["diffusers"].StableDiffusionPipeline
    kept = getattr(pipeline, "_lib_guard_probe_encode", None)
    if kept is not None:
        pipeline.encode_image = kept
        del pipeline._lib_guard_probe_encode
    if not on:
        return {}
    original, calls = pipeline.encode_image, []

    def encode_image(self: Any, image: Any, device: Any, count: int, hidden: bool = False) -> Any:
        layers = self.unet.encoder_hid_proj.image_projection_layers
        layer = layers[len(calls) % len(layers)]
        calls.append(hidden)
        before, folder = self.image_encoder, "models"
        if not hidden and layer.image_embeds.in_features == 1280:
            folder = "sdxl_models"
        self.image_encoder = _cached_encoder(folder).to(self.unet.device, self.unet.dtype)
        try:
            return original(self, image, device, count, hidden)
        finally:
            self.image_encoder = before

    pipeline._lib_guard_probe_encode = original
    pipeline.encode_image = encode_image
    return {}


def images_for_adapters_only(on: bool) -> dict[str, Any]:
    """Have no pipeline be handed images whose UNet has no adapter; or no longer."""
    place = sys.modules["modules.processing_diffusers"]
    original = sys.modules["modules.processing_args"].set_pipeline_args

    def set_pipeline_args(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        if kwargs["model"].unet.encoder_hid_proj is None:
            found.pop("ip_adapter_image", None)
        return found

    place.set_pipeline_args = set_pipeline_args if on else original
    return {}


def _cached_encoder(folder: str) -> Any:
    load = sys.modules["transformers"].CLIPVisionModelWithProjection.from_pretrained
    return load("h94/IP-Adapter", subfolder=f"{folder}/image_encoder", local_files_only=True)


_uninterrupted: list[Callable[..., Any]] = []


def interrupt_at_layer(count: int) -> dict[str, Any]:
    """SD.Next: press Interrupt when that many more layers have been gone through by a LoRA, or by its removal; once.
    With 0 no longer."""
    networks = sys.modules["modules.lora.networks"]
    if not _uninterrupted:
        _uninterrupted.append(networks.network_apply_direct)
    original, left = _uninterrupted[0], [count]

    def network_apply_direct(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            shared.state.interrupted = True
            networks.network_apply_direct = original
        return original(*args, **kwargs)

    networks.network_apply_direct = network_apply_direct
    return {}


_unbroken: list[Callable[..., Any]] = []


def break_network(name: str, layer: str = "") -> dict[str, Any]:
    """Have a LoRA's product fail in the layers whose name holds `layer`, with an exception that the host does not
    expect there (it catches RuntimeError alone, networks.py:481), as a damaged file's does; or again as before when
    `layer` is empty."""
    kind = sys.modules["network_lora"].NetworkModuleLora
    if not _unbroken:
        _unbroken.append(kind.calc_updown)
    original = _unbroken[0]

    def calc_updown(self: Any, weight: torch.Tensor) -> Any:
        if layer and self.network.name == name and layer in self.network_key:
            raise KeyError(layer)
        return original(self, weight)

    kind.calc_updown = calc_updown
    return {}


def forget_conditioning() -> dict[str, Any]:
    """Empty the caches of encoded prompts: they outlive LoRAs and options, so that two sequences would not be alike."""
    processing = sys.modules["modules.processing"]
    for owner in (processing.StableDiffusionProcessing, processing.StableDiffusionProcessingTxt2Img):
        for name in ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc"):
            if name in vars(owner):
                setattr(owner, name, [None, None])
    return {}


def borrowed() -> dict[str, Any]:
    """The settings and the layer's method that Regional Prompter changes for a generation, as they are now."""
    options = {key: getattr(shared.opts, key) for key in ("lora_functional", "batch_cond_uncond")}
    return {**options, "linear_forward": torch.nn.Linear.forward.__name__}


def upcast_vae(on: bool) -> dict[str, Any]:
    """What the host does when it has seen NaNs in a half VAE (modules/processing.py:655-662); or back."""
    devices = sys.modules["modules.devices"]
    devices.dtype_vae = torch.float32 if on else devices.dtype
    vae().to(devices.dtype_vae)
    return {}


def own_methods() -> dict[str, str]:
    """The VAE's methods that somebody has put on the instance, as --medvram does."""
    return {name: value.__qualname__ for name, value in vars(vae()).items() if name in ("encode", "decode")}


def install_extension(url: str) -> dict[str, Any]:
    """What the button Extensions > Install from URL does."""
    from modules import ui_extensions

    install_from = ui_extensions.install_extension_from_url
    # SD.Next's needs what the page shows meanwhile as well: branch, search text, sort order.
    more = (None, "", "default") if "search_text" in inspect.signature(install_from).parameters else ()
    return {"said": install_from(None, url, *more)[1]}


# Forge: the VAE's wrapper, and the model that it loads only when a request comes.


def load() -> dict[str, Any]:
    """The chosen checkpoint's weights as they are on the disk. The host loads it, as it does for a request."""
    from modules import sd_models

    sd_models.model_data.forge_hash = ""
    sd_models.forge_model_reload()
    return dtypes()


def reload_checkpoint() -> float:
    """The host's own loading of the checkpoint that is loaded, from its file; how long it took, in milliseconds."""
    sd_models = sys.modules["modules.sd_models"]
    started = time.perf_counter()
    if hasattr(sd_models, "forge_model_reload"):
        load()
    elif "modules.modeldata" in sys.modules:
        sd_models.reload_model_weights(force=True)
    else:
        sd_models.reload_model_weights(forced_reload=True)
    return (time.perf_counter() - started) * 1000


def _wrapper() -> Any:
    return _model().forge_objects_original.vae


_kept: dict[str, Any] = {}


def restore() -> dict[str, Any]:
    """The VAE as it was loaded. The first time, and after another load, the model is loaded afresh for it: that takes
    many times longer than the VAE alone."""
    if not _kept or _kept["model"] is not _model():
        _kept.clear()
        load()
        state = {name: tensor.detach().clone() for name, tensor in vae().state_dict().items()}
        _kept.update(model=_model(), state=state, declared=_wrapper().vae_dtype)
    inference = any(parameter.is_inference() for parameter in vae().parameters())
    with torch.inference_mode(inference), torch.no_grad():
        vae().load_state_dict({name: tensor.clone() for name, tensor in _kept["state"].items()}, assign=True)
    _wrapper().vae_dtype = _kept["declared"]
    _cast_by_hand(False)
    return {}


def seed() -> dict[str, Any]:
    """Begin the process's noise anew: Forge draws the latents of a picture that it encodes before it sets the request's
    seed (processing.py:1815, :944), so that img2img depends on the requests that came before."""
    torch.manual_seed(1)
    return {}


def _cast_by_hand(on: bool) -> None:
    for module in vae().modules():
        if hasattr(module, "parameters_manual_cast"):
            module.parameters_manual_cast = on


def declare(dtype: str) -> dict[str, Any]:
    """Have the VAE's wrapper believe that the VAE is in this dtype; no weight is touched."""
    _wrapper().vae_dtype = getattr(torch, dtype)
    return {}


_declared: list[torch.dtype] = []


def agree(on: bool) -> dict[str, Any]:
    """Have the VAE's wrapper believe what its weights are, as after loading; or again what it believed before."""
    if on:
        _declared.append(_wrapper().vae_dtype)
        _wrapper().vae_dtype = next(vae().parameters()).dtype
    elif _declared:
        _wrapper().vae_dtype = _declared.pop()
    return {}


def manual_cast() -> dict[str, Any]:
    """Have each of the VAE's layers fit its weights to what it is given, as the host's text encoders do."""
    _cast_by_hand(True)
    return {}


def declared() -> str:
    """The dtype that the VAE's wrapper believes the VAE to be in."""
    return str(_wrapper().vae_dtype)


def tiled_always() -> bool:
    """Whether the host decodes every picture in tiles."""
    return bool(sys.modules["backend.memory_management"].VAE_ALWAYS_TILED)


def unlike_file() -> list[str]:
    """The weights of UNet and text encoder that are not, bit for bit, what the checkpoint's file holds in their dtype.
    The names are those of a Stable Diffusion 1."""
    from safetensors import safe_open

    objects = _model().forge_objects_original
    parts = {
        "model.diffusion_model.": objects.unet.model.diffusion_model,
        "cond_stage_model.transformer.": objects.clip.cond_stage_model.clip_l.transformer,
    }
    with safe_open(_model().filename, "pt") as file:
        held = set(file.keys())
        return [
            prefix + name
            for prefix, part in parts.items()
            for name, tensor in part.named_parameters()
            if prefix + name in held and not _equal_bits(tensor, file.get_tensor(prefix + name).to(tensor.dtype))
        ]


def _equal_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    raw = [tensor.detach().contiguous().view(torch.uint8) for tensor in (one, other)]
    return one.shape == other.shape and torch.equal(*raw)


_failing: list[Callable[[], None]] = []


def fail_in(place: str, call: int = 0) -> dict[str, Any]:
    """Raise at the call number `call` of a place of a generation, counted from 0 from now on, and at all that follow;
    an empty place ends it. Places: `merge` (a weight into which a LoRA is merged), `clone` (a LoRA that is noted),
    `text_encoder`, `unet`, `decode`."""
    while _failing:
        _failing.pop()()
    calls = iter(range(1 << 30))

    def count(*_: Any) -> None:
        if next(calls) >= call:
            raise ProbeError(f"the row asked for an error in {place}")

    functions = {
        "merge": ("backend.patcher.lora", "merge_lora_to_weight"),
        "clone": ("networks", "load_lora_for_models"),
    }
    if place in functions:
        owner, name = sys.modules[functions[place][0]], functions[place][1]
        before = getattr(owner, name)
        setattr(owner, name, lambda *args, **kwargs: (count(), before(*args, **kwargs))[1])
        _failing.append(lambda: setattr(owner, name, before))
    elif place:
        modules = {"text_encoder": components()["clip"].clip_l.transformer, "unet": denoiser(), "decode": vae().decoder}
        _failing.append(modules[place].register_forward_pre_hook(count).remove)
    return {}


def script_order(method: str) -> list[str]:
    """The titles of the scripts in the order in which the host calls this method of theirs."""
    runner = sys.modules["modules.scripts"].scripts_txt2img
    return [script.title() for script in runner.ordered_scripts(method)]


# Forge's image encoders, and the ControlNet units that choose them.

#: All that were seen loaded, in their order.
_encoders: list[weakref.ref[torch.nn.Module]] = []


def _vision_preprocessors() -> list[Any]:
    held = sys.modules["modules_forge.shared"].supported_preprocessors.values()
    return [one for one in held if hasattr(one, "clipvision")]


def encoders() -> dict[str, Any]:
    """The loaded image encoders by file, each with a number of its own and its bytes; and the numbers of those that are
    in memory, of all that an earlier call has seen."""
    loaded = {}
    for one in _vision_preprocessors():
        if one.clipvision is None:
            continue
        model = one.clipvision.model
        if not any(seen() is model for seen in _encoders):
            _encoders.append(weakref.ref(model))
        number = next(number for number, seen in enumerate(_encoders) if seen() is model)
        size = sum(part.numel() * part.element_size() for part in (*model.parameters(), *model.buffers()))
        loaded[one.filename] = {"number": number, "bytes": size}
    return {"loaded": loaded, "alive": [number for number, seen in enumerate(_encoders) if seen() is not None]}


def forget_encoders() -> dict[str, Any]:
    """As in a process that has just started: none is loaded."""
    for one in _vision_preprocessors():
        if one.clipvision is not None:
            sys.modules["backend.memory_management"].unload_model_clones(one.clipvision.patcher)
        one.clipvision = None
        type(one).global_cache.clear()
    gc.collect()
    return encoders()


def find_adapters() -> list[str]:
    """What the button beside a unit's model does: look for files anew; the names of all that are there."""
    state = sys.modules["lib_controlnet.global_state"]
    state.update_controlnet_filenames()
    return list(state.controlnet_names)


def unit_marks() -> list[str]:
    """Where on the scripts of ControlNet something of LibGuard's is."""
    marked, scripts = sys.modules["lib_guard.hooks"].marked, sys.modules["modules.scripts"]
    runners = (scripts.scripts_txt2img, scripts.scripts_img2img)
    found = [one for runner in runners for one in runner.alwayson_scripts if one.title() == "ControlNet"]
    # AUTOMATIC1111's has a static method for its units, which is the class's.
    return [place for one in found for owner in (one, type(one)) for place in marked(owner)]


_unit_marks: list[list[str]] = []
_unit_handles: list[Any] = []


def watch_units(on: bool) -> list[list[str]]:
    """Note `unit_marks` at each call of the denoiser; returns what was noted so far."""
    while _unit_handles:
        _unit_handles.pop().remove()
    noted = list(_unit_marks)
    _unit_marks.clear()
    if on:
        _unit_handles.append(denoiser().register_forward_pre_hook(lambda *_: _unit_marks.append(unit_marks())))
    return noted


_encode_handles: list[Any] = []


def seed_encode(on: bool) -> dict[str, Any]:
    """Begin the process's noise anew at each call of the VAE's encoder. Forge draws the latents of a picture from it,
    and it was drawn from before: where an adapter's projection is built, and where an image encoder is loaded."""
    while _encode_handles:
        _encode_handles.pop().remove()

    def begin_anew(*_: Any) -> None:
        seed()

    if on:
        _encode_handles.append(vae().encoder.register_forward_pre_hook(begin_anew))
    return {}


_comments: list[str] = []
_comment_before: list[Any] = []


def comments(on: bool) -> list[str]:
    """Note what is to be shown under pictures, which the API does not hand out; returns what was noted so far."""
    kind = sys.modules["modules.processing"].StableDiffusionProcessing
    while _comment_before:
        kind.comment = _comment_before.pop()
    noted = list(_comments)
    _comments.clear()
    if on:
        _comment_before.append(kind.comment)

        def note(self: Any, text: str) -> None:
            _comments.append(text)
            _comment_before[0](self, text)

        kind.comment = note
    return noted


# Looks.


def weights() -> dict[str, str]:
    """A hash over the raw bytes of every parameter and buffer, by component."""
    return {name: _hash(part) for name, part in components().items()}


def _hash(part: torch.nn.Module) -> str:
    """Adapters that are layers of their own are seen through: they come and go, and the model's own weights stay."""
    total = hashlib.sha256()
    held = {name.replace(".base_layer", ""): one for name, one in (*part.named_parameters(), *part.named_buffers())}
    for name, tensor in sorted((name, one) for name, one in held.items() if ".lora_" not in name):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.device.type}".encode())
        if tensor.device.type != "meta":
            raw = tensor.detach().to("cpu").contiguous().flatten().view(torch.uint8)
            total.update(raw.numpy().tobytes())
    return total.hexdigest()[:16]


def dtypes() -> dict[str, Any]:
    """How many parameters are in which dtype, by component."""
    counted = {name: Counter(str(p.dtype)[6:] for p in part.parameters()) for name, part in components().items()}
    return {name: dict(counter) for name, counter in counted.items()}


def marks() -> list[str]:
    """Where on the model something of LibGuard's is."""
    marked = sys.modules["lib_guard.hooks"].marked
    found = [f"{name}.{place}" for name, part in components().items() for place in marked(part)]
    if hasattr(_model(), "forge_objects_original"):
        found += [f"wrapper{place}" for place in marked(_wrapper())]
    networks = sys.modules.get("networks")  # AUTOMATIC1111's Lora extension, through which all its layers run
    return found + ([f"networks{place}" for place in marked(networks)] if networks is not None else [])


def ledger() -> Any:
    """LibGuard's record."""
    return sys.modules["lib_guard.ledger"].LEDGER.primitives()


def record() -> int:
    """Which record it is: there is a new one after the extension has been loaded anew, as this probe is then."""
    module = sys.modules["lib_guard.ledger"]
    number: int = vars(module).setdefault("_probe_record", time.monotonic_ns())
    return number


_noted: list[list[str]] = []
_handles: list[Any] = []


def watch_hooks(on: bool) -> Any:
    """Note LibGuard's marks at each call of the denoiser and of the VAE's decoder; returns what was noted so far."""
    while _handles:
        _handles.pop().remove()
    noted = list(_noted)
    _noted.clear()
    if on:
        for module in (denoiser(), vae().decoder):
            _handles.append(module.register_forward_pre_hook(lambda *_: _noted.append(marks())))
    return noted


class ProbeError(RuntimeError):
    """Raised in the middle of a generation when a row asks for it."""


_step_handles: list[Any] = []


def at_step(step: int, what: str) -> dict[str, Any]:
    """At the denoiser's call number `step`, counted from 0 from now on, do `what`."""
    while _step_handles:
        _step_handles.pop().remove()
    calls = iter(range(1 << 30))

    def act(*_: Any) -> None:
        if next(calls) != step:
            return
        if what == "interrupt":
            shared.state.interrupt()
        elif what == "skip":
            shared.state.skip()
        elif what == "raise":
            raise ProbeError("the row asked for an error here")

    if what != "nothing":
        _step_handles.append(denoiser().register_forward_pre_hook(act))
    return {}


def reload_ui() -> dict[str, Any]:
    """Do what the button Reload UI (SD.Next: Restart server) does, once this request has been answered."""
    ask = getattr(shared.state, "request_restart", None) or shared.restart_server
    threading.Timer(0.5, ask).start()
    return {}


# What only SD.Next needs.


class _Detector:
    """In the place of a YOLO network, whose weights cannot be shipped: it finds one face, always in the same place.

    What SD.Next does with a detection (yolo.py, detailer.py) runs as it is; this stands in its cache of loaded models.
    """

    names: ClassVar = {0: "face"}

    def to(self, _device: Any) -> _Detector:
        return self

    def predict(self, source: list[Any], **_: Any) -> list[Any]:
        width, height = source[0].size
        box = torch.tensor([[width / 4, height / 4, 3 * width / 4, 3 * height / 4]])
        boxes = SimpleNamespace(xyxy=box, conf=torch.tensor([0.9]), cls=torch.tensor([0.0]))
        return [SimpleNamespace(boxes=boxes, masks=None, names=self.names)]


def detector(name: str) -> dict[str, Any]:
    """Have SD.Next's Detailer find a detection model of this name already loaded."""
    shared.detailer.models[name] = _Detector()
    return {}


#: The Control tab's units by their number and ControlNet, which they keep between requests as the tab's do.
_units: dict[tuple[int, str], Any] = {}


def _unit(number: int, model: str) -> Any:
    from modules.control.unit import Unit

    if (number, model) not in _units:
        unit = Unit(index=number, enabled=True, strength=1.0, unit_type="controlnet")
        unit.model_name = model
        _units[number, model] = unit
    return _units[number, model]


def control(models: Sequence[str] = (), **arguments: Any) -> dict[str, Any]:
    """What SD.Next's Control tab calls; the HTTP route to it fails in 058a7f0c (it passes an argument `xyz`).

    models: the ControlNets of its units, one each. `inputs` are pictures as base64, and so are the ones that come back.
    """
    from modules.call_queue import queue_lock
    from modules.control import run

    inputs = [Image.open(io.BytesIO(base64.b64decode(text))) for text in arguments.pop("inputs", [])]
    found = []
    with queue_lock:
        # What the button's wrapper does; it also forgets that the request before was interrupted.
        job = shared.state.begin("Control")
        units = [_unit(number, model) for number, model in enumerate(models)]
        kind = "controlnet" if units else None
        for item in run.control_run(units=units, unit_type=kind, inputs=inputs or None, is_generator=True, **arguments):
            if isinstance(item, tuple) and item and isinstance(item[0], list):
                found += item[0]
        shared.state.end(job)
    return {"images": [_png(picture) for picture in found]}


def _png(picture: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


OPERATIONS: dict[str, Callable[..., Any]] = {
    call.__name__: call
    for call in (
        *(
            damage,
            convert,
            align,
            weights,
            dtypes,
            marks,
            ledger,
            record,
            watch_hooks,
            at_step,
            reload_ui,
            detector,
            control,
        ),
        *(no_networks_in_vae, forget_conditioning, borrowed, script_order),
        *(break_network, forget_networks, find_files, interrupt_at_layer, other_adapter),
        *(upcast_vae, float_copy, own_methods, install_extension),
        *(encoders_in_memory, encoder_identity, own_encoders, images_for_adapters_only),
        *(
            load,
            reload_checkpoint,
            restore,
            seed,
            declare,
            agree,
            manual_cast,
            declared,
            tiled_always,
            unlike_file,
            fail_in,
        ),
        *(encoders, forget_encoders, find_adapters, unit_marks, watch_units, seed_encode, comments),
    )
}


def install(_demo: Any, app: FastAPI) -> None:
    """Add the routes to the host's application."""

    @app.get("/lib-guard-probe/ping")
    def ping(request: Request) -> dict[str, Any]:
        _admit(request)
        return {"operations": sorted(OPERATIONS)}

    @app.post("/lib-guard-probe/{operation}")
    def operate(operation: str, arguments: dict[str, Any], request: Request) -> Any:
        _admit(request)
        if operation not in OPERATIONS:
            raise HTTPException(404, f"the probe knows {', '.join(OPERATIONS)}")
        return OPERATIONS[operation](**arguments)


def _admit(request: Request) -> None:
    address = request.client.host if request.client else ""
    try:
        local = ipaddress.ip_address(address).is_loopback
    except ValueError:
        local = False
    if not local or not secrets.compare_digest(request.headers.get(HEADER, ""), TOKEN):
        raise HTTPException(403, "not for you")


def _end_with_the_harness() -> None:
    """The harness holds the other end of standard input; when it is gone, this process has no purpose."""
    while os.read(0, 4096):
        continue
    os._exit(0)


threading.Thread(target=_end_with_the_harness, name="lib-guard-probe", daemon=True).start()
script_callbacks.on_app_started(install)
