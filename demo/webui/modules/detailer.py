"""A second pass over a region of a finished picture, as Detailer extensions do with a found face.

The region is fixed: the middle half of the picture. It is enlarged, sampled anew from its own pixels (so it goes
through VAE encode and decode), and pasted back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

from modules.shared import state

if TYPE_CHECKING:
    from modules.processing import StableDiffusionProcessing

STRENGTH = 0.5


def detail(p: StableDiffusionProcessing, picture: Image.Image, seed: int) -> Image.Image:
    """The picture with its middle sampled anew; unchanged when the nested generation gives no picture.

    Raises what the nested generation raises (A1111's order; SD.Next's swallows it).
    """
    from modules.processing import StableDiffusionProcessingImg2Img, process_images_inner

    width, height = picture.size
    box = (width // 4, height // 4, width * 3 // 4, height * 3 // 4)
    nested = StableDiffusionProcessingImg2Img(
        prompt=p.prompts[0],
        negative_prompt=p.negative_prompt,
        seed=seed,
        steps=p.steps,
        cfg_scale=p.cfg_scale,
        width=p.width,
        height=p.height,
        denoising_strength=STRENGTH,
        disable_extra_networks=True,
        init_images=[picture.crop(box)],
    )
    interrupted = state.interrupted
    found = process_images_inner(nested).images
    # A swallowed failure of the nested pass marks the job as interrupted; the outer one goes on all the same.
    state.interrupted = interrupted
    if not found:
        return picture
    out = picture.copy()
    out.paste(found[0].resize((box[2] - box[0], box[3] - box[1])), box[:2])
    return out
