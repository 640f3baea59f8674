"""The equations of the chapter on the KL divergence, each against an independent route.

`rejects` runs the same comparison with a plausible wrong version, which must fail it.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal
from torch.testing import assert_close

from vaelib import (
    gaussian_log_prob,
    gaussian_score,
    kl_diagonal,
    kl_full,
    kl_standard_normal,
)

GRID = torch.linspace(-16, 16, 6401, dtype=torch.float64)
EXACT = {"rtol": 1e-11, "atol": 1e-12}


def f64(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normals(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def gaussian(size: int, seed: int) -> tuple[Tensor, Tensor]:
    half = normals(size, size, seed=seed)
    eye = torch.eye(size, dtype=torch.float64)
    return normals(size, seed=seed + 100), half @ half.mT + 0.5 * eye


def integrate(values: Tensor) -> Tensor:
    return torch.trapezoid(values, GRID)


def log_normal(z: Tensor, mu: float, sigma: float) -> Tensor:
    return Normal(f64(mu), f64(sigma)).log_prob(z)


def by_definition(log_q: Tensor, log_p: Tensor) -> Tensor:
    return integrate(log_q.exp() * (log_q - log_p))


def plane(half_width: float = 20.0, points: int = 1001) -> tuple[Tensor, float]:
    axis = torch.linspace(-half_width, half_width, points, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), (2 * half_width / (points - 1)) ** 2


def hermite(size: int, count: int = 8) -> tuple[Tensor, Tensor]:
    """Standard normal nodes [count^size, size] and their weights: exact up to degree 2 count - 1."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    weights = weights / weights.sum()
    product = torch.tensor(list(itertools.product(nodes, repeat=size)), dtype=torch.float64)
    return product, f64([math.prod(w) for w in itertools.product(weights, repeat=size)])


def rejects(found, expected, tolerance=EXACT) -> None:
    with pytest.raises(AssertionError):
        assert_close(found, expected, **tolerance)


PAIRS = [((1.1, 0.6), (0.0, 1.0)), ((-0.4, 1.3), (0.7, 0.8)), ((0.2, 0.5), (0.2, 1.5))]
pairs = pytest.mark.parametrize("q, p", PAIRS)


def one_dimensional(q, p) -> Tensor:
    """The library's value for (mu, sigma) pairs."""
    return kl_diagonal(*(f64([v]) for v in (q[0], 2 * math.log(q[1]), p[0], 2 * math.log(p[1]))))


# --- definition -----------------------------------------------------------------------------------


@pytest.mark.equation("eq-kl-definition")
@pairs
def test_definition_integrates_to_the_closed_form(q, p):
    log_q, log_p = log_normal(GRID, *q), log_normal(GRID, *p)
    assert_close(by_definition(log_q, log_p), one_dimensional(q, p), **EXACT)
    rejects(by_definition(log_p, log_q), one_dimensional(q, p))
    # the average under the wrong distribution
    rejects(integrate(log_p.exp() * (log_q - log_p)), one_dimensional(q, p))


@pytest.mark.equation("eq-kl-nonnegative")
@pairs
def test_each_link_of_the_chain_of_inequalities_holds(q, p):
    log_q, log_p = log_normal(GRID, *q), log_normal(GRID, *p)
    tangent = integrate(log_q.exp() * ((log_p - log_q).exp() - 1))
    assert_close(tangent, integrate(log_p.exp()) - 1, **EXACT)
    assert -by_definition(log_q, log_p) < tangent < 1e-12
    assert by_definition(log_q, log_q) == 0


@pytest.mark.equation("eq-kl-nonnegative")
def test_mass_of_p_outside_the_support_of_q_makes_the_last_link_strict():
    inside = torch.linspace(-1, 1, 20_001, dtype=torch.float64)  # q is uniform on [-1, 1]
    log_p = log_normal(inside, 0.3, 1.0)
    kl = torch.trapezoid(0.5 * (math.log(0.5) - log_p), inside)
    tangent = torch.trapezoid(0.5 * (log_p.exp() / 0.5 - 1), inside)
    mass = Normal(0.3, 1.0).cdf(torch.tensor(1.0)) - Normal(0.3, 1.0).cdf(torch.tensor(-1.0))
    assert_close(tangent, mass.double() - 1, rtol=1e-6, atol=0)
    assert -kl < tangent < -0.1


