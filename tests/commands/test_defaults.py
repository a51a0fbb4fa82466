"""The command line's defaults are those of Python, so that a run is the same from both."""

from __future__ import annotations

from pathlib import Path

import pytest

from thinksound.cli import build_parser
from thinksound.commands.evaluate import evaluation_options
from thinksound.commands.train import dit_run
from thinksound.errors import InputError
from thinksound.evaluation.made.options import EvaluationOptions
from thinksound.presets import DEFAULT_PRESET
from thinksound.training.options import DiTRun, FlowOptions, LoopOptions, LoRAOptions

DIT = ["train", "dit", "--data", "clips", "-o", "run", "--steps", "7"]


def test_train_dit_starts_what_python_starts_by_default():
    arguments = build_parser().parse_args(DIT)
    assert dit_run(arguments) == DiTRun(
        DEFAULT_PRESET, Path("clips"), Path("run"), LoopOptions(7), FlowOptions()
    )


def test_an_adapter_has_its_own_learning_rate():
    run = dit_run(build_parser().parse_args([*DIT, "--lora"]))
    assert run.lora == LoRAOptions() and run.flow == FlowOptions(learning_rate=2e-4)
    run = dit_run(build_parser().parse_args([*DIT, "--lora", "--learning-rate", "3e-4"]))
    assert run.flow.learning_rate == 3e-4


def test_evaluate_made_measures_what_python_measures_by_default():
    arguments = build_parser().parse_args(["evaluate", "made", "-o", "out"])
    assert evaluation_options(arguments) == EvaluationOptions()


def test_weights_are_averaged_as_documented():
    assert LoopOptions(1).ema_decay == 0.9999


@pytest.mark.parametrize("dtype", ["auto", "float16", "half"])
def test_products_have_a_dtype_that_trains(dtype):
    with pytest.raises(InputError, match=f"dtype '{dtype}' is not known; give one of float32, bfloat16"):
        FlowOptions(dtype=dtype)
