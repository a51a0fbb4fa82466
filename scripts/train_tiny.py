"""Run the recipe of the tiny model stage by stage, two processes at a time; see scripts/train-tiny."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from thinksound.commands.progress import Bars
from thinksound.training import recipe

# What does not need each other runs side by side; within a line, one after the other. A stage that stands
# alone is shared by all processes.
PLAN: tuple[tuple[tuple[str, ...], ...] | str, ...] = (
    (("make_films 1",), ("make_films 2",)),
    (("train_vae",), ("train_sync", "train_pictures", "train_texts")),
    "refine_vae",
    (("prepare 1",), ("prepare 2",)),
    "train_dit",
)


def run_stage(folder: Path, stage: str) -> None:
    """One stage in this process, on one thread."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    name, *part = stage.split()
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    bars = Bars(quiet=dist.is_initialized() and dist.get_rank() > 0)
    getattr(recipe, name)(folder, *map(int, part), progress=bars)
    if dist.is_initialized():
        dist.destroy_process_group()


def run_lines(folder: Path, lines: tuple[tuple[str, ...], ...]) -> None:
    """Lines of stages side by side, each stage in a process of its own."""
    command = [sys.executable, __file__, str(folder), "--stage"]
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


def run_shared(folder: Path, stage: str) -> None:
    """A stage in processes that train as one."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={recipe.PROCESSES}"]
    command = [*torchrun, "--standalone", __file__, str(folder), "--stage", stage]
    subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the bundled tiny model from nothing.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/tiny"), help="default: runs/tiny")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        run_stage(arguments.folder, arguments.stage)
        return
    recipe.start(arguments.folder)
    for step in PLAN:
        if isinstance(step, str):
            run_shared(arguments.folder, step)
        else:
            run_lines(arguments.folder, step)
    print(f"trained: {arguments.folder / 'weights' / 'tiny'}")


if __name__ == "__main__":
    main()
