"""Generates the sound of a held-out synthetic clip with the tiny preset, and compares it with the truth.

Writes the silent clip, its true sound, the clip with the generated sound, and a picture of both sounds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

import thinksound
from thinksound.commands.arguments import as_typed, number, whole
from thinksound.evaluation.made.onsets import detect_onsets, match_onsets, true_onsets
from thinksound.evaluation.made.plot import plot_sound
from thinksound.media.files import make_folder
from thinksound.synthetic.clips import write_clip
from thinksound.synthetic.make import make_scene
from thinksound.synthetic.seeds import MEASURED, SPLITS
from thinksound.synthetic.sound import synthesise
from thinksound.synthetic.texts import describe

FIRST_BALL = 3  # number of the first held-out clip in which a ball bounces


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument(
        "--clip", type=whole, default=FIRST_BALL, metavar="N", help=f"which, from 0 (default: {FIRST_BALL})"
    )
    parser.add_argument("--split", choices=SPLITS, default=SPLITS[0], help=f"(default: {SPLITS[0]})")
    parser.add_argument("--steps", type=whole, default=24, help="sampling steps (default: 24)")
    parser.add_argument("--cfg-scale", type=number, metavar="X", help="guidance (default: the preset's)")
    parser.add_argument("--seed", type=whole, default=0, help="of the generated sound (default: 0)")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("outputs"), metavar="DIR", help="(default: outputs)"
    )
    arguments = parser.parse_args()
    try:
        run(arguments)
    except thinksound.ThinkSoundError as error:
        sys.exit(f"demo: error: {as_typed(error, arguments)}")


def run(arguments: argparse.Namespace) -> None:
    split, clip, folder = arguments.split, arguments.clip, arguments.output
    if clip not in MEASURED:
        raise thinksound.InputError(
            f"--clip {clip}: give 0 to {MEASURED[-1]}; the others trained tiny or steered its training"
        )
    options = thinksound.Options(arguments.steps, arguments.cfg_scale, arguments.seed)
    make_folder(folder)
    pipeline = thinksound.load("tiny")
    rate = pipeline.family.sound.sample_rate
    scene = make_scene(split, clip)
    caption, cot = describe(scene)
    video, _, _ = write_clip(scene, folder, f"{split}-{clip:06d}", rate, silent=True)
    print(f"Made      {video}: {caption}")

    result = pipeline(video, caption, cot, options)
    sound = video.with_stem(f"{video.stem}_sound")
    result.save(sound)
    print(f"Generated {sound} in {sum(result.timings.values()):.1f} s")

    generated = result.pcm.numpy().astype(np.float32) / np.float32(32768)
    truth = synthesise(scene, rate)
    onsets, heard = true_onsets(scene), detect_onsets(generated, rate)
    print(f"Onsets    {agreement(onsets, heard, detect_onsets(truth, rate))}")
    picture = sound.with_suffix(".png")
    plot_sound(picture, generated, truth, rate, onsets, heard, f"{caption} ({split} clip {clip})")
    print(f"Picture   {picture}")


def agreement(true: np.ndarray, heard: np.ndarray, heard_in_truth: np.ndarray) -> str:
    if not len(true):
        return "nothing strikes in this clip"
    near, far = (match_onsets(true, heard, tolerance) for tolerance in (0.05, 0.10))
    best = match_onsets(true, heard_in_truth, 0.05)
    places = f"{near.hits} of {near.true} within 50 ms, {near.found - near.hits} heard elsewhere"
    return f"{places}: F1 {near.f1:.2f}, at 100 ms {far.f1:.2f} (of the true sound {best.f1:.2f})"


if __name__ == "__main__":
    main()
