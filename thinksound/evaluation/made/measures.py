"""Measures of a sound other than its onsets: level, panning, noise, ring-down, attack, tones, pitch.

Each measures one property and is a function of sounds alone, (2, A), at `spectra.RATE` unless another rate is
given. `evaluation.made.scores` decides which clips a measure applies to and combines its values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .spectra import FRAME_S, HOP, RATE, FloatArray, Waveform, magnitudes

TRACK_S = 0.02  # between two values of a level, a pan or a pitch
_TRACK_HOP = round(TRACK_S * RATE)
_SMOOTHING = 11  # values in the window of a level: 0.2 s, of effective width 0.1 s

_LOUDEST_S = 0.1
_SILENT_DBFS = -120.0
_BUZZ_WINDOW = 128  # samples: 8 ms, so that an envelope can follow 100 Hz
_BUZZ_BANDS = 8
_FLATNESS_WINDOW = 2_048  # samples: 7.8 Hz per bin, four bins between lines at the latent rate of 31 Hz
_FLATNESS_BINS = 64  # per band, 500 Hz, over which the spectrum of noise is about constant
_FLATNESS_RANGE_DB = 40.0  # bands this much below the loudest do not count
_DECAY_DB = 20.0
_STRIKE_S = (-0.05, 0.1)  # range around an onset in which the peak of its impact is searched
_FLOOR_S = (-0.05, -0.015)  # range before a peak in which the floor of its attack is measured
_FLOOR_LIMIT_DB = -80.0  # below the peak nothing is told apart
_TONE_S = 0.128  # from the peak of an impact on
_TONE_BINS = 4_096  # 3.9 Hz apart
_TONE_HZ = (60.0, 7_200.0)
_TONE_COUNT = 6  # tones of an impact, at most
_TONE_RANGE_DB = 40.0  # tones this much below the strongest do not count
_TONE_PROMINENCE_DB = 15.0  # over the median of the spectrum around; noise hardly exceeds it
_TONE_AROUND = 154  # bins on each side: 600 Hz
TONE_TOLERANCE = 0.05  # tones whose frequencies differ by less than this share are the same
_PITCH_WINDOW, _PITCH_BINS = 1_024, 4_096
_PITCH_STEP = 1.01  # ratio of two neighbouring candidates
_HARMONICS = 8


@dataclass(frozen=True)
class Moments:
    """Weighted sums over pairs (x, y), for a correlation over the frames of many clips."""

    weight: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    yy: float = 0.0
    xy: float = 0.0

    @classmethod
    def of(cls, x: FloatArray, y: FloatArray, weights: FloatArray) -> Moments:
        def total(values: FloatArray) -> float:
            return float((weights * values).sum())

        return cls(float(weights.sum()), total(x), total(y), total(x * x), total(y * y), total(x * y))

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.weight + other.weight,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.yy + other.yy,
            self.xy + other.xy,
        )

    @property
    def correlation(self) -> float:
        """Pearson's correlation; 0 if x or y does not vary."""
        if self.weight <= 0:
            return 0.0
        mean_x, mean_y = self.x / self.weight, self.y / self.weight
        variance_x = self.xx / self.weight - mean_x**2
        variance_y = self.yy / self.weight - mean_y**2
        if min(variance_x, variance_y) < 1e-12:
            return 0.0
        return float((self.xy / self.weight - mean_x * mean_y) / np.sqrt(variance_x * variance_y))


def channel_levels(waveform: Waveform) -> FloatArray:
    """RMS level of each channel (2, T) in windows of 0.1 s, one value every 20 ms."""
    hops = waveform.shape[-1] // _TRACK_HOP
    squares = waveform[:, : hops * _TRACK_HOP].astype(np.float64) ** 2
    power = squares.reshape(len(waveform), hops, _TRACK_HOP).mean(axis=2)  # (2, T)
    window = np.hanning(_SMOOTHING + 2)[1:-1]
    window /= window.sum()
    return np.sqrt(np.stack([np.convolve(channel, window, mode="same") for channel in power]))


