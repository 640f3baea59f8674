"""Eight wrong estimators, each with the exact wrong value that it gives.

Each is written out here, gives its predicted value to rounding, and would fail the check that the
shipped estimator passes on the same nodes.
"""

import math

import estimator_oracles as oracle
import numpy as np
import pytest
import torch

from vaelib.estimators import MeasureValuedNoise, measure_valued, pathwise, score_function
from vaelib.gaussian import gaussian_log_prob, reparametrize

EPS, WEIGHTS = oracle.quadrature()
PLACES = [(0.7, 0.8), (-0.4, 1.3)]
QUADRATIC = oracle.COSTS["quadratic"](0.0)


def parameters(mu, sigma):
    """mu and sigma [1] as leaves, and log_var as a function of sigma: gradients are for sigma."""
    mu, sigma = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (mu, sigma))
    return mu, sigma, 2 * sigma.log()


def gradient_of_the_mean(surrogate, mu, sigma):
    gradients = torch.autograd.grad(WEIGHTS @ surrogate, (mu, sigma), retain_graph=True)
    return tuple(g.item() for g in gradients)


def shipped(estimator, f, mu, sigma):
    """The shipped estimator's mean on the same nodes, for (mu, sigma)."""
    mu, sigma = (torch.tensor([v], dtype=torch.float64) for v in (mu, sigma))
    samples = estimator(f, mu, 2 * sigma.log(), EPS)
    return (WEIGHTS @ samples.mu).item(), (WEIGHTS @ samples.log_var).item() * 2 / sigma.item()


def assert_wrong(found, predicted, truth):
    """The wrong value is the predicted one, and the check against the truth rejects it."""
    assert found == pytest.approx(predicted, rel=1e-9, abs=1e-12)
    assert found != pytest.approx(truth, rel=1e-3, abs=1e-3)


def log_p(z):
    mu, log_var = torch.tensor([[0.3], [0.2]], dtype=torch.float64)
    return gaussian_log_prob(z, mu, log_var)


def log_p_gradient(mu, sigma):
    """Of E_q log p(z) for p = N(0.3, e^0.2), which no constant and no entropy touches."""
    return -(mu - 0.3) / math.exp(0.2), -sigma / math.exp(0.2)


@pytest.mark.parametrize("mu, sigma", PLACES)
def test_1_z_not_detached_in_the_surrogate(mu, sigma):
    m, s, log_var = parameters(mu, sigma)
    z = reparametrize(m, log_var, EPS)  # should be detached
    found = gradient_of_the_mean(QUADRATIC(z) * gaussian_log_prob(z, m, log_var), m, s)
    entropy = 0.5 * math.log(2 * math.pi * math.e * sigma**2)
    truth = oracle.gradient("quadratic", mu, sigma, 0.0)
    assert_wrong(found[0], -2 * mu * entropy, truth[0])
    assert shipped(score_function, QUADRATIC, mu, sigma) == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize("mu, sigma", PLACES)
def test_2_the_cost_not_detached_in_the_surrogate(mu, sigma):
    m, s, log_var = parameters(mu, sigma)
    z = reparametrize(m, log_var, EPS).detach()
    log_q = gaussian_log_prob(z, m, log_var)
    found = gradient_of_the_mean((log_p(z) - log_q) * log_q, m, s)  # log_q should be detached
    truth = log_p_gradient(mu, sigma)
    truth = truth[0], truth[1] + 1 / sigma  # with the entropy
    assert found[0] == pytest.approx(truth[0], rel=1e-9)
    assert_wrong(found[1], truth[1] + 1 / sigma, truth[1])

    def f(z):
        return (log_p(z) - gaussian_log_prob(z, m, log_var)).detach()

    assert shipped(score_function, f, mu, sigma) == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize("mu, sigma", PLACES)
def test_3_log_q_of_a_reparametrized_sample_has_no_score(mu, sigma):
    m, s, log_var = parameters(mu, sigma)
    log_q = gaussian_log_prob(reparametrize(m, log_var, EPS), m, log_var)
    found = gradient_of_the_mean(log_q, m, s)
    assert found == pytest.approx((0, -1 / sigma), rel=1e-9, abs=1e-12)
    # used as a score, it gives nothing for mu, whatever the cost
    costs = QUADRATIC(reparametrize(m, log_var, EPS)).detach()
    log_q = gaussian_log_prob(reparametrize(m, log_var, EPS), m, log_var)
    found = gradient_of_the_mean(costs * log_q, m, s)
    truth = oracle.gradient("quadratic", mu, sigma, 0.0)
    assert_wrong(found[0], 0, truth[0])
    assert_wrong(found[1], -oracle.expectation("quadratic", mu, sigma, 0.0) / sigma, truth[1])
    assert shipped(score_function, QUADRATIC, mu, sigma) == pytest.approx(truth, rel=1e-9)


