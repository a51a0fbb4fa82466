"""`thinksound train`: clips or sounds in, a trained network out."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..presets import DEFAULT_PRESET, PRESETS
from ..training.options import (
    DTYPES,
    LORA_LEARNING_RATE,
    START_PRESET,
    DiTRun,
    FlowOptions,
    LoopOptions,
    LoRAOptions,
    Start,
    VAERun,
)
from .arguments import add_weights_dir, number, whole
from .progress import Bars

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
    _add_export(networks)
    _add_merge(networks)


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
    recipe.add_argument(
        "--batch",
        type=whole,
        default=FlowOptions.batch,
        metavar="N",
        help="clips of a step, all devices together (default: %(default)s)",
    )
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
    recipe.add_argument(
        "--weight-decay",
        type=number,
        default=FlowOptions.weight_decay,
        metavar="X",
        help="of AdamW (default: %(default)g)",
    )
    _add_schedule(recipe)
    recipe.add_argument(
        "--drop-one",
        type=number,
        default=FlowOptions.drop_one,
        metavar="X",
        help="chance of each of pictures, synchronisation, caption and chain of thought to be left out of a "
        "clip (default: %(default)g)",
    )
    recipe.add_argument(
        "--drop-all",
        type=number,
        default=FlowOptions.drop_all,
        metavar="X",
        help="chance of all to be left out, which guidance needs (default: %(default)g)",
    )
    lora = parser.add_argument_group("LoRA", "fine-tune small added matrices instead of all weights")
    lora.add_argument("--lora", action="store_true", help="needs the package peft; see `train export`")
    lora.add_argument(
        "--rank",
        type=whole,
        default=LoRAOptions.rank,
        metavar="N",
        help="of the matrices (default: %(default)s)",
    )
    lora.add_argument(
        "--alpha",
        type=whole,
        default=LoRAOptions.alpha,
        metavar="N",
        help="they count alpha / rank times (default: %(default)s)",
    )
    _add_run(parser)
    output = parser.add_argument_group("samples")
    output.add_argument(
        "--sample-every",
        type=whole,
        default=LoopOptions.sample_every,
        metavar="N",
        help="steps between WAV files of a few clips in RUN/samples (default: none)",
    )
    output.add_argument(
        "--samples",
        type=whole,
        default=DiTRun.samples,
        metavar="N",
        help="clips of each time (default: %(default)s)",
    )
    machine = _add_machine(parser)
    machine.add_argument(
        "--parts",
        type=whole,
        default=FlowOptions.parts,
        metavar="N",
        help="compute a device's share of a step in N parts: less memory, the same result "
        "(default: %(default)s)",
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


def _add_export(networks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = networks.add_parser(
        "export",
        help="write what a run has trained as weights for the other commands",
        description="Write the averaged weights of a run, an adapter merged, into a folder that "
        "`thinksound generate --weights DIR` takes; the preset's other networks are linked there.",
    )
    parser.set_defaults(run=_export, interrupted="nothing was written")
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--last", action="store_true", help="the weights of the last step instead of the averaged ones"
    )
    parser.add_argument(
        "--standardise",
        action="store_true",
        help="of a VAE: give its latents deviation one, for a transformer trained on them from scratch; one "
        "that is trained already needs them as they are",
    )
    _add_export_output(parser)


def _add_merge(networks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = networks.add_parser(
        "merge",
        help="merge an adapter into the weights that it was trained on",
        description="Write the transformer with an adapter in peft's format added to its weights, as "
        "`train export` does for a run.",
    )
    parser.set_defaults(run=_merge, interrupted="nothing was written")
    parser.add_argument("folder", type=Path, metavar="ADAPTER", help="folder with adapter_config.json")
    _add_preset(parser)
    _add_export_output(parser)


def _add_export_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="folder of weights, made if missing"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="number format of the file; every one loads everywhere (default: float32)",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="DIR",
        help="folder of the preset's other networks (default: that of the run, or the usual one)",
    )


def _add_start(parser: argparse.ArgumentParser) -> None:
    start = parser.add_argument_group("start")
    _add_preset(start)
    add_weights_dir(start)


def _add_preset(start: argparse._ActionsContainer) -> None:
    start.add_argument(
        "--preset", choices=list(PRESETS), default=DEFAULT_PRESET, help=f"(default: {DEFAULT_PRESET})"
    )
    start.add_argument(
        "--from",
        dest="source",
        default=START_PRESET,
        metavar="WHAT",
        help="preset: its weights; scratch: random ones; or a checkpoint or safetensors file of the "
        "preset's size (default: %(default)s)",
    )


def _add_steps(recipe: argparse._ArgumentGroup) -> None:
    recipe.add_argument("--steps", type=whole, required=True, metavar="N", help="train up to this step")
    recipe.add_argument(
        "--seed",
        type=whole,
        default=LoopOptions.seed,
        metavar="N",
        help="of everything that is drawn (default: %(default)s)",
    )


def _add_schedule(recipe: argparse._ArgumentGroup) -> None:
    recipe.add_argument(
        "--warmup",
        type=whole,
        default=LoopOptions.warmup,
        metavar="N",
        help="steps of rising learning rate (default: %(default)s)",
    )
    recipe.add_argument(
        "--final-rate",
        type=number,
        default=LoopOptions.final_rate,
        metavar="X",
        help="share of the learning rate at the last step, approached on a cosine; 1 keeps it constant "
        "(default: %(default)g)",
    )
    recipe.add_argument(
        "--ema",
        type=number,
        default=LoopOptions.ema_decay,
        metavar="X",
        help="decay of averaged weights (default: %(default)g)",
    )
    recipe.add_argument(
        "--clip",
        type=number,
        default=LoopOptions.clip_norm,
        metavar="X",
        help="largest norm of a gradient (default: %(default)g)",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    run = parser.add_argument_group("run")
    run.add_argument(
        "-o", "--output", type=Path, required=True, metavar="RUN", help="folder, made if missing"
    )
    run.add_argument(
        "--log-every",
        type=whole,
        default=LoopOptions.log_every,
        metavar="N",
        help="steps between rows of log.csv (default: %(default)s)",
    )
    run.add_argument("--tensorboard", action="store_true", help="log for TensorBoard as well")
    run.add_argument(
        "--validate-every",
        type=whole,
        default=LoopOptions.validate_every,
        metavar="N",
        help="steps between measurements on what is held out (default: %(default)s)",
    )
    run.add_argument(
        "--save-every",
        type=whole,
        default=LoopOptions.save_every,
        metavar="N",
        help="steps between checkpoints (default: %(default)s)",
    )
    run.add_argument("--keep", action="store_true", help="keep older checkpoints as well")
    run.add_argument("-q", "--quiet", action="store_true", help="no progress")


def _add_machine(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    machine = parser.add_argument_group(
        "machine", "several devices: torchrun, which starts a process for each"
    )
    machine.add_argument(
        "--device",
        default=DiTRun.device,
        metavar="D",
        help="auto, cpu, cuda or cuda:N (default: %(default)s)",
    )
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
    """The training that the arguments of ``train dit`` describe."""
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


def _export(arguments: argparse.Namespace) -> None:
    import torch

    from ..training.export import export_run

    written = export_run(
        arguments.folder,
        arguments.output,
        arguments.weights,
        getattr(torch, arguments.dtype),
        averaged=not arguments.last,
        standardised=arguments.standardise,
    )
    _say_written(written)


def _merge(arguments: argparse.Namespace) -> None:
    import torch

    from ..training.export import merge

    start = Start(arguments.source, arguments.weights)
    written = merge(
        arguments.folder, arguments.output, arguments.preset, start, getattr(torch, arguments.dtype)
    )
    _say_written(written)


def _say_written(written: Sequence[str]) -> None:
    path, *notes = written
    for note in notes:
        print(f"Note: {note}", file=sys.stderr)
    print(path)


class _Report(Bars):
    """Progress of a run and rows of its log; of several processes, the first one alone writes."""

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
