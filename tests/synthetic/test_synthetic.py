"""Synthetic clips: frames, sound and texts agree with the scene and with each other."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise

import av
import numpy as np
import pytest
import soundfile
from support.decoded import VIEWS, decode_video

from thinksound.cli import main
from thinksound.data.tables import read_table
from thinksound.errors import InputError
from thinksound.media.soundtrack import read_sound
from thinksound.synthetic.clips import make_clips, write_clip
from thinksound.synthetic.kinds import ENGINE_HZ, KINDS
from thinksound.synthetic.make import make_scene
from thinksound.synthetic.materials import MATERIALS
from thinksound.synthetic.modal import modes, strike
from thinksound.synthetic.motion import ball_height, falling, raised
from thinksound.synthetic.picture import render_frames
from thinksound.synthetic.scene import Background, Room, Scene, pan_of
from thinksound.synthetic.sound import constant_power, synthesise
from thinksound.synthetic.stream import scene_frames
from thinksound.synthetic.texts import describe

pytestmark = pytest.mark.slow

RATE = 16000
IMPULSIVE = [name for name, kind in KINDS.items() if kind.impulsive]
MAGENTA = (255, 0, 255)


def scenes_of(kind, count, split="standard"):
    """The first scenes of a split whose first source is of a kind."""
    found: list[Scene] = []
    seed = 0
    while len(found) < count:
        scene = make_scene(split, seed)
        if scene.sources[0].kind == kind:
            found.append(scene)
        seed += 1
    return found


def spectrogram(sound, size, hop):
    """Magnitudes (T, F); frame i is centred on sample i * hop."""
    padded = np.pad(sound, size // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    return np.abs(np.fft.rfft(frames * np.hanning(size), axis=1))


def detect_onsets(waveform, rate):
    """Onsets by spectral flux of compressed band levels, as peaks over a moving median."""
    hop = rate // 200  # 5 ms
    power = sum(spectrogram(channel, 512, hop) ** 2 for channel in waveform)  # (T, F)
    edges = np.unique(np.geomspace(2, power.shape[1], 25).astype(int))
    bands = np.stack([power[:, a:b].mean(axis=1) for a, b in pairwise(edges)])
    level = np.log1p(bands / bands.max() * 1e3)
    flux = np.maximum(level[:, 3:] - level[:, :-3], 0).sum(axis=0)
    flux = np.concatenate([np.zeros(3), flux])
    found: list[np.intp] = []
    for i in np.flatnonzero(flux > 0):
        near = flux[max(0, i - 10) : i + 11]
        around = np.median(flux[max(0, i - 60) : i + 61])
        if flux[i] == near.max() and flux[i] > around + 12 and (not found or i - found[-1] > 10):
            found.append(i)
    return np.array(found) * hop / rate


def matches(found, true, tolerance):
    """Pairs of detected and true onsets within a tolerance, each used once."""
    count, free = 0, list(found)
    for onset in true:
        near = [each for each in free if abs(each - onset) <= tolerance]
        if near:
            free.remove(min(near, key=lambda each: abs(each - onset)))
            count += 1
    return count


def calm(scene):
    """The same scene in front of a plain gray wall, its moving parts magenta."""
    wall = Background("plain", (128, 128, 128), (90, 90, 90), scene.background.floor_y, 0)
    source = scene.sources[0]
    source = replace(source, accent=MAGENTA, color=MAGENTA if source.kind == "ball" else (200, 200, 60))
    return replace(scene, background=wall, sources=(source,))


def magenta(frames):
    red, green, blue = np.moveaxis(frames.astype(int), -1, 0)
    return (red > 120) & (blue > 120) & (green < 100)


def test_the_true_sound_holds_the_true_onsets_and_few_others():
    hits = detected = true = 0
    for kind in IMPULSIVE:
        for scene in scenes_of(kind, 10):
            waveform = synthesise(scene, RATE)
            found, onsets = detect_onsets(waveform, RATE), scene.sources[0].onsets
            hits, detected, true = (
                hits + matches(found, onsets, 0.05),
                detected + len(found),
                true + len(onsets),
            )
            assert np.abs(waveform[:, : int(onsets[0] * RATE) - 1]).max() < 1e-9, (
                "sound before the first impact"
            )
    assert true > 200
    assert 2 * hits / (detected + true) >= 0.97
    assert detected - hits <= 0.02 * true


@pytest.mark.parametrize("kind", IMPULSIVE)
def test_the_picture_touches_when_the_sound_begins(kind):
    """The frame of each contact, read from the pixels, is within one frame of its onset."""
    checked = 0
    for scene in scenes_of(kind, 4):
        scene = calm(scene)
        frames, onsets = render_frames(scene), scene.sources[0].onsets
        if kind == "drops":
            water = (np.abs(frames.astype(int) - (70, 130, 220)).sum(axis=-1) < 60).sum(axis=1)  # (N, W)
            middle = round(float(scene.sources[0].x.at(0)) * scene.width)
            beside = np.abs(np.arange(scene.width) - middle) > 0.045 * scene.height
            seen = (water * beside).sum(axis=1).astype(float)  # the splash
        elif kind == "clock":
            mask = magenta(frames)
            seen = np.concatenate([[0], (mask[1:] ^ mask[:-1]).sum(axis=(1, 2))])  # the hand's jump
        elif kind == "footsteps":  # the higher of the two shoes
            seen = magenta(frames).any(axis=2).argmax(axis=1)
        else:  # the lower edge of ball or hammer
            seen = scene.height - magenta(frames).any(axis=2)[:, ::-1].argmax(axis=1)
        for onset, previous in zip(onsets, [-9.0, *onsets], strict=False):
            if (onset - previous) * scene.fps < 6 or (kind == "drops" and onset - previous < 0.4):
                continue  # too near to the one before to distinguish their frames
            start = max(0, round(onset * scene.fps) - 3)
            near = seen[start : round(onset * scene.fps) + 3]
            contact = start + int((near > 0).argmax() if kind == "drops" else near.argmax())
            assert abs(contact / scene.fps - onset) <= 1 / scene.fps + 1e-6, (scene.seed, onset)
            checked += 1
    assert checked >= 12


def test_sound_comes_from_where_the_picture_shows_it():
    places, pans = [], []
    for scene in scenes_of("ball", 8):
        scene = calm(scene)
        waveform, mask = synthesise(scene, RATE), magenta(render_frames(scene))
        for onset in scene.sources[0].onsets:
            frame = mask[min(round(onset * scene.fps), len(mask) - 1)]
            hit = waveform[:, int(onset * RATE) : int((onset + 0.03) * RATE)].astype(float)
            left, right = np.sqrt((hit**2).mean(axis=1))
            places.append(np.nonzero(frame)[1].mean() / scene.width)
            pans.append(np.arctan2(right, left) * 4 / np.pi - 1)
    assert np.corrcoef(places, pans)[0, 1] > 0.95
    expected = pan_of(np.array(places))
    assert np.median(np.abs(expected - pans)) < 0.1


@pytest.mark.parametrize("kind", ["engine", "rain", "slide"])
def test_what_sounds_on_is_panned_along_its_way(kind):
    places, pans = [], []
    for scene in scenes_of(kind, 8):
        waveform = synthesise(scene, RATE).astype(float)
        for t in np.arange(0.2, 3.6, 0.4):
            left, right = np.sqrt((waveform[:, int(t * RATE) : int((t + 0.1) * RATE)] ** 2).mean(axis=1))
            if left + right > 0.01:
                places.append(float(scene.sources[0].x.at(t + 0.05)))
                pans.append(np.arctan2(right, left) * 4 / np.pi - 1)
    assert len(places) > 20
    assert np.corrcoef(places, pans)[0, 1] > 0.9


def test_panning_keeps_the_power():
    pans = np.linspace(-1, 1, 9)
    assert np.allclose((constant_power(pans) ** 2).sum(axis=0), 1)
    assert np.allclose(constant_power(-1.0), [1, 0])


def test_engine_pitch_follows_its_curve_between_100_and_400_hz():
    errors = []
    for scene in scenes_of("engine", 8):
        sound, curve = synthesise(scene, RATE).sum(axis=0).astype(float), scene.sources[0].control
        assert ENGINE_HZ[0] <= min(curve.values) < 150 < 350 < max(curve.values) <= ENGINE_HZ[1]
        for t in np.arange(0.1, 3.8, 0.1):
            middle = round(t * RATE)
            window = sound[middle - 480 : middle + 480] * np.hanning(960)
            similar = np.fft.irfft(np.abs(np.fft.rfft(window, 2048)) ** 2)[:512]
            similar /= np.correlate(np.hanning(960), np.hanning(960), "full")[959 : 959 + 512]
            lags = np.arange(RATE // 430, RATE // 93)
            best = similar[lags].max()
            lag = next(
                n for n in lags if similar[n] > 0.9 * best and similar[n] >= similar[n - 1 : n + 2].max()
            )
            errors.append(abs(RATE / lag / float(curve.at(t)) - 1))
    assert np.median(errors) < 0.02
    assert np.mean(np.array(errors) < 0.06) > 0.95


@pytest.mark.parametrize("kind", ["rain", "slide"])
def test_level_follows_the_control_curve(kind):
    for scene in scenes_of(kind, 6):
        dry = replace(scene, room=Room("open air", 0.05, 0.0))
        sound, t = synthesise(dry, RATE).astype(float), np.arange(0.1, 3.8, 0.1)
        level = [np.sqrt((sound[:, int((s - 0.08) * RATE) : int((s + 0.08) * RATE)] ** 2).mean()) for s in t]
        assert np.corrcoef(level, scene.sources[0].control.at(t))[0, 1] > 0.9, scene.seed


def test_materials_are_told_apart_by_ear():
    """A nearest-neighbour classifier on band levels and decay, fitted to other clips, finds the material."""

    def heard(scene):
        sound = synthesise(scene, RATE).astype(float)
        events = scene.sources[0].events
        event = max(events, key=lambda each: each.strength)
        hit = sound[:, int(event.onset_s * RATE) : int((event.onset_s + 0.15) * RATE)]
        power = sum(spectrogram(channel, 512, 160) ** 2 for channel in hit)
        edges = np.geomspace(2, 257, 13).astype(int)
        bands = np.stack([power[:, a:b].sum(axis=1) for a, b in pairwise(edges)])
        bands /= bands.sum()
        return np.concatenate(
            [np.log10(bands.sum(axis=1) + 1e-3), 2 * np.log10(bands.sum(axis=0)[[4, 8, 12]] + 1e-3)]
        )

    features, labels = [], []
    for kind in IMPULSIVE:
        for scene in scenes_of(kind, 30):
            features.append(heard(scene))
            labels.append((kind, scene.sources[0].material))
    points = np.array(features)
    right = 0
    for i, point in enumerate(points):
        distance = np.linalg.norm(points - point, axis=1)
        distance[i] = np.inf
        nearest = np.argsort(distance)[:3]
        votes = [labels[n][1] for n in nearest]
        right += max(votes, key=votes.count) == labels[i][1]
    assert right / len(points) > 0.85


def level_and_centroid(sound):
    power = np.abs(np.fft.rfft(sound, 1 << 16)) ** 2
    return np.sqrt((sound**2).sum()), (power * np.fft.rfftfreq(1 << 16, 1 / RATE)).sum() / power.sum()


@pytest.mark.parametrize("name", MATERIALS)
def test_size_lowers_the_pitch_and_force_raises_level_and_brightness(name):
    def hit(size, strength):
        return strike(MATERIALS[name], 1.0, 1.0, size, strength, RATE, np.random.default_rng(5))

    soft, hard = level_and_centroid(hit(1.0, 0.4)), level_and_centroid(hit(1.0, 1.0))
    assert hard[0] > 1.5 * soft[0]
    assert hard[1] > 1.02 * soft[1]
    small, large = (level_and_centroid(hit(size, 0.6))[1] for size in (0.7, 1.4))
    assert large < 0.9 * small
    low, high = modes(MATERIALS[name], 1.0, 1.4, RATE)[0], modes(MATERIALS[name], 1.0, 0.7, RATE)[0]
    assert np.allclose(low[: len(high)] * 2, high)


def test_a_larger_room_answers_longer():
    scene = scenes_of("clock", 1)[0]
    event = scene.sources[0].events[0]
    scene = replace(scene, sources=(replace(scene.sources[0], material="stone", events=(event,)),))
    early, late = [], []
    for room in (Room("open air", 0.05, 0.0), Room("living room", 0.4, 0.14), Room("church", 1.6, 0.2)):
        power = (synthesise(replace(scene, room=room), RATE)[:, int(event.onset_s * RATE) :] ** 2).sum(axis=0)
        early.append(float(power[int(0.3 * RATE) : int(0.8 * RATE)].sum()))
        late.append(float(power[int(0.8 * RATE) : int(1.3 * RATE)].sum()))
    assert early[0] < 0.01 * early[1] < 0.001 * early[2]
    assert 10 * np.log10(early[2] / late[2]) == pytest.approx(60 * 0.5 / 1.6, abs=3)  # dB in half a second


def test_everything_appears_and_varies():
    for split in ("standard", "hard"):
        scenes = [make_scene(split, seed) for seed in range(120)]
        sources = [source for scene in scenes for source in scene.sources]
        assert {source.kind for source in sources} == set(KINDS)
        assert {source.material for source in sources} == set(MATERIALS)
        assert {(s.kind, s.material) for s in sources} >= {("ball", m) for m in MATERIALS}
        assert 0.35 < np.mean([source.color_tells for source in sources]) < 0.65
        assert {12, 60} <= {scene.fps for scene in scenes}
        assert len({(scene.width, scene.height) for scene in scenes}) == 7
        assert len({scene.background.style for scene in scenes}) == 5
        assert len({scene.room.name for scene in scenes}) == 5


@pytest.mark.parametrize("split", ["standard", "hard"])
def test_frames_and_sound_have_the_same_length_and_are_sound(split):
    for clip in make_clips(split, range(5), RATE):
        scene, frames, waveform = clip.scene, clip.frames, clip.waveform
        assert frames.dtype == np.uint8
        assert frames.shape == (scene.frame_count, scene.height, scene.width, 3)
        assert waveform.dtype == np.float32
        assert waveform.shape == (2, round(len(frames) / scene.fps * RATE)) == (2, 4 * RATE)
        assert np.isfinite(waveform).all()
        assert 0.05 < np.abs(waveform).max() < 1
        changed = (frames[1:] != frames[:-1]).any(axis=(1, 2, 3))
        assert changed.mean() > 0.2, (scene.seed, "nothing moves")
        assert (clip.caption, clip.cot) == describe(scene)


def test_other_durations_and_rates():
    scene = make_scene("hard", 3, duration_s=2.5)
    assert len(render_frames(scene)) == scene.frame_count == round(2.5 * scene.fps)
    assert synthesise(scene).shape == (2, round(scene.duration_s * 44100))
    assert synthesise(scene, 22050).shape == (2, round(scene.duration_s * 22050))


def test_equal_seeds_give_equal_bytes_in_another_process_too():
    code = (
        "import hashlib; from thinksound.synthetic.clips import make_clips\n"
        "for c in make_clips('hard', [7, 8], 16000):\n"
        "  text = repr(c.scene) + c.caption + c.cot\n"
        "  data = text.encode() + c.frames.tobytes() + c.waveform.tobytes()\n"
        "  print(hashlib.sha256(data).hexdigest())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert len(set(runs[0].split())) == 2
    assert make_scene("standard", 7) != make_scene("hard", 7)


def test_texts_name_kind_material_and_room():
    kind_words = {
        "ball": "ball",
        "hammer": "hammer",
        "clock": "clock",
        "footsteps": "footsteps",
        "drops": "drops",
        "engine": "engine",
        "rain": "rain",
        "slide": "sliding",
    }
    wordings = set()
    for seed in range(80):
        scene = make_scene("hard" if seed % 2 else "standard", seed)
        caption, cot = describe(scene)
        for source in scene.sources:
            for text in (caption, cot):
                assert kind_words[source.kind] in text.lower(), text
                assert MATERIALS[source.material].adjective in text.lower(), text
        assert scene.room.name.split()[-1] in cot
        assert cot.endswith(".") and ".." not in cot and "  " not in cot and "{" not in cot
        wordings |= {caption, cot}
    assert len(wordings) > 150


def test_texts_for_another_material_differ_in_nothing_else():
    for kind in ("ball", "hammer", "footsteps", "drops", "rain", "slide"):
        for scene in scenes_of(kind, 3):
            true, other = scene.sources[0].material, "glass"
            if true == other:
                other = "wood"
            for before, after in zip(describe(scene), describe(scene, [other]), strict=True):
                assert MATERIALS[other].adjective in after
                swapped = before
                for old, new in (
                    (MATERIALS[true].adjective, MATERIALS[other].adjective),
                    (MATERIALS[true].heard, MATERIALS[other].heard),
                ):
                    swapped = swapped.replace(old, new)
                assert swapped == after != before


def test_materials_that_do_not_fit_are_refused():
    ball = scenes_of("ball", 1)[0]
    with pytest.raises(InputError, match="2 materials for 1 sources"):
        describe(ball, ["wood", "metal"])
    with pytest.raises(InputError, match="material 'cheese' for ball: use wood"):
        describe(ball, ["cheese"])
    with pytest.raises(InputError, match="material 'wood' for engine: use metal"):
        describe(scenes_of("engine", 1)[0], ["wood"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("soft", 0), "split 'soft': use standard or hard"),
        (("hard", -1), "seed -1 is out of range; give a whole number from 0 to 4294967295"),
        (("hard", 0, 1.0), "duration 1 s: use 2 to 30 s"),
        (("hard", 0, float("nan")), "duration nan s"),
    ],
)
def test_scenes_that_cannot_be_made(arguments, message):
    with pytest.raises(InputError, match=message):
        make_scene(*arguments)


def test_standard_scenes_have_one_source_and_a_calm_picture():
    for seed in range(60):
        scene = make_scene("standard", seed)
        assert len(scene.sources) == 1
        assert not (scene.distractors or scene.occluder or scene.jitter or scene.sources[0].misses)


def test_hard_scenes_have_two_sources_that_sound_and_distractions_that_do_not():
    scenes = [make_scene("hard", seed) for seed in range(60)]
    for scene in scenes:
        left, right = sorted(scene.sources, key=lambda each: each.x.values[0])
        assert left.kind != right.kind
        assert max(left.x.values) < 0.5 < min(right.x.values)
        assert 1 <= len(scene.distractors) <= 2
    assert 0.3 < np.mean([scene.occluder is not None for scene in scenes]) < 0.9
    assert 0.3 < np.mean([scene.jitter > 0 for scene in scenes]) < 0.95
    scene = next(s for s in scenes if s.jitter and s.occluder)
    whole, frames = synthesise(scene, RATE), render_frames(scene)
    for source in scene.sources:
        alone = replace(scene, sources=(source,))
        assert not np.allclose(synthesise(alone, RATE), whole, atol=1e-3)
        assert (render_frames(alone) != frames).any()
    for change in ({"distractors": ()}, {"occluder": None}, {"jitter": 0.0}):
        assert (synthesise(replace(scene, **change), RATE) == whole).all()
        assert (render_frames(replace(scene, **change)) != frames).any(), change


@pytest.mark.parametrize("kind", ["hammer", "drops"])
def test_near_misses_are_seen_and_not_heard(kind):
    scene = next(s for s in scenes_of(kind, 12, "hard") if s.sources[0].misses)
    source = scene.sources[0]
    without = replace(scene, sources=(replace(source, misses=()), *scene.sources[1:]))
    assert (synthesise(scene, RATE) == synthesise(without, RATE)).all()
    assert (render_frames(scene) != render_frames(without)).any()
    miss = source.misses[0]
    if kind == "hammer":
        assert 0.3 < raised(source, miss) < 0.9
        assert raised(source, source.events[0].onset_s) < 0.01
    else:
        assert (True in [missed for _, missed in falling(source, miss)]) is True


def test_a_ball_flies_freely_between_its_bounces():
    for scene in scenes_of("ball", 6):
        source = scene.sources[0]
        for onset in source.onsets:
            for t in (onset - 1e-4, onset):
                assert ball_height(source, float(t)) == pytest.approx(0, abs=1e-3)
        start, end = source.onsets[:2]
        t = np.linspace(start, end, 41)[1:-1]
        bend = np.diff([ball_height(source, float(s)) for s in t], 2) / (t[1] - t[0]) ** 2
        assert np.allclose(bend, -2 * source.reach / source.lead_s**2, rtol=1e-2)


def test_files_open_again_and_hold_the_truth(tmp_path):
    scene = make_scene("hard", 11)
    video, sound, truth = write_clip(scene, tmp_path, "clip", RATE, silent=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.json", "clip.mp4", "clip.wav"]
    with av.open(video) as container:
        (stream,) = container.streams
        assert (stream.type, stream.codec_context.name) == ("video", "h264")
        assert stream.average_rate == scene.fps
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    rendered = render_frames(scene)
    assert frames.shape == rendered.shape
    assert np.abs(frames.astype(int) - rendered).mean() < 6
    samples, rate = soundfile.read(sound)
    assert rate == RATE
    assert np.abs(samples.T - synthesise(scene, RATE)).max() < 1e-4
    record = json.loads(truth.read_text())
    assert (record["caption"], record["cot"]) == describe(scene)
    assert record["sample_rate"] == RATE
    assert record["scene"]["seed"] == 11
    for written, source in zip(record["scene"]["sources"], scene.sources, strict=True):
        assert written["kind"] == source.kind
        assert [event["onset_s"] for event in written["events"]] == list(source.onsets)


def test_the_video_holds_its_sound(tmp_path):
    scene = make_scene("standard", 3)
    video, sound, _ = write_clip(scene, tmp_path, "clip", RATE)
    heard, truth = read_sound(video, RATE, 60), read_sound(sound, RATE, 60)
    assert heard.has_pictures and heard.start_s == pytest.approx(0, abs=1e-3)
    length = truth.waveform.shape[1]
    error = heard.part(0.0, length, RATE) - truth.waveform
    assert error.norm() < 0.2 * truth.waveform.norm()  # AAC; a shift of one sample gives 0.5 and more


def test_make_data_writes_clips_and_says_where(tmp_path, capsys):
    folder = tmp_path / "made" / "here"
    assert main(["make-data", "--count", "2", "--seed", "40", "-o", str(folder), "-q"]) == 0
    assert capsys.readouterr() == (f"{folder}\n", "")
    clips = {f"standard-{seed:06d}.{end}" for seed in (40, 41) for end in ("mp4", "wav", "json")}
    assert {path.name for path in folder.iterdir()} == {*clips, "captions.csv"}
    record = json.loads((folder / "standard-000041.json").read_text())
    assert record["caption"] == describe(make_scene("standard", 41))[0]


def test_make_data_adds_to_its_table_and_replaces_no_other(tmp_path, capsys):
    for seed in ("41", "40"):
        assert main(["make-data", "--count", "1", "--seed", seed, "-o", str(tmp_path), "-q"]) == 0
    sources = read_table(tmp_path / "captions.csv", tmp_path)
    assert [source.name for source in sources] == ["standard-000040.mp4", "standard-000041.mp4"]
    assert all(source.path.is_file() for source in sources)
    assert [(s.caption, s.cot) for s in sources] == [describe(make_scene("standard", n)) for n in (40, 41)]
    (tmp_path / "captions.csv").write_text("name,words\n")
    assert main(["make-data", "--count", "1", "--seed", "42", "-o", str(tmp_path), "-q"]) == 1
    assert "captions.csv: not a table that make-data wrote" in capsys.readouterr().err
    assert (tmp_path / "captions.csv").read_text() == "name,words\n"
    assert not (tmp_path / "standard-000042.mp4").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "0"], "--count 0: give 1 or more"),
        (["--seed", "-1"], "--seed -1: 10 clips need a seed from 0 to 4294967286"),
        (["--count", "1", "-o", "file/in"], "file/in: cannot be made a folder"),
    ],
)
def test_make_data_refuses_what_it_cannot_do(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way of a folder")
    assert main(["make-data", "-o", ".", *arguments, "-q"]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_interrupt_leaves_whole_files(tmp_path):
    command = [sys.executable, "-m", "thinksound", "make-data", "--count", "500", "-o", str(tmp_path), "-q"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        error = process.communicate()[1]
    assert process.returncode == 130
    assert error == "\nthinksound: interrupted, the files that are there are whole\n"
    assert not list(tmp_path.glob(".*"))
    for path in tmp_path.glob("*.json"):
        assert json.loads(path.read_text())["caption"]
    for row in csv.DictReader((tmp_path / "captions.csv").read_text().splitlines()):
        assert (tmp_path / row["file"]).is_file()


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_streamed_frames_are_those_of_the_file(seed, tmp_path):
    scene = make_scene("hard", seed, 2.0)
    video, _, _ = write_clip(scene, tmp_path, "clip", RATE)
    decoded = decode_video(video)
    frames = scene_frames(scene, VIEWS)
    assert list(frames) == list(decoded.frames) == ["clip", "sync"]
    for name, streamed in frames.items():
        read = decoded.frames[name]
        assert streamed.shape == read.shape
        loss = (streamed.float() - read.float()).abs().mean(dim=(1, 2, 3))
        assert loss.max() < 6  # H.264; another frame of a moving camera differs by more


@pytest.mark.parametrize("split", ["standard", "hard"])
def test_synchformer_sees_what_sounds(split):
    for seed in range(60):
        scene = make_scene(split, seed)
        half = 0.5 * min(1.0, scene.height / scene.width)  # of the central square, in frame widths
        for source in scene.sources:
            assert all(abs(x - 0.5) < half for x in source.x.values)
