"""Render a few seconds of a bouncing ball to an MP4: ``render_clip.py OUT.mp4``."""

import sys
from fractions import Fraction

import av
import numpy as np

WIDTH, HEIGHT, FPS, SECONDS, RADIUS = 320, 240, 25, 4, 22
GRAVITY, RESTITUTION, FLOOR = 900.0, 0.78, HEIGHT - 30.0


def ball_positions() -> list[tuple[float, float]]:
    """Centre of the ball in each picture, integrated in steps of a thousandth of a second."""
    x, y, speed, positions = 40.0, 50.0, 0.0, []
    for millisecond in range(SECONDS * 1000):
        if millisecond % (1000 // FPS) == 0:
            positions.append((x, y))
        speed += GRAVITY / 1000
        x, y = x + 0.06, y + speed / 1000
        if y > FLOOR - RADIUS:
            y, speed = FLOOR - RADIUS, -speed * RESTITUTION
    return positions


def picture(x: float, y: float) -> np.ndarray:
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    image = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    image[:] = np.where((rows < FLOOR)[..., None], (188, 204, 214), (120, 84, 52))
    distance = np.hypot(columns - x, rows - y)
    shade = np.clip(1.1 - np.hypot(columns - x + 8, rows - y + 8) / (2.2 * RADIUS), 0.3, 1)
    ball = (shade[..., None] * (226, 72, 48)).astype(np.uint8)
    image[distance < RADIUS] = ball[distance < RADIUS]
    return image


def main(path: str) -> None:
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = Fraction(1, FPS)
        for index, (x, y) in enumerate(ball_positions()):
            frame = av.VideoFrame.from_ndarray(picture(x, y))
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


if __name__ == "__main__":
    main(sys.argv[1])
