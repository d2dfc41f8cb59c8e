"""What a model file is, told from its header: its kind, its family, and the tensors that say so.

Shapes beat metadata, which can be wrong, and names only break ties. What no rule matches is `unknown`; nothing is
guessed. Each kind has its own file; `unet`, `transformers`, `text` and `layers` tell a LoRA's model by its layers.
"""

from __future__ import annotations

from ..header import Header
from .checkpoint import checkpoint_verdict
from .controlnet import controlnet_verdict
from .embedding import embedding_verdict
from .image_encoder import image_encoder_verdict
from .ip_adapter import ip_adapter_verdict
from .lora import lora_verdict
from .vae import vae_verdict
from .verdict import Confidence, EncoderNeed, EncoderOffer, Evidence, Verdict

__all__ = ["Confidence", "EncoderNeed", "EncoderOffer", "Evidence", "Verdict", "family_of"]

#: Those that hold what others are known by come first: FaceID brings a LoRA along, a Control-LoRA a ControlNet.
_KINDS = (
    ip_adapter_verdict,
    controlnet_verdict,
    lora_verdict,
    image_encoder_verdict,
    vae_verdict,
    embedding_verdict,
    checkpoint_verdict,
)


def family_of(header: Header) -> Verdict:
    """What the file is that has this header. Never raises; what is not known has the kind `unknown`."""
    found = (verdict_of(header) for verdict_of in _KINDS)
    return next((verdict for verdict in found if verdict is not None), Verdict())
