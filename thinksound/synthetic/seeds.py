"""Which seeds of made data serve which purpose: what is measured was never trained on."""

from __future__ import annotations

MEASURED = range(500_000)  # evaluation, demo
STEERING = range(500_000, 1_000_000)  # validation while something trains
TRAINING = range(1_000_000, 2_000_000)
JUDGES = range(2_000_000, 3_000_000)  # the classifiers of the evaluation
