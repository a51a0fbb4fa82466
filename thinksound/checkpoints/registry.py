"""The registry of weight files: source, local name, size, hash, tensor names and licence of each.

It has the weights of all presets and of the evaluation; the judges' files in ``judges/`` are not part of it.
Published file names are kept, so that a folder filled by hand works without a network. ``revision`` is a
commit where one is known to be good; otherwise only the checksum recorded at first use shows that a file has
changed (`checksums`). Sizes are rounded; a download asks the hub for the exact ones. SHA-256 values were read
on the hub's pages named beside them; the files themselves were not available.

A published file can hold more than the network, such as optimiser state, and its tensor names can have a
prefix. ``ignored`` and ``prefix`` are regular expressions for both.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import WeightsError

# Weight files of a Hugging Face folder, best first; exactly one of these layouts is used and downloaded. The
# names of shards must match the second part in full, because a name from a mirror becomes a path here.
Layouts = tuple[tuple[str, re.Pattern[str] | None], ...]
WEIGHT_LAYOUTS: Layouts = (
    ("model.safetensors", None),
    ("model.safetensors.index.json", re.compile(r"model-[0-9]{1,6}-of-[0-9]{1,6}\.safetensors")),
    ("pytorch_model.bin", None),
    ("pytorch_model.bin.index.json", re.compile(r"pytorch_model-[0-9]{1,6}-of-[0-9]{1,6}\.bin")),
)

# Weight files of a folder in open_clip's layout; it can also hold weights for other libraries.
OPEN_CLIP_LAYOUTS: Layouts = (("open_clip_model.safetensors", None), ("open_clip_pytorch_model.bin", None))

# A Hugging Face folder of a network that reads text needs one of these beside its weights and config.json.
TOKENIZERS: tuple[tuple[str, ...], ...] = (
    ("tokenizer.json",),
    ("spiece.model",),
    ("vocab.json", "merges.txt"),
)

# The other files of such a folder that are used; all are small.
_CONFIG_AND_TOKENIZER = (
    "config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
)

# huggingface.co/FunAudioLLM/ThinkSound/blob/refs%2Fpr%2F1/synchformer_state_dict.pth
_SYNCHFORMER = {
    "synchformer_state_dict.pth": "8aff082f2df5c3bc52759db0c865c7ee772ae6400b860d1b7e90413f2defb67c"
}

# The trainer's prefix; Lightning's prefix around it is absent from the light checkpoint.
_TRAINER_PREFIX = r"(diffusion\.)?model\.model\."
# Buffers that older versions of the published networks stored; they are computed here.
_COMPUTED_TABLES = r"t_embed\.freqs|latent_rot|clip_rot"

# Parts of tensor names that tell what a wrong file holds, for messages.
SIGNS = (
    ("vfeat_extractor.", "Synchformer weights"),
    ("joint_blocks.", "weights of the diffusion transformer"),
    ("autoencoder.", "weights of the audio VAE"),
    ("decoder.layers.", "weights of the audio VAE"),
    ("decoder.mid.", "weights of MMAudio's mel VAE"),
    ("vision_model.", "CLIP weights"),
    ("encoder.block.", "T5 weights"),
    ("conv_pre.", "weights of the vocoder BigVGAN"),
    ("resblocks.", "CLIP weights of open_clip"),
)

_MMAUDIO = "hkchengrex/MMAudio"
# As in the README of the code; the page on the hub says MIT.
_MMAUDIO_LICENCE = "CC-BY-NC-4.0"

_RESEARCH_ONLY = "research and education only, no commercial use"
_OWN = "Apache-2.0, part of this project"


@dataclass(frozen=True)
class WeightFile:
    """One published file, or one folder in the layout of Hugging Face."""

    key: str
    path: str  # inside the weights folder
    purpose: str
    licence: str
    size: int | None  # bytes to download, rounded; None for bundled files
    repository: str | None = None  # on the hub; None for files that come with this project
    revision: str = "main"
    remote: str = ""  # path in the repository, if not the same as ``path``
    patterns: tuple[str, ...] = ()  # of a folder: its files besides the weights; the first is the description
    layouts: Layouts = WEIGHT_LAYOUTS  # of a folder: its weight files, best first
    sha256: Mapping[str, str] = field(default_factory=dict)  # file name -> published hash, where known
    is_random: bool = False  # not trained: its values are drawn if there is no file (`untrained`)
    prefix: str = ""  # regular expression of the prefix of the network's tensor names
    ignored: str = "(?!)"  # regular expression of tensor names, without prefix, that are not loaded

    @property
    def bundled(self) -> bool:
        """Whether it comes with this project and is never downloaded."""
        return self.repository is None

    @property
    def is_folder(self) -> bool:
        return bool(self.patterns)

    @property
    def remote_path(self) -> str:
        """Its path in the repository."""
        return self.remote or self.path

    @property
    def description(self) -> str:
        """The file of a folder that describes the network."""
        return self.patterns[0]

    @property
    def written(self) -> str:
        """The file name under which this project writes the weights of a folder."""
        return self.layouts[0][0]

    def network_name(self, name: str) -> str | None:
        """Returns a published tensor's name inside its network; None if it is not loaded."""
        prefix = re.match(self.prefix, name)
        inner = name[prefix.end() :] if prefix else None
        return None if inner is None or self.ignores(inner) else inner

    def ignores(self, inner: str) -> bool:
        """Whether a tensor, named without prefix, is in the file but not part of the network."""
        return re.fullmatch(self.ignored, inner) is not None

    @property
    def has_tokenizer(self) -> bool:
        return "tokenizer.json" in self.patterns

    @property
    def converted_path(self) -> str:
        """Path of the converted copy, inside the weights folder."""
        return f"converted/{self.path}" if self.is_folder else f"converted/{self.key}.safetensors"

    def wanted(self, names: Collection[str]) -> list[str]:
        """Returns, sorted, those of a folder's file names that this project uses."""
        others = [name for name in names if name in self.patterns]
        return sorted([*weight_files(names, self.layouts), *others])


