"""The Audio Spectrogram Transformer, through transformers: a classifier for the 527 classes of AudioSet.

Gong et al., https://arxiv.org/abs/2104.01778. It takes 10.24 s; shorter clips are padded. Published
comparisons use PaSST, PANNs or VGGish; the values of different networks are not comparable.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor
from transformers import ASTFeatureExtractor, ASTForAudioClassification

from .extractors import Heard, load_pretrained

_FRAME_S = 0.01  # between the frames of its spectrogram


class Tagger:
    """The classifier with its preprocessing; follows the device of ``model``."""

    def __init__(self, model: ASTForAudioClassification, features: ASTFeatureExtractor) -> None:
        self.model = model
        self.rate: int = features.sampling_rate
        self.window_s: float = features.max_length * _FRAME_S
        self._features = features

    @torch.inference_mode()
    def __call__(self, waveform: Tensor) -> Heard:
        """Embedding and logits of ``waveform (A,)``; see `Extractor`."""
        inputs = self._features(waveform.numpy(), sampling_rate=self.rate, return_tensors="pt")
        spectrogram = inputs["input_values"].to(self.model.device)  # (1, T, F)
        embedding: Tensor = self.model.audio_spectrogram_transformer(spectrogram).pooler_output
        logits: Tensor = self.model.classifier(embedding)
        return Heard(embedding[0].float().cpu(), logits[0].float().cpu())


def load_tagger(weights_dir: Path) -> Tagger:
    """Load the tagger on the CPU; raises WeightsError as `load_pretrained` does."""
    folder, model = load_pretrained(
        weights_dir, "ast", ASTForAudioClassification, "audio-spectrogram-transformer"
    )
    with warnings.catch_warnings():
        # Its lowest mel bands are narrower than a frequency bin, as they were in its training.
        warnings.filterwarnings("ignore", message="At least one mel filter has all zero values")
        features = ASTFeatureExtractor.from_pretrained(folder, local_files_only=True)
    return Tagger(model, features)
