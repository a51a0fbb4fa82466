"""The field's metrics on paired files: networks run on one clip after another, then scores are computed.

If a clip has a reference, both sounds are cut to the shorter of the two, so that the same span is compared.
Memory holds one clip at a time, and the embeddings of all.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ... import __version__
from ...checkpoints.load import load_network
from ...data.clips import Skipped
from ...encoders.views import SYNC_VIEW
from ...errors import InputError, MediaError
from ...media.decode import decode_video
from ...media.files import whole_file
from ...media.soundtrack import Soundtrack, read_sound
from ...models.synchformer_audio import OffsetConfig
from ...models.synchformer_offset import SynchformerOffset
from ...progress import Progress
from ...rates import MAX_DURATION_S, MIN_DURATION_S
from .clap import Clap, load_clap
from .desync import RATE, predict_offsets
from .distribution import inception_score, kl_divergence
from .extractors import Extractor, Heard
from .frechet import frechet_distance
from .pairing import Clip
from .similarity import paired_cosine
from .tagger import Tagger, load_tagger

FEW_CLIPS = 1_000  # the Fréchet distance of fewer clips is clearly too large
_SPLITS, _CLIPS_FOR_SPLITS = 10, 100  # parts of the inception score, as in the field, from so many clips on
_UNEVEN_S = 0.5  # difference in length of a pair that is worth a note

_GENERATED, _REFERENCE = 0, 1

Numbers = dict[str, Any]


@dataclass(frozen=True)
class Metric:
    """What one metric needs."""

    network: str  # key in checkpoints.registry
    clips: int  # at least
    needs: Literal["reference", "captions", "pictures", None] = None


METRICS: dict[str, Metric] = {
    "fd": Metric("ast", 2, "reference"),  # Fréchet distance of the tagger's embeddings
    "fd-clap": Metric("clap", 2, "reference"),  # of CLAP's embeddings
    "kl": Metric("ast", 1, "reference"),  # divergence of the tagger's classes
    "is": Metric("ast", 2),  # inception score of the tagger's classes
    "clap": Metric("clap", 1, "captions"),  # cosine of sound and caption
    "desync": Metric("synchformer_offset", 1, "pictures"),  # offset of sound and video in seconds
}


@dataclass(frozen=True)
class Networks:
    """The networks that the chosen metrics need, on their device."""

    tagger: Tagger | None = None
    clap: Clap | None = None
    offset: SynchformerOffset | None = None


@dataclass(frozen=True)
class Evaluation:
    """The results of `evaluate_clips`."""

    metrics: dict[str, Numbers]  # metric -> its values, and the number of its clips
    clips: dict[str, Numbers]  # clip -> its own values
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]


def choose_metrics(wanted: Collection[str] | None, clips: Sequence[Clip]) -> list[str]:
    """The metrics to compute: those wanted, or all that are possible for None.

    Raises InputError for an unknown metric, one whose files or texts are missing, or if none is possible.
    """
    obstacles = {name: _obstacle(name, clips) for name in METRICS}
    if wanted is None:
        wanted = [name for name, obstacle in obstacles.items() if not obstacle]
        if not wanted:
            raise InputError("; ".join(obstacles.values()))
    unknown = [name for name in wanted if name not in METRICS]
    if unknown or not wanted:
        raise InputError(f"metric {', '.join(unknown) or 'none'}: give some of {', '.join(METRICS)}")
    for name in wanted:
        if obstacles[name]:
            raise InputError(obstacles[name])
    return [name for name in METRICS if name in wanted]


def _obstacle(name: str, clips: Sequence[Clip]) -> str:
    """Why a metric cannot be computed for these clips; empty if it can."""
    metric = METRICS[name]
    if metric.needs == "reference" and any(clip.reference is None for clip in clips):
        return f"{name} compares with true sounds; give their folder with --reference DIR"
    if metric.needs == "captions" and all(clip.caption is None for clip in clips):
        return f"{name} compares with captions and no clip has one; give their table with --captions TABLE"
    if metric.needs == "pictures" and all(clip.video is None for clip in clips):
        return f"{name} needs pictures and no clip has any; give the folder of the videos with --videos DIR"
    if len(clips) < metric.clips:
        return f"{name} of {len(clips)} clip; it needs {metric.clips} or more"
    return ""


def network_keys(metrics: Collection[str]) -> list[str]:
    """The keys in `checkpoints.registry` of the weights that ``metrics`` need."""
    return list(dict.fromkeys(METRICS[name].network for name in metrics))


def load_networks(
    weights_dir: Path, metrics: Collection[str], device: torch.device, progress: Progress
) -> Networks:
    """Load the networks that ``metrics`` need; calls ``progress("load", done, total)`` after each.

    Raises WeightsError if weights are missing or wrong.
    """
    keys = network_keys(metrics)
    progress("load", 0, len(keys))
    tagger, clap, offset = None, None, None
    for done, key in enumerate(keys, 1):
        if key == "ast":
            tagger = load_tagger(weights_dir)
            _place(tagger.model, device)
        elif key == "clap":
            clap = load_clap(weights_dir)
            _place(clap.model, device)
        else:
            offset = load_network(_build_offset, weights_dir, key, torch.float32)
            _place(offset, device)
        progress("load", done, len(keys))
    return Networks(tagger, clap, offset)


def _build_offset(path: Path) -> SynchformerOffset:
    with torch.device("meta"):
        return SynchformerOffset(OffsetConfig())


def _place(module: nn.Module, device: torch.device) -> None:
    module.to(device)


def evaluate_clips(
    clips: Sequence[Clip], metrics: Collection[str], networks: Networks, progress: Progress
) -> Evaluation:
    """Run the networks on the clips one by one and score them.

    A clip that cannot be read, or lasts less than 0.1 s, is left out of all metrics. A clip that lacks what a
    metric needs is left out of that metric.

    metrics: from `choose_metrics`; networks: those of `network_keys`.
    progress: called as ``progress("clips", done, total)``.
    Raises MediaError if every metric has too few clips.
    """
    listener = _Listener(networks, metrics)
    progress("clips", 0, len(clips))
    for done, clip in enumerate(clips, 1):
        try:
            listener.listen(clip)
        except MediaError as error:
            listener.skipped.append(Skipped(clip.name, str(error)))
        progress("clips", done, len(clips))
    scores, notes = _scores(listener, metrics)
    if not scores:
        first = listener.skipped[0]
        raise MediaError(f"too few clips can be used; the first that cannot, {first.name}: {first.reason}")
    return Evaluation(scores, listener.numbers, tuple(listener.skipped), tuple(notes))


def write_results(path: Path, evaluation: Evaluation, unpaired: Sequence[Skipped]) -> None:
    """Write all results as JSON, whole or not at all; ``unpaired`` comes from `find_clips`."""
    content = {
        "made_by": f"thinksound {__version__}",
        "networks": {name: METRICS[name].network for name in evaluation.metrics},
        "metrics": evaluation.metrics,
        "notes": evaluation.notes,
        "skipped": [asdict(each) for each in (*unpaired, *evaluation.skipped)],
        "clips": evaluation.clips,
    }
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass
class _Listener:
    """Collects the outputs of the networks; each list has one entry per clip that it applies to."""

    networks: Networks
    metrics: Collection[str]
    tags: list[list[Heard]] = field(default_factory=list)  # generated, and reference if there is one
    sounds: list[list[Heard]] = field(default_factory=list)  # the same for CLAP
    texts: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # CLAP embeddings: sound, caption
    offsets: list[tuple[float, float]] = field(default_factory=list)  # in seconds: beginning, end
    numbers: dict[str, Numbers] = field(default_factory=dict)  # by clip
    uneven: dict[str, None] = field(default_factory=dict)  # pairs of different lengths
    skipped: list[Skipped] = field(default_factory=list)

    def listen(self, clip: Clip) -> None:
        """Add the outputs for one clip; raises MediaError if it cannot be read."""
        tagger, clap, offset = self.networks.tagger, self.networks.clap, self.networks.offset
        tags = self._hear(clip, tagger) if tagger else None
        sounds = self._hear(clip, clap) if clap else None
        numbers: Numbers = {}
        if offset:
            try:
                offsets = _offsets(clip, offset)
                self.offsets.append(offsets)
                numbers["desync"] = list(offsets)
            except MediaError as error:
                self.skipped.append(Skipped(clip.name, f"desync: {error}"))
        if tags:
            self.tags.append(tags)
            if "kl" in self.metrics:
                numbers["kl"] = kl_divergence(_logits([tags], _GENERATED), _logits([tags], _REFERENCE))
        if sounds and clap:
            self.sounds.append(sounds)
            if "clap" in self.metrics and clip.caption:
                self.texts.append((sounds[_GENERATED].embedding, clap.encode_text(clip.caption)))
                numbers["clap"] = _mean_cosine(self.texts[-1:])
            elif "clap" in self.metrics:
                self.skipped.append(Skipped(clip.name, "clap: no caption"))
        if numbers:
            self.numbers[clip.name] = numbers

    def _hear(self, clip: Clip, network: Extractor) -> list[Heard]:
        """The network's outputs for the generated sound and its reference, both cut to the shorter."""
        paths = [path for path in (clip.generated, clip.reference) if path]
        waveforms = [_mono(path, network) for path in paths]
        shortest, longest = min(map(len, waveforms)), max(map(len, waveforms))
        if longest - shortest > _UNEVEN_S * network.rate:
            self.uneven[clip.name] = None
        return [network(waveform[:shortest]) for waveform in waveforms]


