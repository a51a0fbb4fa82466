"""Runs the recipe of the tiny model stage by stage, two processes at a time; see scripts/train-tiny."""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

from thinksound.commands.progress import Bars
from thinksound.errors import ThinkSoundError
from thinksound.training.log import LOG
from thinksound.training.processes import joined
from thinksound.training.tiny import recipe

# The lines of a step run side by side, and the stages of a line one after the other. All processes share a
# stage that is not in a line.
PARTS = range(1, recipe.PROCESSES + 1)
PLAN: tuple[tuple[tuple[str, ...], ...] | str, ...] = (
    tuple((f"make_films {part}",) for part in PARTS),
    (("train_vae",), ("train_sync", "train_pictures", "train_texts")),
    "refine_vae",
    tuple((f"prepare {part}",) for part in PARTS),
    "train_dit",
    "refine_dit",
)


# The logged values that show how each stage progresses: stage, kind, name, title.
CURVES = (
    ("vae", "validation", "frames", "VAE: distance of frames"),
    ("refined-vae", "validation", "frames", "VAE refined: weighted distance"),
    ("sync", "validation", "flux_correlation", "motion tower: correlation with flux"),
    ("pictures", "validation", "contrast", "MetaCLIP: contrastive loss"),
    ("texts", "train", "right", "T5: hidden words filled in rightly"),
    ("dit", "validation", "loss", "transformer: flow-matching loss"),
    ("refined-dit", "validation", "loss", "transformer refined: the same"),
)


def run_stage(folder: Path, stage: str, extent: recipe.Extent) -> None:
    """Run one stage in this process, on one thread."""
    torch.set_num_threads(1)
    name, *part = stage.split()
    try:
        with joined("cpu") as process, Bars(quiet=process.rank > 0) as bars:
            getattr(recipe, name)(folder, *map(int, part), extent=extent, progress=bars)
    except ThinkSoundError as error:
        sys.exit(f"train-tiny: error: {error}")


def run_lines(arguments: list[str], lines: tuple[tuple[str, ...], ...]) -> None:
    """Run lines of stages side by side, each stage in a process of its own."""
    command = [sys.executable, __file__, *arguments, "--stage"]
    waiting = [list(line) for line in lines]
    running: dict[int, subprocess.Popen[bytes]] = {}
    while any(waiting) or running:
        for number, line in enumerate(waiting):
            if line and number not in running:
                running[number] = subprocess.Popen([*command, line.pop(0)])
        number, process = next(iter(running.items()))
        try:
            failed = process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            running[number] = running.pop(number)  # look at the other one next
            continue
        del running[number]
        if failed:
            for other in running.values():
                other.terminate()
            sys.exit(f"a stage failed (exit status {failed}); run scripts/train-tiny again to go on")


def run_shared(arguments: list[str], stage: str) -> None:
    """Run one stage in several processes that train the same network."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={recipe.PROCESSES}"]
    command = [*torchrun, "--standalone", __file__, *arguments, "--stage", stage]
    # torchrun would set this itself, with a warning.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    if failed := subprocess.run(command, env=environment).returncode:
        sys.exit(f"a stage failed (exit status {failed}); run scripts/train-tiny again to go on")


def draw(folder: Path) -> None:
    """Write the logs of all stages as ``log.csv``, and draw `CURVES` as ``curve.png``."""
    rows = []
    for stage in dict.fromkeys(stage for stage, *_ in CURVES):
        with (folder / stage / LOG).open(newline="") as stream:
            rows += [{"stage": stage, **row} for row in csv.DictReader(stream)]
    with (folder / LOG).open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    figure = Figure(figsize=(14, 6), dpi=80, layout="constrained")
    panels = figure.subplots(2, 4).flatten()
    for axes in panels[len(CURVES) :]:
        axes.axis("off")
    for axes, (stage, kind, name, title) in zip(panels, CURVES, strict=False):
        shown = [row for row in rows if (row["stage"], row["kind"], row["name"]) == (stage, kind, name)]
        axes.plot([int(row["step"]) for row in shown], [float(row["value"]) for row in shown])
        axes.set(title=title, xlabel="step")
    figure.savefig(folder / "curve.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/train-tiny",
        description="Train the bundled tiny model from nothing; goes on where it was.",
    )
    parser.add_argument("folder", nargs="?", type=Path, help="default: runs/tiny, or runs/tiny-trial")
    parser.add_argument(
        "--trial",
        action="store_true",
        help="a few clips and two steps of every stage: shows that all of it runs",
    )
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.folder or Path("runs", "tiny-trial" if options.trial else "tiny")
    if options.stage:
        run_stage(folder, options.stage, recipe.TRIAL if options.trial else recipe.FULL)
        return
    recipe.start(folder)
    arguments = [str(folder), *(["--trial"] if options.trial else [])]
    for step in PLAN:
        if isinstance(step, str):
            run_shared(arguments, step)
        else:
            run_lines(arguments, step)
    draw(folder)
    print(f"trained: {folder / 'weights' / 'tiny'}")


if __name__ == "__main__":
    main()
