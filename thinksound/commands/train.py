"""`thinksound train`: trains a network on prepared clips or on sounds."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from ..training.options import (
    DTYPES,
    LORA_LEARNING_RATE,
    DiTRun,
    FlowOptions,
    LoopOptions,
    LoRAOptions,
    Start,
    VAERun,
)
from . import train_export
from .arguments import (
    add_number,
    add_one_device,
    add_output_folder,
    add_quiet,
    add_weights_dir,
    number,
    whole,
)
from .progress import Bars
from .train_export import add_source

_RESUME = "the last checkpoint is whole, and the same command goes on from it"
_EXAMPLES = """\
examples:
  thinksound train dit --data prepared --validation prepared-test -o runs/mine --steps 5000
  thinksound train dit --preset tiny --from scratch --data prepared -o runs/tiny --steps 2000
  thinksound train export runs/mine -o my-weights && thinksound generate clip.mp4 --weights my-weights
  torchrun --nproc-per-node 4 -m thinksound train dit --data prepared -o runs/mine --steps 5000 --batch 32
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("train", help="train or fine-tune a network")
    networks = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_dit(networks)
    _add_vae(networks)
    train_export.add_parsers(networks)


def _add_dit(networks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = networks.add_parser(
        "dit",
        help="the transformer that turns noise into latents, on prepared clips",
        description="Train the transformer on what `thinksound prepare` made. It starts from the preset's "
        "weights, so without more this is fine-tuning. RUN keeps checkpoint, log and options; started again, "
        "it goes on where it was, bit for bit, and with more --steps it goes further.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run_dit, interrupted=_RESUME)
    data = parser.add_argument_group("data")
    data.add_argument("--data", type=Path, required=True, metavar="DIR", help="prepared clips")
    data.add_argument(
        "--validation", type=Path, metavar="DIR", help="prepared clips to measure on, not trained on"
    )
    _add_start(parser)
    recipe = parser.add_argument_group("recipe", "defaults are those of the published training where known")
    _add_steps(recipe)
    add_number(recipe, "--batch", FlowOptions.batch, "clips of a step, all devices together")
    recipe.add_argument(
        "--learning-rate",
        type=number,
        metavar="X",
        help=f"of AdamW (default: {FlowOptions.learning_rate:g}; with --lora {LORA_LEARNING_RATE:g})",
    )
    recipe.add_argument(
        "--betas",
        type=number,
        nargs=2,
        default=FlowOptions.betas,
        metavar="X",
        help=f"of AdamW (default: {FlowOptions.betas[0]} {FlowOptions.betas[1]})",
    )
    add_number(recipe, "--weight-decay", FlowOptions.weight_decay, "of AdamW")
    _add_schedule(recipe)
    add_number(
        recipe,
        "--drop-one",
        None,
        "chance of each of frames, synchronisation, caption and chain of thought to be left out of a clip "
        "(default: 0.2; of MMAudio, whose frames and synchronisation go together, 0.1)",
    )
    add_number(
        recipe,
        "--drop-all",
        None,
        "chance of all to be left out at once, which guidance needs (default: 0.1; of MMAudio 0)",
    )
    lora = parser.add_argument_group("LoRA", "fine-tune small added matrices instead of all weights")
    lora.add_argument("--lora", action="store_true", help="needs the package peft; see `train export`")
    add_number(lora, "--rank", LoRAOptions.rank, "of the matrices")
    add_number(lora, "--alpha", LoRAOptions.alpha, "they count alpha / rank times")
    _add_run(parser)
    output = parser.add_argument_group("samples")
    output.add_argument(
        "--sample-every",
        type=whole,
        default=LoopOptions.sample_every,
        metavar="N",
        help="steps between WAV files of a few clips in RUN/samples (default: none)",
    )
    add_number(output, "--samples", DiTRun.samples, "clips of each time")
    machine = _add_machine(parser)
    add_number(
        machine,
        "--parts",
        FlowOptions.parts,
        "compute a device's share of a step in N parts: less memory, the same result",
    )
    machine.add_argument(
        "--recompute",
        action="store_true",
        help="keep less for the backward pass and compute it again: less memory, a third more time",
    )


def _add_vae(networks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = networks.add_parser(
        "vae",
        help="the network that turns sound into latents and back, on a folder of sounds",
        description="Train the VAE on the audio and video files in a folder. It starts from the preset's "
        "weights. RUN keeps checkpoint, log and options; started again, it goes on where it was. Files "
        "that cannot be read are named and left out; one in twenty (32 at most) is held out to measure on.",
    )
    parser.set_defaults(run=_run_vae, interrupted=_RESUME)
    data = parser.add_argument_group("data")
    data.add_argument("--data", type=Path, required=True, metavar="DIR", help="audio and video files")
    _add_start(parser)
    recipe = parser.add_argument_group("recipe", "defaults differ from preset to preset")
    _add_steps(recipe)
    recipe.add_argument("--batch", type=whole, metavar="N", help="excerpts of a step, all devices together")
    recipe.add_argument("--excerpt", type=whole, metavar="N", help="latents of an excerpt")
    recipe.add_argument("--learning-rate", type=number, metavar="X", help="of AdamW")
    recipe.add_argument("--kl-weight", type=number, metavar="X", help="how strongly latents are made normal")
    recipe.add_argument(
        "--adversarial-from", type=whole, metavar="N", help="step from which a discriminator judges the sound"
    )
    _add_schedule(recipe)
    _add_run(parser)
    _add_machine(parser)


def _add_start(parser: argparse.ArgumentParser) -> None:
    start = parser.add_argument_group("start")
    add_source(start)
    add_weights_dir(start)


def _add_steps(recipe: argparse._ArgumentGroup) -> None:
    recipe.add_argument("--steps", type=whole, required=True, metavar="N", help="train up to this step")
    add_number(recipe, "--seed", LoopOptions.seed, "of everything that is drawn")


def _add_schedule(recipe: argparse._ArgumentGroup) -> None:
    add_number(recipe, "--warmup", LoopOptions.warmup, "steps of rising learning rate")
    add_number(
        recipe,
        "--final-rate",
        LoopOptions.final_rate,
        "share of the learning rate at the last step, approached on a cosine; 1 keeps it constant",
    )
    add_number(recipe, "--ema", LoopOptions.ema_decay, "decay of averaged weights")
    add_number(recipe, "--clip", LoopOptions.clip_norm, "largest norm of a gradient")


def _add_run(parser: argparse.ArgumentParser) -> None:
    run = parser.add_argument_group("run")
    add_output_folder(run, "RUN")
    add_number(run, "--log-every", LoopOptions.log_every, "steps between rows of log.csv")
    run.add_argument("--tensorboard", action="store_true", help="log for TensorBoard as well")
    add_number(
        run,
        "--validate-every",
        LoopOptions.validate_every,
        "steps between measurements on what is held out",
    )
    add_number(run, "--save-every", LoopOptions.save_every, "steps between checkpoints")
    run.add_argument("--keep", action="store_true", help="keep older checkpoints as well")
    add_quiet(run)


def _add_machine(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    machine = parser.add_argument_group(
        "machine", "several devices: torchrun, which starts a process for each"
    )
    add_one_device(machine)
    machine.add_argument(
        "--dtype",
        choices=DTYPES,
        default=DiTRun.dtype,
        help="of products; weights and sums stay float32 (default: auto, bfloat16 where the GPU has it)",
    )
    return machine


def _run_dit(arguments: argparse.Namespace) -> None:
    from ..training.runs import train_dit

    run = dit_run(arguments)
    with _Report(arguments.quiet, arguments.steps) as report:
        train_dit(run, report, report.row)
    report.done(arguments.output)


def dit_run(arguments: argparse.Namespace) -> DiTRun:
    """Return the training run that the arguments of ``train dit`` describe."""
    return DiTRun(
        preset=arguments.preset,
        data=arguments.data,
        folder=arguments.output,
        loop=_loop(arguments, arguments.sample_every),
        flow=FlowOptions(
            batch=arguments.batch,
            parts=arguments.parts,
            learning_rate=_rate(arguments),
            betas=tuple(arguments.betas),
            weight_decay=arguments.weight_decay,
            drop_one=arguments.drop_one,
            drop_all=arguments.drop_all,
        ),
        validation=arguments.validation,
        start=Start(arguments.source, arguments.weights),
        lora=LoRAOptions(arguments.rank, arguments.alpha) if arguments.lora else None,
        recompute=arguments.recompute,
        samples=arguments.samples,
        tensorboard=arguments.tensorboard,
        device=arguments.device,
        dtype=arguments.dtype,
    )


def _rate(arguments: argparse.Namespace) -> float:
    if arguments.learning_rate is not None:
        return float(arguments.learning_rate)
    return LORA_LEARNING_RATE if arguments.lora else FlowOptions.learning_rate


def _run_vae(arguments: argparse.Namespace) -> None:
    from ..training.runs import train_vae

    names = ("batch", "excerpt", "learning_rate", "kl_weight", "adversarial_from")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    run = VAERun(
        preset=arguments.preset,
        data=arguments.data,
        folder=arguments.output,
        loop=_loop(arguments),
        start=Start(arguments.source, arguments.weights),
        recipe=given,
        tensorboard=arguments.tensorboard,
        device=arguments.device,
        dtype=arguments.dtype,
    )
    with _Report(arguments.quiet, arguments.steps) as report:
        train_vae(run, report, report.row)
    report.done(arguments.output)


def _loop(arguments: argparse.Namespace, sample_every: int = 0) -> LoopOptions:
    return LoopOptions(
        steps=arguments.steps,
        seed=arguments.seed,
        warmup=arguments.warmup,
        final_rate=arguments.final_rate,
        ema_decay=arguments.ema,
        clip_norm=arguments.clip,
        log_every=arguments.log_every,
        validate_every=arguments.validate_every,
        save_every=arguments.save_every,
        sample_every=sample_every,
        keep=arguments.keep,
    )


class _Report(Bars):
    """Shows the progress of a run and rows of its log; of several processes, only the first one writes."""

    def __init__(self, quiet: bool, steps: int) -> None:
        self._speaks = os.environ.get("RANK", "0") == "0"
        super().__init__(quiet or not self._speaks)
        self._steps = steps
        self._latest: dict[str, str] = {}

    def done(self, folder: Path) -> None:
        if self._speaks:
            print(folder)

    def row(self, step: int, kind: str, row: Mapping[str, float]) -> None:
        prefix = "" if kind == "train" else f"{kind} "
        shown = {prefix + name.replace("_", " "): f"{value:.4g}" for name, value in row.items()}
        if sys.stderr.isatty():
            self._latest |= shown
            self.note("train", ", ".join(f"{name} {value}" for name, value in self._latest.items()))
        elif not self._quiet:
            line = "  ".join(f"{name} {value}" for name, value in shown.items())
            print(f"step {step}/{self._steps}  {line}", file=sys.stderr)
