"""Peak level, exact length, and WAV files that are whole or absent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from thinksound.errors import OutputError, PlacementError, ThinkSoundError
from thinksound.families.find import family_of
from thinksound.media import files
from thinksound.media.audio import fit_length, to_pcm16, write_sound
from thinksound.media.files import whole_file
from thinksound.presets import PRESETS, Preset


def tone(samples: int, level: float = 0.3) -> torch.Tensor:
    wave = torch.sin(torch.arange(samples) * 0.0627) * level
    return torch.stack([wave, -0.5 * wave])


def test_peak_level_equals_the_published_formula() -> None:
    waveform = torch.randn(2, 5000, generator=torch.Generator().manual_seed(3)) * 4
    expected = waveform.float().div(torch.max(torch.abs(waveform))).clamp(-1, 1).mul(32767).to(torch.int16)
    assert torch.equal(to_pcm16(waveform), expected)
    assert to_pcm16(waveform).abs().max() == 32767
    assert to_pcm16(waveform.bfloat16()).dtype == torch.int16


@pytest.mark.parametrize(
    ("peak", "expected"),
    [
        (0.04, 32767),
        (0.0317, 32767),  # just above 10 ** (-30 / 20)
        (0.0315, 0.0315 * 10**1.5 * 32767),
        (1e-4, 1e-4 * 31.6 * 32767),
    ],
)
def test_normalisation_lifts_by_at_most_30_db(peak: float, expected: float) -> None:
    waveform = peak * torch.sin(torch.arange(1000) * (torch.pi / 2 / 100))[None]  # the peak is a sample
    found = to_pcm16(waveform).abs().max().item()
    assert found == pytest.approx(expected, abs=1.1)


def test_silence_stays_silence() -> None:
    assert torch.equal(to_pcm16(torch.zeros(2, 100)), torch.zeros(2, 100, dtype=torch.int16))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_sound_that_is_not_a_number_is_refused_with_advice(value: float) -> None:
    waveform = torch.zeros(2, 100)
    waveform[1, 50] = value
    with pytest.raises(ThinkSoundError, match="--dtype float32"):
        to_pcm16(waveform)


def test_surplus_is_cut() -> None:
    pcm16 = to_pcm16(tone(5000))
    assert torch.equal(fit_length(pcm16, 4000), pcm16[:, :4000])
    assert torch.equal(fit_length(pcm16, 5000), pcm16)


@pytest.mark.parametrize("missing", [1, 2, 530, 777, 1024])
def test_missing_samples_are_filled_without_a_click(missing: int) -> None:
    pcm16 = to_pcm16(tone(4096))
    fitted = fit_length(pcm16, 4096 + missing)
    assert fitted.shape == (2, 4096 + missing) and fitted.dtype == torch.int16
    assert torch.equal(fitted[:, :4096], pcm16)
    assert (fitted[:, -1] == 0).all()
    if missing >= 500:
        steps = fitted.int().diff(dim=-1).abs()
        # No step in the filling is larger than the tone's own steps: the joint cannot be heard.
        assert (steps[:, 4095:].amax(-1) <= steps[:, :4095].amax(-1)).all()
        assert fitted[:, 4096 : 4096 + missing // 4].abs().max() > 16000  # and it is no silence


def test_what_is_filled_is_the_mirror_image_under_a_raised_cosine() -> None:
    missing = 400
    constant = torch.full((2, 1024), 20_000, dtype=torch.int16)
    filled = fit_length(constant, 1024 + missing)[:, 1024:]
    wanted = 20_000 * (1 + torch.cos(torch.pi * torch.arange(1, missing + 1) / missing)) / 2
    assert (filled - wanted).abs().max() <= 0.51  # rounding
    ramp = torch.arange(1024, dtype=torch.int16).expand(2, -1)
    mirrored = fit_length(ramp, 1024 + missing)[:, 1024:]
    wanted = (1022 - torch.arange(missing)) * wanted / 20_000
    assert (mirrored - wanted).abs().max() <= 0.51


def test_more_than_a_fade_is_filled_with_silence() -> None:
    constant = torch.full((1, 4096), 20_000, dtype=torch.int16)
    filled = fit_length(constant, 8000)[:, 4096:]
    assert filled.shape == (1, 3904) and filled[0, 0] > 19_990 and not filled[:, 1024:].any()
    assert fit_length(constant[:, :3], 8).shape == (1, 8)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_every_duration_can_be_reached_from_its_latents(preset: Preset) -> None:
    sound = family_of(preset).sound
    for hundredths in range(10, 18_001, 7):
        duration_s = hundredths / 100
        generated = sound.latent_length(duration_s) * sound.hop
        assert sound.sample_count(duration_s) - generated <= sound.hop // 2 < generated


def test_wav_holds_the_very_samples(tmp_path: Path) -> None:
    pcm16 = to_pcm16(tone(44_100))
    write_sound(tmp_path / "sound.wav", pcm16, 44_100)
    samples, rate = soundfile.read(tmp_path / "sound.wav", dtype="int16")
    assert rate == 44_100 and np.array_equal(samples, pcm16.T.numpy())
    assert soundfile.info(tmp_path / "sound.wav").subtype == "PCM_16"
    assert [path.name for path in tmp_path.iterdir()] == ["sound.wav"]


def test_a_missing_folder_and_a_directory_are_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        write_sound(tmp_path / "absent" / "sound.wav", to_pcm16(tone(100)), 44_100)
    with pytest.raises(OutputError, match="directory"):
        write_sound(tmp_path, to_pcm16(tone(100)), 44_100)
    with pytest.raises(OutputError, match="file name"):
        write_sound(tmp_path / ("x" * 300 + ".wav"), to_pcm16(tone(100)), 44_100)


@pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes")
def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "sound.wav")
    with pytest.raises(OutputError, match="not a regular file"):
        write_sound(tmp_path / "sound.wav", to_pcm16(tone(100)), 44_100)
    assert (tmp_path / "sound.wav").is_fifo()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="not writable"):
            write_sound(tmp_path / "sound.wav", to_pcm16(tone(100)), 44_100)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a file size limit")
def test_a_limit_on_file_sizes_gives_one_message_and_no_file(tmp_path: Path) -> None:
    program = """
import resource, signal, sys, torch
from thinksound.models.oobleck import OobleckConfig
from thinksound.models.spectrogram_vae import SpectrogramVAEConfig
from thinksound.errors import OutputError
from thinksound.media.audio import write_sound
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    write_sound(sys.argv[1], torch.zeros(2, 44_100, dtype=torch.int16), 44_100)
except OutputError as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "sound.wav")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "the limit on file sizes (ulimit -f)" in result.stdout and result.stderr == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("interruption", "raised"),
    [(KeyboardInterrupt, KeyboardInterrupt), (SystemExit, SystemExit), (MemoryError, PlacementError)],
)
def test_an_interruption_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, interruption: type[BaseException], raised: type[BaseException]
) -> None:
    target = tmp_path / "sound.wav"
    target.write_bytes(b"old")
    with pytest.raises(raised), whole_file(target) as temporary:
        temporary.write_bytes(b"half of the new")
        raise interruption
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_finished_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    with files.whole_file(tmp_path / "whole") as temporary:
        temporary.write_bytes(b"")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode
