"""The splits of synthetic clips, and which seeds serve which purpose.

Clips that are measured are never trained on. Light imports only: the command line reads this.
"""

from __future__ import annotations

# `make.make_scene` describes them.
SPLITS = ("standard", "hard")

MEASURED = range(500_000)  # evaluation, demo
STEERING = range(500_000, 1_000_000)  # validation during training
TRAINING = range(1_000_000, 2_000_000)
JUDGES = range(2_000_000, 3_000_000)  # the classifiers of the evaluation
