"""Where training clips come from: files, or synthetic scenes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .. import __version__
from ..errors import MediaError
from ..media.decode import decode_video
from ..media.soundtrack import Soundtrack, read_sound
from ..media.views import View
from ..rates import MAX_DURATION_S
from ..request import Texts
from ..synthetic.make import make_scene
from ..synthetic.sound import synthesise
from ..synthetic.stream import scene_frames
from ..synthetic.texts import describe
from .clips import Clip, Skipped
from .shards import Layout

_SHORT_S = 0.02  # half a frame at 25 per second: how much a container's rounded times may fall short
_QUIET_END_S = 0.1  # the sound may end this much earlier than the clip
_SILENCE = 1e-4  # peak, -80 dB


@dataclass(frozen=True)
class MadeSource:
    """A synthetic scene, drawn and synthesised when it is read."""

    split: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.seed:06d}"

    def identity(self) -> str:
        return json.dumps(["made", self.split, self.seed, __version__])

    def read(self, layout: Layout) -> Iterator[Clip | Skipped]:
        scene = make_scene(self.split, self.seed, layout.duration_s)
        frames = scene_frames(scene, layout.views)
        sound = Soundtrack(torch.from_numpy(synthesise(scene, layout.sample_rate)), 0.0, True)
        waveform = _levelled(sound, layout).part(0.0, layout.audio_samples, layout.sample_rate)
        # A duration that is no whole number of frames makes the scene a little shorter.
        yield Clip(self.name, _cut(frames, layout, 0.0), waveform, Texts(*describe(scene)))


@dataclass(frozen=True)
class FileSource:
    """A video, or a sound without video, cut into consecutive clips."""

    name: str  # as in the table
    path: Path
    caption: str
    cot: str  # empty uses the caption

    def identity(self) -> str:
        size = self.path.stat().st_size if self.path.is_file() else None
        return json.dumps([self.name, size, self.caption, self.cot])

    def read(self, layout: Layout) -> Iterator[Clip | Skipped]:
        texts = Texts(self.caption, self.cot)
        sound = _levelled(read_sound(self.path, layout.sample_rate, MAX_DURATION_S), layout)
        start_s, frames = sound.start_s, dict[str, Tensor]()
        if sound.has_pictures:
            decoded = decode_video(self.path, layout.views, MAX_DURATION_S)
            if decoded.timeline.damaged:
                raise MediaError(f"{self.path}: damaged (some pictures are lost); copy or export it again")
            start_s, length_s, goes_on = decoded.start_s, decoded.duration_s, decoded.timeline.cut
            frames = dict(decoded.frames)
        else:
            length_s = sound.waveform.shape[1] / layout.sample_rate
            goes_on = length_s > MAX_DURATION_S
            length_s = min(length_s, MAX_DURATION_S)
        windows = int((length_s + _SHORT_S) / layout.duration_s)
        if not windows:
            raise MediaError(
                f"{self.path}: lasts {length_s:.2f} s; clips of {layout.duration_s:g} s are wanted"
            )
        fastest = max(view.fps for view in layout.views)
        for index in range(windows):
            # Starts on a frame of the fastest view, so that frames and sound stay aligned.
            window_s = round(index * layout.duration_s * fastest) / fastest
            name = f"{self.name}@{window_s:g}" if index else self.name
            waveform = sound.part(start_s + window_s, layout.audio_samples, layout.sample_rate)
            reason = _unusable(sound, waveform, start_s + window_s + layout.duration_s, layout)
            if reason:
                yield Skipped(name, reason)
                continue
            yield Clip(name, _cut(frames, layout, window_s), waveform, texts)
        if goes_on:
            yield Skipped(self.name, f"what comes after {MAX_DURATION_S:g} s is not used")


def _levelled(sound: Soundtrack, layout: Layout) -> Soundtrack:
    """The sound of a file with the channels and at the level that the family is trained with."""
    family, waveform = layout.family, sound.waveform
    if family.sound.channels == 1:
        waveform = waveform.mean(dim=0, keepdim=True).expand(2, -1)
    peak = waveform.abs().max()
    if family.training_peak is not None and peak.isfinite() and peak >= _SILENCE:
        waveform = waveform * (family.training_peak / peak)
    return replace(sound, waveform=waveform)


def _cut(frames: Mapping[str, Tensor], layout: Layout, start_s: float) -> dict[str, Tensor]:
    """The frames of the clip that starts at ``start_s``, by view; none without video."""
    return {view.name: _part(frames[view.name], view, layout, start_s) for view in layout.views if frames}


def _part(frames: Tensor, view: View, layout: Layout, start_s: float) -> Tensor:
    start, count = round(start_s * view.fps), view.count(layout.duration_s)
    if start + count <= len(frames):
        return frames[start : start + count]  # no copy: a file's clips share its frames
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