WEIGHTS: dict[str, WeightFile] = {
    file.key: file
    for file in (
        WeightFile(
            key="thinksound_light",
            path="thinksound_light.ckpt",
            purpose="diffusion transformer, the published light checkpoint",
            licence=_RESEARCH_ONLY,
            size=5_730_000_000,
            repository="FunAudioLLM/ThinkSound",
            prefix=_TRAINER_PREFIX,
            ignored=_COMPUTED_TABLES,
        ),
        WeightFile(
            key="thinksound",
            path="thinksound.ckpt",
            purpose="diffusion transformer, the full trainer checkpoint",
            licence=_RESEARCH_ONLY,
            size=21_100_000_000,
            repository="FunAudioLLM/ThinkSound",
            # huggingface.co/FunAudioLLM/ThinkSound/commit/807b1021f34c60a49bd22f6ce3030c0af66a2102
            sha256={"thinksound.ckpt": "816fa5f73bd8d566e684cef7a8caf2c698f6da100bca561c0c6b4ae244439ebc"},
            prefix=_TRAINER_PREFIX,
            ignored=_COMPUTED_TABLES,
        ),
        WeightFile(
            key="vae",
            path="vae.ckpt",
            purpose="audio VAE",
            licence="Stability AI Community License",
            size=2_520_000_000,
            repository="FunAudioLLM/ThinkSound",
            # huggingface.co/FunAudioLLM/ThinkSound/commit/59d87e0cf709abc73809ff8d67c9bde8ce67575c
            sha256={"vae.ckpt": "8132c32ec65bbba2f1457f2659136c5f2cb31f9902af1c659d78c9f7d3aa619e"},
            prefix=r"autoencoder\.",
        ),
        WeightFile(
            key="synchformer",
            path="synchformer_state_dict.pth",
            purpose="Synchformer, synchronisation features",
            licence="MIT",
            size=950_000_000,
            repository="FunAudioLLM/ThinkSound",
            sha256=_SYNCHFORMER,
            ignored=r"(?!vfeat_extractor\.).*",  # the audio tower and the head
        ),
        WeightFile(
            key="metaclip",
            path="metaclip-h14-fullcc2.5b",
            purpose="MetaCLIP ViT-H/14, picture and caption features",
            licence="CC-BY-NC-4.0",
            size=3_940_000_000,
            repository="facebook/metaclip-h14-fullcc2.5b",
            revision="8409dda29d748fb288875e26ac49d6958127aac3",
            patterns=_CONFIG_AND_TOKENIZER,
            ignored=r".*\.position_ids",
        ),
        WeightFile(
            key="t5",
            path="t5-v1_1-xl",
            purpose="T5 v1.1 XL, features of the chain of thought (its encoder alone is used)",
            licence="Apache-2.0",
            size=11_400_000_000,
            repository="google/t5-v1_1-xl",
            # huggingface.co/google/t5-v1_1-xl/tree/a9e51c46bd6f3893213c51edf9498be6f0426797: its files that
            # are used equal those of main, which only adds generation_config.json.
            revision="a9e51c46bd6f3893213c51edf9498be6f0426797",
            # huggingface.co/google/t5-v1_1-xl/blob/518fec1361d0fd82dd8fd185fcb0bbd1d404d65d/pytorch_model.bin
            sha256={"pytorch_model.bin": "72be4ab4cb05720c91e72995ad26fb5e2785fc1648c80ad0561c45ce432447fc"},
            patterns=_CONFIG_AND_TOKENIZER,
            # The decoder, and the encoder's copy of the embedding, which every file has as `shared` too.
            ignored=r"(?!shared\.|encoder\.).*|encoder\.embed_tokens\.weight",
        ),
        WeightFile(
            key="synchformer_offset",
            path="synchformer_state_dict.pth",
            purpose="Synchformer whole, with the audio tower and the offset head: for the evaluation",
            licence="MIT",
            size=950_000_000,
            repository="FunAudioLLM/ThinkSound",
            sha256=_SYNCHFORMER,
        ),
        WeightFile(
            key="clap",
            path="clap-htsat-unfused",
            purpose="CLAP, embeddings of sound and text in one space: for the evaluation",
            licence="Apache-2.0",
            size=614_000_000,
            repository="laion/clap-htsat-unfused",
            # huggingface.co/laion/clap-htsat-unfused/commits/main of 2025; pinned by several other projects
            revision="8fa0f1c6d0433df6e97c127f64b2a1d6c0dcda8a",
            patterns=_CONFIG_AND_TOKENIZER,
        ),
        WeightFile(
            key="ast",
            path="ast-finetuned-audioset-10-10-0.4593",
            purpose="Audio Spectrogram Transformer, the 527 classes of AudioSet: for the evaluation",
            licence="BSD-3-Clause",
            size=346_000_000,
            repository="MIT/ast-finetuned-audioset-10-10-0.4593",
            # pinned by several other projects, which use its model.safetensors
            revision="f826b80d28226b62986cc218e5cec390b1096902",
            patterns=("config.json", "preprocessor_config.json"),
        ),
        *(
            WeightFile(
                key=f"mmaudio_{size}",
                path=f"mmaudio_{size}.pth",
                remote=f"weights/mmaudio_{size}.pth",
                purpose=f"MMAudio's transformer, {words}",
                licence=_MMAUDIO_LICENCE,
                size=bytes_,
                repository=_MMAUDIO,
                ignored=_COMPUTED_TABLES,  # in the files of version 1
            )
            for size, words, bytes_ in (
                ("small_16k", "small, 16 kHz", 630_000_000),
                ("small_44k", "small, 44.1 kHz", 630_000_000),
                ("medium_44k", "medium, 44.1 kHz", 2_490_000_000),
                ("large_44k", "large, 44.1 kHz", 4_120_000_000),
                ("large_44k_v2", "large, 44.1 kHz, version 2", 4_120_000_000),
            )
        ),
        WeightFile(
            key="mmaudio_vae_16k",
            path="v1-16.pth",
            remote="ext_weights/v1-16.pth",
            purpose="MMAudio's mel VAE, 16 kHz",
            licence=_MMAUDIO_LICENCE,
            size=687_000_000,
            repository=_MMAUDIO,
        ),
        WeightFile(
            key="mmaudio_vae_44k",
            path="v1-44.pth",
            remote="ext_weights/v1-44.pth",
            purpose="MMAudio's mel VAE, 44.1 kHz",
            licence=_MMAUDIO_LICENCE,
            size=1_220_000_000,
            repository=_MMAUDIO,
        ),
        WeightFile(
            key="bigvgan_16k",
            path="best_netG.pt",
            remote="ext_weights/best_netG.pt",
            purpose="BigVGAN, MMAudio's vocoder at 16 kHz",
            licence="MIT",
            size=449_000_000,
            repository=_MMAUDIO,
            prefix=r"generator\.",
        ),
        WeightFile(
            key="bigvgan_44k",
            path="bigvgan_generator.pt",
            purpose="BigVGAN v2, MMAudio's vocoder at 44.1 kHz",
            licence="MIT",
            size=489_000_000,
            repository="nvidia/bigvgan_v2_44khz_128band_512x",
            prefix=r"generator\.",
        ),
        WeightFile(
            key="dfn5b",
            path="DFN5B-CLIP-ViT-H-14-378",
            purpose="DFN5B CLIP ViT-H/14, MMAudio's frame and text features",
            licence="Apple sample code licence",
            size=3_950_000_000,
            repository="apple/DFN5B-CLIP-ViT-H-14-378",
            patterns=("open_clip_config.json",),
            layouts=OPEN_CLIP_LAYOUTS,
        ),
        *(
            WeightFile(
                key=f"mmaudio_tiny_{network}",
                path=f"mmaudio-tiny/{network}.safetensors",
                purpose=f"{words} of the preset mmaudio-tiny, random",
                licence=_OWN,
                size=None,
                is_random=True,
            )
            for network, words in (
                ("clip", "CLIP"),
                ("synchformer", "Synchformer"),
                ("dit", "transformer"),
                ("vae", "mel VAE"),
                ("vocoder", "vocoder"),
            )
        ),
        WeightFile(
            "tiny_dit", "tiny/mmdit.safetensors", "diffusion transformer of the tiny preset", _OWN, None
        ),
        WeightFile("tiny_vae", "tiny/vae.safetensors", "audio VAE of the tiny preset", _OWN, None),
        WeightFile(
            "tiny_synchformer", "tiny/synchformer.safetensors", "Synchformer of the tiny preset", _OWN, None
        ),
        WeightFile(
            "tiny_metaclip",
            "tiny/metaclip",
            "MetaCLIP of the tiny preset",
            _OWN,
            None,
            patterns=_CONFIG_AND_TOKENIZER,
        ),
        WeightFile("tiny_t5", "tiny/t5", "T5 of the tiny preset", _OWN, None, patterns=_CONFIG_AND_TOKENIZER),
    )
}