# --- closed forms ---------------------------------------------------------------------------------


def univariate(q, p, *, half=0.5, square=lambda d: d**2, variance=lambda s: s**2) -> Tensor:
    (mu_q, sigma_q), (mu_p, sigma_p) = q, p
    ratio = (variance(sigma_q) + square(mu_q - mu_p)) / (2 * variance(sigma_p))
    return f64(math.log(sigma_p / sigma_q) + ratio - half)


@pytest.mark.equation("eq-kl-univariate")
@pairs
def test_univariate_formula_is_the_integral(q, p):
    expected = by_definition(log_normal(GRID, *q), log_normal(GRID, *p))
    assert_close(univariate(q, p), expected, **EXACT)
    assert_close(one_dimensional(q, p), expected, **EXACT)
    rejects(univariate(q, p, half=1.0), expected)
    rejects(univariate(q, p, variance=lambda s: s), expected)
    if q[0] != p[0]:
        rejects(univariate(q, p, square=abs), expected)
    rejects(univariate(p, q), expected)


@pytest.mark.equation("eq-kl-two-costs")
@pairs
def test_cost_of_the_mean_and_cost_of_the_width_add_up(q, p):
    t = math.log(q[1] ** 2 / p[1] ** 2)
    mean, width = 0.5 * ((q[0] - p[0]) / p[1]) ** 2, 0.5 * (math.exp(t) - 1 - t)
    assert mean >= 0 and width >= 0
    assert_close(f64(mean + width), one_dimensional(q, p), **EXACT)
    rejects(f64(mean + 0.5 * (math.exp(-t) - 1 + t)), one_dimensional(q, p))
    assert_close(f64(width), one_dimensional((0.0, q[1]), (0.0, p[1])), **EXACT)


@pytest.mark.equation("eq-kl-product")
def test_divergences_of_independent_coordinates_add_also_for_other_densities():
    """One coordinate is normal, the other logistic against Laplace."""
    points, cell = plane(40.0, 2001)

    def logistic(z):
        return -z - 2 * torch.nn.functional.softplus(-z)

    def laplace(z):
        return -math.log(2) - z.abs()

    x, y = points.T
    log_q = log_normal(x, 0.5, 0.8) + logistic(y)
    log_p = log_normal(x, 0.0, 1.0) + laplace(y)
    whole = (log_q.exp() * (log_q - log_p)).sum() * cell
    axis = torch.linspace(-40, 40, 2001, dtype=torch.float64)
    second = (logistic(axis).exp() * (logistic(axis) - laplace(axis))).sum() * 0.04
    assert_close(whole, one_dimensional((0.5, 0.8), (0.0, 1.0)) + second, rtol=1e-9, atol=0)


@pytest.mark.equation("eq-kl-product")
def test_divergences_of_dependent_coordinates_do_not_add():
    mu, cov = f64([0.5, -0.2]), f64([[1.0, 0.6], [0.6, 0.8]])
    zeros, eye = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    marginals = kl_standard_normal(mu, cov.diagonal().log())
    assert kl_full(mu, cov, zeros, eye) > marginals + 0.1


def plane_divergence(q: MultivariateNormal, p: MultivariateNormal) -> Tensor:
    points, cell = plane()
    log_q, log_p = q.log_prob(points), p.log_prob(points)
    return (log_q.exp() * (log_q - log_p)).sum() * cell


@pytest.mark.equation("eq-kl-standard-normal")
def test_divergence_from_the_prior_is_its_integral_over_the_plane():
    mu, log_var = f64([0.7, -1.1]), f64([0.4, -0.9])
    formula = 0.5 * (mu**2 + log_var.exp() - log_var - 1).sum()
    prior = MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    integral = plane_divergence(MultivariateNormal(mu, log_var.exp().diag()), prior)
    assert_close(formula, integral, **EXACT)
    assert_close(kl_standard_normal(mu, log_var), integral, **EXACT)
    rejects(2 * formula, integral)
    rejects(0.5 * (mu**2 + (2 * log_var).exp() - 2 * log_var - 1).sum(), integral)


