"""The predictors for Cog: each has typed inputs, calls the pipeline once and returns one file.

`cog.yaml` names the class. Environment variables, with their defaults: THINKSOUND_PRESET (the class's own),
THINKSOUND_WEIGHTS (weights/), THINKSOUND_DEVICE (auto), THINKSOUND_DTYPE (auto), THINKSOUND_OFFLOAD (off; 1
switches it on), THINKSOUND_MAX_INPUT_MB (2000), THINKSOUND_PRIVATE_URLS (off; 1 allows URLs of addresses that
are not public).
"""

from typing import ClassVar

from cog import BasePredictor, CancelationException, Input, Path

from thinksound import Options
from thinksound.progress import tenths
from thinksound.serving.coglet import fill_in
from thinksound.serving.service import Served, log_progress


class Predictor(Served, BasePredictor):
    """ThinkSound with the inputs of its published Cog model."""

    cancelled = CancelationException

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
        output = self.answer(
            {"video": video},
            lambda files: self.pipeline(
                files["video"],
                caption,
                cot,
                Options(num_inference_steps, cfg_scale, seed, duration),
                tenths(log_progress),
            ),
        )
        return Path(output)


class MMAudioPredictor(Served, BasePredictor):
    """MMAudio with the inputs of its published Cog model."""

    default_preset = "mmaudio-large-44k-v2"
    families = ("mmaudio",)
    input_names: ClassVar = {
        "caption": "prompt",
        "num_inference_steps": "num_steps",
        "cfg_scale": "cfg_strength",
    }
    cancelled = CancelationException

    def predict(
        self,
        prompt: str = Input(default="", description="What is heard, in a few words"),
        negative_prompt: str = Input(default="music", description="What is not to be heard"),
        video: Path | None = Input(
            default=None, description="Video without sound; empty makes the sound of the prompt or the image"
        ),
        duration: float = Input(
            default=8.0, ge=1.0, description="Seconds of sound, up to 180; a shorter video gets no more"
        ),
        num_steps: int = Input(default=25, description="Sampling steps, 1 to 100"),
        cfg_strength: float = Input(
            default=4.5, ge=1.0, description="How strongly prompt and pictures guide, up to 20"
        ),
        seed: int | None = Input(
            default=None, ge=-1, description="The same gives the same sound; empty or -1 draws one"
        ),
        image: Path | None = Input(
            default=None, description="Still image instead of a video; ignored where there is a video"
        ),
    ) -> Path:
        """Generate the sound of a video, of an image, or of a prompt alone."""
        prompt, negative_prompt, video, duration, num_steps, cfg_strength, seed, image = fill_in(
            self.predict, prompt, negative_prompt, video, duration, num_steps, cfg_strength, seed, image
        )
        sources = {"video": video} if video else {"image": image} if image else {}
        output = self.answer(
            sources,
            lambda files: self.pipeline(
                files.get("video"),
                prompt,
                options=Options(num_steps, cfg_strength, None if seed == -1 else seed, duration),
                progress=tenths(log_progress),
                negative_prompt=negative_prompt,
                image=files.get("image"),
            ),
            sound_alone=".flac",
        )
        return Path(output)


# Cog reads the types from the source when it builds the image, and as objects when a request comes. It would
# fetch a Path by itself; it passes a str on to fetch(), which has limits.
Predictor.predict.__annotations__["video"] = str
MMAudioPredictor.predict.__annotations__ |= {"video": str | None, "image": str | None}
