"""Each estimator, fed quadrature nodes as noise, has the exact mean and variance."""

import math
from functools import partial

import estimator_oracles as oracle
import pytest
import torch

from vaelib.estimators import (
    GradientSamples,
    MeasureValuedNoise,
    antithetic,
    gradient_moments,
    measure_valued,
    pathwise,
    score_function,
    sticking_the_landing,
)

EPS, WEIGHTS = oracle.quadrature()


def parameters(mu: float, sigma: float):
    mu, sigma = torch.tensor([[mu], [sigma]], dtype=torch.float64)
    return mu, 2 * sigma.log()


def assert_moments(samples, weights, mean, variance, sigma):
    """Mean and variance of (mu, log_var), against oracles in (mu, sigma)."""
    means = oracle.in_log_var(mean, sigma)
    variances = oracle.in_log_var(variance, sigma, power=2)
    for rows, expected_mean, expected_variance in zip(samples, means, variances):
        found_mean, found_variance = oracle.moments(rows, weights)
        assert found_mean.item() == pytest.approx(expected_mean, rel=1e-9, abs=1e-12)
        assert found_variance.item() == pytest.approx(expected_variance, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("cost, mu, sigma, k", oracle.CASES)
def test_score_function_has_the_exact_moments(cost, mu, sigma, k):
    samples = score_function(oracle.COSTS[cost](k), *parameters(mu, sigma), EPS)
    expected = oracle.score_function_variance(cost, mu, sigma, k)
    assert_moments(samples, WEIGHTS, oracle.gradient(cost, mu, sigma, k), expected, sigma)


@pytest.mark.parametrize("cost, mu, sigma, k", oracle.CASES)
def test_pathwise_has_the_exact_moments(cost, mu, sigma, k):
    samples = pathwise(oracle.COSTS[cost](k), *parameters(mu, sigma), EPS)
    expected = oracle.pathwise_variance(cost, mu, sigma, k)
    assert_moments(samples, WEIGHTS, oracle.gradient(cost, mu, sigma, k), expected, sigma)


@pytest.mark.parametrize("cost, mu, sigma, k", oracle.CASES)
def test_antithetic_pathwise_has_the_exact_moments(cost, mu, sigma, k):
    samples = antithetic(pathwise)(oracle.COSTS[cost](k), *parameters(mu, sigma), EPS)
    expected = oracle.antithetic_variance(cost, mu, sigma, k)
    assert_moments(samples, WEIGHTS, oracle.gradient(cost, mu, sigma, k), expected, sigma)


def coupled_noise():
    """Rayleigh nodes for mu, (Maxwell, uniform) nodes for log_var; each with its weights."""
    r, r_weights = oracle.rayleigh_quadrature()
    m, normal, m_weights = oracle.maxwell_uniform_quadrature()
    zeros, more_zeros = torch.zeros_like(r), torch.zeros_like(m)
    return (
        (MeasureValuedNoise(zeros, r, r, zeros, zeros), r_weights),
        (MeasureValuedNoise(more_zeros, more_zeros, more_zeros, m, normal), m_weights),
    )


COUPLED = coupled_noise()


@pytest.mark.parametrize("cost, mu, sigma, k", oracle.CASES)
def test_coupled_measure_valued_has_the_exact_moments(cost, mu, sigma, k):
    gradient = oracle.in_log_var(oracle.gradient(cost, mu, sigma, k), sigma)
    variance = oracle.coupled_measure_valued_variance(cost, mu, sigma, k)
    variance = oracle.in_log_var(variance, sigma, power=2)
    for i, (noise, weights) in enumerate(COUPLED):
        samples = measure_valued(
            oracle.COSTS[cost](k), *parameters(mu, sigma), num_samples=len(weights), noise=noise
        )
        found_mean, found_variance = oracle.moments(samples[i], weights)
        assert found_mean.item() == pytest.approx(gradient[i], rel=1e-9, abs=1e-12)
        assert found_variance.item() == pytest.approx(variance[i], rel=1e-9, abs=1e-12)


# The linear-Gaussian model z ~ N(0, 1), x | z ~ N(wz, s^2), with q = N(mu, sigma^2)
W, S, X = 1.3, 0.7, 0.9
V = 1 / (1 + W**2 / S**2)
POSTERIOR_MEAN = V * W * X / S**2
LOG_EVIDENCE = -0.5 * (math.log(2 * math.pi * (W**2 + S**2)) + X**2 / (W**2 + S**2))
Q = [(0.2, 0.9), (1.1, 0.3), (POSTERIOR_MEAN, math.sqrt(V)), (POSTERIOR_MEAN, 0.4)]


def log_joint(z):
    log_prior = -0.5 * (math.log(2 * math.pi) + z**2)
    log_likelihood = -0.5 * (math.log(2 * math.pi * S**2) + (X - W * z) ** 2 / S**2)
    return (log_prior + log_likelihood)[:, 0]


def log_joint_less_log_q(mu, sigma):
    def f(z):
        log_q = -0.5 * (math.log(2 * math.pi * sigma**2) + (z - mu) ** 2 / sigma**2)
        return log_joint(z) - log_q[:, 0]

    return f


def elbo_gradient(mu, sigma):
    return -(mu - POSTERIOR_MEAN) / V, 1 / sigma - sigma / V


@pytest.mark.parametrize("mu, sigma", Q)
def test_sticking_the_landing_has_the_exact_moments(mu, sigma):
    samples = sticking_the_landing(log_joint, *parameters(mu, sigma), EPS)
    gap, delta = 1 / sigma - sigma / V, mu - POSTERIOR_MEAN
    variance = gap**2, delta**2 / V**2 + 2 * gap**2
    assert_moments(samples, WEIGHTS, elbo_gradient(mu, sigma), variance, sigma)


def test_gradient_moments_merges_blocks_into_the_moments_of_all_rows():
    mu, log_var = torch.randn(2, 3, dtype=torch.float64)
    f = lambda z: 1e6 + torch.cos(z).sum(1)  # noqa: E731
    for estimator in (pathwise, score_function):
        found = gradient_moments(
            estimator,
            f,
            mu,
            log_var,
            num_samples=1003,
            chunk_size=100,
            generator=torch.Generator().manual_seed(1),
        )
        blocks, seed = [], torch.Generator().manual_seed(1)
        for count in [92, 92] + 9 * [91]:
            eps = torch.randn(count, 3, dtype=torch.float64, generator=seed)
            blocks.append(estimator(f, mu, log_var, eps))
        for i in range(2):
            rows = torch.cat([block[i] for block in blocks])
            torch.testing.assert_close(found.mean[i], rows.mean(0), rtol=1e-12, atol=0)
            torch.testing.assert_close(found.variance[i], rows.var(0), rtol=1e-10, atol=0)
        assert found.num_samples == len(rows) == 1003
        torch.testing.assert_close(
            found.standard_error.mu, (found.variance.mu / 1003).sqrt(), rtol=0, atol=0
        )
