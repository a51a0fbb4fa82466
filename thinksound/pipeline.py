"""One request, top to bottom: decode the video, encode frames and texts, sample, decode the sound, mux.

pipeline = thinksound.load("thinksound-light")
result = pipeline("clip.mp4", caption="...", cot="...")
result.save("clip_with_sound.mp4")
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
import torch
from torch import Tensor

from . import __version__
from .checkpoints.load import load_network
from .checkpoints.locate import describe_missing, missing
from .checkpoints.registry import default_weights_dir
from .errors import InputError, WeightsError
from .families.find import family_of
from .families.protocol import TRANSFORMER, Features, FrameStep, Model, TextStep
from .media.audio import fit_length, to_pcm16
from .media.decode import DecodedVideo, decode_video
from .media.mux import MuxResult, mux
from .media.probe import SOFTWARE
from .media.still import read_image
from .presets import DEFAULT_PRESET, Preset, get_preset
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
from .runtime.placement import Placement, detect_machine, make_plan, memory_errors

logger = logging.getLogger(__name__)

WARM_UP_S = 1.0
SOUND_DURATION = Limits(0, 3600)  # s; for `sample`. Decoding checks the durations of videos.
# Frames of one video by the names of the family's views, uint8 (N, H, W, 3); a view may be missing.
Frames = Mapping[str, Tensor]


@dataclass(frozen=True)
class Sample:
    """What `Pipeline.sample` returns, each ``(C, T)`` float32 on the CPU."""

    noise: Tensor
    latents: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        """Allows ``noise, latents = pipeline.sample(...)``."""
        yield from (self.noise, self.latents)


@dataclass(frozen=True)
class _Seen:
    """The frames of a request, and where they come from."""

    frames: Frames
    duration_s: float  # of the result
    sampled_s: float  # of the latents; MMAudio's own reader can make them shorter
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
        for name, frames in video.items():
            if not isinstance(frames, Tensor):
                raise InputError(
                    f"{name} frames {describe(frames)} are no tensor; give uint8 (N, H, W, 3), as decode does"
                )
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
            _one_each("caption", caption, len(videos)),
            _one_each("cot", cot, len(videos)),
            _one_each("negative_prompt", negative_prompt, len(videos)),
            strict=True,
        )
        texts = [Texts(*row) for row in rows]
        frames = [self._frames(each) for each in videos]
        features = self._encode(frames, texts, progress)
        return features if several else features[0]

    def _encode(
        self, frames: Sequence[Frames], texts: Sequence[Texts], progress: Progress | None = None
    ) -> list[Features]:
        settled = [self.family.settle_texts(each) for each in texts]
        model, encoded = self.model, [dict[str, Tensor]() for _ in frames]

        def run(network: str) -> None:
            with self.placement.on_device(network):
                for reading in model.text_steps:
                    if reading.network == network:
                        _encode_texts(reading, settled, encoded)
                for seeing in model.frame_steps:
                    if seeing.network == network:
                        _encode_frames(seeing, frames, encoded, progress)

        encoders = model.encoders
        if self.placement.plan.concurrent_encoding and len(encoders) > 1:
            with ThreadPoolExecutor(len(encoders) - 1) as pool:
                pending = [pool.submit(run, name) for name in encoders[:-1]]
                run(encoders[-1])
                for each in pending:
                    each.result()
        else:
            for name in encoders:
                run(name)
        return list(encoded)

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
        durations = _one_each("durations", duration_s, count) if several else [cast(float, duration_s)]
        each = _one_each("options", options, count) if several else [cast(Options | None, options)]
        settled = [self._settle(_checked(one)) for one in each]
        for one in requests:
            if not isinstance(one, Mapping):
                raise InputError(f"features {describe(one)} are no mapping; give what encode gave")
        seconds = [SOUND_DURATION.check("duration_s", one) for one in durations]
        samples = self._sample(requests, seconds, settled, progress)
        return samples if several else samples[0]

    def _sample(
        self,
        features: Sequence[Features],
        durations: Sequence[float],
        settled: Sequence[Options],
        progress: Progress | None,
    ) -> list[Sample]:
        noises = [
            self.model.draw_noise(cast(int, each.seed), duration_s)
            for each, duration_s in zip(settled, durations, strict=True)
        ]
        # Requests with equal lengths of latents and features, steps and guidance form a batch.
        groups: dict[tuple[object, ...], list[int]] = {}
        for index, (each, noise) in enumerate(zip(settled, noises, strict=True)):
            lengths = tuple((name, len(feature)) for name, feature in features[index].items())
            key = (noise.shape, lengths, each.num_inference_steps, each.cfg_scale)
            groups.setdefault(key, []).append(index)
        total = sum(cast(int, settled[group[0]].num_inference_steps) for group in groups.values())
        samples: dict[int, Sample] = {}
        done = 0
        for group in groups.values():
            first = settled[group[0]]
            steps = cast(int, first.num_inference_steps)
            with self.placement.on_device(TRANSFORMER):
                latents = self.model.sample(
                    [features[index] for index in group],
                    durations[group[0]],
                    torch.stack([noises[index] for index in group]),
                    steps,
                    cast(float, first.cfg_scale),
                    partial(_report, progress, done, total),
                ).cpu()
            done += steps
            samples |= {index: Sample(noises[index], one) for index, one in zip(group, latents, strict=True)}
        return [samples[index] for index in range(len(settled))]

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

        Its peak is full scale, and it lasts exactly ``duration_s`` seconds. Any processing of the whole sound
        belongs here.
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


def _one_each(name: str, given: Any, count: int) -> list[Any]:
    """Return ``count`` values: those of the sequence ``given``, or ``given`` itself repeated."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        return [given] * count
    if len(given) != count:
        raise InputError(f"{name}: {len(given)} for {count} requests; give one for each, or one for all")
    return list(given)


