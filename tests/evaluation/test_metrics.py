"""The field's metrics: compared with closed forms, or with SciPy's matrix square root."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import linalg, stats
from torch import Tensor

from thinksound.errors import InputError
from thinksound.evaluation.files.distribution import inception_score, kl_divergence
from thinksound.evaluation.files.frechet import frechet_distance
from thinksound.evaluation.files.similarity import paired_cosine


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whitened(seed: int, count: int, dim: int) -> Tensor:
    """Samples whose mean is exactly 0 and whose covariance is exactly the identity."""
    samples = normal(seed, count, dim)
    samples -= samples.mean(dim=0)
    root = torch.linalg.cholesky(samples.T @ samples / (count - 1))
    return torch.linalg.solve_triangular(root, samples.T, upper=False).T


def scipy_distance(first: Tensor, second: Tensor) -> float:
    """The textbook formula, with the matrix square root of the product of the covariances."""
    one, two = torch.cov(first.T).numpy(), torch.cov(second.T).numpy()
    root = linalg.sqrtm(one @ two).real
    return float((first.mean(0) - second.mean(0)).square().sum() + (one + two - 2 * root).trace())


# --- Fréchet distance ----------------------------------------------------------------------------


def test_equal_sets_have_no_distance():
    samples = normal(0, 50, 8)
    assert frechet_distance(samples, samples.flip(0)) == pytest.approx(0, abs=1e-12)


def test_a_shift_alone_counts_its_squared_length():
    samples, shift = normal(1, 40, 6), normal(2, 6)
    assert frechet_distance(samples + shift, samples) == pytest.approx(float(shift.square().sum()), rel=1e-12)


def test_diagonal_covariances_have_the_closed_form():
    """Covariances diag(a²) and diag(b²): the squared norms of a - b and of the difference of the means."""
    scale, other, mean = (
        torch.tensor([1.0, 2.0, 0.5]),
        torch.tensor([3.0, 1.0, 0.25]),
        torch.tensor([1, 0, -2]),
    )
    first, second = whitened(3, 30, 3) * scale, whitened(4, 70, 3) * other + mean
    wanted = float((scale - other).square().sum() + mean.square().sum())
    assert frechet_distance(first, second) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(("count", "other"), [(200, 300), (200, 12)])
def test_correlated_sets_agree_with_the_matrix_square_root(count, other):
    first, second = normal(5, count, 10) @ normal(6, 10, 10), normal(7, other, 10) @ normal(8, 10, 10) + 1
    assert frechet_distance(first, second) == pytest.approx(scipy_distance(first, second), rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(frechet_distance(first, second), rel=1e-12)


def test_fewer_samples_than_dimensions_stay_exact():
    """Singular covariances: the same points in a space of 500 more, unused dimensions, rotated at random."""
    first, second = normal(9, 20, 12), normal(10, 15, 12) * 2 + 0.5
    turn = torch.linalg.qr(normal(11, 512, 512)).Q[:12]
    flat = frechet_distance(first @ turn, second @ turn)
    assert flat == pytest.approx(frechet_distance(first, second), rel=1e-10)
    assert flat == pytest.approx(scipy_distance(first, second), rel=1e-9)


def test_two_clips_have_the_closed_form():
    """Both sets lie on one line: the squared difference of their standard deviations."""
    first, second = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]]), torch.tensor([[5.0, 0, 0], [-5.0, 0, 0]])
    assert frechet_distance(first, second) == pytest.approx(2 * (5 - 1) ** 2)


def test_a_single_clip_is_refused():
    with pytest.raises(InputError, match="at least 2"):
        frechet_distance(torch.ones(1, 4), torch.ones(5, 4))


# --- divergence of classes -----------------------------------------------------------------------


def test_divergence_is_that_of_reference_from_generated():
    """Two classes, 1/2 and 1/2 against 1/4 and 3/4, by hand; the other way round is another number."""
    even, uneven = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    wanted = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert kl_divergence(uneven, even) == pytest.approx(wanted, rel=1e-6)
    assert kl_divergence(even, uneven) != pytest.approx(wanted, rel=1e-2)


def test_divergence_agrees_with_scipy_and_ignores_a_constant():
    generated, reference = normal(12, 30, 527) * 3, normal(13, 30, 527) * 3
    p, q = reference.softmax(-1).numpy(), generated.softmax(-1).numpy()
    wanted = float(stats.entropy(p, q, axis=1).mean())
    assert kl_divergence(generated, reference) == pytest.approx(wanted, rel=1e-12)
    assert kl_divergence(generated + 7, reference - 2) == pytest.approx(wanted, rel=1e-12)


def test_divergence_survives_classes_without_probability():
    sure, other = torch.full((1, 3), -2000.0), torch.zeros(1, 3)
    sure[0, 0] = 2000.0
    assert kl_divergence(other, sure) == pytest.approx(math.log(3))


def test_sigmoid_divergence_sums_over_independent_classes():
    generated, reference = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, -1.0]])
    p, q = reference.sigmoid(), generated.sigmoid()
    wanted = float((p * (p / q).log()).sum())
    assert kl_divergence(generated, reference, "sigmoid") == pytest.approx(wanted, rel=1e-6)


# --- inception score -----------------------------------------------------------------------------


def test_sure_and_varied_clips_score_the_number_of_classes():
    logits = torch.eye(7).repeat(3, 1) * 1000
    assert inception_score(logits) == pytest.approx((7, 0))


@pytest.mark.parametrize("logits", [torch.zeros(6, 5), torch.tensor([[9.0, 0, 0]]).repeat(6, 1)])
def test_unsure_or_uniform_clips_score_one(logits):
    assert inception_score(logits)[0] == pytest.approx(1)


def test_score_is_the_exponential_of_scipys_divergence():
    logits = normal(14, 40, 9) * 2
    p = logits.softmax(-1).numpy()
    wanted = math.exp(float(stats.entropy(p, p.mean(axis=0), axis=1).mean()))
    assert inception_score(logits)[0] == pytest.approx(wanted, rel=1e-12)


def test_parts_hold_every_clip_once_and_follow_the_seed():
    logits = torch.eye(8).repeat_interleave(2, 0) * 1000  # two equal clips score 1, two others 2
    assert inception_score(logits, splits=8, seed=1) == inception_score(logits, splits=8, seed=1)
    means = {inception_score(logits, splits=8, seed=seed)[0] for seed in range(6)}
    assert len(means) > 1 and min(means) > 1.5


def test_parts_of_a_single_clip_are_refused():
    with pytest.raises(InputError, match="15 clips in 10 parts"):
        inception_score(torch.zeros(15, 4), splits=10)


# --- cosine --------------------------------------------------------------------------------------


def test_cosine_is_of_pairs_and_not_of_lengths():
    first = torch.tensor([[2.0, 0], [0, 3.0], [1, 1]])
    second = torch.tensor([[5.0, 0], [0, -1.0], [1, 0]])
    assert paired_cosine(first, second) == pytest.approx((1 - 1 + math.sqrt(0.5)) / 3)
