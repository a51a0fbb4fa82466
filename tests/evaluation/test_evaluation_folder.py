"""The field's metrics on folders: pairing, skipped files with reasons, values; the command as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from support.clips import render
from support.decoded import decode_video
from support.listeners import SMALL_OFFSET, without_favourite
from support.reference import seeded

from thinksound.errors import InputError, MediaError
from thinksound.evaluation.files.clap import load_clap
from thinksound.evaluation.files.desync import predict_offsets
from thinksound.evaluation.files.distribution import inception_score, kl_divergence
from thinksound.evaluation.files.folder import Networks, choose_metrics, evaluate_clips, write_results
from thinksound.evaluation.files.frechet import frechet_distance
from thinksound.evaluation.files.pairing import find_clips
from thinksound.evaluation.files.tagger import load_tagger
from thinksound.media.soundtrack import read_sound
from thinksound.models.synchformer_offset import SynchformerOffset

pytestmark = pytest.mark.slow


def write_sound(path: Path, seed: int, seconds: float = 1.0, rate: int = 16_000) -> Path:
    """A decaying tone in noise, different for each seed."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(rate * seconds)) / rate
    tone = np.sin(2 * np.pi * rng.uniform(200, 2_000) * time) * np.exp(-time * rng.uniform(1, 6))
    noise = rng.normal(0, rng.uniform(0.001, 0.05), (2, len(time)))
    path.parent.mkdir(exist_ok=True)
    soundfile.write(path, (0.4 * tone + noise).T.astype(np.float32), rate, subtype="FLOAT")
    return path


def folders(root: Path, names: Sequence[str] = "abc") -> tuple[Path, Path]:
    """Generated and true sounds of the given names."""
    for number, name in enumerate(names):
        write_sound(root / "made" / f"{name}.wav", number)
        write_sound(root / "true" / f"{name}.wav", number + 100)
    return root / "made", root / "true"


def silent(*progress: object) -> None:
    """A progress callback that does nothing."""


@pytest.fixture(scope="module")
def networks(listener_weights) -> Networks:
    return Networks(load_tagger(listener_weights), load_clap(listener_weights))


@pytest.fixture(scope="module")
def offset() -> SynchformerOffset:
    towers = replace(SMALL_OFFSET.towers, image_size=224, patch_size=112)  # what decoding gives, few patches
    return seeded(SynchformerOffset(replace(SMALL_OFFSET, towers=towers)), "")


# --- pairing -------------------------------------------------------------------------------------


def test_files_of_one_name_belong_together_whatever_their_kind(tmp_path):
    made, true = folders(tmp_path, ["hammer.1", "rain"])
    (true / "rain.wav").rename(true / "rain.FLAC")
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "rain.MP4").touch()
    for stray in ("rain.json", ".hidden.wav", "notes.txt"):
        (made / stray).touch()
    (tmp_path / "table.csv").write_text("file,caption\nhammer.1.wav,a hammer\n")
    clips, skipped = find_clips(made, true, tmp_path / "table.csv", tmp_path / "films")
    assert [(clip.name, clip.caption) for clip in clips] == [("hammer.1", "a hammer"), ("rain", None)]
    assert clips[1].reference == true / "rain.FLAC" and clips[1].video == tmp_path / "films" / "rain.MP4"
    assert clips[0].video is None and skipped == []


def test_a_sound_is_preferred_to_its_video_which_shows_the_pictures(tmp_path):
    made, _ = folders(tmp_path, ["a"])
    for name in ("a.mp4", "b.mkv"):
        (made / name).touch()
    clips, _ = find_clips(made)
    assert [(clip.generated.name, clip.video) for clip in clips] == [
        ("a.wav", made / "a.mp4"),
        ("b.mkv", made / "b.mkv"),
    ]


