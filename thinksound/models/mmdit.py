"""The flow-matching multimodal diffusion transformer of ThinkSound.

Source: ThinkSound, https://arxiv.org/abs/2506.21448, section 3.3; the layout descends from
MMAudio, https://arxiv.org/abs/2412.15322. What is notable:

* Latents, pictures and text meet in joint blocks; fused blocks then see the latents alone.
* Synchronisation features modulate every latent frame, stretched to the latents' length by
  nearest neighbour ("nearest-exact"). For 216 features over 194 latents float32 arithmetic
  picks another neighbour than exact arithmetic at two places; float32 is the published choice.
* The two texts stand one after the other in one sequence, MetaCLIP tokens zero-padded to T5's
  width. The pooled text condition is the plain mean of all MetaCLIP rows, padding included:
  the published configuration never routes the encoder's own pooled vector.
* What depends on the conditions alone is computed once per request (`project`), not per step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import MMDiTConfig
from ..rates import SYNC_FEATURES_PER_SEGMENT
from .attention import rotary_table
from .blocks import FinalBlock, JointBlock, StreamBlock
from .embeddings import TimestepEmbedder
from .layers import MLP, ConvMLP, same_length

INPUT_KERNEL_SIZE = 3  # convolutions of the picture and synchronisation projections


@dataclass(frozen=True)
class Conditions:
    """Everything the network knows about a request besides latents and time."""

    clip: Tensor  # (B, V, D) picture tokens
    text: Tensor  # (B, 2N, D) text tokens
    sync: Tensor  # (B, T, D) synchronisation, one per latent frame
    pooled: Tensor  # (B, 1, D) pictures and text as one vector
    latent_rotary: Tensor  # (2, T, d/2)
    clip_rotary: Tensor  # (2, V, d/2)


class MMDiT(nn.Module):
    """Predicts the velocity of rectified flow from latents, time and projected conditions."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.config = config
        dim, kernel, inner = config.hidden_dim, config.kernel_size, config.hidden_dim * 4
        self.audio_input_proj = nn.Sequential(
            same_length(config.latent_dim, dim, kernel), nn.SiLU(), ConvMLP(dim, inner, kernel)
        )
        self.clip_input_proj = nn.Sequential(
            nn.Linear(config.clip_dim, dim), nn.SiLU(), ConvMLP(dim, inner, INPUT_KERNEL_SIZE)
        )
        self.sync_input_proj = nn.Sequential(
            same_length(config.sync_dim, dim, config.sync_kernel_size),
            nn.SiLU(),
            ConvMLP(dim, inner, INPUT_KERNEL_SIZE),
        )
        self.text_input_proj = nn.Sequential(nn.Linear(config.text_dim, dim), nn.SiLU(), MLP(dim, inner))
        self.clip_cond_proj = nn.Linear(dim, dim)
        self.text_cond_proj = nn.Linear(config.clip_text_dim, dim)
        self.global_cond_mlp = MLP(dim, inner)
        self.sync_pos_emb = nn.Parameter(torch.zeros(1, 1, SYNC_FEATURES_PER_SEGMENT, config.sync_dim))
        self.final_layer = FinalBlock(dim, config.latent_dim)
        self.t_embed = TimestepEmbedder(dim)
        self.joint_blocks = nn.ModuleList(
            JointBlock(dim, config.num_heads, config.mlp_ratio, kernel, last=i == config.joint_depth - 1)
            for i in range(config.joint_depth)
        )
        self.fused_blocks = nn.ModuleList(
            StreamBlock(dim, config.num_heads, config.mlp_ratio, kernel) for _ in range(config.fused_depth)
        )
        self.empty_string_feat = nn.Parameter(torch.zeros(config.text_length, config.clip_text_dim))
        self.empty_t5_feat = nn.Parameter(torch.zeros(config.text_length, config.text_dim))
        self.empty_clip_feat = nn.Parameter(torch.zeros(1, config.clip_dim))
        self.empty_sync_feat = nn.Parameter(torch.zeros(1, config.sync_dim))

    def empty_features(self, clip_length: int, sync_length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The learned stand-ins for absent conditions, in `project`'s order, each with a batch of one."""
        return (
            self.empty_clip_feat.expand(1, clip_length, -1),
            self.empty_sync_feat.expand(1, sync_length, -1),
            self.empty_string_feat[None],
            self.empty_t5_feat[None],
        )

    def project(
        self,
        clip_features: Tensor,
        sync_features: Tensor,
        text_features: Tensor,
        t5_features: Tensor,
        latent_length: int,
    ) -> Conditions:
        """Turn encoder features into the network's conditions, once per request.

        Args:
            clip_features: MetaCLIP pictures ``(B, V, clip_dim)``.
            sync_features: Synchformer features ``(B, S, sync_dim)``, S a multiple of 8.
            text_features: MetaCLIP tokens of the caption ``(B, N, clip_text_dim)``.
            t5_features: T5 tokens of the chain of thought ``(B, N, text_dim)``.
            latent_length: T, latent frames to generate.
        """
        dtype = self.text_cond_proj.weight.dtype
        clip_features, sync_features = clip_features.to(dtype), sync_features.to(dtype)
        text_features, t5_features = text_features.to(dtype), t5_features.to(dtype)

        segments = sync_features.unflatten(1, (-1, SYNC_FEATURES_PER_SEGMENT)) + self.sync_pos_emb
        sync = self.sync_input_proj(segments.flatten(1, 2)).transpose(1, 2)  # (B, D, S)
        sync = F.interpolate(sync.float(), size=latent_length, mode="nearest-exact").transpose(
            1, 2
        )  # (B, T, D)

        clip = self.clip_input_proj(clip_features)  # (B, V, D)
        padded = F.pad(text_features, (0, self.config.text_dim - self.config.clip_text_dim))
        text = self.text_input_proj(torch.cat([padded, t5_features], dim=1))  # (B, 2N, D)
        pooled = self.clip_cond_proj(clip.mean(dim=1)) + self.text_cond_proj(text_features.mean(dim=1))

        device, clip_length = clip.device, clip.shape[1]
        return Conditions(
            clip=clip.float(),
            text=text.float(),
            sync=sync,
            pooled=self.global_cond_mlp(pooled)[:, None].float(),
            latent_rotary=rotary_table(latent_length, self.config.head_dim, device),
            clip_rotary=rotary_table(clip_length, self.config.head_dim, device, latent_length / clip_length),
        )

    def forward(self, latents: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
        """Velocity ``(B, C, T)`` float32 of ``latents (B, C, T)`` at ``timestep (B,)`` (1 noise, 0 sound)."""
        dtype = self.text_cond_proj.weight.dtype
        global_condition = self.t_embed(timestep)[:, None] + conditions.pooled  # (B, 1, D)
        latent_condition = F.silu(global_condition + conditions.sync).to(dtype)  # (B, T, D)
        global_condition = F.silu(global_condition).to(dtype)

        x = self.audio_input_proj(latents.transpose(1, 2).to(dtype)).float()  # (B, T, D)
        streams = (x, conditions.clip, conditions.text)
        for block in self.joint_blocks:
            streams = block(
                streams,
                (latent_condition, global_condition, global_condition),
                (conditions.latent_rotary, conditions.clip_rotary, None),
            )
        x = streams[0]
        for block in self.fused_blocks:
            x = block(x, latent_condition, conditions.latent_rotary)
        velocity: Tensor = self.final_layer(x, latent_condition)
        return velocity.transpose(1, 2).float()
