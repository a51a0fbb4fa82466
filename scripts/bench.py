"""Measures time and peak memory of every stage of a request, and prints a table.

``--weights random`` fills networks of the real size with random values, so that no checkpoint is needed.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import torch
from torch import nn

import thinksound
from thinksound.checkpoints.load import network_of
from thinksound.commands.arguments import as_typed, number, whole
from thinksound.families.find import family_of, published_network
from thinksound.families.flow import FlowModel
from thinksound.families.protocol import TRANSFORMER
from thinksound.media.mux import mux
from thinksound.pipeline import Pipeline
from thinksound.presets import PRESETS, Preset, get_preset
from thinksound.request import Options
from thinksound.runtime.placement import Placement, detect_machine, make_plan
from thinksound.runtime.precision import DTYPES
from thinksound.sampling.guidance import guided_velocity

_TEXT = "a dog barks twice, then silence"


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--preset", choices=list(PRESETS), default="tiny", help="(default: tiny)")
    parser.add_argument(
        "--weights", default=None, metavar="DIR|random", help="folder of weight files, or random values"
    )
    parser.add_argument("--device", default="auto", help="as for `thinksound generate`")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    parser.add_argument("--offload", action="store_true")
    parser.add_argument(
        "--duration", type=number, default=9.0, metavar="S", help="seconds of video (default: 9)"
    )
    parser.add_argument(
        "--size", default="1280x720", help="of the video, 30 frames a second (default: 1280x720)"
    )
    parser.add_argument("--steps", type=whole, help="sampling steps (default: as the preset)")
    parser.add_argument("--repeat", type=whole, default=3, help="counted runs after a warm-up (default: 3)")
    arguments = parser.parse_args()
    try:
        run(arguments)
    except thinksound.ThinkSoundError as error:
        sys.exit(f"bench: error: {as_typed(error, arguments)}")


def run(arguments: argparse.Namespace) -> None:
    preset = get_preset(arguments.preset)
    start = time.perf_counter()
    if arguments.weights == "random":
        pipeline = random_pipeline(preset, arguments.device, arguments.dtype, arguments.offload)
    else:
        pipeline = thinksound.load(
            preset.name, arguments.weights, arguments.device, arguments.dtype, arguments.offload
        )
    setup = time.perf_counter() - start
    plan = pipeline.placement.plan
    print(f"preset {preset.name}, {arguments.duration:g} s of {arguments.size}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads, {platform.machine()}")
    for name, device in plan.devices.items():
        print(f"  {name:<12} {device}, {plan.dtypes[name]}{', offloaded' if plan.offload else ''}")
    for index, gpu in enumerate(detect_machine().gpus):
        print(f"  cuda:{index} is {gpu.name}")
    print(f"\n{'stage':<34} {'median s':>9} {'min':>9} {'max':>9} {'peak MiB':>9}")
    print(f"{'set-up':<34} {setup:9.3f} {'':>9} {'':>9} {peak_mib():9,.0f}")
    with tempfile.TemporaryDirectory() as folder:
        bench_stages(pipeline, render(Path(folder), arguments), arguments)


def bench_stages(pipeline: Pipeline, video: Path, arguments: argparse.Namespace) -> None:
    def row(stage: str, work: Callable[[], object], repeat: int = arguments.repeat) -> None:
        measure(stage, work, repeat)

    model, family, place = pipeline.model, pipeline.family, pipeline.placement.on_device
    decoded = pipeline.decode(video)
    with av.open(str(video)) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    row("decode, all views", lambda: pipeline.decode(video))
    for view in family.views:
        row(f"  one frame for view {view.name}", partial(view.pixels, picture))
    for reading in model.text_steps:
        with place(reading.network):
            row(f"{reading.text} ({reading.network})", partial(reading.encode, _TEXT))
    for seeing in model.frame_steps:
        with place(seeing.network):
            row(f"frames ({seeing.network})", partial(seeing.encode, decoded.frames[seeing.view]))
    features = pipeline.encode(decoded, _TEXT)
    row("all encoders", lambda: pipeline.encode(decoded, _TEXT))

    options = Options(arguments.steps, seed=0)
    guidance, steps = pipeline.preset.guidance_scale, arguments.steps or pipeline.preset.steps
    if isinstance(model, FlowModel):
        with place(TRANSFORMER), torch.inference_mode():
            device = model.transformer.sync_pos_emb.device
            given = [part.to(device) for part in model.conditions([features], decoded.duration_s)]
            noise = model.draw_noise(0, decoded.duration_s)[None].to(device)
            velocity = guided_velocity(model.transformer, given, noise.shape[-1], guidance)
            row(
                "condition projection",
                lambda: guided_velocity(model.transformer, given, noise.shape[-1], guidance),
            )
            row(f"one transformer step, guidance {guidance:g}", lambda: velocity(noise, 0.5))
    row(f"sampling, {steps} steps", lambda: pipeline.sample(features, decoded.duration_s, options))
    latents = pipeline.sample(features, decoded.duration_s, Options(1, seed=0)).latents
    row("latents to sound", lambda: pipeline.decode_audio(latents))
    pcm = pipeline.finish(pipeline.decode_audio(latents), decoded.duration_s)
    output = video.with_name("out.mp4")
    row("mux", lambda: mux(decoded, pcm, family.sound.sample_rate, output, metadata={}))
    row("whole request", lambda: pipeline(video, _TEXT, options=options).save(output))


def measure(stage: str, work: Callable[[], object], repeat: int) -> None:
    """Run ``work`` once as a warm-up, then ``repeat`` times; print one row."""
    gpus = range(len(detect_machine().gpus))

    def wait() -> None:
        for index in gpus:
            torch.cuda.synchronize(index)

    work()
    for index in gpus:
        torch.cuda.reset_peak_memory_stats(index)
    seconds = []
    for _ in range(repeat):
        wait()
        start = time.perf_counter()
        work()
        wait()
        seconds.append(time.perf_counter() - start)
    middle, low, high = statistics.median(seconds), min(seconds), max(seconds)
    print(f"{stage:<34} {middle:9.3f} {low:9.3f} {high:9.3f} {peak_mib():9,.0f}", flush=True)


def peak_mib() -> float:
    """Peak memory of the tensors on all GPUs since the last reset; without GPUs, of the process so far."""
    on_gpus = sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
    unit = 1 if sys.platform == "darwin" else 1024  # bytes; the unit of ru_maxrss
    return (on_gpus or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit) / 2**20


def random_pipeline(preset: Preset, device: str, dtype: str, offload: bool) -> Pipeline:
    """The preset's networks at their real size, allocated on their devices with small random values."""
    plan = make_plan(detect_machine(), preset.networks, device, dtype, offload)

    def fill(network: nn.Module, name: str) -> None:
        where = "cpu" if plan.offload else plan.devices[name]
        network.to(getattr(torch, plan.dtypes[name]))
        for module in network.modules():
            for table in (module._parameters, module._buffers):
                for key, tensor in table.items():
                    if tensor is not None and tensor.is_meta:
                        values = torch.empty_like(tensor, device=where).normal_(std=0.02)
                        table[key] = nn.Parameter(values, requires_grad=False)
        network.to(where).train(False)

    family, placement = family_of(preset), Placement(plan)
    built = {name: published_network(family, name) for name in preset.networks}
    for name, network in built.items():
        module = family.placed(name, network)
        fill(module, name)
        placement.place(name, module)
        for part in network_of(network).modules():  # small ones beside what generation runs
            for key, tensor in part._buffers.items():
                if tensor is not None and tensor.is_meta:
                    part._buffers[key] = torch.ones_like(tensor, device="cpu")
    return Pipeline(preset, family.assemble(built), placement)


def render(folder: Path, arguments: argparse.Namespace) -> Path:
    """Write a test pattern as H.264."""
    path = folder / "pattern.mp4"
    graph = av.filter.Graph()
    pattern = f"size={arguments.size}:rate=30:duration={arguments.duration}"
    source, sink = graph.add("testsrc2", pattern), graph.add("buffersink")
    source.link_to(sink)
    graph.configure()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast"})
        stream.width, stream.height = (int(side) for side in arguments.size.split("x"))
        stream.pix_fmt = "yuv420p"
        while True:
            try:
                frame = graph.vpull()
            except (av.error.EOFError, av.error.BlockingIOError):
                break
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


if __name__ == "__main__":
    main()
