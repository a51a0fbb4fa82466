"""The interface of every model family, so that the rest of the package works with any of them.

A `Family` describes the networks of a preset and their inputs; it has no weights. A `Model` has the networks
with their weights. `thinksound.checkpoints` loads the weights into the networks that a family builds.
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

# Encoder features of one request, by the names of a family's conditions: float32 (N, D) on the CPU.
Features = Mapping[str, Tensor]

# The name of the diffusion transformer in every family.
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
    multiple: int = 1  # of which N is a multiple

    def accepts(self, feature: object, duration_s: float) -> bool:
        """Returns whether ``feature`` can be this input; frames may cover another duration than asked for."""
        count, width = self.shape(duration_s)
        if not isinstance(feature, Tensor) or feature.dim() != 2 or feature.shape[1] != width:
            return False
        rows = len(feature)
        return rows == count if self.source == "text" else rows > 0 and rows % self.multiple == 0


@dataclass(frozen=True)
class SoundFormat:
    """Format of the sound that a family generates, and of its latents."""

    sample_rate: int  # Hz
    channels: int
    hop: int  # samples per latent frame
    latent_dim: int  # C
    latent_length: Callable[[float], int]  # seconds to latent frames, T

    def sample_count(self, duration_s: float) -> int:
        """Returns the samples per channel in ``duration_s`` seconds."""
        return audio_sample_count(duration_s, self.sample_rate)


class FrameEncoder(Protocol):
    """A function from frames to features."""

    def __call__(self, frames: Tensor, *, progress: Report | None = None) -> Tensor:
        """Returns features ``(N, D)`` float32 of frames ``(P, H, W, 3)`` uint8.

        ``progress`` is called after each batch with the work done and the work in all.
        """


@dataclass(frozen=True)
class TextStep:
    """Encodes a text to a feature."""

    network: str
    text: str  # name of the text
    feature: str  # name of the result
    encode: Callable[[str], Tensor]  # to (N, D)
    encoder: str  # name of the encoder, for messages
    read: Callable[[str], Reading]  # how much of a text the encoder reads


@dataclass(frozen=True)
class FrameStep:
    """Encodes the frames of a view to a feature."""

    network: str
    view: str  # name of the view
    feature: str  # name of the result
    encode: FrameEncoder


@dataclass(frozen=True)
class DecodingStep:
    """Runs one of the networks that turn latents into sound."""

    network: str
    decode: Callable[[Tensor], Tensor]  # batch to batch


class Family(ABC):
    """Describes and builds the networks of a preset, without weights."""

    views: tuple[View, ...]  # the frames that decoding prepares
    texts: tuple[str, ...]  # names of the texts it reads, as in `Texts`
    conditions: tuple[Condition, ...]  # in the transformer's order
    sound: SoundFormat
    trained_duration_s: float
    training_peak: float | None = None  # peak to which `prepare` scales sound files; None: not scaled
    options: frozenset[str] = frozenset()  # names in `Options`, beside those that every family has
    needs_video = True  # False: a text alone, or a still image, is enough
    still_views: tuple[str, ...] = ()  # names of the views that a still image is prepared for

    def __init__(self, preset: Preset) -> None:
        self.preset = preset

    @abstractmethod
    def create(self, network: str) -> nn.Module:
        """Returns a new network, on PyTorch's default device; not those described by a weight folder."""

    @abstractmethod
    def build(self, network: str, path: Path) -> nn.Module | Encoder:
        """Returns a network on ``meta``; if ``path`` is a folder, as its description says.

        Raises:
            WeightsError: ``path`` describes another network.
        """

    def fold(self, network: str) -> Fold | None:
        """Returns the function from published tensors to the network's; None if they are the same."""
        return None

    def placed(self, network: str, built: nn.Module | Encoder) -> nn.Module:
        """Returns the part of a network that generation runs and that is moved to a device."""
        return network_of(built)

    @property
    @abstractmethod
    def sound_networks(self) -> tuple[str, ...]:
        """The networks that turn latents into sound, in order."""

    @abstractmethod
    def decoding(self, built: Mapping[str, Any]) -> tuple[DecodingStep, ...]:
        """Returns the steps that run `sound_networks`; ``built`` has the results of `build` by name."""

    @abstractmethod
    def assemble(self, built: Mapping[str, Any]) -> Model:
        """Returns the model; ``built`` has the results of `build` by name, with weights loaded."""

    def settle_texts(self, texts: Texts) -> dict[str, str]:
        """Returns the texts that the encoders read, by the names in ``self.texts``.

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
        """Check that all given options exist in the family and fit the request.

        Raises:
            InputError: the family lacks an option, or an option needs a video.
        """
        for name in sorted(_SPECIAL - self.options):
            if getattr(options, name) != getattr(Options, name):
                raise InputError(f"{name} is not an option of {self.preset.name}; leave it out", option=name)
        if options.mask_away_clip and not has_video:
            raise InputError("mask_away_clip is given without a video; leave it out", option="mask_away_clip")

    @staticmethod
    @abstractmethod
    def draw_latents(mean: Tensor, spread: Tensor, noise: Tensor) -> Tensor:
        """Returns latents sampled with ``noise`` from `Model.encode_sound`'s results; all ``(B, C, T)``."""


class Model(ABC):
    """A family's networks with their weights."""

    family: Family
    networks: Mapping[str, nn.Module]  # the parts that generation runs, in order of use
    text_steps: tuple[TextStep, ...]
    frame_steps: tuple[FrameStep, ...]
    decoding: tuple[DecodingStep, ...]  # in order
    sound_encoder: nn.Module  # never run by generation

    @property
    def encoders(self) -> list[str]:
        """Names of the networks that compute features, in order of use."""
        used = {step.network for step in self.text_steps} | {step.network for step in self.frame_steps}
        return [name for name in self.networks if name in used]

    @abstractmethod
    def draw_noise(self, seed: int, duration_s: float) -> Tensor:
        """Returns the noise ``(C, T)`` float32 of ``seed``."""

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
        """Returns latents ``(B, C, T)`` float32 of B requests of equal length, on the transformer's device.

        Args:
            features: of each request; the family's null features replace missing conditions.
            duration_s: seconds of sound.
            noise: ``(B, C, T)``.
            steps: of the solver.
            guidance_scale: 1 follows the conditions; larger values exaggerate them.
            on_step: called with the number of finished steps.
        """

    @abstractmethod
    def encode_sound(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and spread of the latents for `Family.draw_latents`, each ``(B, C, T)``.

        Args:
            waveforms: ``(B, channels, A)`` on the device of ``sound_encoder``, A a multiple of the hop.
        """

    def text_notes(self, texts: Texts) -> tuple[str, ...]:
        """Returns notes for the user on parts of the texts that the encoders do not read."""
        settled = self.family.settle_texts(texts)
        return tuple(
            note
            for step in self.text_steps
            # An empty text may have been replaced by the caption: then the note names the caption.
            for note in notes_on(
                step.text if getattr(texts, step.text).strip() else "caption",
                step.encoder,
                step.read(settled[step.text]),
            )
        )