def test_captions_and_videos_of_other_clips_are_refused(tmp_path):
    made, _ = folders(tmp_path, "ab")
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "c.mp4").touch()
    with pytest.raises(InputError, match="films: no video has the name of a clip, such as a"):
        find_clips(made, videos=tmp_path / "films")
    table = tmp_path / "table.csv"
    table.write_text("file,caption\nc.wav,rain\n")
    with pytest.raises(InputError, match=r"table\.csv: no row names a clip, such as a"):
        find_clips(made, captions=table)
    table.write_text("file,caption\na.wav,rain\na,hail\n")
    with pytest.raises(InputError, match=r"table\.csv: names a twice"):
        find_clips(made, captions=table)


def test_what_has_no_partner_or_two_is_listed_and_skipped(tmp_path):
    made, true = folders(tmp_path, "abcd")
    (made / "a.wav").unlink()
    (true / "b.wav").unlink()
    (made / "c.flac").touch()
    clips, skipped = find_clips(made, true)
    assert [clip.name for clip in clips] == ["d"]
    reasons = {entry.name: entry.reason for entry in skipped}
    assert reasons["a"] == f"{true / 'a.wav'}: nothing of this name in {made}"
    assert reasons["b"] == f"{made / 'b.wav'}: nothing of this name in {true}"
    assert reasons["c"] == f"{made}: c.flac and c.wav have the same name; keep one"


def test_folders_that_give_no_clip_are_refused(tmp_path):
    made, _ = folders(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: no sound or video"):
        find_clips(tmp_path / "empty")
    with pytest.raises(InputError, match=r"nowhere: not a folder that can be read \(No such file"):
        find_clips(made, tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no clip can be used; the first, a: .*nothing of this name in"):
        find_clips(made, tmp_path / "empty")


# --- choice of metrics -----------------------------------------------------------------------------


def test_without_a_wish_all_possible_metrics_are_chosen(tmp_path):
    made, true = folders(tmp_path)
    (tmp_path / "table.csv").write_text("file,caption\na,a tone\n")
    assert choose_metrics(None, find_clips(made)[0]) == ["is"]
    assert choose_metrics(None, find_clips(made, true)[0]) == ["fd", "fd-clap", "kl", "is"]
    clips, _ = find_clips(made, true, tmp_path / "table.csv")
    assert choose_metrics(None, clips) == ["fd", "fd-clap", "kl", "is", "clap"]
    assert choose_metrics(["is", "kl"], clips) == ["kl", "is"]
    (made / "a.mp4").touch()
    assert choose_metrics(None, find_clips(made)[0]) == ["is", "desync"]


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (["fd"], "fd compares with true sounds; give their folder with --reference DIR"),
        (["clap"], "clap compares with captions and no clip has one"),
        (["is", "desync"], "desync needs pictures and no clip has any; give .* --videos DIR"),
        (["kl", "fad"], "metric fad: give some of fd, fd-clap, kl, is, clap, desync"),
        ([], "metric none: give some of fd"),
    ],
)
def test_a_metric_that_cannot_be_computed_says_what_it_lacks(tmp_path, wanted, says):
    clips, _ = find_clips(folders(tmp_path)[0])
    with pytest.raises(InputError, match=says):
        choose_metrics(wanted, clips)


def test_a_single_clip_has_no_distance(tmp_path):
    clips, _ = find_clips(*folders(tmp_path, "a"))
    with pytest.raises(InputError, match="fd of 1 clip; it needs 2 or more"):
        choose_metrics(["fd"], clips)
    assert choose_metrics(None, clips) == ["kl"]


# --- numbers ---------------------------------------------------------------------------------------