@pytest.mark.equation("eq-kl-diagonal")
def test_divergence_of_diagonal_gaussians_is_its_integral_over_the_plane():
    mu_q, v_q, mu_p, v_p = (f64(v) for v in ([0.7, -1.1], [0.4, -0.9], [-0.2, 0.5], [0.3, 0.8]))
    t = v_q - v_p
    formula = 0.5 * ((mu_q - mu_p) ** 2 / v_p.exp() + t.exp() - 1 - t).sum()
    q, p = (MultivariateNormal(m, v.exp().diag()) for m, v in ((mu_q, v_q), (mu_p, v_p)))
    integral = plane_divergence(q, p)
    assert_close(formula, integral, **EXACT)
    assert_close(kl_diagonal(mu_q, v_q, mu_p, v_p), integral, **EXACT)
    rejects(kl_diagonal(mu_p, v_p, mu_q, v_q), integral)
    rejects(0.5 * ((mu_q - mu_p) ** 2 / v_q.exp() + t.exp() - 1 - t).sum(), integral)


@pytest.mark.equation("eq-kl-quadratic-form")
def test_average_of_a_quadratic_form_holds_for_any_distribution():
    """Here: five points with unequal probabilities, and a matrix that is not symmetric."""
    points, a, m = normals(5, 3), normals(3, 3, seed=1), normals(3, seed=2)
    probability = torch.softmax(normals(5, seed=3), 0)
    mean = probability @ points
    cov = (points - mean).mT * probability @ (points - mean)
    average = probability @ torch.einsum("ni,ij,nj->n", points - m, a, points - m)
    assert_close((a @ cov).trace() + (mean - m) @ a @ (mean - m), average, **EXACT)
    rejects((mean - m) @ a @ (mean - m), average)
    rejects((a @ cov).trace() + mean @ a @ mean, average)


def full_formula(q, p) -> Tensor:
    (mu_q, cov_q), (mu_p, cov_p) = q, p
    inverse, shift = cov_p.inverse(), mu_q - mu_p
    log_det = cov_p.det().log() - cov_q.det().log()
    return 0.5 * ((inverse @ cov_q).trace() - len(shift) + shift @ inverse @ shift + log_det)


@pytest.mark.equation("eq-kl-full")
@pytest.mark.parametrize("seed", range(3))
def test_divergence_of_full_gaussians_is_its_integral_over_the_plane(seed):
    q, p = gaussian(2, seed), gaussian(2, seed + 10)
    integral = plane_divergence(MultivariateNormal(*q), MultivariateNormal(*p))
    assert_close(full_formula(q, p), integral, rtol=1e-9, atol=0)
    assert_close(kl_full(*q, *p), integral, rtol=1e-9, atol=0)
    rejects(full_formula(p, q), integral, {"rtol": 1e-3, "atol": 0})
    no_correlation = [(mu, cov.diagonal().diag()) for mu, cov in (q, p)]
    rejects(full_formula(*no_correlation), integral, {"rtol": 1e-3, "atol": 0})


def cholesky_parts(q, p) -> tuple[Tensor, Tensor]:
    """M and d."""
    (mu_q, cov_q), (mu_p, cov_p) = q, p
    factor = torch.linalg.cholesky(cov_p)
    return (
        torch.linalg.solve(factor, torch.linalg.cholesky(cov_q)),
        torch.linalg.solve(factor, mu_q - mu_p),
    )


@pytest.mark.equation("eq-kl-cholesky")
@pytest.mark.parametrize("size", [1, 2, 5])
def test_divergence_is_a_sum_over_the_entries_of_the_cholesky_ratio(size):
    q, p = gaussian(size, size), gaussian(size, size + 10)
    m, d = cholesky_parts(q, p)
    widths, below = m.diagonal() ** 2, torch.tril(m, -1).square().sum()
    assert_close(torch.triu(m, 1), torch.zeros_like(m), rtol=0, atol=1e-14)
    formula = 0.5 * (d @ d + below + (widths - 1 - widths.log()).sum())
    assert_close(formula, full_formula(q, p), **EXACT)
    assert_close(formula, kl_full(*q, *p), **EXACT)
    rejects(0.5 * (d @ d + below + (widths - 1 - widths.sqrt().log()).sum()), kl_full(*q, *p))
    if size > 1:
        rejects(0.5 * (d @ d + (widths - 1 - widths.log()).sum()), kl_full(*q, *p))


