"""What every family of networks offers, so that nothing above has to know which one answers a request.

A `Family` says what a preset's networks look like and what they need; it holds no weights. A `Model` is the
same with its networks loaded. Between the two stands `thinksound.checkpoints`, which fills what a family
builds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from ..checkpoints.load import Encoder, Fold, network_of
from ..encoders.reading import Reading, notes_on
from ..errors import InputError
from ..media.views import View
from ..presets import Preset
from ..rates import audio_sample_count
from ..request import Options, Texts

# What the encoders say of one request, by the names of a family's conditions: float32 (N, D) on the CPU.
Features = Mapping[str, Tensor]

# The network that follows the flow, under this name in every family.
TRANSFORMER = "dit"

# Options that only some families have.
_SPECIAL = frozenset({"mask_away_clip", "reader"})

Report = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class Condition:
    """One input of the transformer besides latents and time."""

    name: str  # in `Features`
    source: str  # "clip" and "sync": the frames of that view; else "text"
    shape: Callable[[float], tuple[int, int]]  # seconds of video to (N, D)


@dataclass(frozen=True)
class SoundFormat:
    """The sound that a family generates, and the latents that stand for it."""

    sample_rate: int  # Hz
    channels: int
    hop: int  # samples per latent frame
    latent_dim: int  # C
    latent_length: Callable[[float], int]  # seconds to T, latent frames

    def sample_count(self, duration_s: float) -> int:
        """Samples per channel of ``duration_s`` seconds."""
        return audio_sample_count(duration_s, self.sample_rate)


class FrameEncoder(Protocol):
    """Frames to features."""

    def __call__(self, frames: Tensor, *, progress: Report | None = None) -> Tensor:
        """Features ``(N, D)`` of frames, uint8 ``(P, H, W, 3)``; called back with frames done and in all."""


@dataclass(frozen=True)
class TextStep:
    """A text becomes a feature."""

    network: str
    text: str  # name of the text
    feature: str  # name of the result
    encode: Callable[[str], Tensor]  # to (N, D)
    encoder: str  # its name, for messages
    read: Callable[[str], Reading]  # how much of a text it reads


@dataclass(frozen=True)
class FrameStep:
    """The frames of a view become a feature."""

    network: str
    view: str  # name of the view
    feature: str  # name of the result
    encode: FrameEncoder


@dataclass(frozen=True)
class DecodingStep:
    """One network on the way from latents to sound."""

    network: str
    decode: Callable[[Tensor], Tensor]  # a batch to a batch


class Family(ABC):
    """What the networks of a preset look like; without weights."""

    views: tuple[View, ...]  # what it sees of a video
    texts: tuple[str, ...]  # names of the texts it reads, as in `Texts`
    conditions: tuple[Condition, ...]  # in the transformer's order
    sound: SoundFormat
    trained_duration_s: float
    # Peak to which training brought the sound of each file, and `prepare` does; None leaves it as it is.
    training_peak: float | None = None
    options: frozenset[str] = frozenset()  # of `Options`, beside those that every family has
    needs_video = True  # else a text alone, or a still image, is enough
    still_views: tuple[str, ...] = ()  # the views that a still image is shown to

    def __init__(self, preset: Preset) -> None:
        self.preset = preset

    @abstractmethod
    def create(self, network: str) -> nn.Module:
        """A new network, on PyTorch's default device; of those that no weight folder describes."""

    @abstractmethod
    def build(self, network: str, path: Path) -> nn.Module | Encoder:
        """A network of the preset on ``meta``, as the file or folder at ``path`` may describe it.

        Raises:
            WeightsError: ``path`` describes another network.
        """

    def fold(self, network: str) -> Fold | None:
        """How tensors of the published file become those of the network; None where they are the same."""
        return None

    def placed(self, network: str, built: nn.Module | Encoder) -> nn.Module:
        """The part of a network that generation runs, and that has to be on its device."""
        return network_of(built)

    @property
    @abstractmethod
    def sound_networks(self) -> tuple[str, ...]:
        """The networks that turn latents into sound, in order."""

    @abstractmethod
    def decoding(self, built: Mapping[str, Any]) -> tuple[DecodingStep, ...]:
        """How `sound_networks` are run, from what `build` made of them."""

    @abstractmethod
    def assemble(self, built: Mapping[str, Any]) -> Model:
        """The model of networks that `build` made and that were filled since, by their names."""

    def settle_texts(self, texts: Texts) -> dict[str, str]:
        """What the encoders read, by the names of the family's texts.

        Raises:
            InputError: a text is given that the family does not read.
        """
        for name, text in vars(texts).items():
            if text.strip() and name not in self.texts:
                raise InputError(
                    f"{name} is not read by {self.preset.name}; it reads {' and '.join(self.texts)}",
                    option=name,
                )
        return {name: getattr(texts, name).strip() for name in self.texts}

    def check_options(self, options: Options, has_video: bool = True) -> None:
        """
        Raises:
            InputError: an option is given that the family does not have, or that is about a video.
        """
        for name in sorted(_SPECIAL - self.options):
            if getattr(options, name) != getattr(Options, name):
                raise InputError(f"{name} is not an option of {self.preset.name}; leave it out", option=name)
        if options.mask_away_clip and not has_video:
            raise InputError("mask_away_clip is given without a video; leave it out", option="mask_away_clip")

    @staticmethod
    @abstractmethod
    def draw_latents(mean: Tensor, spread: Tensor, noise: Tensor) -> Tensor:
        """Latents drawn with ``noise`` from what `Model.encode_sound` gave, each ``(B, C, T)``."""


class Model(ABC):
    """A family's networks with their weights."""

    family: Family
    networks: Mapping[str, nn.Module]  # what generation runs, in order of need
    text_steps: tuple[TextStep, ...]
    frame_steps: tuple[FrameStep, ...]
    decoding: tuple[DecodingStep, ...]  # in order
    sound_encoder: nn.Module  # which generation never runs

    @property
    def encoders(self) -> list[str]:
        """The networks that features come from, in order."""
        used = {step.network for step in self.text_steps} | {step.network for step in self.frame_steps}
        return [name for name in self.networks if name in used]

    @abstractmethod
    def draw_noise(self, seed: int, duration_s: float) -> Tensor:
        """The noise ``(C, T)`` float32 that ``seed`` stands for."""

    @abstractmethod
    def sample(
        self,
        features: Sequence[Features],
        duration_s: float,
        noise: Tensor,
        steps: int,
        guidance_scale: float,
        on_step: Callable[[int], None],
    ) -> Tensor:
        """Latents ``(B, C, T)`` float32 for B requests of one length, on the transformer's device.

        Args:
            features: of each request; conditions that are missing take the family's null features.
            duration_s: seconds of sound.
            noise: ``(B, C, T)``.
            steps: of the solver.
            guidance_scale: 1 follows the conditions, more exaggerates them.
            on_step: called with the number of finished steps.
        """

    @abstractmethod
    def encode_sound(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of the latents, and what `Family.draw_latents` needs for their spread, each ``(B, C, T)``.

        Args:
            waveforms: ``(B, channels, A)`` on the device of ``sound_encoder``, A a multiple of the hop.
        """

    def text_notes(self, texts: Texts) -> tuple[str, ...]:
        """What the encoders cannot read of the texts, in sentences; none where they read everything."""
        settled = self.family.settle_texts(texts)
        return tuple(
            note
            for step in self.text_steps
            # Where a text stands in for another, the user gave the caption.
            for note in notes_on(
                step.text if getattr(texts, step.text).strip() else "caption",
                step.encoder,
                step.read(settled[step.text]),
            )
        )
