"""The sizes of the tiny models, all in one place.

The architectures are the real ones; only widths and depths are small. Every VAE keeps four blocks, so that a latent is
an eighth of the picture, as in the real models.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Widths in channels, depths in layers."""

    clip_width: int = 32
    clip_layers: int = 2
    clip_heads: int = 4
    projection: int = 32
    image_tokens: int = 4
    t5_width: int = 64
    t5_layers: int = 2
    unet_channels: tuple[int, ...] = (32, 64, 64, 64)
    unet_xl_channels: tuple[int, ...] = (32, 64, 64)
    norm_groups: int = 8
    time_id_width: int = 8
    heads: int = 4
    head_dim: int = 8
    dit_layers: int = 2
    vae_channels: tuple[int, ...] = (32, 32, 64, 64)
    #: Side of the square latent that the configs declare; pictures of other sizes work as well.
    sample_size: int = 16
    lora_rank: int = 4

    @property
    def context(self) -> int:
        """Cross-attention width of SD1.5: the hidden width of its one text encoder."""
        return self.clip_width

    @property
    def context_xl(self) -> int:
        """Cross-attention width of SDXL: both text encoders side by side."""
        return 2 * self.clip_width

    @property
    def added_xl(self) -> int:
        """Width of SDXL's added embedding: six time ids and the pooled projection."""
        return 6 * self.time_id_width + self.projection


SIZES = Sizes()
