"""The result of a request: the sound and all intermediate tensors, and how they are saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.torch import save
from torch import Tensor

from .errors import OutputError
from .families.protocol import Features
from .media.audio import SOUND_FORMATS, write_sound
from .media.decode import DecodedVideo
from .media.files import whole_file
from .media.mux import mux
from .media.still import write_still
from .request import as_path


@dataclass(frozen=True)
class Result:
    """The sound of one request, and all intermediate tensors."""

    waveform: Tensor  # (channels, A) float32 as decoded from the latents, not normalised
    pcm: Tensor  # (channels, samples) int16, normalised, exactly as long as the video
    sample_rate: int  # Hz
    seed: int
    preset: str
    video: DecodedVideo | None  # None if the request had no video
    image: np.ndarray | None  # uint8 (height, width, 3): the still image of the request
    frames: Mapping[str, Tensor]  # that the encoders saw, by the names of the views
    features: Features
    noise: Tensor  # (C, T)
    latents: Tensor  # (C, T)
    timings: dict[str, float]  # seconds per stage
    metadata: dict[str, str]  # tags of the MP4: preset, seed, texts and options
    notes: tuple[str, ...] = ()  # sentences the user should read

    def save(self, path: Path | str) -> tuple[str, ...]:
        """Write the video or still image with its sound (``.mp4``), or the sound alone (``.wav``, ``.flac``).

        Returns:
            Sentences the user should read, such as why the frames were encoded again.

        Raises:
            OutputError: the file cannot be written; nothing is left behind.
        """
        path = as_path("path", path, "where to write, .mp4 or .wav")
        if path.suffix.lower() in SOUND_FORMATS:
            write_sound(path, self.pcm, self.sample_rate)
            return ()
        if self.image is not None:
            write_still(self.image, self.pcm, self.sample_rate, path, self.metadata)
            return ()
        if self.video is None:
            raise OutputError(
                f"{path}: there is no picture that the sound belongs to; "
                f"give a name that ends in {' or '.join(SOUND_FORMATS)}"
            )
        muxed = mux(self.video, self.pcm, self.sample_rate, path, self.metadata)
        encoded = () if muxed.copied else (f"the picture was encoded again as H.264: {muxed.reason}",)
        return (*encoded, *muxed.notes)

    def dump(self, path: Path | str) -> None:
        """Write all intermediate tensors to a safetensors file, for comparing versions.

        Frames are named after the family's views, such as ``clip_frames``, and are uint8 (N, H, W, 3);
        features are named after its conditions.

        Raises:
            OutputError: the file cannot be written; nothing is left behind.
        """
        tensors = {
            **{f"{view}_frames": frames for view, frames in self.frames.items()},
            **self.features,
            "noise": self.noise,
            "latents": self.latents,
            "waveform": self.waveform,
        }
        with whole_file(as_path("path", path, "where to write")) as temporary:
            temporary.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}))
