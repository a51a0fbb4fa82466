"""Prepared clips on disk: everything that the transformer trains on, encoded once.

A folder holds shards ``clips-00000.safetensors``, ... and, once all of them exist, ``index.json``. All
clips of a folder have the same length, so a shard stacks their features in one tensor per kind: float16,
or bfloat16 where a value exceeds the range of float16. A shard's header says what it was made from, so
that an interrupted preparation can resume. Files are memory-mapped: reading a batch loads only its clips.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import InputError
from ..families.find import family_of
from ..families.protocol import Family
from ..media.files import whole_file
from ..media.views import View
from ..presets import Preset, get_preset

FORMAT = 1
INDEX = "index.json"
_HEADER = "thinksound"  # the only metadata entry, because safetensors writes several in random order


@dataclass(frozen=True)
class Batch:
    """Features of B clips: float16 or bfloat16 in a shard, float32 elsewhere."""

    features: Mapping[str, Tensor]  # (B, N, D) by condition; those of frames are zeros without video
    latent_mean: Tensor  # (B, C, T)
    latent_scale: Tensor  # (B, C, T) the spread, as `Family.draw_latents` takes it
    has_video: Tensor  # (B,) bool

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their names in a shard."""
        return {
            **self.features,
            "latent_mean": self.latent_mean,
            "latent_scale": self.latent_scale,
            "has_video": self.has_video,
        }

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Batch:
        """The batch with these `tensors`."""
        others = ("latent_mean", "latent_scale", "has_video")
        features = {name: tensor for name, tensor in tensors.items() if name not in others}
        return cls(features, *(tensors[name] for name in others))

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with ``change`` applied to every tensor."""
        return Batch.of({name: change(tensor) for name, tensor in self.tensors.items()})


@dataclass(frozen=True)
class Layout:
    """What all clips of a folder have in common; folders of equal layout suit the same network."""

    preset: str
    encoders: dict[str, str]  # network -> key of its weight file
    sample_rate: int  # Hz
    hop: int  # audio samples per latent
    duration_s: float
    shapes: dict[str, list[int]]  # feature -> its shape for one clip

    @classmethod
    def of(cls, family: Family, duration_s: float) -> Layout:
        """The layout of clips of ``duration_s`` seconds for a family's networks."""
        sound, preset = family.sound, family.preset
        latents = [sound.latent_dim, sound.latent_length(duration_s)]
        return cls(
            preset=preset.name,
            encoders={
                name: network.key
                for name, network in preset.networks.items()
                if network.is_encoder or name == "vae"
            },
            sample_rate=sound.sample_rate,
            hop=sound.hop,
            duration_s=duration_s,
            shapes={
                **{each.name: list(each.shape(duration_s)) for each in family.conditions},
                "latent_mean": latents,
                "latent_scale": latents,
            },
        )

    @property
    def family(self) -> Family:
        """The family of the preset."""
        return family_of(get_preset(self.preset))

    @property
    def views(self) -> tuple[View, ...]:
        """The family's views of a video."""
        return self.family.views

    @property
    def audio_samples(self) -> int:
        """Audio samples of a clip: its latent frames times the hop."""
        return self.shapes["latent_mean"][1] * self.hop


@dataclass(frozen=True)
class ShardHeader:
    """What a shard holds and what it was made from."""

    layout: Layout
    encoders: str  # `prepare.fingerprint` of the networks
    sources: str  # hash of the sources' identities
    names: list[str]  # of the clips, in order
    skipped: list[list[str]]  # name and reason of each source, or part of one, that gave no clip


def shard_path(folder: Path, number: int) -> Path:
    """The path of the shard ``number``."""
    return folder / f"clips-{number:05d}.safetensors"


def write_shard(folder: Path, number: int, header: ShardHeader, clips: Batch | None) -> None:
    """Write one shard, whole or not at all; ``clips`` is None where every source was skipped.

    Raises:
        OutputError: the folder is missing or not writable, or the disk is full.
    """
    tensors = compact(clips).tensors if clips is not None else {}
    text = json.dumps({"format": FORMAT, **asdict(header)}, sort_keys=True)
    with whole_file(shard_path(folder, number)) as temporary:
        temporary.write_bytes(save(tensors, metadata={_HEADER: text}))


def compact(clips: Batch) -> Batch:
    """Convert clips to the dtypes of a shard."""
    return clips.each(_compact)


