"""What names a synthetic clip: its split and its seed; and which seeds serve which purpose.

What is measured was never trained on. Light imports only: the command line reads this.
"""

from __future__ import annotations

# standard: one source, a calm picture; hard: two sources, with distractions (`make.make_scene`).
SPLITS = ("standard", "hard")

MEASURED = range(500_000)  # evaluation, demo
STEERING = range(500_000, 1_000_000)  # validation while something trains
TRAINING = range(1_000_000, 2_000_000)
JUDGES = range(2_000_000, 3_000_000)  # the classifiers of the evaluation