def _mono(path: Path, network: Extractor) -> Tensor:
    waveform = _read(path, network.rate, network.window_s).waveform
    return waveform.mean(dim=0)[: round(network.window_s * network.rate)]


def _offsets(clip: Clip, network: SynchformerOffset) -> tuple[float, float]:
    """Offsets of the generated sound against its video; raises MediaError if they cannot be computed."""
    if clip.video is None:
        raise MediaError(f"{clip.generated}: no pictures, and no video of this name")
    sound = _read(clip.generated, RATE, MAX_DURATION_S)
    decoded = decode_video(clip.video, [SYNC_VIEW], MAX_DURATION_S)
    # Sound and video of one file share its timestamps; those of two files are taken to begin together.
    start_s = decoded.start_s if clip.video == clip.generated else sound.start_s
    end_s = sound.start_s + sound.waveform.shape[1] / RATE
    waveform = sound.part(start_s, max(0, round((end_s - start_s) * RATE)), RATE)
    return predict_offsets(network, decoded.frames["sync"], waveform.mean(dim=0))


def _read(path: Path, rate: int, limit_s: float) -> Soundtrack:
    sound = read_sound(path, rate, limit_s)
    length_s = sound.waveform.shape[1] / rate
    if length_s < MIN_DURATION_S:
        raise MediaError(f"{path}: lasts {length_s:.2f} s; at least {MIN_DURATION_S:g} s are needed")
    if not torch.isfinite(sound.waveform).all():
        raise MediaError(f"{path}: its sound holds values that are not numbers; write it again")
    return sound


