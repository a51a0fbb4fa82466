"""Cog's way in: typed inputs, one call of the pipeline, one MP4.

Environment: THINKSOUND_PRESET (thinksound-light), THINKSOUND_WEIGHTS (weights/), THINKSOUND_DEVICE (auto),
THINKSOUND_DTYPE (auto), THINKSOUND_OFFLOAD (1 switches it on), THINKSOUND_MAX_INPUT_MB (2000),
THINKSOUND_PRIVATE_URLS (1 allows URLs of addresses that are not public).
"""

import logging
import os
import pathlib
import resource
import sys
import time
from functools import partial

import torch
from cog import BasePredictor, CancelationException, Input, Path

import thinksound
from thinksound import Options, ThinkSoundError
from thinksound.checkpoints.download import download
from thinksound.checkpoints.registry import default_weights_dir
from thinksound.errors import printable
from thinksound.presets import DEFAULT_PRESET, get_preset
from thinksound.progress import tenths
from thinksound.serving.coglet import SCHEMA, accept_null, fill_in
from thinksound.serving.inputs import Limits, fetch
from thinksound.serving.worker import OUTPUT, Worker

logger = logging.getLogger("thinksound.predict")
log_progress = partial(logger.info, "%s %d/%d")

BILLED = ("audio_output_duration_seconds", "video_output_duration_seconds")  # names that Replicate knows


class Predictor(BasePredictor):
    def setup(self) -> None:
        """Fetch the weights that are missing, load the networks, and run each of them once."""
        logging.basicConfig(stream=sys.stdout, format="%(message)s")
        logging.getLogger("thinksound").setLevel(logging.INFO)
        self.worker = Worker()
        self.worker.start()
        self.limits = Limits.from_environment(os.environ)
        accept_null(SCHEMA)

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
        places = (f"{network} {plan.devices[network]} {plan.dtypes[network]}" for network in plan.devices)
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
        cfg_scale: float = Input(
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
        caption, cot, cfg_scale, num_inference_steps, seed, duration = fill_in(
            self.predict, caption, cot, cfg_scale, num_inference_steps, seed, duration
        )
        path = None
        try:
            with self.worker.request() as folder:
                options = Options(num_inference_steps, cfg_scale, seed, duration)
                path = video if isinstance(video, pathlib.Path) else fetch(video, folder, self.limits)
                result = self.pipeline(path, caption, cot, options, tenths(log_progress))
                start = time.perf_counter()
                notes = (*result.notes, *result.save(folder / OUTPUT))
                timings = result.timings | {"mux": time.perf_counter() - start}
        except ThinkSoundError as error:  # shown without the name of the file in the temporary folder
            if path is None:
                raise
            raise type(error)(str(error).replace(printable(str(path)), "video")) from None
        except BaseException as error:
            if not isinstance(error, CancelationException):
                logger.exception("this is a bug in thinksound")  # Cog reports no traceback
            raise
        for note in notes:
            logger.info("note: %s", printable(note))
        logger.info("seed %d", result.seed)
        metrics = {f"timing.{stage}": round(seconds, 3) for stage, seconds in timings.items()}
        metrics["steps"], metrics["seed"] = num_inference_steps, result.seed
        length = result.pcm.shape[1] / result.sample_rate
        metrics |= dict.fromkeys(("audio_seconds", *BILLED), length)
        for name, value in metrics.items():
            self.record_metric(name, value)
        return Path(folder / OUTPUT)


# Cog reads the types as text when it builds the image, and as objects when a request comes: then it would
# fetch a Path by itself. A str is left to fetch(), which has limits.
Predictor.predict.__annotations__["video"] = str
