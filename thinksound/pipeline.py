"""One request, top to bottom: decode the video, encode frames and texts, sample, decode the sound, mux.

pipeline = thinksound.load("thinksound-light")  # see loading.py
result = pipeline("clip.mp4", caption="...", cot="...")
result.save("clip_with_sound.mp4")
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
import torch
from torch import Tensor

from . import __version__
from .batches import Frames, Sample, encode_requests, one_each, sample_requests
from .errors import InputError
from .families.protocol import Features, Model
from .media.audio import fit_length, to_pcm16
from .media.decode import DecodedVideo, decode_video
from .media.mux import MuxResult, mux
from .media.probe import SOFTWARE
from .media.still import read_image
from .presets import Preset
from .progress import Progress
from .request import (
    DURATION,
    MAX_SEED,
    OPTIONS,
    Limits,
    Options,
    Texts,
    as_path,
    by_current_names,
    check_progress,
    describe,
)
from .result import Result
from .runtime.placement import Placement, memory_errors

WARM_UP_S = 1.0
SOUND_DURATION = Limits(0, 3600)  # s; for `sample`. Decoding checks the durations of videos.


@dataclass(frozen=True)
class _Seen:
    """The frames of a request, and where they come from."""

    frames: Frames
    duration_s: float  # of the result
    sampled_s: float  # of the latents; with MMAudio's own reader another length
    video: DecodedVideo | None = None
    image: np.ndarray | None = None


@dataclass
class _Clock:
    """Measures the seconds that each stage takes."""

    timings: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.timings[stage] = time.perf_counter() - start


class Pipeline:
    """All networks of one preset, placed and ready; a request leaves no state behind."""

    def __init__(self, preset: Preset, model: Model, placement: Placement) -> None:
        self.preset = preset
        self.model = model
        self.family = model.family
        self.placement = placement

    def __call__(
        self,
        video: Path | str | DecodedVideo | None = None,
        caption: str = "",
        cot: str = "",
        options: Options | None = None,
        progress: Progress | None = None,
        negative_prompt: str = "",
        image: Path | str | None = None,
        **changes: Any,
    ) -> Result:
        """Generate the sound of a video; some families can do without a video.

        Args:
            video: path of a video file of 0.1 s to 3 minutes, or what `decode` returned for it.
            caption: what is heard, in a few words.
            cot: chain of thought, a description step by step; empty uses the caption.
            options: how to sample.
            progress: called as ``progress(stage, done, total)``.
            negative_prompt: what should not be heard, for families that read one.
            image: path of a still image instead of a video, for families that take one.
            changes: fields of `Options` to set, such as ``seed=7``.

        Raises:
            ThinkSoundError: with a message for the user; see `thinksound.errors`.
        """
        options = _checked(options)
        if changes:
            more = ("video", "caption", "cot", "options", "progress", "negative_prompt", "image")
            options = replace(options, **by_current_names(changes, OPTIONS, more))
        options = self._settle(options)
        self.family.check_options(options, has_video=video is not None)
        texts = Texts(caption, cot, negative_prompt)
        notes = self.model.text_notes(texts)
        clock = _Clock()

        with memory_errors():
            with clock.time("decode"):
                seen = self._see(video, image, options, progress)
            with clock.time("encode"):
                features = self._encode([seen.frames], [texts], progress)[0]
            with clock.time("sample"):
                noise, latents = self.sample(features, seen.sampled_s, options, progress)
            with clock.time("vae"):
                waveform = self.decode_audio(latents)
                pcm = self.finish(waveform, seen.duration_s)

        assert options.seed is not None
        return Result(
            waveform=waveform,
            pcm=pcm,
            sample_rate=self.family.sound.sample_rate,
            seed=options.seed,
            preset=self.preset.name,
            video=seen.video,
            image=seen.image,
            frames=seen.frames,
            features=features,
            noise=noise,
            latents=latents,
            timings=clock.timings,
            metadata=self._metadata(texts, options),
            notes=(*(seen.video.notes if seen.video else ()), *notes),
        )

    def decode(
        self,
        video: Path | str,
        duration: float | None = None,
        progress: Progress | None = None,
        reader: str = "exact",
        **older: float | None,
    ) -> DecodedVideo:
        """Read a video file once, and pick the frames that the encoders see.

        Args:
            video: path of a video file of 0.1 s to 3 minutes.
            duration: seconds to use from the beginning; None uses the whole video.
            progress: called as ``progress(stage, done, total)``.
            reader: how frames are picked, see `Options`.
            older: ``duration_s``, the older name of ``duration``.

        Raises:
            ThinkSoundError: with a message for the user; see `thinksound.errors`.
        """
        self.family.check_options(Options(reader=reader))
        path = as_path("video", video, "the path of one video")
        check_progress(progress)
        if older:
            given = older if duration is None else {"duration": duration, **older}
            duration = by_current_names(given, ("duration",), ("video", "progress"))["duration"]
        duration_s = None if duration is None else DURATION.check("duration", duration)
        report = (lambda share: progress("decode", round(100 * share), 100)) if progress else None
        return decode_video(path, self.family.views, duration_s, report, drifting=reader == "mmaudio")

    def _see(
        self,
        video: Path | str | DecodedVideo | None,
        image: Path | str | None,
        options: Options,
        progress: Progress | None,
    ) -> _Seen:
        """Check which of video and image are given, and return the frames that the encoders see."""
        family = self.family
        if family.needs_video and (video is None or image is not None):
            given = "image is not taken" if image is not None else "video is missing"
            raise InputError(f"{given}: {self.preset.name} needs moving pictures; give the path of a video")
        if video is not None and image is not None:
            raise InputError("video and image are both given; give one of them")
        if video is not None:
            decoded = self._decoded(video, options, progress)
            frames = dict(decoded.frames)
            if options.mask_away_clip:
                for name in family.still_views:  # they say what is heard; the others say when
                    del frames[name]
            return _Seen(frames, decoded.duration_s, decoded.features_duration_s, video=decoded)
        duration_s = family.trained_duration_s if options.duration is None else options.duration
        if image is None:
            return _Seen({}, duration_s, duration_s)
        pixels = read_image(as_path("image", image, "the path of one image"))
        frames = {
            view.name: torch.from_numpy(view.pixels(pixels))[None]
            for view in family.views
            if view.name in family.still_views
        }
        return _Seen(frames, duration_s, duration_s, image=pixels)

    def _decoded(
        self, video: Path | str | DecodedVideo, options: Options, progress: Progress | None
    ) -> DecodedVideo:
        if not isinstance(video, DecodedVideo):
            return self.decode(video, options.duration, progress, options.reader)
        if options.duration is not None:
            raise InputError("duration is given with a decoded video; give it to decode", option="duration")
        if options.reader != Options.reader:
            raise InputError("reader is given with a decoded video; give it to decode", option="reader")
        self._frames(video)
        return video

    def _frames(self, video: DecodedVideo | Frames) -> Frames:
        """Return the frames of ``video``; raises `InputError` if the encoders cannot take them."""
        if isinstance(video, DecodedVideo):
            if video.views != self.family.views:
                raise InputError(
                    f"the decoded video has frames for other networks than those of {self.preset.name}; "
                    "decode it with this pipeline"
                )
            return video.frames
        if not isinstance(video, Mapping):
            raise InputError(f"decoded {describe(video)} is no decoded video; give what decode gave")
        views = {view.name: view for view in self.family.views}
        for name, frames in video.items():
            if name not in views:
                raise InputError(
                    f"frames of {describe(name)} are not seen by {self.preset.name}; "
                    f"give {' and '.join(views)}, as decode does"
                )
            wanted = f"give {views[name].form}, as decode does"
            if not isinstance(frames, Tensor):
                raise InputError(f"{name} frames {describe(frames)} are no tensor; {wanted}")
            if not views[name].takes(frames):
                kind = str(frames.dtype).removeprefix("torch.")
                raise InputError(f"{name} frames of {kind} {tuple(frames.shape)} are not taken; {wanted}")
        return video

    @overload
    def encode(
        self,
        decoded: DecodedVideo | Frames,
        caption: str = "",
        cot: str = "",
        progress: Progress | None = None,
        negative_prompt: str = "",
    ) -> Features: ...

    @overload
    def encode(
        self,
        decoded: Sequence[DecodedVideo | Frames],
        caption: str | Sequence[str] = "",
        cot: str | Sequence[str] = "",
        progress: Progress | None = None,
        negative_prompt: str | Sequence[str] = "",
    ) -> list[Features]: ...

    def encode(
        self,
        decoded: DecodedVideo | Frames | Sequence[DecodedVideo | Frames],
        caption: str | Sequence[str] = "",
        cot: str | Sequence[str] = "",
        progress: Progress | None = None,
        negative_prompt: str | Sequence[str] = "",
    ) -> Features | list[Features]:
        """Turn frames and texts into features on the CPU; on GPUs, the encoders run side by side.

        A single video gives its features; a list of videos gives a list of features. Each network goes to its
        device once for the whole list, and a result does not depend on the other videos in the list.

        Args:
            decoded: what `decode` returned, or frames by the names of the family's views, or a list of these.
            caption: what is heard, in a few words; one for all videos, or one for each.
            cot: chain of thought, likewise; empty uses the caption. `text_notes` says what is not read.
            progress: called as ``progress(stage, done, total)``, possibly from another thread.
            negative_prompt: what should not be heard, likewise, for families that read one.

        Raises:
            InputError: the frames are of another family, a text is not taken, or the lists differ in length.
        """
        check_progress(progress)
        several = isinstance(decoded, Sequence) and not isinstance(decoded, str | bytes)
        videos = cast(Sequence[DecodedVideo | Frames], decoded if several else [decoded])
        rows = zip(
            one_each("caption", caption, len(videos)),
            one_each("cot", cot, len(videos)),
            one_each("negative_prompt", negative_prompt, len(videos)),
            strict=True,
        )
        texts = [Texts(*row) for row in rows]
        frames = [self._frames(each) for each in videos]
        features = self._encode(frames, texts, progress)
        return features if several else features[0]

    def _encode(
        self, frames: Sequence[Frames], texts: Sequence[Texts], progress: Progress | None
    ) -> list[Features]:
        settled = [self.family.settle_texts(each) for each in texts]
        return encode_requests(self.model, self.placement, frames, settled, progress)

    @overload
    def sample(
        self,
        features: Features,
        duration_s: float,
        options: Options | None = None,
        progress: Progress | None = None,
    ) -> Sample: ...

    @overload
    def sample(
        self,
        features: Sequence[Features],
        duration_s: float | Sequence[float],
        options: Options | Sequence[Options] | None = None,
        progress: Progress | None = None,
    ) -> list[Sample]: ...

    def sample(
        self,
        features: Features | Sequence[Features],
        duration_s: float | Sequence[float],
        options: Options | Sequence[Options] | None = None,
        progress: Progress | None = None,
    ) -> Sample | list[Sample]:
        """Draw noise and turn it into latents for ``duration_s`` seconds of sound.

        The features of one request give one sample; a list of features gives a list of samples. Requests
        with the same length, number of steps and guidance are computed as one batch. Their results differ
        by rounding from those of single requests.

        Args:
            features: what `encode` returned; null features replace a missing condition.
            duration_s: seconds of sound; one for all requests, or one for each.
            options: how to sample; one for all requests, or one for each. If the seed is None, each request
                draws its own.
            progress: called as ``progress(stage, done, total)``.

        Raises:
            InputError: an argument is of another type or out of range, or the lists differ in length.
        """
        check_progress(progress)
        several = isinstance(features, Sequence)
        requests = cast(list[Features], list(features) if several else [features])
        count = len(requests)
        durations = one_each("durations", duration_s, count) if several else [cast(float, duration_s)]
        each = one_each("options", options, count) if several else [cast(Options | None, options)]
        settled = [self._settle(_checked(one)) for one in each]
        seconds = [SOUND_DURATION.check("duration_s", one) for one in durations]
        for one, duration in zip(requests, seconds, strict=True):
            self._check_features(one, duration)
        samples = sample_requests(self.model, self.placement, requests, seconds, settled, progress)
        return samples if several else samples[0]

    def _check_features(self, features: object, duration_s: float) -> None:
        """Raise `InputError` if the transformer cannot take ``features``."""
        if not isinstance(features, Mapping):
            raise InputError(f"features {describe(features)} are no mapping; give what encode gave")
        for condition in self.family.conditions:
            feature = features.get(condition.name)
            if feature is not None and not condition.accepts(feature, duration_s):
                shape = tuple(feature.shape) if isinstance(feature, Tensor) else describe(feature)
                wanted = condition.shape(duration_s)
                raise InputError(
                    f"{condition.name} {shape} cannot be taken; {self.preset.name} takes a tensor such as "
                    f"{wanted} for {duration_s:g} s; give what encode gave"
                )

    @torch.inference_mode()
    def decode_audio(self, latents: Tensor) -> Tensor:
        """Turn latents ``(C, T)`` into a waveform ``(channels, A)`` float32 on the CPU, not normalised."""
        sound = latents[None]
        for step in self.model.decoding:
            with self.placement.on_device(step.network):
                device = next(self.model.networks[step.network].parameters()).device
                sound = step.decode(sound.to(device))
                if self.placement.plan.offload:
                    sound = sound.cpu()  # frees GPU memory for the next network
        return sound[0].float().cpu()

    def finish(self, waveform: Tensor, duration_s: float) -> Tensor:
        """Turn a waveform ``(channels, A)`` into the sound of a result, int16 ``(channels, samples)``.

        It is normalised by `to_pcm16` and lasts exactly ``duration_s`` seconds. Any processing of the whole
        sound belongs here.
        """
        sound = self.family.sound
        return fit_length(to_pcm16(waveform), sound.sample_count(duration_s))

    def mux(
        self,
        decoded: DecodedVideo,
        waveform: Tensor,
        path: Path | str,
        metadata: Mapping[str, str] | None = None,
    ) -> MuxResult:
        """Write the frames of ``decoded`` with ``waveform (channels, A)``, normalised and cut to length.

        Raises:
            MediaError: the video was removed or changed since it was decoded.
            OutputError: the file cannot be written; nothing is left behind.
        """
        pcm = self.finish(waveform, decoded.duration_s)
        return mux(decoded, pcm, self.family.sound.sample_rate, path, metadata or {})

    def warm_up(self) -> None:
        """Run every network once on one second of black frames, so that the first request is not slower."""
        frames = {
            view.name: torch.zeros(view.count(WARM_UP_S), view.size, view.size, 3, dtype=torch.uint8)
            for view in self.family.views
        }
        with memory_errors():
            features = self.encode(frames)
            _, latents = self.sample(features, WARM_UP_S, Options(num_inference_steps=1))
            self.decode_audio(latents)

    def _settle(self, options: Options) -> Options:
        """Return the options without None: a seed is drawn; steps and guidance are the preset's."""
        return replace(
            options,
            seed=_draw_seed() if options.seed is None else options.seed,
            cfg_scale=self.preset.guidance_scale if options.cfg_scale is None else options.cfg_scale,
            num_inference_steps=options.num_inference_steps or self.preset.steps,
        )

    def text_notes(self, caption: str = "", cot: str = "", negative_prompt: str = "") -> tuple[str, ...]:
        """Return sentences that say what the encoders cannot read of the texts; none if they read everything.

        Raises:
            InputError: a text is too long, not a str, or not read by this family.
        """
        return self.model.text_notes(Texts(caption, cot, negative_prompt))

    def _metadata(self, texts: Texts, options: Options) -> dict[str, str]:
        return {
            "software": f"{SOFTWARE} {__version__}",
            "preset": self.preset.name,
            "seed": str(options.seed),
            **self.family.settle_texts(texts),
            "cfg_scale": f"{options.cfg_scale:g}",
            "num_inference_steps": str(options.num_inference_steps),
        }


def _checked(options: Options | None) -> Options:
    if options is not None and not isinstance(options, Options):
        raise InputError(
            f"options {describe(options)} are not taken; give thinksound.Options(...), or one by one "
            f"{', '.join(f'{name}=...' for name in OPTIONS)}"
        )
    return options or Options()


def _draw_seed() -> int:
    return random.SystemRandom().randint(0, MAX_SEED)