# --- Monte Carlo ----------------------------------------------------------------------------------


@pytest.mark.equation("eq-kl-variance")
@pytest.mark.parametrize("size", [1, 3])
def test_variance_of_the_log_ratio_is_that_of_gauss_hermite_quadrature(size):
    q, p = gaussian(size, 1), gaussian(size, 11)
    eps, weights = hermite(size)
    z = q[0] + eps @ torch.linalg.cholesky(q[1]).mT
    ratio = MultivariateNormal(*q).log_prob(z) - MultivariateNormal(*p).log_prob(z)
    mean = weights @ ratio
    assert_close(mean, kl_full(*q, *p), **EXACT)
    variance = weights @ (ratio - mean) ** 2
    m, d = cholesky_parts(q, p)
    s = m.mT @ m - torch.eye(size, dtype=torch.float64)
    assert_close((m.mT @ d).square().sum() + 0.5 * s.square().sum(), variance, **EXACT)
    rejects((m.mT @ d).square().sum() + s.square().sum(), variance)
    rejects(d.square().sum() + 0.5 * s.square().sum(), variance)


@pytest.mark.false_alarm(6e-10)
@pytest.mark.equation("eq-kl-variance")
def test_monte_carlo_stays_within_its_standard_error_and_a_bug_falls_outside(generator):
    """n = 200,000; two-sided false-alarm rate 6e-10 at 6.2 standard errors."""
    q, p = gaussian(3, 2), gaussian(3, 12)
    m, d = cholesky_parts(q, p)
    s = m.mT @ m - torch.eye(3, dtype=torch.float64)
    n = 200_000
    error = (((m.mT @ d).square().sum() + 0.5 * s.square().sum()) / n).sqrt()
    eps = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    z = q[0] + eps @ torch.linalg.cholesky(q[1]).mT
    ratio = MultivariateNormal(*q).log_prob(z) - MultivariateNormal(*p).log_prob(z)
    assert (ratio.mean() - kl_full(*q, *p)).abs() < 6.2 * error
    assert (ratio.mean() - kl_full(*p, *q)).abs() > 20 * error
    wrong = q[0] + eps @ q[1]  # the covariance for its Cholesky factor
    ratio = MultivariateNormal(*q).log_prob(wrong) - MultivariateNormal(*p).log_prob(wrong)
    assert (ratio.mean() - kl_full(*q, *p)).abs() > 20 * error


# --- the two directions ---------------------------------------------------------------------------


@pytest.mark.equation("eq-kl-asymmetry")
@pytest.mark.parametrize("sigma_q, sigma_p", [(2.0, 1.0), (0.5, 1.0), (1.3, 1.2)])
def test_difference_of_the_two_directions_is_sinh_t_minus_t(sigma_q, sigma_p):
    q, p = (0.3, sigma_q), (0.3, sigma_p)
    t = math.log(sigma_q**2 / sigma_p**2)
    difference = one_dimensional(q, p) - one_dimensional(p, q)
    by_integral = by_definition(log_normal(GRID, *q), log_normal(GRID, *p)) - by_definition(
        log_normal(GRID, *p), log_normal(GRID, *q)
    )
    assert_close(f64(math.sinh(t) - t), difference[()], rtol=1e-9, atol=1e-13)
    assert_close(difference[()], by_integral, rtol=1e-8, atol=1e-12)
    rejects(f64(t - math.sinh(t)), difference[()], {"rtol": 1e-9, "atol": 1e-13})


MIXTURE = torch.logsumexp(
    torch.stack([math.log(w) + log_normal(GRID, m, 0.6) for w, m in ((0.6, -2.0), (0.4, 2.0))]), 0
)


