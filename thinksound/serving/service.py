"""What the predictors for Cog share: set-up from the environment, running a request, logs and metrics."""

from __future__ import annotations

import logging
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from .. import __version__
from ..checkpoints.download import download
from ..checkpoints.registry import default_weights_dir
from ..errors import InputError, ThinkSoundError, printable
from ..loading import load
from ..pipeline import Pipeline
from ..presets import DEFAULT_PRESET, PRESETS, get_preset
from ..progress import tenths
from ..result import Result
from .coglet import SCHEMA, accept_null
from .inputs import Limits, fetch
from .worker import Worker

logger = logging.getLogger("thinksound.predict")
log_progress = partial(logger.info, "%s %d/%d")

BILLED = ("audio_output_duration_seconds", "video_output_duration_seconds")  # metrics that Replicate knows


class Served:
    """A pipeline served by Cog; a predictor inherits from this and from Cog's class, and adds its inputs."""

    default_preset = DEFAULT_PRESET
    families: ClassVar[tuple[str, ...]] = ("thinksound", "tiny")  # whose presets the inputs fit
    input_names: ClassVar[Mapping[str, str]] = {}  # option to input, where the names differ
    cancelled: type[BaseException]  # the exception that Cog raises in a request that is cancelled
    record_metric: Callable[[str, Any], None]  # a method of Cog's class

    worker: Worker
    limits: Limits
    pipeline: Pipeline

    def setup(self) -> None:
        """Download missing weights, load the networks, and run each of them once."""
        logging.basicConfig(stream=sys.stdout, format="%(message)s")
        logging.getLogger("thinksound").setLevel(logging.INFO)
        self.worker = Worker()
        self.worker.start()
        self.limits = Limits.from_environment(os.environ)
        accept_null(SCHEMA)

        preset = get_preset(os.environ.get("THINKSOUND_PRESET", self.default_preset))
        if preset.family not in self.families:
            fitting = (name for name, each in PRESETS.items() if each.family in self.families)
            raise InputError(
                f"THINKSOUND_PRESET {preset.name} has other inputs than {type(self).__name__} of predict.py; "
                f"give one of {', '.join(fitting)}, or another class in cog.yaml"
            )
        weights = default_weights_dir()
        download(weights, preset.weights.values(), tenths(log_progress))
        self.pipeline = load(
            preset.name,
            weights,
            device=os.environ.get("THINKSOUND_DEVICE", "auto"),
            dtype=os.environ.get("THINKSOUND_DTYPE", "auto"),
            offload=os.environ.get("THINKSOUND_OFFLOAD", "").lower() in ("1", "true", "yes"),
        )
        plan = self.pipeline.placement.plan
        places = (f"{network} {plan.devices[network]} {plan.dtypes[network]}" for network in plan.devices)
        logger.info("thinksound %s, preset %s: %s", __version__, preset.name, ", ".join(places))

        self.pipeline.warm_up()
        for device in sorted(set(plan.devices.values()) - {"cpu"}):
            peak, name = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_name(device)
            logger.info("%s (%s): %.1f GB used at most", device, name, peak / 1e9)
        logger.info("main memory: %.1f GB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)

    def answer(
        self,
        sources: Mapping[str, object],
        ask: Callable[[Mapping[str, Path]], Result],
        sound_alone: str = "",
    ) -> Path:
        """Run one request, report notes, seed and metrics, and return the file with the result.

        Args:
            sources: what Cog passed for each input that is a file: a URL or a path.
            ask: makes the result; called with the files of ``sources`` by the names of the inputs.
            sound_alone: ending of the file if there is neither video nor image, such as ".flac".

        Raises:
            ThinkSoundError: with a message for the user, without names of temporary files.
        """
        files: dict[str, Path] = {}
        try:
            with self.worker.request() as folder:
                for name, source in sources.items():
                    if isinstance(source, Path):
                        files[name] = source
                    else:
                        files[name] = fetch(source, folder, self.limits, name)
                result = ask(files)
                start = time.perf_counter()
                has_picture = result.video is not None or result.image is not None
                output = self.worker.output(".mp4" if has_picture else sound_alone)
                notes = (*result.notes, *result.save(output))
                timings = result.timings | {"mux": time.perf_counter() - start}
        except ThinkSoundError as error:
            message = str(error)
            if isinstance(error, InputError):
                message = self._renamed(message, error.option)
            for name, path in files.items():
                message = message.replace(printable(str(path)), name)
            if message == str(error):
                raise
            raise type(error)(message) from None
        except BaseException as error:
            if not isinstance(error, self.cancelled):
                logger.exception("this is a bug in thinksound")  # Cog reports no traceback
            raise
        for note in notes:
            logger.info("note: %s", printable(self._renamed(note, note.partition(":")[0])))
        logger.info("seed %d", result.seed)
        metrics = {f"timing.{stage}": round(seconds, 3) for stage, seconds in timings.items()}
        metrics["steps"], metrics["seed"] = int(result.metadata["num_inference_steps"]), result.seed
        length = result.pcm.shape[1] / result.sample_rate
        metrics |= dict.fromkeys(("audio_seconds", *BILLED), length)
        for name, value in metrics.items():
            self.record_metric(name, value)
        return output

    def _renamed(self, message: str, option: str) -> str:
        """A message that begins with the name of an option, with what the model's inputs call that."""
        return self.input_names.get(option, option) + message.removeprefix(option)