def _compact(tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.bool:
        return tensor
    fits = not tensor.numel() or tensor.abs().max() <= torch.finfo(torch.float16).max
    return tensor.to(torch.float16 if fits else torch.bfloat16).contiguous()


def read_header(path: Path) -> ShardHeader | None:
    """The header of the shard at ``path``; None if it is missing or cannot be read."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {})[_HEADER])
        if record.pop("format") != FORMAT:
            return None
        return ShardHeader(layout=Layout(**record.pop("layout")), **record)
    except (SafetensorError, KeyError, ValueError, TypeError):
        return None


def write_index(
    folder: Path, layout: Layout, made_by: dict[str, str], names: Sequence[Sequence[str]]
) -> None:
    """Write the index, which marks a folder as complete; ``names`` are the clips of each shard.

    Raises:
        OutputError: the file cannot be written.
    """
    shards = [
        {"file": shard_path(folder, number).name, "clips": list(each)} for number, each in enumerate(names)
    ]
    record = {"format": FORMAT, **asdict(layout), "made_by": made_by, "shards": shards}
    with whole_file(folder / INDEX) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


class PreparedClips:
    """A prepared folder, read by memory mapping.

    Raises:
        InputError: the folder is missing or unfinished, or its format is unknown.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.layout, self.made_by, shards = self._read_index()
        self.names: list[str] = [name for shard in shards for name in shard["clips"]]
        self._places = [(shard["file"], row) for shard in shards for row in range(len(shard["clips"]))]
        self._tensors: dict[str, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The clips at these indices, in this order, in float32.

        Raises:
            InputError: a shard is missing or damaged.
        """
        places = [self._places[index] for index in indices]
        stacked = {
            name: torch.stack([self._shard(file)[name][row] for file, row in places]) for name in self._names
        }
        return Batch.of(stacked).each(lambda part: part if part.dtype == torch.bool else part.float())

    @property
    def _names(self) -> list[str]:
        """The names of the tensors in every shard."""
        return [*self.layout.shapes, "has_video"]

    def check(self, preset: Preset) -> None:
        """Check that these clips can train a preset's transformer.

        Raises:
            InputError: they were encoded by other networks or have other sizes.
        """
        wanted = Layout.of(family_of(preset), self.layout.duration_s)
        again = f"prepare the files again with --preset {preset.name}"
        if wanted.encoders != self.layout.encoders:
            raise InputError(
                f"{self.folder}: prepared for {self.layout.preset}, whose encoders are not those of "
                f"{preset.name}; {again}"
            )
        for name, here, there in (
            ("sample rate", self.layout.sample_rate, wanted.sample_rate),
            ("samples per latent", self.layout.hop, wanted.hop),
            *((name, self.layout.shapes[name], shape) for name, shape in wanted.shapes.items()),
        ):
            if here != there:
                raise InputError(
                    f"{self.folder}: prepared with {name} {here}, {preset.name} has {there}; {again}"
                )

    def _read_index(self) -> tuple[Layout, dict[str, str], list[dict[str, Any]]]:
        path = self.folder / INDEX
        if not self.folder.is_dir():
            raise InputError(f"{self.folder}: no such folder; make it with `thinksound prepare`")
        if not path.is_file():
            if any(self.folder.glob("clips-*.safetensors")):
                what = "the preparation was not finished; start it again and it goes on"
            else:
                what = f"no prepared clips (there is no {INDEX}); make them with `thinksound prepare`"
            raise InputError(f"{self.folder}: {what}")
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            found = record.pop("format")
            if found == FORMAT:
                made_by, shards = record.pop("made_by"), record.pop("shards")
                return Layout(**record), made_by, shards
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: not an index of prepared clips ({error!r}); prepare again") from None
        raise InputError(f"{path}: format {found}, this version reads format {FORMAT}; prepare again")

    def _shard(self, file: str) -> dict[str, Tensor]:
        if file not in self._tensors:
            path = self.folder / file
            try:
                with safe_open(path, framework="pt") as shard:
                    self._tensors[file] = {name: shard.get_tensor(name) for name in self._names}
            except (SafetensorError, OSError) as error:
                raise InputError(
                    f"{path}: missing or damaged ({error}); delete it and prepare again, "
                    "which makes only what is missing"
                ) from None
        return self._tensors[file]