def fits(mu: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p || q) and KL(q || p) of q = N(mu, exp(log_var)) and the mixture p."""
    log_q = gaussian_log_prob(GRID[:, None], mu[None], log_var[None])
    return by_definition(MIXTURE, log_q), by_definition(log_q, MIXTURE)


@pytest.mark.equation("eq-kl-moment-matching")
def test_forward_fit_to_a_mixture_matches_its_moments_and_the_reverse_fit_does_not():
    mean = integrate(MIXTURE.exp() * GRID)
    variance = integrate(MIXTURE.exp() * (GRID - mean) ** 2)
    assert_close(mean, f64(-0.4), **EXACT)
    assert_close(variance, f64(0.36 + 4 - 0.16), **EXACT)
    mu, log_var = mean.clone().requires_grad_(), variance.log().requires_grad_()
    forward, reverse = fits(mu, log_var)
    for slope in torch.autograd.grad(forward, (mu, log_var), retain_graph=True):
        assert_close(slope, f64(0.0), rtol=0, atol=1e-11)
    assert max(g.abs() for g in torch.autograd.grad(reverse, (mu, log_var))) > 0.05
    for step in (-0.3, 0.3):
        assert fits(mean + step, variance.log())[0] > forward + 1e-3
        assert fits(mean, variance.log() + step)[0] > forward + 1e-3
    assert fits(f64(-2.0), f64(2 * math.log(0.6)))[1] < reverse - 0.5


# --- invariance and gradients ---------------------------------------------------------------------


@pytest.mark.equation("eq-kl-affine")
def test_divergence_is_the_same_in_other_coordinates():
    q, p, a, b = gaussian(3, 3), gaussian(3, 13), normals(3, 3, seed=5), normals(3, seed=6)

    def moved(mu, cov, congruence=lambda cov: a @ cov @ a.mT):
        return a @ mu + b, congruence(cov)

    assert_close(full_formula(moved(*q), moved(*p)), full_formula(q, p), rtol=1e-9, atol=0)
    assert_close(kl_full(*moved(*q), *moved(*p)), kl_full(*q, *p), **EXACT)
    stretched = [moved(*g, congruence=lambda cov: 4 * cov) for g in (q, p)]
    rejects(kl_full(*stretched[0], *stretched[1]), kl_full(*q, *p), {"rtol": 1e-3, "atol": 0})


@pytest.mark.equation("eq-kl-gradient")
def test_gradient_is_that_of_autograd_and_of_central_differences():
    mu, log_var = normals(4, 3).requires_grad_(), normals(4, 3, seed=1).requires_grad_()
    found = torch.autograd.grad(kl_standard_normal(mu, log_var).sum(), (mu, log_var))
    formula = mu.detach(), 0.5 * (log_var.detach().exp() - 1)
    for part, expected in zip(found, formula):
        assert_close(part, expected, **EXACT)
    rejects(found[1], log_var.detach().exp() - 1)
    for position, part in enumerate(formula):
        step = torch.zeros(2, 4, 3, dtype=torch.float64)
        step[position, 2, 1] = 1e-5
        up, down = ((f64(0) + torch.stack([mu, log_var]).detach() + s * step) for s in (1, -1))
        slope = (kl_standard_normal(*up).sum() - kl_standard_normal(*down).sum()) / 2e-5
        assert_close(slope, part[2, 1], rtol=1e-8, atol=1e-9)


@pytest.mark.equation("eq-kl-full-gradient")
def test_gradient_of_the_full_divergence_is_that_of_autograd_on_the_explicit_formula():
    q, p = gaussian(3, 4), gaussian(3, 14)
    inputs = [part.clone().requires_grad_() for part in q]
    formula = torch.linalg.solve(p[1], q[0] - p[0]), 0.5 * (p[1].inverse() - q[1].inverse())
    for value in (full_formula(inputs, p), kl_full(*inputs, *p)):
        for found, expected in zip(torch.autograd.grad(value, inputs), formula):
            assert_close(found, expected, rtol=1e-10, atol=1e-11)
    (slope,) = torch.autograd.grad(kl_full(*inputs, *p), inputs[1:])
    rejects(slope, 0.5 * (q[1].inverse() - p[1].inverse()))


# --- information ----------------------------------------------------------------------------------


@pytest.mark.equation("eq-kl-rate")
@pytest.mark.parametrize("spread", [0.0, 0.8, 2.0])
def test_rate_is_information_plus_mismatch(spread):
    """Three data with unequal probabilities and unequal codes."""
    probability = f64([0.5, 0.3, 0.2])
    codes = [(spread * m, s) for m, s in ((-1.0, 0.4), (0.3, 0.7), (1.5, 0.2))]
    log_codes = torch.stack([log_normal(GRID, *code) for code in codes])
    log_prior = log_normal(GRID, 0.0, 1.0)
    aggregate = probability @ log_codes.exp()
    # log q(z) underflows to -inf far out, where its weight is zero
    log_aggregate = torch.logsumexp(probability.log()[:, None] + log_codes, 0)
    rate = probability @ torch.stack([one_dimensional(code, (0.0, 1.0)) for code in codes])
    information = probability @ integrate(log_codes.exp() * (log_codes - log_aggregate))
    mismatch = integrate(aggregate * (log_aggregate - log_prior))
    assert_close(information + mismatch, rate, **EXACT)
    assert 0 <= information < -(probability @ probability.log())
    assert mismatch > 0
    rejects(information, rate)
    rejects(information - mismatch, rate)


@pytest.mark.equation("eq-kl-rate")
def test_rate_of_a_linear_encoder_splits_into_closed_forms():
    """z | x ~ N(a x, s^2) with x ~ N(0, 1): I = log(1 + a^2/s^2)/2 and q(z) = N(0, a^2 + s^2)."""
    a, s = 0.9, 0.5
    rate = 0.5 * (a**2 + s**2 - math.log(s**2) - 1)
    information = 0.5 * math.log(1 + a**2 / s**2)
    mismatch = kl_standard_normal(f64([0.0]), f64([math.log(a**2 + s**2)]))
    assert_close(information + mismatch, f64(rate), **EXACT)


# --- exercises ------------------------------------------------------------------------------------


@pytest.mark.equation("eq-kl-fisher")
def test_small_divergence_is_half_the_squared_fisher_length_in_both_directions():
    theta, step = f64([[0.3], [0.8]]), f64([[0.6], [-0.5]])
    eps, weights = hermite(1)
    z = theta[0] + (theta[1] / 2).exp() * eps
    scores = torch.cat(gaussian_score(z, *theta), 1)
    fisher = scores.mT * weights @ scores
    assert_close(fisher, f64([math.exp(-0.8), 0.5]).diag(), **EXACT)
    for swap in (False, True):
        remainders = []
        for scale in (1e-2, 5e-3):
            delta = scale * step
            pair = (theta, theta + delta) if swap else (theta + delta, theta)
            leading = 0.5 * delta[:, 0] @ fisher @ delta[:, 0]
            remainders.append((kl_diagonal(*pair[0], *pair[1]) - leading).item())
        assert 7.5 < remainders[0] / remainders[1] < 8.5
        wrong = 0.5 * delta[:, 0] @ (2 * fisher) @ delta[:, 0]
        assert abs(kl_diagonal(*pair[0], *pair[1]) - wrong) > 100 * abs(remainders[1])


@pytest.mark.equation("eq-kl-total-correlation")
def test_divergence_from_a_factorized_p_is_total_correlation_plus_marginals():
    mu, cov = gaussian(3, 7)
    mu_p, log_var_p = normals(3, seed=8), normals(3, seed=9)
    marginal_log_var = cov.diagonal().log()
    std = cov.diagonal().sqrt()
    correlation = cov / std / std[:, None]
    total = -0.5 * torch.logdet(correlation)
    assert_close(total, kl_full(mu, cov, mu, cov.diagonal().diag()), **EXACT)
    marginals = kl_diagonal(mu, marginal_log_var, mu_p, log_var_p)
    whole = kl_full(mu, cov, mu_p, log_var_p.exp().diag())
    assert_close(total + marginals, whole, **EXACT)
    rejects(2 * total + marginals, whole)
    rejects(marginals, whole)
