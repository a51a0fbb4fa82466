"""The evaluation's networks in their published formats, at a small size with seeded values."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from parity.procedural import fill
from safetensors.torch import save_file
from support.reference import seeded
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import ASTConfig, ASTForAudioClassification, ClapConfig, ClapModel

from thinksound.evaluation.files.desync import predict_offsets
from thinksound.models.synchformer import SynchformerConfig
from thinksound.models.synchformer_audio import OffsetConfig
from thinksound.models.synchformer_offset import SynchformerOffset

AST, CLAP = "ast-finetuned-audioset-10-10-0.4593", "clap-htsat-unfused"
SYNCHFORMER = "synchformer_state_dict.pth"

SMALL_OFFSET = OffsetConfig(SynchformerConfig(embed_dim=48, depth=2, num_heads=4, image_size=32))
SMALL_AST = ASTConfig(
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=96,
    num_labels=12,  # type: ignore[call-arg]  # an argument of the base class, which the types leave out
)
SMALL_CLAP = ClapConfig(
    text_config={
        "vocab_size": 261,
        "max_position_embeddings": 80,
        "type_vocab_size": 1,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
    },
    audio_config={
        "patch_embeds_hidden_size": 16,
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [2, 2, 2, 2],
        "hidden_size": 128,
    },
    projection_dim=32,
)

# Names in the published file of the Audio Spectrogram Transformer, and in transformers, which reads it.
AST_NAMES = (
    ("encoder.layer.", "layers."),
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
)


def published_name(name: str) -> str:
    """Return the published name of a tensor of the library's Audio Spectrogram Transformer."""
    for published, ours in AST_NAMES:
        name = name.replace(ours, published)
    return name


def library_name(name: str) -> str:
    """Return the library's name of a published tensor: the reverse of `published_name`."""
    for published, ours in AST_NAMES:
        name = name.replace(published, ours)
    return name


def seeded_values(network: nn.Module, seed: str) -> dict[str, Tensor]:
    """Return a value for every tensor by its name; tensors of integers keep their values."""
    values = {}
    for name, tensor in network.state_dict().items():
        drawn = torch.as_tensor(fill(f"{seed}.{name}", tuple(tensor.shape)))
        values[name] = (drawn.abs() + 0.5 if name.endswith("running_var") else drawn).reshape(tensor.shape)
        if not tensor.is_floating_point():
            values[name] = tensor.clone()
    return values


def write_ast(weights: Path) -> dict[str, Tensor]:
    """Write the folder of the tagger; return its tensors by their published names."""
    folder = weights / AST
    folder.mkdir(parents=True)
    values = seeded_values(ASTForAudioClassification(SMALL_AST), "ast")
    tensors = {published_name(name): value for name, value in values.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    SMALL_AST.save_pretrained(folder)
    settings = {"feature_extractor_type": "ASTFeatureExtractor", "max_length": 1024, "num_mel_bins": 128}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return tensors


def write_clap(weights: Path) -> dict[str, Tensor]:
    """Write the folder of CLAP, with a tokenizer of single bytes; return its tensors."""
    folder = weights / CLAP
    folder.mkdir(parents=True)
    tensors = seeded_values(ClapModel(SMALL_CLAP), "clap")
    torch.save(tensors, folder / "pytorch_model.bin")
    SMALL_CLAP.save_pretrained(folder)
    settings = {
        "feature_extractor_type": "ClapFeatureExtractor",
        "frequency_min": 50,
        "frequency_max": 14_000,
        "truncation": "rand_trunc",
        "padding": "repeatpad",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    names = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "<mask>"]
    (folder / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return tensors


def write_synchformer(weights: Path) -> dict[str, Tensor]:
    """Write the checkpoint of Synchformer; return its tensors."""
    weights.mkdir(parents=True, exist_ok=True)
    tensors = seeded(SynchformerOffset(SMALL_OFFSET), "").state_dict()
    torch.save(tensors, weights / SYNCHFORMER)
    return tensors


def without_favourite(network: SynchformerOffset, frames: Tensor, waveform: Tensor) -> SynchformerOffset:
    """Return a copy that does not prefer one class for all inputs, as seeded values do.

    The mean logits for these inputs are subtracted from the bias of the last layer.
    """
    network, logits = copy.deepcopy(network), []
    with network.register_forward_hook(lambda module, inputs, output: logits.append(output)):
        predict_offsets(network, frames, waveform)
    network.transformer.off_head.bias.sub_(logits[0].mean(dim=0))
    return network
