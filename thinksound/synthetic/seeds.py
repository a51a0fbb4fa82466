"""Which seeds of made data serve which purpose: what is measured was never trained on."""

from __future__ import annotations

HELD_OUT = range(1_000_000)
MEASURED = HELD_OUT[: len(HELD_OUT) // 2]  # evaluation, demo
STEERING = HELD_OUT[len(HELD_OUT) // 2 :]  # validation while something trains
TRAINING = range(1_000_000, 2_000_000)
JUDGES = range(2_000_000, 3_000_000)  # the classifiers of the evaluation
