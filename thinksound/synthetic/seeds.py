"""Which seeds of made data serve which purpose: what is measured was never trained on."""

from __future__ import annotations

HELD_OUT = range(1_000_000)  # evaluation, demo
TRAINING = range(1_000_000, 2_000_000)
JUDGES = range(2_000_000, 3_000_000)  # the classifiers of the evaluation
