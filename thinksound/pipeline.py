"""One request, top to bottom: decode the video, encode it and the texts, sample, decode the sound, mux.

pipeline = thinksound.load("thinksound-light")
result = pipeline("clip.mp4", caption="...", cot="...")
result.save("clip_with_sound.mp4")
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from . import __version__
from .checkpoints import load as checkpoints
from .checkpoints.locate import describe_missing, missing
from .checkpoints.registry import default_weights_dir
from .encoders.features import Features
from .encoders.metaclip import MetaCLIP
from .encoders.reading import reading_notes
from .encoders.sync import encode_sync
from .encoders.t5 import T5Text
from .errors import InputError, WeightsError
from .media.audio import fit_length, to_pcm16, write_wav
from .media.decode import DecodedVideo, decode_video
from .media.files import whole_file
from .media.mux import MuxResult, mux
from .media.probe import SOFTWARE
from .models.mmdit import MMDiT
from .models.oobleck import AudioVAE
from .models.synchformer import Synchformer
from .presets import DEFAULT_PRESET, NETWORKS, Preset, get_preset
from .rates import SYNC_SEGMENT, audio_sample_count, latent_frame_count
from .request import (
    DURATION,
    MAX_SEED,
    OPTIONS,
    Options,
    as_path,
    by_current_names,
    check_progress,
    check_texts,
    describe,
)
from .runtime.placement import Placement, detect_machine, make_plan, memory_errors
from .sampling.sample import draw_noise, sample_latents

logger = logging.getLogger(__name__)

# Called as progress(stage, done, total) while a request runs.
Progress = Callable[[str, int, int], None]


def _checked(options: Options | None) -> Options:
    if options is not None and not isinstance(options, Options):
        raise InputError(
            f"options {describe(options)} are not taken; give thinksound.Options(...), or one by one "
            f"{', '.join(f'{name}=...' for name in OPTIONS)}"
        )
    return options or Options()


def _draw_seed() -> int:
    return random.SystemRandom().randint(0, MAX_SEED)


@dataclass(frozen=True)
class Result:
    """The sound of one video, and everything on the way to it."""

    waveform: Tensor  # (2, A) float32 as the VAE gave it, before normalisation
    pcm: Tensor  # (2, samples) int16, normalised, exactly as long as the picture
    sample_rate: int  # Hz
    seed: int
    preset: str
    video: DecodedVideo
    features: Features
    noise: Tensor  # (C, T)
    latents: Tensor  # (C, T)
    timings: dict[str, float]  # seconds per stage
    metadata: dict[str, str]  # what the MP4 says about its making
    notes: tuple[str, ...] = ()

    def save(self, path: Path | str) -> tuple[str, ...]:
        """Write the video with its sound (``.mp4``), or the sound alone (``.wav``).

        Returns:
            Sentences the user should read, such as why the picture was encoded again.

        Raises:
            OutputError: the file cannot be written; nothing is left behind.
        """
        path = as_path("path", path, "where to write, .mp4 or .wav")
        if path.suffix.lower() == ".wav":
            write_wav(path, self.pcm, self.sample_rate)
            return ()
        muxed = mux(self.video, self.pcm, self.sample_rate, path, self.metadata)
        encoded = () if muxed.copied else (f"the picture was encoded again as H.264: {muxed.reason}",)
        return (*encoded, *muxed.notes)

    def dump(self, path: Path | str) -> None:
        """Write every intermediate to a safetensors file: how two versions are compared.

        Raises:
            OutputError: the file cannot be written; nothing is left behind.
        """
        tensors = {
            "clip_frames": self.video.clip_frames,  # (V, 224, 224, 3) uint8
            "sync_frames": self.video.sync_frames,  # (S', 224, 224, 3) uint8
            "clip_features": self.features.clip_features,
            "sync_features": self.features.sync_features,
            "text_features": self.features.text_features,
            "t5_features": self.features.t5_features,
            "noise": self.noise,
            "latents": self.latents,
            "waveform": self.waveform,
        }
        with whole_file(as_path("path", path, "where to write")) as temporary:
            temporary.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}))


@dataclass
class _Clock:
    """Seconds per stage."""

    timings: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.timings[stage] = time.perf_counter() - start


class Pipeline:
    """All networks of one preset, placed and ready; two requests share nothing that changes."""

    def __init__(
        self,
        preset: Preset,
        metaclip: MetaCLIP,
        t5: T5Text,
        synchformer: Synchformer,
        mmdit: MMDiT,
        vae: AudioVAE,
        placement: Placement,
    ) -> None:
        self.preset = preset
        self.metaclip = metaclip
        self.t5 = t5
        self.synchformer = synchformer
        self.mmdit = mmdit
        self.vae = vae
        self.placement = placement

    def __call__(
        self,
        video: Path | str,
        caption: str = "",
        cot: str = "",
        options: Options | None = None,
        progress: Progress | None = None,
        **changes: Any,
    ) -> Result:
        """Generate the sound of a video.

        Args:
            video: path of any file with moving pictures, 0.1 s to 3 minutes.
            caption: what is heard, in a few words.
            cot: chain of thought, a description step by step; empty uses the caption.
            options: how to sample.
            progress: called as ``progress(stage, done, total)``.
            changes: fields of `Options` to set, such as ``seed=7``.

        Raises:
            ThinkSoundError: with a message for the user; see `thinksound.errors`.
        """
        options = _checked(options)
        if changes:
            known = by_current_names(changes, OPTIONS, ("caption", "cot", "options", "progress"))
            options = replace(options, **known)
        options = self._settle(options)
        text_notes = self.text_notes(caption, cot)
        caption, cot = check_texts(caption, cot)
        clock = _Clock()

        with memory_errors():
            with clock.time("decode"):
                decoded = self.decode(video, options.duration, progress)
            with clock.time("encode"):
                features = self.encode(decoded, caption, cot, progress)
            with clock.time("sample"):
                noise, latents = self.sample(features, decoded.duration_s, options, progress)
            with clock.time("vae"):
                waveform = self.decode_audio(latents)
                pcm = self._as_long_as(decoded, waveform)

        assert options.seed is not None
        return Result(
            waveform=waveform,
            pcm=pcm,
            sample_rate=self.preset.vae.sample_rate,
            seed=int(options.seed),
            preset=self.preset.name,
            video=decoded,
            features=features,
            noise=noise,
            latents=latents,
            timings=clock.timings,
            metadata=self._metadata(caption, cot, options),
            notes=(*decoded.notes, *text_notes),
        )

    def decode(
        self,
        video: Path | str,
        duration: float | None = None,
        progress: Progress | None = None,
        **older: float | None,
    ) -> DecodedVideo:
        """Pictures for both encoders, in one pass over the file.

        Args:
            video: path of any file with moving pictures, 0.1 s to 3 minutes.
            duration: use the first seconds only; None is the whole video.
            progress: called as ``progress(stage, done, total)``.
            older: ``duration_s``, which is what ``duration`` was called before.
        """
        path = as_path("video", video, "the path of one video")
        check_progress(progress)
        if older:
            given = older if duration is None else {"duration": duration, **older}
            duration = by_current_names(given, ("duration",), ("video", "progress"))["duration"]
        duration_s = None if duration is None else DURATION.check("duration", duration)
        report = (lambda share: progress("decode", round(100 * share), 100)) if progress else None
        return decode_video(path, duration_s, report)

    def encode(
        self, decoded: DecodedVideo, caption: str = "", cot: str = "", progress: Progress | None = None
    ) -> Features:
        """Pictures and texts to features on the CPU; side by side where GPUs do the work.

        Args:
            decoded: what `decode` gave.
            caption: for MetaCLIP.
            cot: for T5; empty uses the caption. `text_notes` says what they cannot read.
            progress: called as ``progress(stage, done, total)``, possibly from another thread.
        """
        check_progress(progress)
        caption, cot = check_texts(caption, cot)
        return self._encode(decoded.clip_frames, decoded.sync_frames, caption, cot, progress)

    def _encode(
        self,
        clip_frames: Tensor,  # uint8 (V, 224, 224, 3), 8 per second
        sync_frames: Tensor,  # uint8 (S', 224, 224, 3), 25 per second
        caption: str,
        cot: str,
        progress: Progress | None = None,
    ) -> Features:
        def report(stage: str) -> Callable[[int, int], None] | None:
            return (lambda done, total: progress(stage, done, total)) if progress else None

        def metaclip() -> tuple[Tensor, Tensor]:
            with self.placement.on_device("metaclip"):
                text = self.metaclip.encode_text(caption).cpu()
                return self.metaclip.encode_frames(clip_frames, progress=report("metaclip")).cpu(), text

        def t5() -> Tensor:
            with self.placement.on_device("t5"):
                return self.t5.encode(cot).cpu()

        def synchformer() -> Tensor:
            with self.placement.on_device("synchformer"):
                return encode_sync(self.synchformer, sync_frames, progress=report("synchformer")).cpu()

        if self.placement.plan.concurrent_encoding:
            with ThreadPoolExecutor(2) as pool:
                pending = pool.submit(metaclip), pool.submit(t5)
                sync_features = synchformer()
                (clip_features, text_features), t5_features = pending[0].result(), pending[1].result()
        else:
            clip_features, text_features = metaclip()
            t5_features = t5()
            sync_features = synchformer()
        return Features(
            clip_features=clip_features,
            sync_features=sync_features,
            text_features=text_features,
            t5_features=t5_features,
        )

    @torch.inference_mode()
    def sample(
        self,
        features: Features,
        duration_s: float,
        options: Options | None = None,
        progress: Progress | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Noise and latents, each ``(C, T)`` float32 on the CPU, for ``duration_s`` seconds of sound."""
        check_progress(progress)
        options = self._settle(_checked(options))
        assert options.seed is not None and options.cfg_scale is not None
        steps, vae = options.num_inference_steps, self.preset.vae
        length = latent_frame_count(duration_s, vae.sample_rate, vae.hop)
        noise = draw_noise(int(options.seed), vae.latent_dim, length)
        with self.placement.on_device("dit"):
            latents = sample_latents(
                self.mmdit,
                features.batched(),
                noise,
                steps,
                options.cfg_scale,
                (lambda step: progress("sample", step, steps)) if progress else (lambda step: None),
            )
        return noise[0], latents[0].cpu()

    @torch.inference_mode()
    def decode_audio(self, latents: Tensor) -> Tensor:
        """Waveform ``(2, A)`` float32 on the CPU of ``latents (C, T)``, before normalisation."""
        with self.placement.on_device("vae"):
            device = next(self.vae.decoder.parameters()).device
            return self.vae.decode(latents[None].to(device))[0].float().cpu()

    def mux(
        self,
        decoded: DecodedVideo,
        waveform: Tensor,
        path: Path | str,
        metadata: Mapping[str, str] | None = None,
    ) -> MuxResult:
        """Write the picture with the sound ``waveform (2, A)``, normalised and cut to its length, as MP4.

        Raises:
            OutputError: the file cannot be written; nothing is left behind.
        """
        pcm = self._as_long_as(decoded, waveform)
        return mux(decoded, pcm, self.preset.vae.sample_rate, path, metadata or {})

    def _as_long_as(self, decoded: DecodedVideo, waveform: Tensor) -> Tensor:
        """The waveform as int16 ``(2, samples)``: normalised, then exactly as long as the picture."""
        vae = self.preset.vae
        samples = audio_sample_count(decoded.duration_s, vae.sample_rate)
        return fit_length(to_pcm16(waveform), samples, vae.hop)

    def warm_up(self) -> None:
        """Run every network once on a black second, so that the first request finds everything ready."""
        frames = torch.zeros(SYNC_SEGMENT, 224, 224, 3, dtype=torch.uint8)
        with memory_errors():
            features = self._encode(frames[:8], frames, "", "")
            _, latents = self.sample(features, 1.0, Options(num_inference_steps=1))
            self.decode_audio(latents)

    def _settle(self, options: Options) -> Options:
        """The options with what was left open decided: a seed drawn, guidance as the preset has it."""
        seed = _draw_seed() if options.seed is None else options.seed
        scale = self.preset.guidance_scale if options.cfg_scale is None else options.cfg_scale
        return replace(options, seed=seed, cfg_scale=scale)

    check_texts = staticmethod(check_texts)

    def text_notes(self, caption: str = "", cot: str = "") -> tuple[str, ...]:
        """What the encoders cannot read of the two texts, in sentences; none where they read everything.

        Raises:
            InputError: a text is too long, or no text.
        """
        for_metaclip, for_t5 = check_texts(caption, cot)
        return (
            *reading_notes("caption", for_metaclip, "MetaCLIP", self.metaclip.tokenizer),
            *reading_notes("cot" if cot.strip() else "caption", for_t5, "T5", self.t5.tokenizer),
        )

    def _metadata(self, caption: str, cot: str, options: Options) -> dict[str, str]:
        return {
            "software": f"{SOFTWARE} {__version__}",
            "preset": self.preset.name,
            "seed": str(options.seed),
            "caption": caption,
            "cot": cot,
            "cfg_scale": f"{options.cfg_scale:g}",
            "num_inference_steps": str(options.num_inference_steps),
        }


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
        preset: "thinksound-light", "thinksound" or "tiny".
        weights: folder with the published files; None is ``THINKSOUND_WEIGHTS`` or ``weights/``.
        device: "auto", "cpu", "cuda", "cuda:N" or "cuda:M,cuda:N" (transformer and VAE, then encoders), or a
            `torch.device`.
        dtype: "auto", "float32", "bfloat16" or "float16", or the `torch.dtype`. Asking for float32 also
            switches PyTorch's TensorFloat-32 convolutions off, for the whole process.
        offload: keep weights in main memory, one network at a time on the GPU.
        progress: called as ``progress("load", done, total)`` after each network.
        older: ``devices``, which is what ``device`` was called before.

    Raises:
        InputError: an argument is unknown, or not among those named here.
        WeightsError: files are missing, damaged or of another network.
        PlacementError: a device is missing or too small.
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
    plan = make_plan(detect_machine(), chosen.parameters, str(device), dtype, offload)
    dtypes = {name: getattr(torch, number_format) for name, number_format in plan.dtypes.items()}
    if dtype == "float32":
        torch.backends.cudnn.allow_tf32 = False
    keys = chosen.weights
    absent = missing(folder, keys.values())
    if absent:
        raise WeightsError(describe_missing(folder, absent))

    placement = Placement(plan)

    def place(name: str, module: nn.Module) -> None:
        # At once, so that main memory holds one network on its way to a GPU, not five.
        placement.place(name, module)
        if progress:
            progress("load", NETWORKS.index(name) + 1, len(NETWORKS))

    with memory_errors():
        metaclip = checkpoints.load_metaclip(folder, keys["metaclip"], dtypes["metaclip"])
        place("metaclip", metaclip.model)
        t5 = checkpoints.load_t5(folder, keys["t5"], dtypes["t5"])
        place("t5", t5.model)
        synchformer = checkpoints.load_synchformer(
            folder, keys["synchformer"], chosen.synchformer, dtypes["synchformer"]
        )
        place("synchformer", synchformer)
        mmdit = checkpoints.load_mmdit(folder, keys["dit"], chosen.mmdit, dtypes["dit"])
        place("dit", mmdit)
        vae = checkpoints.load_vae(folder, keys["vae"], chosen.vae, dtypes["vae"])
        place("vae", vae.decoder)  # generation never encodes sound: the encoder's file pages stay untouched
    for note in plan.notes:
        logger.warning(note)
    return Pipeline(chosen, metaclip, t5, synchformer, mmdit, vae, placement)