def weight_file(key: str) -> WeightFile:
    """Returns the entry of ``key``; raises `WeightsError` with the known keys if there is none."""
    if key not in WEIGHTS:
        raise WeightsError(f"{key}: no such weights; known are {', '.join(WEIGHTS)}")
    return WEIGHTS[key]


def weight_files(names: Collection[str], layouts: Layouts = WEIGHT_LAYOUTS) -> list[str]:
    """Returns those of a folder's file names that belong to the best layout present, index included."""
    for first, shard in layouts:
        if first in names:
            return [first, *sorted(name for name in names if shard is not None and shard.fullmatch(name))]
    return []


_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = _PACKAGE / "bundled"  # where a wheel puts the bundled files; a checkout has no such folder
_CHECKOUT = _PACKAGE.parent / "weights"


def bundled_dir() -> Path:
    """Returns the folder of the files that come with this project: ``tiny/`` and ``judges/``.

    In a checkout it is ``weights/``, where downloads go too. In an installed package it is inside the
    package, and nothing is written there.
    """
    return _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT


def restore_advice(path: Path) -> str:
    """Returns the end of a message: how to restore a bundled file that is missing or damaged."""
    if not path.is_relative_to(bundled_dir()):
        return "copy or export it again"
    return "restore it with git" if bundled_dir() == _CHECKOUT else "install thinksound-cog again"


def default_weights_dir() -> Path:
    """Returns ``$THINKSOUND_WEIGHTS``, else ``weights/`` of a checkout, else a folder in the user's cache.

    Raises `WeightsError` if a home folder is needed and there is none.
    """
    chosen = os.environ.get("THINKSOUND_WEIGHTS")
    try:
        if chosen:
            return Path(chosen).expanduser()
        if _CHECKOUT.is_dir() and not _INSTALLED.is_dir():
            return _CHECKOUT
        if sys.platform == "win32":
            cache = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        else:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:  # no home folder
        raise WeightsError(
            f"THINKSOUND_WEIGHTS={chosen or ''}: no home folder; name another there"
        ) from error
    return cache / "thinksound" / "weights"
