"""The flow-matching multimodal diffusion transformer that ThinkSound and MMAudio share.

Source: MMAudio, https://arxiv.org/abs/2412.15322, section 3.3; ThinkSound's network is based on it.

* Latents, frames and text attend to each other in joint blocks; the fused blocks after them process the
  latents alone.
* Synchronisation features modulate every latent frame. They are interpolated to the latents' length by
  nearest neighbour ("nearest-exact"). For some lengths (216 features to 194 latents, 192 to 345) float32
  arithmetic picks another neighbour than exact arithmetic at two places; the published networks use float32.
* Computations that depend on the conditions alone run once per request (`project`), not once per step.

A family is a subclass with its own null features and texts; all other differences are settings in
`FlowConfig`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from .attention import rotary_table
from .blocks import FinalBlock, JointBlock, StreamBlock
from .embeddings import TimestepEmbedder
from .layers import MLP, ConvMLP, same_length
from .synchformer import SYNC_FEATURES_PER_SEGMENT

INPUT_KERNEL_SIZE = 3  # of the gated MLPs in the frame and synchronisation projections


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Configuration of the flow-matching transformer that ThinkSound and MMAudio share."""

    latent_dim: int  # C, channels of the VAE latents
    clip_dim: int = 1024  # width of a CLIP frame feature
    sync_dim: int = 768  # width of a Synchformer feature
    text_dim: int  # width of a text token
    text_length: int = 77  # tokens of a text
    hidden_dim: int  # D
    depth: int  # joint blocks and fused blocks together
    fused_depth: int  # blocks that process the latents alone
    num_heads: int  # H
    kernel_size: int = 3  # of the blocks' convolutions along the latents
    audio_kernel_size: int  # of the convolutions in the projection of latents
    sync_kernel_size: int = 7
    mlp_ratio: float = 4.0
    input_activation: Literal["silu", "selu"] = "silu"  # in the projections of latents and synchronisation
    token_activation: bool = True  # whether the projections of frames and text have a SiLU
    time_dim: int | None = None  # number of cosines and sines of the flow time; None: hidden_dim
    time_scale: float = 10_000.0  # radians per unit of flow time at the highest frequency
    output_sees_sync: bool  # whether synchronisation modulates the output block

    def __post_init__(self) -> None:
        if self.hidden_dim % self.num_heads or (self.hidden_dim // self.num_heads) % 2:
            raise InputError(
                f"hidden_dim {self.hidden_dim} must be an even multiple of num_heads {self.num_heads}"
            )
        if not 0 < self.fused_depth < self.depth:
            raise InputError(f"fused_depth {self.fused_depth} must lie between 0 and depth {self.depth}")

    @property
    def joint_depth(self) -> int:
        """Number of blocks in which latents, frames and text attend to each other."""
        return self.depth - self.fused_depth

    @property
    def head_dim(self) -> int:
        return self.hidden_dim // self.num_heads


@dataclass(frozen=True)
class Conditions:
    """Projected conditions: all inputs of the network except latents and time."""

    clip: Tensor  # (B, V, D) frame tokens
    text: Tensor  # (B, N, D) text tokens
    sync: Tensor  # (B, T, D) synchronisation, one per latent frame
    pooled: Tensor  # (B, 1, D) frames and text pooled into one vector
    latent_rotary: Tensor  # (2, T, d/2)
    clip_rotary: Tensor  # (2, V, d/2)


class FlowTransformer(nn.Module):
    """Predicts the velocity of rectified flow from latents, time and projected conditions.

    A subclass has `project`, which takes features in the family's order and the number of latent frames, and
    returns conditions; and `empty_features`, which takes the numbers of CLIP and synchronisation features,
    and returns the null features in the same order, each with a batch of one.
    """

    project: Callable[..., Conditions]
    empty_features: Callable[[int, int], tuple[Tensor, ...]]

    def __init__(self, config: FlowConfig, pooled_text_dim: int) -> None:
        """
        Args:
            config: of the network.
            pooled_text_dim: width of the family's pooled text vector.
        """
        super().__init__()
        dim, kernel, inner = config.hidden_dim, config.kernel_size, config.hidden_dim * 4
        activation = nn.SELU if config.input_activation == "selu" else nn.SiLU
        # In published tensor names the gated MLP has index 1 without an activation, 2 with one.
        between = [nn.SiLU()] if config.token_activation else []
        self.audio_input_proj = nn.Sequential(
            same_length(config.latent_dim, dim, config.audio_kernel_size),
            activation(),
            ConvMLP(dim, inner, config.audio_kernel_size),
        )
        self.clip_input_proj = nn.Sequential(
            nn.Linear(config.clip_dim, dim), *between, ConvMLP(dim, inner, INPUT_KERNEL_SIZE)
        )
        self.sync_input_proj = nn.Sequential(
            same_length(config.sync_dim, dim, config.sync_kernel_size),
            activation(),
            ConvMLP(dim, inner, INPUT_KERNEL_SIZE),
        )
        self.text_input_proj = nn.Sequential(nn.Linear(config.text_dim, dim), *between, MLP(dim, inner))
        self.clip_cond_proj = nn.Linear(dim, dim)
        self.text_cond_proj = nn.Linear(pooled_text_dim, dim)
        self.global_cond_mlp = MLP(dim, inner)
        self.sync_pos_emb = nn.Parameter(torch.zeros(1, 1, SYNC_FEATURES_PER_SEGMENT, config.sync_dim))
        self.final_layer = FinalBlock(dim, config.latent_dim)
        self.t_embed = TimestepEmbedder(dim, config.time_dim or dim, config.time_scale)
        self.joint_blocks = nn.ModuleList(
            JointBlock(dim, config.num_heads, config.mlp_ratio, kernel, last=i == config.joint_depth - 1)
            for i in range(config.joint_depth)
        )
        self.fused_blocks = nn.ModuleList(
            StreamBlock(dim, config.num_heads, config.mlp_ratio, kernel) for _ in range(config.fused_depth)
        )
        self._head_dim = config.head_dim
        self._output_sees_sync = config.output_sees_sync

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of matrix products."""
        return self.text_cond_proj.weight.dtype

    def _conditions(
        self,
        clip_features: Tensor,
        sync_features: Tensor,
        text: Tensor,
        pooled_text: Tensor,
        latent_length: int,
    ) -> Conditions:
        """Project the conditions that all families have.

        Args:
            clip_features: CLIP features of frames ``(B, V, clip_dim)``.
            sync_features: Synchformer features ``(B, S, sync_dim)``, S a multiple of 8.
            text: projected tokens ``(B, N, D)``.
            pooled_text: texts pooled into one vector ``(B, pooled_text_dim)``.
            latent_length: T, latent frames to generate.
        """
        sync_features = sync_features.to(self.dtype)
        segments = sync_features.unflatten(1, (-1, SYNC_FEATURES_PER_SEGMENT)) + self.sync_pos_emb
        sync = self.sync_input_proj(segments.flatten(1, 2)).transpose(1, 2)  # (B, D, S)
        sync = F.interpolate(sync.float(), size=latent_length, mode="nearest-exact").transpose(
            1, 2
        )  # (B, T, D)

        clip = self.clip_input_proj(clip_features.to(self.dtype))  # (B, V, D)
        pooled = self.clip_cond_proj(clip.mean(dim=1)) + self.text_cond_proj(pooled_text)

        device, clip_length = clip.device, clip.shape[1]
        return Conditions(
            clip=clip.float(),
            text=text.float(),
            sync=sync,
            pooled=self.global_cond_mlp(pooled)[:, None].float(),
            latent_rotary=rotary_table(latent_length, self._head_dim, device),
            clip_rotary=rotary_table(clip_length, self._head_dim, device, latent_length / clip_length),
        )

    def forward(self, latents: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
        """Velocity ``(B, C, T)`` float32 at ``latents (B, C, T)`` and the family's ``timestep (B,)``."""
        global_condition = self.t_embed(timestep)[:, None] + conditions.pooled  # (B, 1, D)
        latent_condition = F.silu(global_condition + conditions.sync).to(self.dtype)  # (B, T, D)
        global_condition = F.silu(global_condition).to(self.dtype)

        x = self.audio_input_proj(latents.transpose(1, 2).to(self.dtype)).float()  # (B, T, D)
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
        velocity: Tensor = self.final_layer(
            x, latent_condition if self._output_sees_sync else global_condition
        )
        return velocity.transpose(1, 2).float()

    def velocity(self, latents: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """Velocity ``(B, C, T)`` float32 at ``times (B,)``, which run from 1 (noise) to 0 (sound).

        All code outside of `models` uses this direction of time. A subclass whose network was trained in the
        other direction reverses it here.
        """
        return self(latents, times, conditions)

    def normalise_by(self, mean: Tensor, deviation: Tensor) -> None:
        """Set the mean and standard deviation by which latents are normalised, ``(C,)`` each.

        Called before training from scratch. Does nothing if the family does not normalise latents.
        """

    def normalised(self, latents: Tensor) -> Tensor:
        """The VAE's ``latents (B, C, T)``, normalised for this network."""
        return latents

    def unnormalised(self, latents: Tensor) -> Tensor:
        """This network's ``latents (B, C, T)``, converted back to the VAE's."""
        return latents