def test_scores_are_those_of_what_the_networks_hear(tmp_path, networks):
    made, true = folders(tmp_path)
    (tmp_path / "table.csv").write_text("file,caption\na,a tone\nb,a hiss\n")
    clips, _ = find_clips(made, true, tmp_path / "table.csv")
    metrics = choose_metrics(None, clips)
    evaluation = evaluate_clips(clips, metrics, networks, silent)

    def heard(network, folder):
        sounds = [read_sound(folder / f"{name}.wav", network.rate, 10).waveform.mean(0) for name in "abc"]
        return [network(sound) for sound in sounds]

    tags = [heard(networks.tagger, folder) for folder in (made, true)]
    logits = [torch.stack([each.logits for each in side]) for side in tags]
    spaces = [heard(networks.clap, folder) for folder in (made, true)]
    for name, sides in (("fd", tags), ("fd-clap", spaces)):
        wanted = frechet_distance(*(torch.stack([each.embedding for each in side]) for side in sides))
        assert evaluation.metrics[name] == {"value": pytest.approx(wanted, rel=1e-6), "clips": 3}
        assert wanted > 1e-6
    assert evaluation.metrics["kl"]["softmax"] == pytest.approx(kl_divergence(logits[0], logits[1]), rel=1e-6)
    multi = kl_divergence(logits[0], logits[1], "sigmoid")
    assert evaluation.metrics["kl"]["sigmoid"] == pytest.approx(multi, rel=1e-6)
    assert evaluation.metrics["is"]["mean"] == pytest.approx(inception_score(logits[0])[0], rel=1e-9)
    cosines = [
        float(networks.clap.encode_text(text) @ each.embedding)
        for text, each in zip(("a tone", "a hiss"), spaces[0], strict=False)
    ]
    assert evaluation.metrics["clap"] == {"value": pytest.approx(np.mean(cosines), abs=1e-6), "clips": 2}
    assert evaluation.clips["b"]["clap"] == pytest.approx(cosines[1], abs=1e-6)
    mean = np.mean([numbers["kl"] for numbers in evaluation.clips.values()])
    assert evaluation.metrics["kl"]["softmax"] == pytest.approx(mean, rel=1e-6)
    assert ("c", "clap: no caption") in {(each.name, each.reason) for each in evaluation.skipped}
    assert any("fd of 3 clips: below 1000" in note for note in evaluation.notes)


def test_equal_sounds_have_no_distance(tmp_path, networks):
    made, _ = folders(tmp_path)
    clips, _ = find_clips(made, made)
    metrics = evaluate_clips(clips, ["fd", "fd-clap", "kl"], networks, silent).metrics
    assert metrics["fd"]["value"] == pytest.approx(0, abs=1e-9)
    assert metrics["fd-clap"]["value"] == pytest.approx(0, abs=1e-9)
    assert metrics["kl"]["softmax"] == pytest.approx(0, abs=1e-12)