def _encode_texts(
    step: TextStep, texts: Sequence[Mapping[str, str]], encoded: Sequence[dict[str, Tensor]]
) -> None:
    known: dict[str, Tensor] = {}  # equal texts are encoded once
    for each, features in zip(texts, encoded, strict=True):
        text = each[step.text]
        if text not in known:
            known[text] = step.encode(text).cpu()
        features[step.feature] = known[text]


def _encode_frames(
    step: FrameStep,
    frames: Sequence[Frames],
    encoded: Sequence[dict[str, Tensor]],
    progress: Progress | None,
) -> None:
    present = [index for index, each in enumerate(frames) if step.view in each]
    for place, index in enumerate(present):

        def report(done: int, total: int, place: int = place) -> None:
            assert progress is not None
            progress(step.network, place * total + done, len(present) * total)

        found = step.encode(frames[index][step.view], progress=report if progress else None)
        encoded[index][step.feature] = found.cpu()


def _report(progress: Progress | None, before: int, total: int, step: int) -> None:
    if progress:
        progress("sample", before + step, total)


def load(
    preset: str = DEFAULT_PRESET,
    weights: Path | str | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    offload: bool = False,
    progress: Progress | None = None,
    **older: str,
) -> Pipeline:
    """Load a preset's networks onto this machine's devices.

    Args:
        preset: a name from `thinksound.presets.PRESETS`, such as "thinksound-light" or "tiny".
        weights: folder with the weight files; None is `default_weights_dir`.
        device: "auto", "cpu", "cuda", "cuda:N", or "cuda:M,cuda:N" (encoders on the second, the other
            networks on the first); or a `torch.device`.
        dtype: "auto", "float32", "bfloat16" or "float16", or the `torch.dtype`. "float32" also switches
            PyTorch's TensorFloat-32 convolutions off, for the whole process.
        offload: keep weights in main memory, with one network at a time on the GPU.
        progress: called as ``progress("load", done, total)`` after each network.
        older: ``devices``, the older name of ``device``.

    Raises:
        InputError: an argument has a value or a name that is not listed here.
        WeightsError: files are missing, damaged or of another network.
        PlacementError: a device is missing, or memory ran out.
    """
    chosen = get_preset(preset)
    if older:
        given = older if device == "auto" else {"device": device, **older}
        arguments = ("preset", "weights", "dtype", "offload", "progress")
        device = by_current_names(given, ("device",), arguments)["device"]
    folder = as_path("weights", weights, "a folder") if weights is not None else default_weights_dir()
    check_progress(progress)
    if not isinstance(offload, bool):
        raise InputError(f"offload {describe(offload)} is not taken; give True or False")
    dtype = str(dtype).removeprefix("torch.")
    plan = make_plan(detect_machine(), chosen.networks, str(device), dtype, offload)
    if dtype == "float32":
        torch.backends.cudnn.allow_tf32 = False
    absent = missing(folder, chosen.weights.values())
    if absent:
        raise WeightsError(describe_missing(folder, absent))

    family, placement = family_of(chosen), Placement(plan)
    built: dict[str, Any] = {}
    with memory_errors():
        for done, (name, network) in enumerate(chosen.networks.items(), 1):
            build: Callable[[Path], Any] = partial(family.build, name)
            network_dtype = getattr(torch, plan.dtypes[name])
            built[name] = load_network(build, folder, network.key, network_dtype, family.fold(name))
            # Placed at once, so that main memory holds one network on its way to a GPU, not all of them.
            placement.place(name, family.placed(name, built[name]))
            if progress:
                progress("load", done, len(chosen.networks))
    for note in plan.notes:
        logger.warning(note)
    return Pipeline(chosen, family.assemble(built), placement)
