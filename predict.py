"""Cog's way in: typed inputs, one call of the pipeline, one MP4.

Environment: THINKSOUND_PRESET (thinksound-light), THINKSOUND_WEIGHTS (weights/), THINKSOUND_DEVICE (auto),
THINKSOUND_DTYPE (auto), THINKSOUND_OFFLOAD (1 switches it on).
"""

import logging
import os
import pathlib
import resource
import sys
import tempfile
import time
from functools import partial

import torch
from cog import BasePredictor, CancelationException, Input, Path

import thinksound
from thinksound import InputError, Options, ThinkSoundError
from thinksound.checkpoints.download import download
from thinksound.checkpoints.registry import default_weights_dir
from thinksound.commands.progress import tenths
from thinksound.presets import DEFAULT_PRESET, NETWORKS, get_preset

logger = logging.getLogger("thinksound.predict")
log_progress = partial(logger.info, "%s %d/%d")


class Predictor(BasePredictor):
    def setup(self) -> None:
        """Fetch the weights that are missing, load the networks, and run each of them once."""
        logging.basicConfig(stream=sys.stdout, format="%(message)s")
        logging.getLogger("thinksound").setLevel(logging.INFO)
        # Cog puts inputs into the temporary folder and forgets those whose download breaks off. It reads
        # the output after predict() has returned and never deletes it. So this process gets a temporary
        # folder of its own, which every request clears.
        self.folder = tempfile.TemporaryDirectory(prefix="thinksound-")
        tempfile.tempdir = self.folder.name

        preset = get_preset(os.environ.get("THINKSOUND_PRESET", DEFAULT_PRESET))
        weights = default_weights_dir()
        download(weights, preset.weights.values(), tenths(log_progress))
        self.pipeline = thinksound.load(
            preset.name,
            weights,
            device=os.environ.get("THINKSOUND_DEVICE", "auto"),
            dtype=os.environ.get("THINKSOUND_DTYPE", "auto"),
            offload=os.environ.get("THINKSOUND_OFFLOAD", "").lower() in ("1", "true", "yes"),
        )
        plan = self.pipeline.placement.plan
        places = (f"{network} {plan.devices[network]} {plan.dtypes[network]}" for network in NETWORKS)
        logger.info("thinksound %s, preset %s: %s", thinksound.__version__, preset.name, ", ".join(places))

        self.pipeline.warm_up()
        for device in sorted(set(plan.devices.values()) - {"cpu"}):
            peak, name = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_name(device)
            logger.info("%s (%s): %.1f GB used at most", device, name, peak / 1e9)
        logger.info("main memory: %.1f GB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)

    def predict(
        self,
        video: Path = Input(description="Video without sound: MP4, MOV, MKV, WebM or GIF, up to 3 minutes"),
        caption: str = Input(default="", description="What is heard, in a few words"),
        cot: str = Input(default="", description="The sound described step by step; empty uses the caption"),
        cfg_scale: float | None = Input(
            default=5.0, ge=1.0, le=20.0, description="How strongly texts and pictures guide; for tiny give 4"
        ),
        num_inference_steps: int = Input(
            default=24, ge=10, le=100, description="Sampling steps: more is slower and cleaner"
        ),
        seed: int | None = Input(
            default=None, description="0 to 4294967295: the same gives the same sound; empty draws one"
        ),
        duration: float | None = Input(
            default=None, ge=0.1, le=180.0, description="Use this many seconds from the start; empty uses all"
        ),
    ) -> Path:
        """Generate the sound of a video."""
        if not isinstance(video, pathlib.Path):  # Cog hands on what is no URL as it came
            raise InputError(f"video {repr(video)[:100]} is no URL; give an http, https or data URL")
        self._remove_leftovers(video)
        output = Path(self.folder.name) / "thinksound.mp4"
        try:
            options = Options(num_inference_steps, cfg_scale, seed, duration)
            result = self.pipeline(video, caption, cot, options, tenths(log_progress))
            start = time.perf_counter()
            notes = (*result.notes, *result.save(output))
            timings = result.timings | {"mux": time.perf_counter() - start}
        except ThinkSoundError as error:  # shown without the name that Cog gave the input
            raise type(error)(str(error).replace(str(video), "video")) from None
        except BaseException as error:
            if not isinstance(error, CancelationException):
                logger.exception("this is a bug in thinksound")  # Cog reports no traceback
            raise
        for note in notes:
            logger.info("note: %s", note)
        logger.info("seed %d", result.seed)
        metrics = {f"timing.{stage}": round(seconds, 3) for stage, seconds in timings.items()}
        metrics["steps"], metrics["seed"] = options.num_inference_steps, result.seed
        metrics["audio_seconds"] = result.pcm.shape[1] / result.sample_rate
        for name, value in metrics.items():
            self.record_metric(name, value)
        return output

    def _remove_leftovers(self, video: pathlib.Path) -> None:
        for path in pathlib.Path(self.folder.name).iterdir():
            if path.is_file() and path != video:
                path.unlink()
