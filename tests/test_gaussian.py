"""Gaussians: closed forms against torch.distributions, quadrature, 50-digit arithmetic, mutants.

A check is a function of the formula under test. The right formula passes it; each plausible wrong
one, written out here, must fail the same check.
"""

import math
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence
from torch.testing import assert_close

from vaelib import (
    gaussian_log_prob,
    gaussian_score,
    kl_diagonal,
    kl_full,
    kl_standard_normal,
    reparametrize,
)

EXACT = {"rtol": 1e-12, "atol": 0.0}
ROUNDING = {"rtol": 1e-12, "atol": 1e-13}
many = settings(max_examples=100, derandomize=True, deadline=None)


def normals(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64, of a local generator."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariances(*leading: int, size: int, condition: float, seed: int = 0) -> Tensor:
    """Random rotations of spectra that run from 1 down to 1 / condition, [*, size, size]."""
    rotation, _ = torch.linalg.qr(normals(*leading, size, size, seed=seed))
    spectrum = torch.logspace(0, -math.log10(condition), size, dtype=torch.float64)
    cov = rotation * spectrum @ rotation.mT
    return (cov + cov.mT) / 2


def gauss_hermite(count: int = 40) -> tuple[Tensor, Tensor]:
    """Nodes [count] and weights [count] of the standard normal distribution."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.tensor(nodes), torch.tensor(weights / weights.sum())


def diagonal(mu: Tensor, log_var: Tensor) -> Independent:
    return Independent(Normal(mu, (log_var / 2).exp()), 1)


def assert_rejects(check: Callable, mutant: Callable) -> None:
    """The check must find the wrong formula wrong: by its value, not by an exception of its own."""
    with pytest.raises(AssertionError):
        check(mutant)


# --- reparametrize ------------------------------------------------------------------------------

MU, LOG_VAR = torch.tensor([[0.7, -1.2], [0.9, -0.4]], dtype=torch.float64)


def second_moment(transform: Callable) -> Tensor:
    """E z^2 of z = transform(mu, log_var, eps), each coordinate, by Gauss-Hermite quadrature."""
    nodes, weights = gauss_hermite()
    return weights @ transform(MU, LOG_VAR, nodes[:, None].expand(-1, 2)).square()


def check_moments(transform: Callable) -> None:
    nodes, weights = gauss_hermite()
    assert_close(weights @ transform(MU, LOG_VAR, nodes[:, None].expand(-1, 2)), MU, **ROUNDING)
    assert_close(second_moment(transform), MU**2 + LOG_VAR.exp(), **EXACT)


def test_reparametrized_draws_have_mean_mu_and_variance_sigma_squared():
    check_moments(reparametrize)


WRONG_TRANSFORMS = {  # each with the second moment that it gives instead of mu^2 + sigma^2
    "sigma squared as the factor (as the source writes), or log_var taken for log sigma": (
        lambda mu, log_var, eps: mu + log_var.exp() * eps,
        lambda mu, var: mu**2 + var**2,
    ),
    "log_var not exponentiated": (
        lambda mu, log_var, eps: mu + log_var * eps,
        lambda mu, var: mu**2 + var.log() ** 2,
    ),
    "one scale for all coordinates": (
        lambda mu, log_var, eps: mu + (log_var.mean() / 2).exp() * eps,
        lambda mu, var: mu**2 + var.log().mean().exp(),
    ),
}


@pytest.mark.parametrize("name", WRONG_TRANSFORMS)
def test_wrong_reparametrizations_are_rejected_with_their_predicted_second_moment(name):
    mutant, predicted = WRONG_TRANSFORMS[name]
    assert_rejects(check_moments, mutant)
    assert_close(second_moment(mutant), predicted(MU, LOG_VAR.exp()), **EXACT)


def test_reparametrized_draw_has_the_path_derivatives_one_and_half_sigma_eps():
    mu, log_var, eps = normals(3, 5), normals(5, seed=1), normals(4, 3, 5, seed=2)
    mu.requires_grad_(), log_var.requires_grad_()
    z = reparametrize(mu, log_var, eps)
    grad_mu, grad_log_var = torch.autograd.grad(z.sum(), (mu, log_var))
    assert_close(grad_mu, torch.full_like(mu, 4.0), **EXACT)
    assert_close(grad_log_var, ((log_var / 2).exp() / 2 * eps).sum((0, 1)), **EXACT)


# --- log density and score ----------------------------------------------------------------------


def check_log_density(log_prob: Callable) -> None:
    z, mu, log_var = normals(7, 3, 4), normals(3, 4, seed=1), normals(4, seed=2)
    assert_close(log_prob(z, mu, log_var), diagonal(mu, log_var).log_prob(z), **EXACT)


def test_log_density_agrees_with_torch_distributions():
    check_log_density(gaussian_log_prob)


def test_log_density_agrees_with_a_multivariate_normal_of_diagonal_covariance():
    z, mu, log_var = normals(7, 4), normals(4, seed=1), normals(4, seed=2)
    expected = MultivariateNormal(mu, log_var.exp().diag()).log_prob(z)
    assert_close(gaussian_log_prob(z, mu, log_var), expected, **EXACT)


def check_mass(log_prob: Callable) -> None:
    """Mass, mean and variance over the plane, by the trapezoidal rule, are 1, mu and sigma^2."""
    steps = torch.linspace(-12, 12, 241, dtype=torch.float64)
    axes = [m + steps * s for m, s in zip(MU, (LOG_VAR / 2).exp())]
    grid = torch.cartesian_prod(*axes)
    cell = math.prod((axis[1] - axis[0]).item() for axis in axes)
    density = log_prob(grid, MU, LOG_VAR).exp() * cell
    assert_close(density.sum(), torch.tensor(1.0).double(), rtol=0, atol=1e-12)
    assert_close(density @ grid, MU, rtol=0, atol=1e-11)
    assert_close(density @ (grid - MU) ** 2, LOG_VAR.exp(), rtol=0, atol=1e-11)


def test_density_in_the_plane_integrates_to_one():
    check_mass(gaussian_log_prob)


LOG_2PI = math.log(2 * math.pi)
WRONG_DENSITIES = {
    "no log 2 pi": lambda z, m, v: -0.5 * (v + (z - m) ** 2 / v.exp()).sum(-1),
    "log 2 pi once, not for each coordinate": lambda z, m, v: (
        -0.5 * (LOG_2PI + (v + (z - m) ** 2 / v.exp()).sum(-1))
    ),
    "half is missing in the exponent": lambda z, m, v: (
        -(0.5 * (LOG_2PI + v) + (z - m) ** 2 / v.exp()).sum(-1)
    ),
    "log_var taken for log sigma": lambda z, m, v: (
        -(0.5 * LOG_2PI + v + 0.5 * (z - m) ** 2 / (2 * v).exp()).sum(-1)
    ),
    "no log determinant": lambda z, m, v: -0.5 * (LOG_2PI + (z - m) ** 2 / v.exp()).sum(-1),
    "sign of the log determinant": lambda z, m, v: (
        -0.5 * (LOG_2PI - v + (z - m) ** 2 / v.exp()).sum(-1)
    ),
    "one variance for all coordinates": lambda z, m, v: (
        -0.5 * (LOG_2PI + v.mean() + (z - m) ** 2 / v.mean().exp()).sum(-1)
    ),
    "mean over the coordinates": lambda z, m, v: (
        -0.5 * (LOG_2PI + v + (z - m) ** 2 / v.exp()).mean(-1)
    ),
}


@pytest.mark.parametrize("name", WRONG_DENSITIES)
def test_wrong_densities_are_rejected(name):
    assert_rejects(check_log_density, WRONG_DENSITIES[name])
    assert_rejects(check_mass, WRONG_DENSITIES[name])


def check_score(score: Callable) -> None:
    z, mu, log_var = normals(6, 3), normals(6, 3, seed=1), normals(6, 3, seed=2)
    mu.requires_grad_(), log_var.requires_grad_()
    total = diagonal(mu, log_var).log_prob(z).sum()
    for found, expected in zip(score(z, mu, log_var), torch.autograd.grad(total, (mu, log_var))):
        assert_close(found.detach(), expected, **ROUNDING)


def test_score_is_the_gradient_of_the_log_density():
    check_score(gaussian_score)


WRONG_SCORES = {
    "sign": lambda z, m, v: ((m - z) / v.exp(), ((z - m) ** 2 / v.exp() - 1) / 2),
    "divided by sigma": lambda z, m, v: ((z - m) / (v / 2).exp(), ((z - m) ** 2 / v.exp() - 1) / 2),
    "with respect to log sigma": lambda z, m, v: ((z - m) / v.exp(), (z - m) ** 2 / v.exp() - 1),
    "without the -1": lambda z, m, v: ((z - m) / v.exp(), (z - m) ** 2 / v.exp() / 2),
}


@pytest.mark.parametrize("name", WRONG_SCORES)
def test_wrong_scores_are_rejected(name):
    assert_rejects(check_score, WRONG_SCORES[name])


def test_score_has_mean_zero_and_the_fisher_information_as_covariance():
    nodes, weights = gauss_hermite()
    z = reparametrize(MU, LOG_VAR, nodes[:, None].expand(-1, 2))
    score_mu, score_log_var = gaussian_score(z, MU, LOG_VAR)
    zero = torch.zeros(2, dtype=torch.float64)
    assert_close(weights @ score_mu, zero, rtol=0, atol=1e-13)
    assert_close(weights @ score_log_var, zero, rtol=0, atol=1e-13)
    assert_close(weights @ (score_mu * score_log_var), zero, rtol=0, atol=1e-12)
    assert_close(weights @ score_mu**2, (-LOG_VAR).exp(), **EXACT)
    assert_close(weights @ score_log_var**2, torch.full_like(LOG_VAR, 0.5), **EXACT)


# --- the divergences: right values, wrong formulas ----------------------------------------------


def check_kl_standard_normal(kl: Callable) -> None:
    mu, log_var = normals(50, 4), normals(50, 4, seed=1)
    prior = diagonal(torch.zeros_like(mu), torch.zeros_like(mu))
    assert_close(kl(mu, log_var), kl_divergence(diagonal(mu, log_var), prior), **EXACT)


def test_kl_to_standard_normal_agrees_with_torch_distributions():
    check_kl_standard_normal(kl_standard_normal)


WRONG_STANDARD = {
    "half is missing": lambda m, v: (m**2 + v.exp() - v - 1).sum(-1),
    "half on the last term only": lambda m, v: (m**2 + v.exp() - v - 0.5).sum(-1),
    "sign: the source calls it an ELBO term": lambda m, v: -0.5 * (m**2 + v.exp() - v - 1).sum(-1),
    "sign of the logarithm": lambda m, v: 0.5 * (m**2 + v.exp() + v - 1).sum(-1),
    "without the -1": lambda m, v: 0.5 * (m**2 + v.exp() - v).sum(-1),
    "log_var taken for log sigma": lambda m, v: 0.5 * (m**2 + (2 * v).exp() - 2 * v - 1).sum(-1),
    "sigma for sigma squared": lambda m, v: 0.5 * (m**2 + (v / 2).exp() - v - 1).sum(-1),
    "mu for mu squared": lambda m, v: 0.5 * (m + v.exp() - v - 1).sum(-1),
    "mean over the latents, a hidden beta": lambda m, v: 0.5 * (m**2 + v.exp() - v - 1).mean(-1),
    "one variance for all latents": lambda m, v: (
        0.5 * (m**2 + v.mean(-1, True).exp() - v.mean(-1, True) - 1).sum(-1)
    ),
    "p and q swapped": lambda m, v: 0.5 * ((m**2 + 1) / v.exp() + v - 1).sum(-1),
}


@pytest.mark.parametrize("name", WRONG_STANDARD)
def test_wrong_kls_to_standard_normal_are_rejected(name):
    assert_rejects(check_kl_standard_normal, WRONG_STANDARD[name])


def check_kl_diagonal(kl: Callable) -> None:
    mu_q, log_var_q, mu_p, log_var_p = (normals(50, 4, seed=seed) for seed in range(4))
    expected = kl_divergence(diagonal(mu_q, log_var_q), diagonal(mu_p, log_var_p))
    assert_close(kl(mu_q, log_var_q, mu_p, log_var_p), expected, **EXACT)


def test_kl_of_diagonal_gaussians_agrees_with_torch_distributions():
    check_kl_diagonal(kl_diagonal)


WRONG_DIAGONAL = {
    "half is missing": lambda m, v, n, w: (
        ((m - n) ** 2 / w.exp() + (v - w).exp() - 1 - v + w).sum(-1)
    ),
    "p and q swapped": lambda m, v, n, w: kl_diagonal(n, w, m, v),
    "distance in units of q": lambda m, v, n, w: (
        0.5 * ((m - n) ** 2 / v.exp() + (v - w).exp() - 1 - v + w).sum(-1)
    ),
    "distance without units": lambda m, v, n, w: (
        0.5 * ((m - n) ** 2 + (v - w).exp() - 1 - v + w).sum(-1)
    ),
    "distance in units of sigma, not sigma squared": lambda m, v, n, w: (
        0.5 * ((m - n) ** 2 / (w / 2).exp() + (v - w).exp() - 1 - v + w).sum(-1)
    ),
    "log_var taken for log sigma": lambda m, v, n, w: kl_diagonal(m, 2 * v, n, 2 * w),
    "p taken for standard": lambda m, v, n, w: kl_standard_normal(m, v),
    "sign of the logarithm": lambda m, v, n, w: (
        0.5 * ((m - n) ** 2 / w.exp() + (v - w).exp() - 1 + v - w).sum(-1)
    ),
    "ratio upside down": lambda m, v, n, w: (
        0.5 * ((m - n) ** 2 / w.exp() + (w - v).exp() - 1 - v + w).sum(-1)
    ),
}


@pytest.mark.parametrize("name", WRONG_DIAGONAL)
def test_wrong_kls_of_diagonal_gaussians_are_rejected(name):
    assert_rejects(check_kl_diagonal, WRONG_DIAGONAL[name])


def check_kl_full(kl: Callable) -> None:
    mu_q, mu_p = normals(20, 4), normals(20, 4, seed=1)
    cov_q = covariances(20, size=4, condition=8.0, seed=2)
    cov_p = 3 * covariances(20, size=4, condition=5.0, seed=3)
    expected = kl_divergence(MultivariateNormal(mu_q, cov_q), MultivariateNormal(mu_p, cov_p))
    assert_close(kl(mu_q, cov_q, mu_p, cov_p), expected, **EXACT)


def test_kl_of_full_covariances_agrees_with_torch_distributions():
    check_kl_full(kl_full)


def explicit_kl_full(m, s, n, t, *, half=0.5, trace=None, logdet=None, distance=None) -> Tensor:
    """The textbook formula with inverses and determinants, for writing mutants of its parts."""
    d = (n - m)[..., None]
    trace = (t.inverse() @ s if trace is None else trace).diagonal(dim1=-2, dim2=-1).sum(-1)
    logdet = t.logdet() - s.logdet() if logdet is None else logdet
    distance = (d.mT @ t.inverse() @ d)[..., 0, 0] if distance is None else distance
    return half * (trace - m.shape[-1] + distance + logdet)


WRONG_FULL = {
    "half is missing": lambda m, s, n, t: explicit_kl_full(m, s, n, t, half=1.0),
    "p and q swapped": lambda m, s, n, t: kl_full(n, t, m, s),
    "determinants swapped": lambda m, s, n, t: (
        explicit_kl_full(m, s, n, t, logdet=s.logdet() - t.logdet())
    ),
    "trace of the other ratio": lambda m, s, n, t: (
        explicit_kl_full(m, s, n, t, trace=s.inverse() @ t)
    ),
    "distance in units of q": lambda m, s, n, t: explicit_kl_full(
        m, s, n, t, distance=((n - m)[..., None, :] @ s.inverse() @ (n - m)[..., None])[..., 0, 0]
    ),
    "log of the Cholesky diagonal not doubled": lambda m, s, n, t: (
        explicit_kl_full(m, s, n, t, logdet=(t.logdet() - s.logdet()) / 2)
    ),
    "covariances taken for Cholesky factors": lambda m, s, n, t: kl_full(m, s @ s.mT, n, t @ t.mT),
    "covariances taken for precisions": lambda m, s, n, t: kl_full(m, s.inverse(), n, t.inverse()),
    "correlations dropped": lambda m, s, n, t: kl_diagonal(
        m,
        s.diagonal(dim1=-2, dim2=-1).log(),
        n,
        t.diagonal(dim1=-2, dim2=-1).log(),
    ),
}


def test_the_base_of_the_wrong_formulas_passes_the_check():
    check_kl_full(explicit_kl_full)


@pytest.mark.parametrize("name", WRONG_FULL)
def test_wrong_kls_of_full_covariances_are_rejected(name):
    assert_rejects(check_kl_full, WRONG_FULL[name])


def test_the_three_divergences_agree_where_they_meet():
    mu_q, log_var_q, mu_p, log_var_p = (normals(20, 5, seed=seed) for seed in range(4))
    zeros = torch.zeros_like(mu_q)
    full = kl_full(
        mu_q, log_var_q.exp().diag_embed(), mu_p, log_var_p.exp().diag_embed()
    )
    assert_close(full, kl_diagonal(mu_q, log_var_q, mu_p, log_var_p), **EXACT)
    standard = kl_standard_normal(mu_q, log_var_q)
    assert_close(kl_diagonal(mu_q, log_var_q, zeros, zeros), standard, **EXACT)


def test_divergence_does_not_change_under_an_invertible_affine_map():
    mu_q, mu_p, move = normals(4), normals(4, seed=1), normals(4, seed=2)
    cov_q, cov_p = (covariances(size=4, condition=9.0, seed=seed) for seed in (3, 4))
    a = normals(4, 4, seed=5)
    mapped = kl_full(a @ mu_q + move, a @ cov_q @ a.mT, a @ mu_p + move, a @ cov_p @ a.mT)
    assert_close(mapped, kl_full(mu_q, cov_q, mu_p, cov_p), **EXACT)


def test_divergences_of_independent_blocks_add():
    parts = [
        (normals(n, seed=n), covariances(size=n, condition=5.0, seed=n),
         normals(n, seed=n + 9), covariances(size=n, condition=5.0, seed=n + 9))
        for n in (2, 3)
    ]
    mu_q, cov_q, mu_p, cov_p = zip(*parts)
    whole = kl_full(torch.cat(mu_q), torch.block_diag(*cov_q),
                    torch.cat(mu_p), torch.block_diag(*cov_p))
    assert_close(whole, sum(kl_full(*part) for part in parts), **EXACT)


# --- the divergences: digits --------------------------------------------------------------------


@pytest.fixture
def fifty_digits():
    """Fifty digits are left after 1e-40, squared, has been subtracted from one."""
    with mpmath.workdps(130):
        yield


def exact_kl_diagonal(mu_q, log_var_q, mu_p, log_var_p) -> float:
    """The closed form of one pair of vectors, in the working precision of mpmath."""
    total = mpmath.mpf(0)
    for m, v, n, w in zip(*(x.tolist() for x in (mu_q, log_var_q, mu_p, log_var_p))):
        t = mpmath.mpf(v) - mpmath.mpf(w)
        shift = (mpmath.mpf(m) - mpmath.mpf(n)) ** 2 / mpmath.exp(w)
        total += shift + mpmath.exp(t) - 1 - t
    return float(total / 2)


def exact_kl_full(mu_q, cov_q, mu_p, cov_p) -> float:
    """The closed form with LU solves in the working precision; the entries are taken as exact."""
    q, p = mpmath.matrix(cov_q.tolist()), mpmath.matrix(cov_p.tolist())
    shift = mpmath.matrix(mu_p.tolist()) - mpmath.matrix(mu_q.tolist())
    size = len(shift)
    trace = sum(mpmath.lu_solve(p, q[:, i])[i] for i in range(size))
    distance = (shift.T * mpmath.lu_solve(p, shift))[0]
    log_det = mpmath.log(mpmath.det(p)) - mpmath.log(mpmath.det(q))
    return float((trace - size + distance + log_det) / 2)


def relative_error(found: Tensor, expected: float) -> float:
    return abs(found.item() - expected) / abs(expected)


@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4, 1e-8, 1e-12, 1e-40])
def test_kl_keeps_its_digits_however_small_it_is(size, fifty_digits):
    for seed in range(10):
        mu, log_var = size * normals(3, seed=seed), size * normals(3, seed=seed + 20)
        zeros, base_mu, base_log_var = torch.zeros(3).double(), normals(3), normals(3, seed=1)
        exact = exact_kl_diagonal(mu, log_var, zeros, zeros)
        assert relative_error(kl_standard_normal(mu, log_var), exact) < 1e-13
        near = base_mu + mu, base_log_var + log_var, base_mu, base_log_var
        exact = exact_kl_diagonal(*near)
        assert exact == 0 or relative_error(kl_diagonal(*near), exact) < 1e-13


def test_terms_of_the_kl_keep_their_digits_on_both_sides_of_the_switch_to_the_series(fifty_digits):
    zero = torch.zeros(1, dtype=torch.float64)
    points = [s * t for s in (-1, 1) for t in (1e-9, 1e-3, 0.04999, 0.05, 0.05001, 0.3, 5, 60)]
    for point in points:
        log_var = torch.tensor([point], dtype=torch.float64, requires_grad=True)
        value = kl_standard_normal(zero, log_var)
        (slope,) = torch.autograd.grad(value, log_var)
        t = mpmath.mpf(point)
        assert relative_error(value, float((mpmath.exp(t) - 1 - t) / 2)) < 2e-14
        assert relative_error(slope, float(mpmath.expm1(t) / 2)) < 1e-15
        low = kl_standard_normal(zero.float(), log_var.detach().float())
        t = mpmath.mpf(log_var.detach().float().item())
        assert relative_error(low, float((mpmath.exp(t) - 1 - t) / 2)) < 1e-5


def test_the_textbook_formula_loses_the_digits_that_ours_keeps(fifty_digits):
    zero = torch.zeros(1, dtype=torch.float64)
    log_var = torch.full_like(zero, 1e-8)
    exact = exact_kl_diagonal(zero, log_var, zero, zero)
    assert 2e-17 < exact < 3e-17
    assert relative_error(kl_standard_normal(zero, log_var), exact) < 1e-15
    textbook = 0.5 * (zero**2 + log_var.exp() - log_var - 1).sum(-1)
    assert relative_error(textbook, exact) > 0.5
    torchs = kl_divergence(diagonal(zero, log_var), diagonal(zero, zero))
    assert relative_error(torchs, exact) > 1e-10


def random_pair(size: int, condition: float, closeness: float, seed: int) -> tuple[Tensor, ...]:
    """Two Gaussians: unrelated (closeness 1), or q = p but for a part of relative size closeness."""
    mu_p, cov_p = normals(size, seed=seed), covariances(size=size, condition=condition, seed=seed)
    if closeness == 1:
        other = covariances(size=size, condition=condition, seed=seed + 50)
        return normals(size, seed=seed + 50), other, mu_p, cov_p
    factor, noise = torch.linalg.cholesky(cov_p), normals(size, size, seed=seed + 60)
    cov_q = cov_p + closeness * factor @ (noise + noise.mT) @ factor.mT
    mu_q = mu_p + closeness * factor @ normals(size, seed=seed + 70)
    return mu_q, (cov_q + cov_q.mT) / 2, mu_p, cov_p


@pytest.mark.parametrize("closeness", [1, 0.05, 1e-5])
@pytest.mark.parametrize("condition", [1e2, 1e5, 1e8, 1e10])
def test_kl_full_agrees_with_fifty_digits_up_to_condition_numbers_of_1e10(
    condition, closeness, fifty_digits
):
    for size in (2, 5, 9):
        pair = random_pair(size, condition, closeness, seed=size)
        assert relative_error(kl_full(*pair), exact_kl_full(*pair)) < 1e-12


def test_kl_full_keeps_the_digits_of_a_divergence_of_1e_16(fifty_digits):
    pair = random_pair(4, 100.0, 1e-9, seed=4)
    exact = exact_kl_full(*pair)
    assert 1e-18 < exact < 1e-15
    assert relative_error(kl_full(*pair), exact) < 1e-12
    plain = kl_divergence(MultivariateNormal(*pair[:2]), MultivariateNormal(*pair[2:]))
    assert abs(plain.item() - exact) >= exact  # not one digit is right


def test_the_formula_through_cholesky_factors_alone_loses_digits_with_the_condition_number(
    fifty_digits,
):
    pair = random_pair(5, 1e8, 1, seed=5)
    plain = kl_divergence(MultivariateNormal(*pair[:2]), MultivariateNormal(*pair[2:]))
    assert relative_error(plain, exact_kl_full(*pair)) > 1e-11


def test_kl_full_in_float32_is_the_rounded_value_for_the_given_entries():
    pair = [part.float() for part in random_pair(5, 1e4, 1, seed=7)]
    found, expected = kl_full(*pair), kl_full(*(part.double() for part in pair))
    assert found.dtype == torch.float32
    assert_close(found, expected.float(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("kl", [kl_standard_normal, kl_diagonal])
def test_kl_in_float32_agrees_with_float64_to_single_precision(kl):
    count = {kl_standard_normal: 2, kl_diagonal: 4}[kl]
    arguments = [normals(200, 4, seed=seed).float() for seed in range(count)]
    found, expected = kl(*arguments), kl(*(part.double() for part in arguments))
    assert found.dtype == torch.float32
    assert_close(found.double(), expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("leading", [(), (3,), (2, 1)])
def test_kl_full_of_a_gaussian_and_itself_is_exactly_zero(leading):
    mu, cov = normals(*leading, 4), covariances(*leading, size=4, condition=1e6)
    assert torch.equal(kl_full(mu, cov, mu, cov), torch.zeros(leading, dtype=torch.float64))


# --- gradients ----------------------------------------------------------------------------------


def with_gradient(*tensors: Tensor) -> list[Tensor]:
    return [tensor.clone().requires_grad_() for tensor in tensors]


@pytest.mark.parametrize(
    "function, count",
    [(reparametrize, 3), (gaussian_log_prob, 3), (gaussian_score, 3),
     (kl_standard_normal, 2), (kl_diagonal, 4)],
)
def test_gradients_and_second_derivatives_agree_with_finite_differences(function, count):
    arguments = with_gradient(*(normals(2, 3, seed=seed) for seed in range(count)))
    assert gradcheck(function, arguments)
    assert gradgradcheck(function, arguments)


@pytest.mark.parametrize("closeness", [1, 0.02], ids=["far", "near"])
def test_gradients_of_kl_full_agree_with_finite_differences_on_both_branches(closeness):
    mu_q, cov_q, mu_p, cov_p = with_gradient(*random_pair(3, 4.0, closeness, seed=3))

    def symmetrized(mu_q, cov_q, mu_p, cov_p):
        return kl_full(mu_q, (cov_q + cov_q.mT) / 2, mu_p, (cov_p + cov_p.mT) / 2)

    assert gradcheck(symmetrized, (mu_q, cov_q, mu_p, cov_p))


def test_gradients_of_kl_full_are_the_closed_forms():
    mu_q, cov_q, mu_p, cov_p = with_gradient(*random_pair(4, 1e3, 1, seed=4))
    grads = torch.autograd.grad(kl_full(mu_q, cov_q, mu_p, cov_p), (mu_q, cov_q, mu_p))
    shift = torch.linalg.solve(cov_p, mu_q - mu_p)
    expected = shift, (cov_p.inverse() - cov_q.inverse()) / 2, -shift
    for found, value in zip(grads, expected):
        assert_close(found, value.detach(), rtol=1e-9, atol=1e-9)


def test_gradient_at_the_minimum_is_zero():
    mu, log_var = with_gradient(torch.zeros(3).double(), torch.zeros(3).double())
    for grad in torch.autograd.grad(kl_standard_normal(mu, log_var), (mu, log_var)):
        assert torch.equal(grad, torch.zeros_like(grad))
    mu, cov, other = with_gradient(normals(3), covariances(size=3, condition=5.0), normals(3))
    kl = kl_full(mu, cov, other, cov.detach())
    for grad in torch.autograd.grad(kl, (mu, cov)):
        assert torch.equal(grad, torch.zeros_like(grad))


# --- properties over shapes, dtypes and extreme values -------------------------------------------


@st.composite
def diagonal_arguments(draw, kinds: str) -> list[Tensor]:
    """One tensor for each letter of kinds: m for means (|mu| <= 1e6), v for log variances."""
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    leading = draw(st.sampled_from([(), (0,), (1,), (3,), (2, 1), (2, 3)]))
    shape = (*leading, draw(st.integers(1, 4)))
    bounds = {"m": 1e6, "v": 60}
    return [
        torch.from_numpy(
            draw(
                hnp.arrays(
                    dtype,
                    shape,
                    elements=st.floats(-bounds[k], bounds[k], width=8 * np.dtype(dtype).itemsize),
                )
            )
        )
        for k in kinds
    ]


def assert_sane(function: Callable, arguments: list[Tensor], largest: bool) -> None:
    """Finite, or infinite only where the float64 value exceeds the dtype; no NaN in a gradient."""
    arguments = with_gradient(*arguments)
    value = function(*arguments)
    assert value.dtype == arguments[0].dtype
    assert value.shape == arguments[0].shape[:-1]
    assert not value.isnan().any()
    exact = function(*(argument.detach().double() for argument in arguments))
    assert exact.isfinite().all()
    top = torch.finfo(value.dtype).max
    # A single term is up to twice the value, and terms are rounded up to the overflow threshold.
    assert (value.isfinite() | (exact.abs() > top / 2.001)).all()
    assert (value[value.isinf()] > 0).all() == largest or not value.isinf().any()
    for grad in torch.autograd.grad(value.sum(), arguments):
        assert not grad.isnan().any()


@many
@given(diagonal_arguments("mv"))
def test_kl_to_standard_normal_is_non_negative_and_never_nan(arguments):
    assert_sane(kl_standard_normal, arguments, largest=True)
    assert (kl_standard_normal(*arguments) >= 0).all()


@many
@given(diagonal_arguments("mvmv"))
def test_kl_of_diagonal_gaussians_is_non_negative_and_never_nan(arguments):
    assert_sane(kl_diagonal, arguments, largest=True)
    assert (kl_diagonal(*arguments) >= 0).all()
    q = arguments[:2]
    assert (kl_diagonal(*q, *q) == 0).all()


@many
@given(diagonal_arguments("mmv"))
def test_log_density_is_never_nan(arguments):
    assert_sane(gaussian_log_prob, arguments, largest=False)


@many
@given(diagonal_arguments("mmv"))
def test_score_is_never_nan(arguments):
    for score in gaussian_score(*arguments):
        assert score.shape == arguments[0].shape
        assert not score.isnan().any()


@many
@given(diagonal_arguments("mvm"))
def test_reparametrized_draws_are_finite(arguments):
    mu, log_var, eps = arguments
    eps = eps.clamp(-40, 40)
    z = reparametrize(mu, log_var, eps)
    assert z.shape == mu.shape and z.dtype == mu.dtype
    assert z.isfinite().all()


@many
@given(diagonal_arguments("mvmv"))
def test_kl_full_of_diagonal_covariances_of_any_scale_agrees_with_kl_diagonal(arguments):
    mu_q, log_var_q, mu_p, log_var_p = (argument.double() for argument in arguments)
    mu_q, cov_q, mu_p, cov_p = with_gradient(
        mu_q, log_var_q.exp().diag_embed(), mu_p, log_var_p.exp().diag_embed()
    )
    value = kl_full(mu_q, cov_q, mu_p, cov_p)
    assert (value >= 0).all()
    # log_var is rounded once more on its way into cov, by up to eps: an error of eps in each term.
    expected = kl_diagonal(mu_q, log_var_q, mu_p, log_var_p).detach()
    assert_close(value.detach(), expected, rtol=1e-12, atol=1e-14)
    for grad in torch.autograd.grad(value.sum(), (mu_q, cov_q, mu_p, cov_p)):
        assert not grad.isnan().any()


@many
@given(st.integers(1, 6), st.floats(0, 9), st.integers(0, 10**6), st.sampled_from([1, 1e-3, 1e-9]))
def test_kl_full_of_correlated_gaussians_is_finite_and_non_negative(size, digits, seed, closeness):
    pair = with_gradient(*random_pair(size, 10.0**digits, closeness, seed=seed))
    value = kl_full(*pair)
    assert value.isfinite() and value >= 0
    for grad in torch.autograd.grad(value, pair):
        assert grad.isfinite().all()


@many
@given(st.integers(1, 4), st.integers(0, 10**6), st.floats(-60, 60), st.floats(-60, 60))
def test_kl_full_in_float32_is_never_nan(size, seed, log_scale_q, log_scale_p):
    mu_q, cov_q, mu_p, cov_p = (part.float() for part in random_pair(size, 50.0, 1, seed=seed))
    pair = with_gradient(
        1e6 * mu_q, math.exp(log_scale_q) * cov_q, -1e6 * mu_p, math.exp(log_scale_p) * cov_p
    )
    value = kl_full(*pair)
    assert value >= 0
    for grad in torch.autograd.grad(value, pair):
        assert not grad.isnan().any()


# --- shapes -------------------------------------------------------------------------------------

VECTOR_FUNCTIONS = {
    reparametrize: ["mu", "log_var", "eps"],
    gaussian_log_prob: ["z", "mu", "log_var"],
    gaussian_score: ["z", "mu", "log_var"],
    kl_standard_normal: ["mu", "log_var"],
    kl_diagonal: ["mu_q", "log_var_q", "mu_p", "log_var_p"],
}
functions = pytest.mark.parametrize("function", VECTOR_FUNCTIONS, ids=lambda f: f.__name__)


def good_arguments(function: Callable) -> dict[str, Tensor]:
    return {name: normals(4, 3, seed=n) for n, name in enumerate(VECTOR_FUNCTIONS[function])}


@functions
@pytest.mark.parametrize("shapes", [((3,), (3,)), ((2, 3), (3,)), ((4, 1, 3), (2, 3)), ((3,), (5, 3))])
def test_leading_axes_broadcast(function, shapes):
    names = VECTOR_FUNCTIONS[function]
    arguments = [normals(*shapes[n % 2], seed=n) for n in range(len(names))]
    found = function(*arguments)
    expected = function(*torch.broadcast_tensors(*arguments))
    if isinstance(found, Tensor):
        found, expected = (found,), (expected,)
    for part, whole in zip(found, expected):
        assert_close(part, whole, rtol=1e-14, atol=1e-14)


def test_kl_full_broadcasts_means_against_covariances():
    mu_q, mu_p = normals(2, 1, 3), normals(3, seed=1)
    cov_q = covariances(5, size=3, condition=4.0)
    cov_p = covariances(size=3, condition=4.0, seed=1)
    found = kl_full(mu_q, cov_q, mu_p, cov_p)
    assert found.shape == (2, 5)
    for i in range(2):
        for j in range(5):
            assert_close(found[i, j], kl_full(mu_q[i, 0], cov_q[j], mu_p, cov_p), **EXACT)


@functions
def test_no_examples_give_no_values(function):
    arguments = [torch.zeros(0, 3) for _ in VECTOR_FUNCTIONS[function]]
    found = function(*arguments)
    for part in found if isinstance(found, tuple) else (found,):
        assert part.shape[0] == 0


# --- what is refused ----------------------------------------------------------------------------


@functions
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_by_name(function, bad):
    for name in VECTOR_FUNCTIONS[function]:
        arguments = good_arguments(function)
        arguments[name][2, 1] = bad
        with pytest.raises(ValueError, match=rf"^{name} must be finite, found 1 of 12 .*{bad}"):
            function(**arguments)


@functions
@pytest.mark.parametrize("shape", [(4, 1), (4,), (), (4, 2), (3, 4)])
def test_last_axes_that_differ_are_refused_by_name(function, shape):
    first, *others = VECTOR_FUNCTIONS[function]
    for name in others:
        arguments = good_arguments(function) | {name: torch.zeros(shape).double()}
        with pytest.raises(ValueError, match=rf"^{name} must have the same last axis as {first}"):
            function(**arguments)


@functions
def test_a_column_against_a_vector_is_refused_and_not_broadcast(function):
    first, second, *_ = VECTOR_FUNCTIONS[function]
    arguments = dict.fromkeys(VECTOR_FUNCTIONS[function], torch.zeros(5)) | {
        second: torch.zeros(5, 1)
    }
    with pytest.raises(ValueError, match=rf"{second} of shape \(5, 1\) and {first} of shape \(5,\)"):
        function(**arguments)


@functions
def test_leading_axes_that_do_not_broadcast_are_refused(function):
    first, second, *_ = VECTOR_FUNCTIONS[function]
    arguments = good_arguments(function) | {second: torch.zeros(5, 3).double()}
    with pytest.raises(ValueError, match=rf"leading axes .* {first} \(4,\).* {second} \(5,\)"):
        function(**arguments)


@functions
@pytest.mark.parametrize(
    "bad, found",
    [(torch.ones(4, 3, dtype=torch.int64), "torch.int64"), ([[1.0]], "list"), (1.0, "float"),
     (np.zeros((4, 3)), "ndarray"), (None, "NoneType")],
    ids=["integers", "list", "number", "array", "none"],
)
def test_what_is_no_floating_point_tensor_is_a_type_error(function, bad, found):
    for name in VECTOR_FUNCTIONS[function]:
        with pytest.raises(TypeError, match=rf"^{name} must .*found {found}"):
            function(**good_arguments(function) | {name: bad})


def good_pair() -> dict[str, Tensor]:
    names = ["mu_q", "cov_q", "mu_p", "cov_p"]
    return dict(zip(names, random_pair(3, 4.0, 1, seed=1)))


COVARIANCE_NAMES = pytest.mark.parametrize("name", ["cov_q", "cov_p"])


@COVARIANCE_NAMES
@pytest.mark.parametrize(
    "matrix, message",
    [
        (-torch.eye(3), "positive definite, found a smallest eigenvalue of -1"),
        (torch.ones(3, 3), "positive definite, found a smallest eigenvalue"),
        (torch.zeros(3, 3), "positive definite, found a smallest eigenvalue of 0"),
        (torch.tensor([[1.0, 2, 0], [2, 1, 0], [0, 0, 1]]), "positive definite, .* of -1"),
        (torch.eye(3) + torch.eye(3).roll(1, 0), "symmetric, found entries that differ by 1"),
        (torch.eye(3).tril() + torch.ones(3, 3).tril(-1), "symmetric"),
        (torch.eye(2), r"shape \[\*, L, L\] with L = 3 .*found \(2, 2\)"),
        (torch.ones(3), r"shape .*found \(3,\)"),
        (torch.ones(3, 1), r"shape .*found \(3, 1\)"),
        (torch.full((3, 3), math.nan), "finite, found 9 of 9"),
        (torch.diag(torch.tensor([1.0, math.inf, 1.0])), "finite, found 1 of 9"),
    ],
)
def test_a_bad_covariance_is_refused_by_name(name, matrix, message):
    with pytest.raises(ValueError, match=rf"^{name} must (be|have) {message}"):
        kl_full(**good_pair() | {name: matrix.double()})


@COVARIANCE_NAMES
def test_one_bad_covariance_in_a_batch_is_refused(name):
    batch = torch.eye(3, dtype=torch.float64).repeat(4, 1, 1) * 1e6
    batch[2] = torch.diag(torch.tensor([1.0, -1e-3, 1.0]).double())
    with pytest.raises(ValueError, match=rf"^{name} .* of -0.001"):
        kl_full(**good_pair() | {name: batch})
    batch[2] = torch.eye(3).double() + torch.eye(3).double().roll(1, 0) * 1e-9
    with pytest.raises(ValueError, match=rf"^{name} must be symmetric"):
        kl_full(**good_pair() | {name: batch})


@COVARIANCE_NAMES
def test_a_covariance_of_lower_rank_is_refused_although_rounding_hides_it(name):
    for seed in range(20):
        half = normals(3, 2, seed=seed)
        with pytest.raises(ValueError, match=rf"^{name} must be positive definite"):
            kl_full(**good_pair() | {name: half @ half.mT})


@COVARIANCE_NAMES
def test_a_covariance_that_is_no_floating_point_tensor_is_a_type_error(name):
    for bad in (torch.eye(3).long(), [[1.0]], 1.0):
        with pytest.raises(TypeError, match=rf"^{name} must"):
            kl_full(**good_pair() | {name: bad})


def test_asymmetry_of_rounding_size_is_accepted():
    pair = good_pair()
    expected = kl_full(**pair)
    pair["cov_q"][0, 1] *= 1 + 4e-16
    assert_close(kl_full(**pair), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", ["mu_q", "mu_p"])
def test_kl_full_refuses_bad_means_by_name(name):
    with pytest.raises(ValueError, match=rf"{name} must be finite"):
        kl_full(**good_pair() | {name: torch.full((3,), math.nan).double()})
    with pytest.raises(TypeError, match=rf"{name} must be a torch.Tensor"):
        kl_full(**good_pair() | {name: [0.0, 0.0, 0.0]})
    with pytest.raises(ValueError, match=r"leading axes .*cov_q \(4,\)"):
        kl_full(**good_pair() | {name: torch.zeros(5, 3).double(),
                                 "cov_q": torch.eye(3).double().repeat(4, 1, 1)})


def test_kl_full_of_no_latents_is_refused():
    empty = torch.zeros(0), torch.zeros(0, 0)
    with pytest.raises(ValueError, match="L at least 1"):
        kl_full(*empty, *empty)