def level(waveform: Waveform) -> FloatArray:
    """RMS level of a sound (T,), one value every 20 ms."""
    return np.sqrt((channel_levels(waveform) ** 2).sum(axis=0))


def loudest_dbfs(waveform: Waveform, sample_rate: int) -> float:
    """RMS level over both channels of the loudest 0.1 s of a sound (2, A), in dBFS, at least -120.

    A full-scale sine in both channels has -3.
    """
    power = np.mean(waveform.astype(np.float64) ** 2, axis=0)
    window = min(round(_LOUDEST_S * sample_rate), len(power))
    sums = np.cumsum(np.insert(power, 0, 0.0))
    return _dbfs(float(np.sqrt(max(0.0, (sums[window:] - sums[:-window]).max()) / window)))


def peak_dbfs(waveform: Waveform) -> float:
    """The largest absolute value of a sound, in dBFS, at least -120."""
    return _dbfs(float(np.abs(waveform).max()))


def _dbfs(amplitude: float) -> float:
    return max(_SILENT_DBFS, 20 * float(np.log10(max(amplitude, 1e-12))))


def level_correlation(waveform: Waveform, true: Waveform) -> float:
    """Correlation of the level over time with the true one, independent of gain."""
    found, expected = level(waveform), level(true)
    length = min(len(found), len(expected))
    # Relative to their peaks, so that quiet sounds vary as much as loud ones.
    found, expected = found[:length], expected[:length]
    found, expected = found / max(float(found.max()), 1e-12), expected / max(float(expected.max()), 1e-12)
    return Moments.of(found, expected, np.ones(length)).correlation


def pan(waveform: Waveform) -> FloatArray:
    """Pan of a sound (T,), -1 left to 1 right, by the constant-power law, one value every 20 ms."""
    left, right = channel_levels(waveform)
    return np.arctan2(right, left + 1e-12) * 4 / np.pi - 1


def pan_moments(waveform: Waveform, true: Waveform) -> Moments:
    """Moments of found (x) and true pan (y) over time, weighted by the true level; the weights sum to 1."""
    weights = level(true)
    found, expected = pan(waveform), pan(true)
    length = min(len(found), len(expected))
    weights = weights[:length]
    total = float(weights.sum())
    if total == 0:
        return Moments()
    return Moments.of(found[:length], expected[:length], weights / total)


def buzz_db(waveform: Waveform, rate_hz: float) -> float:
    """Modulation of the bands' levels at a rate and its multiples, in dB over neighbouring rates.

    A codec that has not learned noise repeats itself with every latent frame, so its bands pulse at the rate
    of the latents. About 0 for noise, silence or steady tones; 10 and more is heard as a buzz.
    """
    sound = waveform.mean(axis=0)
    power = magnitudes(sound, _BUZZ_WINDOW) ** 2  # (T, F) 200 per second
    bands = power[:, 1:].reshape(len(power), _BUZZ_BANDS, -1).mean(axis=2)  # (T, 8) of 1 kHz
    slow = np.hanning(41)
    usual = np.stack([np.convolve(band, slow / slow.sum(), mode="same") for band in bands.T])
    relative = np.sqrt(bands.T / np.maximum(usual, 1e-3 * usual.max() + 1e-20))  # (8, T)
    relative -= relative.mean(axis=1, keepdims=True)
    modulation = (np.abs(np.fft.rfft(relative * np.hanning(len(power)), axis=1)) ** 2).mean(axis=0)
    rates = np.fft.rfftfreq(len(power), FRAME_S)
    lines, around = [], []
    for multiple in np.arange(rate_hz, rates[-1] - 2, rate_hz):
        away = np.abs(rates - multiple)
        lines.append(modulation[away <= 0.5].mean())
        around.append(modulation[(away > 2) & (away < 10)].mean())
    if not lines or np.mean(around) < 1e-9:
        return 0.0
    return float(10 * np.log10(np.mean(lines) / np.mean(around)))