def test_broken_short_and_senseless_files_are_left_out_with_their_partner(tmp_path, networks):
    made, true = folders(tmp_path, "abcde")
    clean = evaluate_clips(find_clips(made, true)[0][3:], ["fd", "kl"], networks, silent)
    (made / "a.wav").write_bytes(b"RIFF" + bytes(40))
    write_sound(true / "b.wav", 1, seconds=0.05)
    soundfile.write(made / "c.wav", np.full(8_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    evaluation = evaluate_clips(find_clips(made, true)[0], ["fd", "kl"], networks, silent)
    assert evaluation.metrics == clean.metrics
    reasons = {each.name: each.reason for each in evaluation.skipped}
    assert set(reasons) == set("abc") and str(made / "a.wav") in reasons["a"]
    assert "b.wav: lasts 0.05 s; at least 0.1 s are needed" in reasons["b"]
    assert "c.wav: its sound holds values that are not numbers" in reasons["c"]


def test_nothing_usable_is_an_error_that_names_the_first(tmp_path, networks):
    made, true = folders(tmp_path, "ab")
    for path in made.iterdir():
        path.write_bytes(b"RIFF" + bytes(40))
    with pytest.raises(MediaError, match=r"too few clips can be used; the first that cannot, a: .*a\.wav"):
        evaluate_clips(find_clips(made, true)[0], ["kl"], networks, silent)


def test_only_short_clips_are_an_error_for_desync_alone(tmp_path, offset):
    (tmp_path / "made").mkdir()
    render(tmp_path / "made" / "a.mp4", frames=50, sound_s=2.0)
    clips, _ = find_clips(tmp_path / "made")
    with pytest.raises(
        MediaError, match=r"cannot, a: desync: 2\.00 s of picture and sound; DeSync needs 4\.8 s"
    ):
        evaluate_clips(clips, ["desync"], Networks(offset=offset), silent)


def test_too_few_clips_left_drop_the_metric_and_say_so(tmp_path, networks):
    made, true = folders(tmp_path, "ab")
    (made / "a.wav").write_bytes(b"RIFF" + bytes(40))
    evaluation = evaluate_clips(find_clips(made, true)[0], ["fd", "kl"], networks, silent)
    assert list(evaluation.metrics) == ["kl"]
    assert "fd: 1 clips are left that it can use, 2 are needed" in evaluation.notes


def test_a_pair_is_cut_to_the_shorter_and_said_when_far_apart(tmp_path, networks):
    made, true = folders(tmp_path, "a")
    even = evaluate_clips(find_clips(made, true)[0], ["kl"], networks, silent)
    sound, rate = soundfile.read(true / "a.wav")
    longer = np.concatenate([sound, np.random.default_rng(1).normal(0, 0.3, (rate, 2))])
    soundfile.write(true / "a.wav", longer, rate, subtype="FLOAT")
    uneven = evaluate_clips(find_clips(made, true)[0], ["kl"], networks, silent)
    assert uneven.metrics["kl"]["softmax"] == pytest.approx(even.metrics["kl"]["softmax"], rel=1e-4)
    assert even.notes == () and "1 pairs differ by more than 0.5 s in length, the first a" in uneven.notes[0]


# --- pictures --------------------------------------------------------------------------------------


def with_late_pictures(video: Path, sound: Path, target: Path) -> None:
    """Put both into one file: the sound starts at 0, the frames 0.32 s later."""
    waveform, rate = soundfile.read(sound, dtype="float32")
    samples = (np.clip(waveform, -1, 1) * 32_767).astype(np.int16).reshape(1, -1)
    with av.open(video) as source, av.open(target, "w") as output:
        pictures = output.add_stream_from_template(source.streams.video[0])
        track = output.add_stream("pcm_s16le", rate=rate, layout="stereo")
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        output.mux(track.encode(frame))
        for packet in source.demux(source.streams.video[0]):
            if packet.pts is not None and packet.dts is not None:
                shift = round(Fraction("0.32") / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, pictures
                output.mux(packet)


def test_desync_takes_sound_and_picture_from_where_they_are(tmp_path, offset):
    """A WAV with a video of its name, and a video with its own sound, give the network's own offsets."""
    (tmp_path / "made").mkdir()
    (tmp_path / "films").mkdir()
    size = (32, 32)
    render(tmp_path / "films" / "a.mp4", frames=130, size=size)
    write_sound(tmp_path / "made" / "a.wav", 5, seconds=5.2)
    render(tmp_path / "made" / "b.mp4", frames=125, size=size, sound_s=5.0)
    render(tmp_path / "films" / "c.mp4", frames=125, size=size)
    write_sound(tmp_path / "made" / "c.wav", 6, seconds=3)
    write_sound(tmp_path / "made" / "d.wav", 7, seconds=5)
    with_late_pictures(tmp_path / "films" / "a.mp4", tmp_path / "made" / "a.wav", tmp_path / "made" / "e.mkv")
    # So that the result for e depends on which part of its sound is compared with the frames.
    frames = decode_video(tmp_path / "made" / "e.mkv").frames["sync"]
    sound = read_sound(tmp_path / "made" / "e.mkv", 16_000, 180).waveform.mean(0)
    offset = without_favourite(offset, frames, sound)
    clips, _ = find_clips(tmp_path / "made", videos=tmp_path / "films")
    evaluation = evaluate_clips(clips, ["desync"], Networks(offset=offset), silent)
    wanted = {}
    for name, video, made in (
        ("a", "films/a.mp4", "made/a.wav"),
        ("b", "made/b.mp4", "made/b.mp4"),
        ("e", "made/e.mkv", "made/e.mkv"),
    ):
        decoded = decode_video(tmp_path / video)
        waveform = read_sound(tmp_path / made, 16_000, 180).waveform.mean(0)
        waveform = waveform[round(decoded.start_s * 16_000) :]
        wanted[name] = list(predict_offsets(offset, decoded.frames["sync"], waveform))
    assert decoded.start_s == pytest.approx(0.32)
    assert list(predict_offsets(offset, frames, sound)) != wanted["e"]
    assert {name: numbers["desync"] for name, numbers in evaluation.clips.items()} == wanted
    mean = np.mean(np.abs(list(wanted.values())))
    assert evaluation.metrics == {"desync": {"value": pytest.approx(mean), "clips": 3}}
    reasons = {each.name: each.reason for each in evaluation.skipped}
    assert reasons["c"] == "desync: 3.00 s of picture and sound; DeSync needs 4.8 s"
    assert reasons["d"].startswith("desync: ") and "no video of this name" in reasons["d"]


def test_results_are_written_whole_with_what_had_no_partner(tmp_path, networks):
    made, true = folders(tmp_path)
    (true / "c.wav").unlink()
    clips, unpaired = find_clips(made, true)
    evaluation = evaluate_clips(clips, ["kl"], networks, silent)
    write_results(tmp_path / "r.json", evaluation, unpaired)
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["metrics"]["kl"]["clips"] == 2 and content["networks"] == {"kl": "ast"}
    assert [each["name"] for each in content["skipped"]] == ["c"]


# --- the command -----------------------------------------------------------------------------------


def thinksound(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "thinksound", "evaluate", "folder", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
    )


def test_the_command_writes_numbers_reasons_and_notes(tmp_path, listener_weights):
    made, true = folders(tmp_path)
    (true / "c.wav").unlink()
    (tmp_path / "table.csv").write_text("file,caption\na,a tone\nb,a hiss\n")
    result = tmp_path / "results.json"
    files = [made, "--reference", true, "--captions", tmp_path / "table.csv", "-o", result]
    done = thinksound(*files, "--weights", listener_weights)
    assert done.returncode == 0, done.stderr
    content = json.loads(result.read_text())
    assert list(content["metrics"]) == ["fd", "fd-clap", "kl", "is", "clap"]
    assert content["metrics"]["clap"]["clips"] == 2 and set(content["clips"]) == {"a", "b"}
    assert [entry["name"] for entry in content["skipped"]] == ["c"]
    assert f"fd       value {content['metrics']['fd']['value']:.4f}  clips 2\n" in done.stdout
    assert done.stdout.endswith(f"{result}\n")
    assert "Skipped: c: " in done.stderr and "Note: fd of 2 clips: below 1000" in done.stderr


def test_missing_weights_say_how_to_get_them(tmp_path):
    made, true = folders(tmp_path)
    arguments = (made, "--reference", true, "--metrics", "kl,fd-clap", "-o", tmp_path / "r.json")
    done = thinksound(*arguments, "--weights", tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "clap-htsat-unfused/: config.json, model.safetensors or pytorch_model.bin" in done.stderr
    assert "ast-finetuned-audioset-10-10-0.4593/: config.json" in done.stderr
    assert "MIT/ast-finetuned-audioset-10-10-0.4593 on the Hugging Face hub" in done.stderr
    assert "run the same command with --download, or put them there by hand" in done.stderr
    done = thinksound(*arguments, "--weights", tmp_path, "--download")
    assert done.returncode == 1 and "HF_HUB_OFFLINE is set, and weights are missing" in done.stderr
    assert not (tmp_path / "r.json").exists()


def test_an_output_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    made, _ = folders(tmp_path)
    done = thinksound(made, "-o", tmp_path / "nowhere" / "r.json", "--weights", tmp_path)
    assert done.returncode == 1 and "the folder" in done.stderr and "does not exist" in done.stderr
