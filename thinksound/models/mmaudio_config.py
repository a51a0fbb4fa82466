"""Settings of MMAudio's transformer, its five published sizes, and the length of its latents.

Versions 1 and 2 differ in four settings. Counts of pictures and synchronisation features are those of
`thinksound.rates`; the latents are rounded up, where ThinkSound's are rounded to nearest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..config import FlowConfig


@dataclass(frozen=True, kw_only=True)
class MMAudioConfig(FlowConfig):
    """MMAudio's flow-matching transformer; the defaults are the published large network, version 2."""

    latent_dim: int = 40  # 20 at 16 kHz
    text_dim: int = 1024  # width of a CLIP text token
    hidden_dim: int = 896
    depth: int = 21
    fused_depth: int = 14
    num_heads: int = 14
    audio_kernel_size: int = 7
    output_sees_sync: bool = False


LARGE_44K_V2 = MMAudioConfig()
LARGE_44K = replace(
    LARGE_44K_V2, input_activation="selu", token_activation=False, time_dim=256, time_scale=1.0
)
MEDIUM_44K = replace(LARGE_44K, depth=12, fused_depth=8)
SMALL_44K = replace(MEDIUM_44K, hidden_dim=448, num_heads=7)
SMALL_16K = replace(SMALL_44K, latent_dim=20)


def latent_frame_count(duration_s: float, sample_rate: int, hop: int) -> int:
    """Latent frames that cover ``duration_s`` seconds, of ``hop`` samples each (512; at 44.1 kHz 1024)."""
    return math.ceil(duration_s * sample_rate / hop)
