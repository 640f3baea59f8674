"""Each estimator, fed quadrature nodes as noise, has the exact mean and variance."""

import itertools
import math
from functools import partial

import estimator_oracles as oracle
import numpy as np
import pytest
import torch

from vaelib.estimators import (
    GradientSamples,
    MeasureValuedNoise,
    antithetic,
    doubly_reparametrized,
    draw_measure_valued_noise,
    gradient_moments,
    importance_weighted_pathwise,
    local_score_function,
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


# Baselines


@pytest.mark.parametrize("mu, sigma, k", [(1.0, 1.0, -0.5), (0.3, 0.5, 2.0), (-0.7, 1.2, -0.7)])
def test_constant_baselines_have_the_exact_variance_on_the_quadratic(mu, sigma, k):
    d2, s2 = (mu - k) ** 2, sigma**2
    expected = {  # baseline for mu, baseline for sigma -> variances
        (d2 + s2, d2 + s2): (8 * d2 + 10 * s2, 40 * d2 + 56 * s2),
        (d2 + 3 * s2, d2 + 5 * s2): (8 * d2 + 6 * s2, 40 * d2 + 24 * s2),
    }
    f = oracle.COSTS["quadratic"](k)
    for baselines, variances in expected.items():
        where = parameters(mu, sigma)
        samples = [score_function(f, *where, EPS, b)[i] for i, b in enumerate(baselines)]
        assert_moments(samples, WEIGHTS, (2 * (mu - k), 2 * sigma), variances, sigma)


def hermite_grid(rows: int, degree: int = 12):
    """Gauss-Hermite product rule for ``rows`` standard normals: nodes [M, rows], weights [M].
    Exact for polynomials of degree 2 * degree - 1 in each."""
    x, w = np.polynomial.hermite_e.hermegauss(degree)
    nodes = torch.tensor(list(itertools.product(x, repeat=rows)))
    weights = torch.tensor(list(itertools.product(w / w.sum(), repeat=rows))).prod(1)
    return nodes, weights


def sample_means(baseline, rows, mu, sigma, k):
    """The estimate from each grid point's ``rows`` draws of eps, (mu, log_var), and weights."""
    nodes, weights = hermite_grid(rows, 12 if rows == 2 else 8)
    f, where = oracle.COSTS["quadratic"](k), parameters(mu, sigma)
    samples = [score_function(f, *where, eps[:, None], baseline) for eps in nodes]
    return [torch.stack([part.mean(0) for part in parts]) for parts in zip(*samples)], weights


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("mu, sigma, k", [(1.0, 1.0, -0.5), (-0.2, 0.6, -0.2)])
def test_leave_one_out_is_unbiased_with_the_exact_variance(n, mu, sigma, k):
    d2, s2 = (mu - k) ** 2, sigma**2
    gradient = oracle.gradient("quadratic", mu, sigma, k)
    information = 1 / s2, 2 / s2
    with_mean_baseline = 8 * d2 + 10 * s2, 40 * d2 + 56 * s2  # q - g^2, from the table
    f_variance = 4 * d2 * s2 + 2 * s2**2
    expected = [
        v / n + (f_variance * i + g**2) / (n * (n - 1))
        for v, i, g in zip(with_mean_baseline, information, gradient)
    ]
    means, weights = sample_means("leave-one-out", n, mu, sigma, k)
    assert_moments(means, weights, gradient, expected, sigma)


@pytest.mark.parametrize("cost, mu, sigma, k", oracle.CASES[::4])
def test_leave_one_out_obeys_its_law_for_every_cost(cost, mu, sigma, k):
    """Twelve nodes as a distribution of their own, on which both scores have mean zero: the law
    asks for no more, so that mean and variance over all pairs are exact."""
    f, (pairs, weights) = oracle.COSTS[cost](k), hermite_grid(2)
    estimates = [
        torch.stack([part.mean(0) for part in parts])
        for parts in zip(
            *(
                score_function(f, *parameters(mu, sigma), eps[:, None], "leave-one-out")
                for eps in pairs
            )
        )
    ]
    eps = pairs[:, 0]  # its marginal weights are those of one node
    costs = f(mu + sigma * eps[:, None])
    centred = costs - weights @ costs
    for found, score in zip(estimates, (eps / sigma, (eps**2 - 1) / 2)):
        g, information = weights @ (costs * score), weights @ score**2
        kappa = weights @ (centred * score) ** 2
        law = (kappa - g**2) / 2 + (weights @ centred**2 * information + g**2) / 2
        mean, variance = oracle.moments(found, weights)
        assert mean.item() == pytest.approx(g.item(), rel=1e-9, abs=1e-12)
        assert variance.item() == pytest.approx(law.item(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("n", [2, 3])
def test_own_sample_mean_baseline_is_biased_by_one_in_n(n):
    mu, sigma, k = 1.0, 0.8, -0.5
    means, weights = sample_means("mean", n, mu, sigma, k)
    truth = oracle.in_log_var(oracle.gradient("quadratic", mu, sigma, k), sigma)
    for found, exact in zip(means, truth):
        assert (weights @ found).item() == pytest.approx((n - 1) / n * exact, rel=1e-12)
        assert (weights @ found).item() != pytest.approx(exact, rel=0.3)


# More than one dimension


def radial_quadrature(dim: int):
    """Rows of eps [M, dim] whose first entry is normal and the rest has a chi length, as in D
    dimensions: exact for costs that depend on z_1 and on the sum of the other squares."""
    x, w = np.polynomial.hermite_e.hermegauss(16)
    t, v = _laguerre(12, (dim - 1) / 2 - 1)
    first, length = np.meshgrid(x, np.sqrt(2 * t), indexing="ij")
    eps = torch.zeros(first.size, dim, dtype=torch.float64)
    eps[:, 0], eps[:, 1] = torch.from_numpy(first.ravel()), torch.from_numpy(length.ravel())
    return eps, torch.from_numpy(np.outer(w / w.sum(), v).ravel())


def _laguerre(n, alpha):
    from scipy.special import roots_genlaguerre

    nodes, weights = roots_genlaguerre(n, alpha)
    return nodes, weights / weights.sum()


@pytest.mark.parametrize("dim", [2, 5, 64])
@pytest.mark.parametrize("sigma", [1.0, 0.6])
def test_sum_of_squares_in_d_dimensions_has_the_exact_moments(dim, sigma):
    mu = torch.zeros(dim, dtype=torch.float64)
    log_var = torch.full_like(mu, 2 * math.log(sigma))
    eps, weights = radial_quadrature(dim)
    f = lambda z: z.square().sum(1)  # noqa: E731
    s2, D = sigma**2, dim
    expected = {  # variances for mu_1 and, where the table has one, for log sigma_1
        partial(score_function, f): ((D + 2) * (D + 4) * s2, 2 * s2**2 * (D**2 + 10 * D + 26)),
        partial(score_function, f, baseline=D * s2): (2 * (D + 4) * s2, None),
        partial(score_function, f, baseline=(D + 2) * s2): (2 * (D + 2) * s2, None),
        partial(local_score_function, torch.square): (15 * s2, 74 * s2**2),
        partial(pathwise, f): (4 * s2, 8 * s2**2),
    }
    for estimator, (for_mu, for_log_sigma) in expected.items():
        samples = estimator(mu=mu, log_var=log_var, eps=eps)
        mean, variance = oracle.moments(samples.mu[:, :1], weights)
        assert mean.item() == pytest.approx(0, abs=1e-11 * D**2)
        assert variance.item() == pytest.approx(for_mu, rel=1e-9)
        mean, variance = oracle.moments(samples.log_var[:, :1], weights)
        assert mean.item() == pytest.approx(s2, rel=1e-9)  # half of 2 sigma^2
        if for_log_sigma is not None:
            assert variance.item() == pytest.approx(for_log_sigma / 4, rel=1e-9)


def coupled_cost(z):
    return z[:, 0] ** 2 * z[:, 1] + torch.sin(z[:, 0]) * z[:, 2] + z[:, 1] ** 2 * z[:, 2]


MU3 = torch.tensor([0.5, -0.4, 1.1], dtype=torch.float64)
LOG_VAR3 = torch.tensor([-0.6, 0.2, -0.1], dtype=torch.float64)


def exact_gradient_of_coupled_cost():
    """E f in closed form, through autograd."""
    mu, log_var = MU3.clone().requires_grad_(), LOG_VAR3.clone().requires_grad_()
    second = mu**2 + log_var.exp()
    sine = torch.exp(-log_var[0].exp() / 2) * mu[0].sin()
    expectation = second[0] * mu[1] + sine * mu[2] + second[1] * mu[2]
    return torch.autograd.grad(expectation, (mu, log_var))


@pytest.mark.parametrize(
    "estimator", [score_function, pathwise, antithetic(pathwise), antithetic(score_function)]
)
def test_each_estimator_finds_the_gradient_of_a_cost_that_couples_coordinates(estimator):
    nodes, weights = hermite_grid(3, 24)
    samples = estimator(coupled_cost, MU3, LOG_VAR3, nodes)
    for found, exact in zip(samples, exact_gradient_of_coupled_cost()):
        torch.testing.assert_close(weights @ found, exact, rtol=1e-10, atol=1e-10)


def test_local_score_function_finds_it_with_each_coordinates_own_terms():
    def local_costs(z):
        one, two, three = z[:, 0] ** 2 * z[:, 1], z[:, 0].sin() * z[:, 2], z[:, 1] ** 2 * z[:, 2]
        return torch.stack([one + two, one + three, two + three], 1)

    nodes, weights = hermite_grid(3, 24)
    samples = local_score_function(local_costs, MU3, LOG_VAR3, nodes)
    for found, exact in zip(samples, exact_gradient_of_coupled_cost()):
        torch.testing.assert_close(weights @ found, exact, rtol=1e-10, atol=1e-10)


# Measure-valued derivatives


def test_measure_valued_pair_moves_its_own_coordinate_only():
    noise = MeasureValuedNoise(*torch.randn(5, 7, 3, dtype=torch.float64))
    samples = measure_valued(coupled_cost, MU3, LOG_VAR3, num_samples=7, noise=noise)
    std = torch.exp(LOG_VAR3 / 2)
    for n, i in itertools.product(range(7), range(3)):

        def f(x):
            z = MU3 + std * noise.eps[n]
            z[i] = MU3[i] + std[i] * x
            return coupled_cost(z[None])

        for_mu = (f(noise.plus[n, i]) - f(-noise.minus[n, i])) / (std[i] * math.sqrt(2 * math.pi))
        for_log_var = (f(noise.maxwell[n, i]) - f(noise.normal[n, i])) / 2
        torch.testing.assert_close(samples.mu[n, i], for_mu[0])
        torch.testing.assert_close(samples.log_var[n, i], for_log_var[0])


def product(one, two):
    """Two lists of nodes [N, 1] as all pairs of them, each [M, 1]."""
    return torch.cartesian_prod(one[:, 0], two[:, 0]).T[..., None]


RAYLEIGH, RAYLEIGH_WEIGHTS = oracle.half_line(10.0, 12)
RAYLEIGH_WEIGHTS = RAYLEIGH_WEIGHTS * RAYLEIGH[:, 0] * torch.exp(-(RAYLEIGH[:, 0] ** 2) / 2)
NORMAL, NORMAL_WEIGHTS = oracle.quadrature(10.0, 241)
MAXWELL_WEIGHTS = NORMAL_WEIGHTS * NORMAL[:, 0] ** 2


@pytest.mark.parametrize("cost, mu, sigma, k", oracle.CASES)
def test_independent_measure_valued_points_have_the_exact_moments(cost, mu, sigma, k):
    """The variance is the sum of those of the two points, each a one-dimensional integral."""
    f, where = oracle.COSTS[cost](k), parameters(mu, sigma)
    gradient = oracle.in_log_var(oracle.gradient(cost, mu, sigma, k), sigma)

    def variance(nodes, weights):
        return oracle.moments(f(mu + sigma * nodes)[:, None], weights)[1].item()

    plus, minus = product(RAYLEIGH, RAYLEIGH)
    maxwell, normal = product(NORMAL, NORMAL)
    zeros, more = torch.zeros_like(plus), torch.zeros_like(maxwell)
    for i, (noise, weights, expected) in enumerate(
        (
            (
                MeasureValuedNoise(zeros, plus, minus, zeros, zeros),
                torch.outer(RAYLEIGH_WEIGHTS, RAYLEIGH_WEIGHTS).ravel(),
                (variance(RAYLEIGH, RAYLEIGH_WEIGHTS) + variance(-RAYLEIGH, RAYLEIGH_WEIGHTS))
                / (2 * math.pi * sigma**2),
            ),
            (
                MeasureValuedNoise(more, more, more, maxwell, normal),
                torch.outer(MAXWELL_WEIGHTS, NORMAL_WEIGHTS).ravel(),
                (variance(NORMAL, MAXWELL_WEIGHTS) + variance(NORMAL, NORMAL_WEIGHTS)) / 4,
            ),
        )
    ):
        rows = measure_valued(f, *where, num_samples=len(weights), noise=noise)[i]
        mean, found = oracle.moments(rows, weights)
        assert mean.item() == pytest.approx(gradient[i], rel=1e-9, abs=1e-12)
        assert found.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("k", [-0.4, -1.5])
def test_uncoupled_measure_valued_adds_the_variances_of_its_points(k):
    mu, sigma = 0.3, 0.8
    d, s = mu - k, sigma

    def variance(d):
        """Of (d + s R)^2, from E R = sqrt(pi/2), E R^2 = 2, E R^3 = 3 sqrt(pi/2), E R^4 = 8."""
        root = math.sqrt(math.pi / 2)
        mean = d**2 + 2 * d * s * root + 2 * s**2
        fourth = d**4 + 4 * d**3 * s * root + 12 * d**2 * s**2 + 12 * d * s**3 * root + 8 * s**4
        return fourth - mean**2

    r, r_weights = oracle.half_line(14.0, 6)
    r_weights = r_weights * r[:, 0] * torch.exp(-(r[:, 0] ** 2) / 2)
    plus, minus = torch.cartesian_prod(r[:, 0], r[:, 0]).T[..., None]
    zeros, f = torch.zeros_like(plus), oracle.COSTS["quadratic"](k)
    noise = MeasureValuedNoise(zeros, plus, minus, zeros, zeros)
    rows = measure_valued(f, *parameters(mu, sigma), num_samples=len(plus), noise=noise).mu
    mean, found = oracle.moments(rows, torch.outer(r_weights, r_weights).ravel())
    assert mean.item() == pytest.approx(2 * d, rel=1e-9)
    expected = (variance(d) + variance(-d)) / (2 * math.pi * s**2)
    assert found.item() == pytest.approx(expected, rel=1e-9)
    # coupled points gain where the cost is nearly even about mu, and lose where it is steep
    coupled = oracle.coupled_measure_valued_variance("quadratic", mu, sigma, k)[0]
    assert (coupled < found.item()) == (d**2 < 4 * s**2 / (8 - 2 * math.pi))

    # M double-sided Maxwell (E M^2 = 3, E M^4 = 15) and an independent normal
    m, m_weights = oracle.quadrature(12.0, 301)
    maxwell, normal = torch.cartesian_prod(m[:, 0], m[:, 0]).T[..., None]
    zeros = torch.zeros_like(maxwell)
    noise = MeasureValuedNoise(zeros, zeros, zeros, maxwell, normal)
    rows = measure_valued(f, *parameters(mu, sigma), num_samples=len(maxwell), noise=noise).log_var
    weights = torch.outer(m_weights * m[:, 0] ** 2, m_weights).ravel()
    mean, found = oracle.moments(rows, weights)
    assert mean.item() == pytest.approx(s**2, rel=1e-9)
    expected = (12 * d**2 * s**2 + 6 * s**4) + (4 * d**2 * s**2 + 2 * s**4)
    assert found.item() == pytest.approx(expected / 4, rel=1e-9)


@pytest.mark.false_alarm(3e-8)
@pytest.mark.parametrize("coupled", [True, False])
def test_measure_valued_draws_have_the_laws_that_they_claim(coupled, generator):
    """Moments of order 1, 2 and 4; n = 200,000, |z| < 6.4 each: 2e-10 false alarms for each
    of the 60, tripled for the skewness of the higher ones."""
    n = 200_000
    mu = torch.zeros(2, dtype=torch.float64)
    noise = draw_measure_valued_noise(mu, n, coupled=coupled, generator=generator)
    root = math.sqrt(math.pi / 2)
    exact = {  # moments 1, 2, 4 and 8: the last gives the standard error of the third
        "plus": (root, 2, 8, 384),
        "minus": (root, 2, 8, 384),
        "maxwell": (0, 3, 15, 945),
        "normal": (0, 1, 3, 105),
        "eps": (0, 1, 3, 105),
    }
    for name, (first, second, fourth, eighth) in exact.items():
        draws = getattr(noise, name)
        assert draws.shape == (n, 2) and draws.dtype == torch.float64
        for power, mean, square in ((1, first, second), (2, second, fourth), (4, fourth, eighth)):
            error = math.sqrt((square - mean**2) / n)
            assert ((draws**power).mean(0) - mean).abs().max() < 6.4 * error, (name, power)
    assert (noise.plus > 0).all() and (noise.minus > 0).all()
    assert (noise.plus == noise.minus).all() == coupled
    if coupled:
        ratio = noise.normal / noise.maxwell
        assert ((0 <= ratio) & (ratio < 1)).all()


# The ELBO of the linear-Gaussian model z ~ N(0, 1), x | z ~ N(wz, s^2), with q = N(mu, sigma^2)
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


@pytest.mark.parametrize("mu, sigma", Q)
def test_elbo_estimators_have_the_exact_moments(mu, sigma):
    where, delta = parameters(mu, sigma), mu - POSTERIOR_MEAN
    a = LOG_EVIDENCE - math.log(V) / 2 + math.log(sigma) - delta**2 / (2 * V)
    b, c = -delta * sigma / V, 0.5 - sigma**2 / (2 * V)
    f = log_joint_less_log_q(mu, sigma)
    torch.testing.assert_close(f(mu + sigma * EPS), (a + b * EPS + c * EPS**2)[:, 0])
    gradient = elbo_gradient(mu, sigma)

    # the score function, with the baselines 0 and b*
    sf = (
        (a**2 + 6 * a * c + 15 * c**2 + 2 * b**2) / sigma**2,
        (2 * a**2 + 20 * a * c + 10 * b**2 + 74 * c**2) / sigma**2,
    )
    assert_moments(score_function(f, *where, EPS), WEIGHTS, gradient, sf, sigma)
    best = (6 * c**2 + 2 * b**2) / sigma**2, (10 * b**2 + 24 * c**2) / sigma**2
    samples = [score_function(f, *where, EPS, bl)[i] for i, bl in enumerate((a + 3 * c, a + 5 * c))]
    assert_moments(samples, WEIGHTS, gradient, best, sigma)

    # pathwise through log p(x, z) - log q(z): along the path log q has derivative (0, -1/sigma)
    path = pathwise(log_joint, *where, EPS)
    total = path.mu, path.log_var + 0.5
    variance = sigma**2 / V**2, (delta**2 + 2 * sigma**2) / V**2
    assert_moments(total, WEIGHTS, gradient, variance, sigma)

    # pathwise through log p(x | z), with the KL term differentiated in closed form
    def log_likelihood(z):
        return -0.5 * ((X - W * z) ** 2 / S**2)[:, 0]

    path, r = pathwise(log_likelihood, *where, EPS), 1 / V - 1
    analytic = path.mu - mu, path.log_var - (sigma**2 - 1) / 2
    variance = r**2 * sigma**2, (r * mu - POSTERIOR_MEAN / V) ** 2 + 2 * r**2 * sigma**2
    assert_moments(analytic, WEIGHTS, gradient, variance, sigma)


def test_at_the_posterior_three_estimators_are_exactly_zero():
    mu, sigma = POSTERIOR_MEAN, math.sqrt(V)
    where, f = parameters(mu, sigma), log_joint_less_log_q(mu, sigma)
    eps = torch.randn(50, 1, dtype=torch.float64)
    for samples in (
        sticking_the_landing(log_joint, *where, eps),
        score_function(f, *where, eps, "leave-one-out"),
        score_function(f, *where, eps, LOG_EVIDENCE),
    ):
        for rows in samples:
            assert rows.abs().max() < 1e-12
    assert pathwise(log_joint, *where, eps).mu.var() > 0.1 / V


@pytest.mark.parametrize("ratio, worse", [(0.3, True), (0.49, True), (0.51, False), (2.0, False)])
def test_sticking_the_landing_loses_iff_its_variance_is_below_half_the_posterior(ratio, worse):
    mu, sigma = 0.4, math.sqrt(ratio * V)
    stl = sticking_the_landing(log_joint, *parameters(mu, sigma), EPS)
    path = pathwise(log_joint, *parameters(mu, sigma), EPS)
    for one, two in zip(stl, path):
        assert (oracle.moments(one, WEIGHTS)[1] > oracle.moments(two, WEIGHTS)[1]) == worse


# The importance-weighted bound


def importance_grid():
    """K = 2: trapezoid product rule, eps [M, 2, 1]."""
    eps, weights = oracle.quadrature(10.0, 301)
    grid = torch.cartesian_prod(eps[:, 0], eps[:, 0])[..., None]
    return grid, torch.outer(weights, weights).ravel()


def importance_bound(mu, log_var):
    """E log of the mean of two weights by quadrature: differentiable, and no estimator at all."""
    eps, weights = importance_grid()
    z = mu + torch.exp(log_var / 2) * eps
    log_q = -0.5 * (math.log(2 * math.pi) + log_var + eps**2)
    log_w = log_joint(z.flatten(0, 1)).reshape(-1, 2) - log_q[..., 0]
    return weights @ (torch.logsumexp(log_w, 1) - math.log(2))


@pytest.mark.parametrize("mu, sigma", Q[:2])
@pytest.mark.parametrize("estimator", [importance_weighted_pathwise, doubly_reparametrized])
def test_importance_weighted_estimators_are_unbiased(estimator, mu, sigma):
    where = [p.requires_grad_() for p in parameters(mu, sigma)]
    exact = torch.autograd.grad(importance_bound(*where), where)
    eps, weights = importance_grid()
    samples = estimator(log_joint, *where, eps)
    for found, truth in zip(samples, exact):
        torch.testing.assert_close(weights @ found, truth, rtol=1e-9, atol=1e-12)


def test_with_one_draw_the_importance_weighted_estimators_are_those_of_the_elbo():
    where, eps = (MU3, LOG_VAR3), torch.randn(6, 3, dtype=torch.float64)
    joint = lambda z: coupled_cost(z) - z.square().sum(1)  # noqa: E731
    double = doubly_reparametrized(joint, *where, eps[:, None])
    torch.testing.assert_close(double, sticking_the_landing(joint, *where, eps))
    plain = importance_weighted_pathwise(joint, *where, eps[:, None])
    path = pathwise(joint, *where, eps)
    torch.testing.assert_close(plain.mu, path.mu)
    torch.testing.assert_close(plain.log_var, path.log_var + 0.5)


@pytest.mark.false_alarm(7e-8)
def test_signal_to_noise_falls_with_k_for_the_plain_gradient_and_grows_for_the_double():
    """4,000 estimates at each K; both have the mean of the less noisy one, so that the ratios below
    have standard errors under 6 %. The rates of Rainforth et al. and of Tucker et al., K^(-1/2) and
    K^(1/2), say a factor of 4 from K = 8 to 128: the bound of 2 is more than 5.4 errors away."""
    seeded = torch.Generator().manual_seed(5)
    snr = {}
    for K in (8, 128):
        eps = torch.randn(4000, K, 1, dtype=torch.float64, generator=seeded)
        double = doubly_reparametrized(log_joint, *parameters(0.2, 0.9), eps).mu
        plain = importance_weighted_pathwise(log_joint, *parameters(0.2, 0.9), eps).mu
        snr[K] = [(double.mean().abs() / rows.std()).item() for rows in (plain, double)]
    assert snr[128][0] < snr[8][0] / 2
    assert snr[128][1] > snr[8][1] * 2


# Moments over many samples


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


def test_gradient_moments_keep_their_digits_in_float32_far_from_zero():
    """g = 1000 + cos' noise of size 1: sums of squares in float32 alone would lose the variance."""
    mu, log_var = torch.full((4,), 0.3), torch.zeros(4)
    f = lambda z: (1000 * z + z.sin()).sum(1)  # noqa: E731
    seed = torch.Generator().manual_seed
    found = gradient_moments(
        pathwise, f, mu, log_var, num_samples=50_000, chunk_size=1000, generator=seed(0)
    )
    generator = seed(0)
    eps = torch.cat([torch.randn(1000, 4, generator=generator) for _ in range(50)]).double()
    exact = pathwise(f, mu.double(), log_var.double(), eps)
    assert found.mean.mu.dtype == found.variance.log_var.dtype == torch.float64
    torch.testing.assert_close(found.mean.mu, exact.mu.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.variance.mu, exact.mu.var(0), rtol=1e-3, atol=0)
    torch.testing.assert_close(found.variance.log_var, exact.log_var.var(0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("num_samples, chunk_size", [(1001, 1000), (10, 3), (7, 100), (4096, 64)])
def test_gradient_moments_never_holds_more_rows_than_a_block(num_samples, chunk_size):
    sizes = []

    def spy(f, mu, log_var, eps):
        sizes.append(len(eps))
        return score_function(f, mu, log_var, eps, "leave-one-out")

    where = MU3, LOG_VAR3
    options = {"num_samples": num_samples, "chunk_size": chunk_size}
    gradient_moments(spy, coupled_cost, *where, **options)
    assert sum(sizes) == num_samples
    assert max(sizes) <= chunk_size and max(sizes) - min(sizes) <= 1


@pytest.mark.false_alarm(6e-9)
@pytest.mark.parametrize(
    "estimator",
    [
        score_function,
        partial(score_function, baseline="leave-one-out"),
        pathwise,
        antithetic(pathwise),
        measure_valued,
        partial(measure_valued, coupled=False),
    ],
)
def test_gradient_moments_agree_with_the_exact_gradient(estimator, generator):
    """n = 40,000; |z| < 6.4 for each of 6 numbers: 1e-9 false alarms for each estimator."""
    found = gradient_moments(
        estimator, coupled_cost, MU3, LOG_VAR3, num_samples=40_000, generator=generator
    )
    for part in range(2):
        error = found.mean[part] - exact_gradient_of_coupled_cost()[part]
        assert (error.abs() < 6.4 * found.standard_error[part]).all()


def test_gradient_moments_are_reproduced_by_their_generator():
    for estimator in (pathwise, measure_valued):
        runs = [
            gradient_moments(
                estimator,
                coupled_cost,
                MU3,
                LOG_VAR3,
                num_samples=100,
                generator=torch.Generator().manual_seed(seed),
            ).mean.mu
            for seed in (1, 1, 2)
        ]
        assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


# What goes in and what comes out

ALL = [
    score_function,
    partial(score_function, baseline="leave-one-out"),
    pathwise,
    antithetic(pathwise),
    sticking_the_landing,
    lambda f, mu, log_var, eps: measure_valued(f, mu, log_var, num_samples=len(eps)),
    lambda f, *where: local_score_function(lambda z: f(z)[:, None].expand_as(z), *where),
]
IMPORTANCE = [importance_weighted_pathwise, doubly_reparametrized]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("estimator", ALL + IMPORTANCE)
def test_results_are_detached_rows_in_the_dtype_of_the_parameters(estimator, dtype):
    mu, log_var = (p.to(dtype, copy=True).requires_grad_() for p in (MU3, LOG_VAR3))
    scale = torch.ones(1, dtype=dtype, requires_grad=True)
    eps = torch.randn((5, 3) if estimator in ALL else (5, 2, 3), dtype=dtype)
    for inside in (torch.no_grad(), torch.enable_grad()):
        with inside:
            samples = estimator(lambda z: scale * coupled_cost(z), mu, log_var, eps)
        for part in samples:
            assert part.shape == (5, 3) and part.dtype == dtype and not part.requires_grad
    assert mu.grad is None and scale.grad is None


@pytest.mark.parametrize("estimator", ALL[:-1])
@pytest.mark.parametrize(
    "cost", [lambda z: z[:, :1], lambda z: z.sum(), lambda z: 1.0, lambda z: z, lambda z: z[1:, 0]]
)
def test_a_cost_of_another_shape_is_named(estimator, cost):
    with pytest.raises(ValueError, match=r"^(f|log_joint) must return a tensor of shape"):
        estimator(cost, MU3, LOG_VAR3, torch.randn(5, 3, dtype=torch.float64))


@pytest.mark.parametrize("costs", [lambda z: z[:, :1], lambda z: z[:, 0], lambda z: z.sum()])
def test_local_costs_of_another_shape_are_named(costs):
    with pytest.raises(ValueError, match=r"^local_costs must return a tensor of shape \(5, 3\)"):
        local_score_function(costs, MU3, LOG_VAR3, torch.randn(5, 3, dtype=torch.float64))


def test_an_integer_cost_is_refused():
    with pytest.raises(TypeError, match="f"):
        score_function(lambda z: (z[:, 0] > 0).long(), MU3, LOG_VAR3, torch.zeros(2, 3).double())


BAD = torch.tensor([0.0, math.nan, 0.0], dtype=torch.float64)


@pytest.mark.parametrize("estimator", ALL[:-2])
@pytest.mark.parametrize(
    "name, arguments",
    {
        "mu": (MU3[None], LOG_VAR3, torch.zeros(5, 3).double()),
        "log_var": (MU3, LOG_VAR3[:1], torch.zeros(5, 3).double()),
        "eps": (MU3, LOG_VAR3, torch.zeros(5, 1).double()),
        "eps ": (MU3, LOG_VAR3, torch.zeros(3).double()),
        "eps  ": (MU3, LOG_VAR3, torch.zeros(0, 3).double()),
        "mu ": (BAD, LOG_VAR3, torch.zeros(5, 3).double()),
        "log_var ": (MU3, -BAD / 0, torch.zeros(5, 3).double()),
        "eps   ": (MU3, LOG_VAR3, BAD.expand(5, 3)),
        "mu  ": (MU3.long(), LOG_VAR3, torch.zeros(5, 3).double()),
        "eps    ": (MU3, LOG_VAR3, torch.zeros(5, 3).long()),
    }.items(),
)
def test_arguments_that_do_not_fit_are_named(estimator, name, arguments):
    with pytest.raises((ValueError, TypeError), match=rf"^{name.strip()} must"):
        estimator(coupled_cost, *arguments)


@pytest.mark.parametrize(
    "baseline, error, message",
    [
        ("median", ValueError, "baseline must be 'mean' or 'leave-one-out', found 'median'"),
        (math.nan, ValueError, "baseline must be finite"),
        (torch.zeros(2), TypeError, "baseline must be None, one number"),
        ([1.0], TypeError, "baseline must be None, one number"),
    ],
)
def test_an_unknown_baseline_is_refused(baseline, error, message):
    with pytest.raises(error, match=message):
        score_function(coupled_cost, MU3, LOG_VAR3, torch.zeros(5, 3).double(), baseline)


def test_leave_one_out_needs_two_rows():
    with pytest.raises(ValueError, match="baseline 'leave-one-out' needs at least 2 rows"):
        score_function(coupled_cost, MU3, LOG_VAR3, torch.zeros(1, 3).double(), "leave-one-out")


@pytest.mark.parametrize("baseline", [2, 2.0, np.float32(2), torch.tensor(2.0)])
def test_a_number_of_any_kind_is_a_baseline(baseline):
    eps = torch.randn(5, 3, dtype=torch.float64)
    found = score_function(coupled_cost, MU3, LOG_VAR3, eps, baseline)
    exact = score_function(lambda z: coupled_cost(z) - 2, MU3, LOG_VAR3, eps)
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("value", [0, -1, 2.0, True])
def test_counts_are_checked(value):
    where = coupled_cost, MU3, LOG_VAR3
    with pytest.raises((ValueError, TypeError), match="num_samples"):
        measure_valued(*where, num_samples=value)
    with pytest.raises((ValueError, TypeError), match="num_samples"):
        gradient_moments(pathwise, *where, num_samples=value)
    with pytest.raises((ValueError, TypeError), match="chunk_size"):
        gradient_moments(pathwise, *where, num_samples=4, chunk_size=value)


def test_a_variance_needs_two_samples():
    with pytest.raises(ValueError, match="num_samples must be at least 2"):
        gradient_moments(pathwise, coupled_cost, MU3, LOG_VAR3, num_samples=1)


def test_gradient_moments_leave_the_rows_of_an_estimator_alone():
    """The same tensor twice, still attached to a graph, and kept by the caller."""
    kept = []

    def shared(f, mu, log_var, eps):
        rows = eps * mu.clone().requires_grad_()
        kept.append((rows, rows.detach().clone()))
        return GradientSamples(rows, rows)

    found = gradient_moments(shared, coupled_cost, MU3, LOG_VAR3, num_samples=50, chunk_size=20)
    assert torch.equal(found.variance.mu, found.variance.log_var)
    rows = torch.cat([copy for _, copy in kept])
    torch.testing.assert_close(found.variance.mu, rows.var(0), rtol=1e-12, atol=0)
    for row, copy in kept:
        assert torch.equal(row, copy)


def test_an_estimator_of_fewer_rows_is_named():
    def half(f, mu, log_var, eps):
        return pathwise(f, mu, log_var, eps[::2])

    with pytest.raises(ValueError, match=r"estimator must return rows of shape \[10, 3\]"):
        gradient_moments(half, coupled_cost, MU3, LOG_VAR3, num_samples=10)


def test_noise_of_another_shape_is_named():
    noise = MeasureValuedNoise(*torch.zeros(5, 4, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"noise.eps must have shape \[5, 3\]"):
        measure_valued(coupled_cost, MU3, LOG_VAR3, num_samples=5, noise=noise)
    with pytest.raises(ValueError, match="noise.maxwell"):
        broken = noise._replace(maxwell=torch.zeros(4, 2, dtype=torch.float64))
        measure_valued(coupled_cost, MU3, LOG_VAR3, num_samples=4, noise=broken)
    with pytest.raises(ValueError, match=r"eps must have shape \[N, K, L\]"):
        doubly_reparametrized(coupled_cost, MU3, LOG_VAR3, torch.zeros(4, 3).double())