def normal_grid(rows: int):
    x, w = np.polynomial.hermite_e.hermegauss(8)
    grids = torch.cartesian_prod(*[torch.from_numpy(x)] * rows)
    return grids, torch.cartesian_prod(*[torch.from_numpy(w / w.sum())] * rows).prod(1)


@pytest.mark.parametrize("mu, sigma", PLACES)
@pytest.mark.parametrize("n", [2, 3])
def test_4_and_5_own_mean_and_a_broadcast_shrink_the_gradient(mu, sigma, n):
    grids, weights = normal_grid(n)
    where = [torch.tensor([v], dtype=torch.float64) for v in (mu, 2 * math.log(sigma))]
    own_mean, broadcast, right = 0.0, 0.0, 0.0
    for eps, weight in zip(grids, weights):
        eps = eps[:, None]
        z = reparametrize(*where, eps)
        costs, score = QUADRATIC(z), eps / sigma
        own_mean += weight * ((costs - costs.mean())[:, None] * score).mean()
        broadcast += weight * (costs * score).mean()  # [n] times [n, 1] is [n, n]
        right += weight * score_function(QUADRATIC, *where, eps, "leave-one-out").mu.mean()
    truth = 2 * mu
    assert_wrong(own_mean.item(), (n - 1) / n * truth, truth)
    assert_wrong(broadcast.item(), truth / n, truth)
    assert right.item() == pytest.approx(truth, rel=1e-9)
    with pytest.raises(ValueError, match="f must return a tensor of shape"):
        score_function(lambda z: QUADRATIC(z)[:, None], *where, torch.zeros(n, 1).double())


@pytest.mark.parametrize("theta", [0.5, 2.0])
def test_6_a_support_that_depends_on_the_parameter_breaks_the_score_function(theta):
    x, w = np.polynomial.legendre.leggauss(10)
    z, weights = theta * (torch.from_numpy(x) + 1) / 2, torch.from_numpy(w / 2)
    score = torch.full_like(z, -1 / theta)  # of log(1 / theta) inside the support
    assert (weights @ score).item() == pytest.approx(-1 / theta, rel=1e-12)  # a score has mean 0
    assert_wrong((weights @ (z * score)).item(), -0.5, 0.5)
    # the path z = theta u moves the support along
    assert (weights @ (z / theta)).item() == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize("sigma", [0.8, 1.3])
def test_7_the_path_of_a_discontinuous_cost_has_no_slope(sigma):
    # an edge of the panels lies at mu / sigma, where f jumps
    half, half_weights = oracle.half_line(14.0, 60)
    eps = torch.cat([-half.flip(0), half])
    weights = torch.cat([half_weights.flip(0), half_weights])
    weights = weights * torch.exp(-(eps[:, 0] ** 2) / 2) / math.sqrt(2 * math.pi)
    mu = 3 * 14.0 / 60 * sigma
    where = [torch.tensor([v], dtype=torch.float64) for v in (mu, 2 * math.log(sigma))]
    truth = math.exp(-((mu / sigma) ** 2) / 2) / math.sqrt(2 * math.pi) / sigma

    for f in (
        lambda z: (z[:, 0] > 0).double(),
        lambda z: (1 + torch.sign(z[:, 0])) / 2,
    ):
        assert_wrong((weights @ pathwise(f, *where, eps).mu).item(), 0, truth)
        found = score_function(f, *where, eps).mu
        assert (weights @ found).item() == pytest.approx(truth, rel=1e-9)

    f = lambda z: (z[:, 0] > 0).double()  # noqa: E731
    rayleigh = half_weights * half[:, 0] * torch.exp(-(half[:, 0] ** 2) / 2)
    zeros = torch.zeros_like(half)
    noise = MeasureValuedNoise(zeros, half, half, zeros, zeros)
    found = measure_valued(f, *where, num_samples=len(half), noise=noise).mu
    assert (rayleigh @ found).item() == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize("mu, sigma", PLACES)
def test_8_the_variance_in_place_of_the_standard_deviation(mu, sigma):
    m, s, log_var = parameters(mu, sigma)
    z = m + s**2 * EPS
    assert_wrong((WEIGHTS @ QUADRATIC(z)).item(), mu**2 + sigma**4, mu**2 + sigma**2)
    found = gradient_of_the_mean(QUADRATIC(z), m, s)
    assert found[0] == pytest.approx(2 * mu, rel=1e-9)
    assert_wrong(found[1], 4 * sigma**3, 2 * sigma)
    z = reparametrize(m, log_var, EPS)
    assert (WEIGHTS @ QUADRATIC(z)).item() == pytest.approx(mu**2 + sigma**2, rel=1e-9)
    truth = oracle.gradient("quadratic", mu, sigma, 0.0)
    assert shipped(pathwise, QUADRATIC, mu, sigma) == pytest.approx(truth, rel=1e-9)
