"""SD.Next's callback order and its way with failures.

A RuntimeError or ValueError marks the job as interrupted, an exception in decoding costs the batch its pictures; both
end in HTTP 200 without pictures. Only `on_after_process` is called whatever happens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from PIL import Image

from modules import errors, extra_networks, script_callbacks
from modules.shared import state

if TYPE_CHECKING:
    from modules.processing import Processed, StableDiffusionProcessing


def process_images(p: StableDiffusionProcessing) -> Processed:
    """The outer generation with SD.Next's pair of callbacks around it."""
    p.call("before_process")
    try:
        script_callbacks.before_process_callback(p)
        return process_images_inner(p)
    finally:
        script_callbacks.after_process_callback(p)


def process_images_inner(p: StableDiffusionProcessing) -> Processed:
    """The generation proper."""
    from modules.processing import Processed, finish_batch

    p.setup_prompts()
    p.call("process")
    pictures: list[Image.Image] = []
    infotexts: list[str] = []
    for number in range(p.n_iter):
        if state.interrupted:
            break
        p.take_batch(number)
        p.call("before_process_batch", **p.batch_arguments())
        p.parse_extra_network_prompts()
        p.call("process_batch", **p.batch_arguments())
        p.call("process_images")
        decoded = _sample(p)
        p.call("postprocess_batch", decoded, batch_number=number)
        batch, texts = finish_batch(p, decoded)
        pictures += batch
        infotexts += texts
    processed = Processed(p, pictures, infotexts)
    if not state.interrupted:
        p.call("postprocess", processed)
    return processed


def _sample(p: StableDiffusionProcessing) -> torch.Tensor:
    """The batch's pictures, or none of them after a failure that SD.Next swallows."""
    none = torch.empty(0, 3, p.height, p.width)
    try:
        if not p.disable_extra_networks:
            extra_networks.activate(p, p.extra_network_data or {})
        decoded = p.sample()
    except Exception as error:
        # SD.Next swallows everything from decoding, and these kinds from sampling.
        if not p.sampled and not isinstance(error, (RuntimeError, ValueError, AssertionError)):
            raise
        if not p.sampled and not isinstance(error, AssertionError):
            state.interrupted = True
        errors.display(error, "Processing")
        return none
    finally:
        if not state.interrupted:
            extra_networks.deactivate(p, p.extra_network_data)
    return none if state.interrupted else decoded
