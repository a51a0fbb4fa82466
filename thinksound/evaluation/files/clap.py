"""CLAP: embeddings of sound and text in one space, through transformers.

Wu et al., https://arxiv.org/abs/2211.06687, without feature fusion. It takes 10 s. A shorter clip is repeated
as often as it fits, as in its training. A longer one is cut to its first 10 s here, because the library would
choose a part at random from the global random state.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import ClapFeatureExtractor, ClapModel, PreTrainedTokenizerBase, RobertaTokenizer

from ...encoders.pretrained import check_vocabulary
from .extractors import Heard, load_pretrained

TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_SPECIAL_POSITIONS = 2  # RoBERTa numbers positions from the padding token's id plus one


class Clap:
    """Both encoders with their preprocessing; follows the device of ``model``."""

    def __init__(
        self, model: ClapModel, features: ClapFeatureExtractor, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.model = model
        self.rate: int = features.sampling_rate
        self.window_s: float = features.max_length_s
        self._features = features
        self._tokenizer = tokenizer
        positions = model.text_model.embeddings.position_embeddings
        self._text_length = positions.num_embeddings - _SPECIAL_POSITIONS

    @torch.inference_mode()
    def __call__(self, waveform: Tensor) -> Heard:
        """The embedding ``(D,)``, of norm 1, of ``waveform (A,)``; see `Extractor`."""
        window = waveform[: round(self.window_s * self.rate)]
        inputs = self._features(window.numpy(), sampling_rate=self.rate, return_tensors="pt")
        spectrogram = inputs["input_features"].to(self.model.device, torch.float32)  # (1, 1, T, F)
        embedding: Tensor = self.model.get_audio_features(spectrogram).pooler_output
        return Heard(embedding[0].float().cpu(), torch.empty(0))

    @torch.inference_mode()
    def encode_text(self, text: str) -> Tensor:
        """The embedding ``(D,)``, of norm 1, of a text, which is cut to the network's maximum length."""
        tokens = self._tokenizer(text, max_length=self._text_length, truncation=True, return_tensors="pt").to(
            self.model.device
        )
        embedding: Tensor = self.model.get_text_features(
            tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
        return embedding[0].float().cpu()


def load_clap(weights_dir: Path) -> Clap:
    """Load CLAP on the CPU; raises WeightsError as `load_pretrained` does."""
    folder, model = load_pretrained(weights_dir, "clap", ClapModel, "clap", TOKENIZER_FILES)
    features = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
    tokenizer = RobertaTokenizer.from_pretrained(folder, local_files_only=True)
    check_vocabulary(folder, tokenizer, model.text_model.embeddings.word_embeddings)
    return Clap(model, features, tokenizer)
