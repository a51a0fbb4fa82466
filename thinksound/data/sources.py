"""Where training clips come from: files, or made scenes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import __version__
from ..errors import MediaError
from ..media.decode import decode_video
from ..media.soundtrack import Soundtrack, read_sound
from ..pipeline import Pipeline
from ..rates import CLIP_FPS, MAX_DURATION_S, SYNC_FPS, clip_frame_count, sync_frame_count
from ..synthetic.make import make_scene
from ..synthetic.sound import synthesise
from ..synthetic.stream import encoder_pictures
from ..synthetic.texts import describe
from .clips import Clip, Skipped
from .shards import Layout

_SHORT_S = 0.02  # half a synchronisation picture: what rounded times in a container may take away
_QUIET_END_S = 0.1  # sound may end this much earlier than the pictures
_SILENCE = 1e-4  # peak, -80 dB


@dataclass(frozen=True)
class MadeSource:
    """A made scene, drawn and synthesised when it is asked for."""

    split: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.seed:06d}"

    def identity(self) -> str:
        return json.dumps(["made", self.split, self.seed, __version__])

    def read(self, layout: Layout) -> Iterator[Clip | Skipped]:
        scene = make_scene(self.split, self.seed, layout.duration_s)
        clip_frames, sync_frames = encoder_pictures(scene)
        sound = Soundtrack(torch.from_numpy(synthesise(scene, layout.sample_rate)), 0.0, True)
        caption, cot = describe(scene)
        waveform = sound.part(0.0, layout.audio_samples, layout.sample_rate)
        yield Clip(
            self.name,
            # A duration that is no whole number of pictures makes the scene a little shorter.
            _cut(clip_frames, 0, clip_frame_count(layout.duration_s)),
            _cut(sync_frames, 0, sync_frame_count(layout.duration_s)),
            waveform,
            *Pipeline.check_texts(caption, cot),
        )


@dataclass(frozen=True)
class FileSource:
    """A video, or a sound without pictures, cut into clips that follow one another."""

    name: str  # as the table has it
    path: Path
    caption: str
    cot: str  # empty uses the caption

    def identity(self) -> str:
        size = self.path.stat().st_size if self.path.is_file() else None
        return json.dumps([self.name, size, self.caption, self.cot])

    def read(self, layout: Layout) -> Iterator[Clip | Skipped]:
        caption, cot = Pipeline.check_texts(self.caption, self.cot)
        sound = read_sound(self.path, layout.sample_rate, MAX_DURATION_S)
        start_s, clip_frames, sync_frames = sound.start_s, None, None
        if sound.has_pictures:
            decoded = decode_video(self.path, MAX_DURATION_S)
            if decoded.timeline.damaged:
                raise MediaError(f"{self.path}: damaged (some pictures are lost); copy or export it again")
            start_s, length_s, goes_on = decoded.start_s, decoded.duration_s, decoded.timeline.cut
            clip_frames, sync_frames = decoded.clip_frames, decoded.sync_frames
        else:
            length_s = sound.waveform.shape[1] / layout.sample_rate
            goes_on = length_s > MAX_DURATION_S
            length_s = min(length_s, MAX_DURATION_S)
        windows = int((length_s + _SHORT_S) / layout.duration_s)
        if not windows:
            raise MediaError(
                f"{self.path}: lasts {length_s:.2f} s; clips of {layout.duration_s:g} s are wanted"
            )
        for index in range(windows):
            # On a synchronisation picture, so that what is seen and heard stays together.
            window_s = round(index * layout.duration_s * SYNC_FPS) / SYNC_FPS
            name = f"{self.name}@{window_s:g}" if index else self.name
            waveform = sound.part(start_s + window_s, layout.audio_samples, layout.sample_rate)
            reason = _unusable(sound, waveform, start_s + window_s + layout.duration_s, layout)
            if reason:
                yield Skipped(name, reason)
                continue
            yield Clip(
                name,
                _cut(clip_frames, round(window_s * CLIP_FPS), clip_frame_count(layout.duration_s)),
                _cut(sync_frames, round(window_s * SYNC_FPS), sync_frame_count(layout.duration_s)),
                waveform,
                caption,
                cot,
            )
        if goes_on:
            yield Skipped(self.name, f"what comes after {MAX_DURATION_S:g} s is not used")


def _cut(frames: Tensor | None, start: int, count: int) -> Tensor | None:
    if frames is None:
        return None
    if start + count <= len(frames):
        return frames[start : start + count]  # no copy: a file's clips share its pictures
    return frames[torch.arange(start, start + count).clamp(max=len(frames) - 1)]


def _unusable(sound: Soundtrack, waveform: Tensor, end_s: float, layout: Layout) -> str:
    sound_end_s = sound.start_s + sound.waveform.shape[1] / layout.sample_rate
    if sound_end_s < end_s - _QUIET_END_S:
        return f"its sound ends {end_s - sound_end_s:.2f} s before the clip does"
    if not waveform.isfinite().all():
        return "its sound holds values that are not numbers"
    if waveform.abs().max() < _SILENCE:
        return "silent"
    return ""


def made_sources(split: str, seeds: Sequence[int]) -> list[MadeSource]:
    """One source per seed."""
    return [MadeSource(split, seed) for seed in seeds]