def flatness_db(waveform: Waveform) -> float:
    """Spectral flatness in bands of 500 Hz, in dB: about -2.5 for noise, lower for tones, 0 for silence."""
    values = []
    for channel in waveform:
        power = magnitudes(channel, _FLATNESS_WINDOW, _FLATNESS_WINDOW // 2)[:, 1:] ** 2
        bands = power.reshape(len(power), -1, _FLATNESS_BINS)  # (T, bands, 64)
        mean = bands.mean(axis=2)
        counted = mean > max(float(mean.max()), 1e-12) * 10 ** (-_FLATNESS_RANGE_DB / 10)
        geometric = np.log(np.maximum(bands, 1e-20)).mean(axis=2)
        values.append((geometric - np.log(np.maximum(mean, 1e-20)))[counted])
    every = np.concatenate(values)
    return float(every.mean() * 10 / np.log(10)) if len(every) else 0.0


def decay_times(waveform: Waveform, onsets: FloatArray, spans_s: FloatArray) -> FloatArray:
    """Seconds (N,) in which the impacts at ``onsets`` fall by 20 dB from their peaks.

    The search ends ``spans_s`` after each onset, also if the impact is still louder; a silent one gets 0.
    """
    smooth = _power(waveform)
    times = []
    for onset, span in zip(onsets, spans_s, strict=True):
        peak, stop = _peak(smooth, onset, span), round((onset + span) / FRAME_S)
        if peak is None:
            times.append(0.0)
            continue
        loud = np.flatnonzero(smooth[peak:stop] >= smooth[peak] * 10 ** (-_DECAY_DB / 10))
        times.append((int(loud[-1]) + 1) * FRAME_S)
    return np.array(times)


def attack_floors(waveform: Waveform, onsets: FloatArray) -> FloatArray:
    """Level (N,) just before the peaks of the impacts at ``onsets``, in dB relative to them.

    It is the mean power from 50 to 15 ms before a peak, -80 dB at least: low if an attack rises out of
    silence, high if it is blurred or preceded by noise. Where there is only silence, it is 0.
    """
    power, smooth = np.mean(waveform.astype(np.float64) ** 2, axis=0), _power(waveform)
    floors = []
    for onset in onsets:
        peak = _peak(smooth, onset)
        start, stop = (max(0, (peak or 0) * HOP + round(edge * RATE)) for edge in _FLOOR_S)
        if peak is None or stop <= start:
            floors.append(0.0)
            continue
        ratio = float(power[start:stop].mean() / smooth[peak])
        floors.append(10 * np.log10(max(ratio, 10 ** (_FLOOR_LIMIT_DB / 10))))
    return np.array(floors)


def impact_tones(waveform: Waveform, onsets: FloatArray) -> list[FloatArray]:
    """Frequencies in Hz of the tones of the impacts at ``onsets``, strongest first, at most six of each.

    A tone is a peak in the power spectrum of the 128 ms from the impact's peak on that exceeds the median of
    the 600 Hz on each side by 15 dB. What is more than 40 dB below the strongest tone, or within 5 % of a
    stronger one, does not count. An impact that is silence or noise has none.
    """
    smooth, length = _power(waveform), round(_TONE_S * RATE)
    padded = np.pad(waveform, ((0, 0), (0, length)))
    weights = np.hanning(2 * length + 1)[
        length:-1
    ]  # falls from 1: most of a short impact is at its beginning
    tones = []
    for onset in onsets:
        peak = _peak(smooth, onset)
        if peak is None:
            tones.append(np.empty(0))
            continue
        part = padded[:, peak * HOP : peak * HOP + length] * weights
        tones.append(_strongest((np.abs(np.fft.rfft(part, _TONE_BINS)) ** 2).sum(axis=0)))
    return tones


def tones_found(true_hz: FloatArray, found_hz: FloatArray) -> int:
    """The number of true tones for which there is a found one within 5 %."""
    if not len(found_hz):
        return 0
    nearest = np.abs(found_hz / true_hz[:, None] - 1).min(axis=1)
    return int((nearest <= TONE_TOLERANCE).sum())


def _strongest(power: FloatArray) -> FloatArray:
    """Frequencies in Hz of the tones in a power spectrum (F,), see `impact_tones`."""
    db = 10 * np.log10(power + 1e-20)
    hz = np.arange(len(db)) * RATE / _TONE_BINS
    surroundings = np.lib.stride_tricks.sliding_window_view(
        np.pad(db, _TONE_AROUND, mode="reflect"), 2 * _TONE_AROUND + 1
    )
    is_tone = np.zeros(len(db), dtype=bool)
    is_tone[1:-1] = (db[1:-1] > db[:-2]) & (db[1:-1] >= db[2:])
    is_tone &= (hz >= _TONE_HZ[0]) & (hz <= _TONE_HZ[1])
    is_tone &= db > np.median(surroundings, axis=1) + _TONE_PROMINENCE_DB
    bins = np.flatnonzero(is_tone)
    kept: list[float] = []
    for place in bins[np.argsort(-db[bins])]:
        if db[place] < db[bins].max() - _TONE_RANGE_DB or len(kept) == _TONE_COUNT:
            break
        if all(abs(hz[place] / other - 1) > TONE_TOLERANCE for other in kept):
            kept.append(float(hz[place]))
    return np.array(kept)


def _power(waveform: Waveform) -> FloatArray:
    """Power of a sound over 10 ms (T,), one value every 5 ms."""
    power = np.mean(waveform.astype(np.float64) ** 2, axis=0)
    window = np.hanning(2 * HOP + 1)
    return np.convolve(power, window / window.sum(), mode="same")[::HOP]


def _peak(smooth: FloatArray, onset: float, span_s: float = _STRIKE_S[1]) -> int | None:
    """The index in a `_power` of the peak of the impact at ``onset``, which ends after ``span_s``.

    None if there is silence.
    """
    start, stop = (
        max(0, round((onset + edge) / FRAME_S)) for edge in (_STRIKE_S[0], min(span_s, _STRIKE_S[1]))
    )
    near = smooth[start:stop]
    if len(near) == 0 or near.max() < 1e-12:
        return None
    return start + int(near.argmax())


def pitch_track(waveform: Waveform, low_hz: float, high_hz: float) -> FloatArray:
    """Fundamental frequency in Hz (T,) between two limits, one value every 20 ms.

    It is the candidate with the largest weighted sum of the magnitudes of its first eight harmonics; lower
    harmonics weigh more.
    """
    spectrum = magnitudes(
        np.asarray(waveform.mean(axis=0), dtype=np.float64), _PITCH_WINDOW, _TRACK_HOP, _PITCH_BINS
    )
    count = int(np.log(high_hz / low_hz) / np.log(_PITCH_STEP)) + 1
    candidates = low_hz * _PITCH_STEP ** np.arange(count)
    salience = np.zeros((len(spectrum), count))
    for harmonic in range(1, _HARMONICS + 1):
        bins = np.round(candidates * harmonic * _PITCH_BINS / RATE).astype(int)
        inside = bins < spectrum.shape[1]
        salience[:, inside] += 0.8 ** (harmonic - 1) * spectrum[:, bins[inside]]
    return candidates[salience.argmax(axis=1)]


def pitch_agreement(found_hz: FloatArray, true_hz: FloatArray, tolerance: float = 0.05) -> float:
    """Share of the frames in which the pitch is within a relative tolerance of the true one."""
    return float(np.mean(np.abs(found_hz / true_hz - 1) <= tolerance))


def pitch_error_cents(found_hz: FloatArray, true_hz: FloatArray) -> float:
    """Median over time of the absolute difference of two pitches, in cents (hundredths of a semitone)."""
    return float(np.median(1_200 * np.abs(np.log2(found_hz / true_hz))))