# --- scores ----------------------------------------------------------------------------------------


def _scores(listener: _Listener, metrics: Collection[str]) -> tuple[dict[str, Numbers], list[str]]:
    """The values of every metric that has enough clips, and notes for the reader."""
    notes = []
    if listener.uneven:
        notes.append(
            f"{len(listener.uneven)} pairs differ by more than {_UNEVEN_S:g} s in length, the first "
            f"{next(iter(listener.uneven))}: both were cut to the shorter"
        )
    counts = {
        "fd": len(listener.tags),
        "fd-clap": len(listener.sounds),
        "kl": len(listener.tags),
        "is": len(listener.tags),
        "clap": len(listener.texts),
        "desync": len(listener.offsets),
    }
    scores = {}
    for name in metrics:
        if counts[name] < METRICS[name].clips:
            notes.append(
                f"{name}: {counts[name]} clips are left that it can use, {METRICS[name].clips} are needed"
            )
            continue
        if name in ("fd", "fd-clap") and counts[name] < FEW_CLIPS:
            notes.append(
                f"{name} of {counts[name]} clips: below {FEW_CLIPS} the distance is clearly too large; "
                "compare it with others of the same count alone"
            )
        scores[name] = _score(name, listener) | {"clips": counts[name]}
    return scores, notes


def _score(name: str, listener: _Listener) -> Numbers:
    if name in ("fd", "fd-clap"):
        pairs = listener.tags if name == "fd" else listener.sounds
        return {"value": frechet_distance(_embeddings(pairs, _GENERATED), _embeddings(pairs, _REFERENCE))}
    if name == "kl":
        logits = _logits(listener.tags, _GENERATED), _logits(listener.tags, _REFERENCE)
        return {"softmax": kl_divergence(*logits), "sigmoid": kl_divergence(*logits, "sigmoid")}
    if name == "is":
        splits = _SPLITS if len(listener.tags) >= _CLIPS_FOR_SPLITS else 1
        mean, deviation = inception_score(_logits(listener.tags, _GENERATED), splits)
        return {"mean": mean, "deviation": deviation, "splits": splits}
    if name == "clap":
        return {"value": _mean_cosine(listener.texts)}
    ends = [abs(offset) for offsets in listener.offsets for offset in offsets]
    return {"value": sum(ends) / len(ends)}


def _embeddings(heard: Sequence[Sequence[Heard]], which: int) -> Tensor:
    return torch.stack([each[which].embedding for each in heard])


def _logits(heard: Sequence[Sequence[Heard]], which: int) -> Tensor:
    return torch.stack([each[which].logits for each in heard])


def _mean_cosine(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    first, second = zip(*pairs, strict=True)
    return paired_cosine(torch.stack(first), torch.stack(second))
