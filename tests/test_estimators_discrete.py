"""Categorical latents: every state is enumerated, so that means and variances are exact."""

import itertools
import math

import numpy as np
import pytest
import torch

from vaelib.estimators import (
    categorical_sample,
    categorical_score_function,
    gumbel_softmax,
    straight_through,
)

LOGITS = torch.tensor([[0.3, -0.8, 0.5], [-0.2, 0.9, 0.0]], dtype=torch.float64)
VALUES = torch.tensor([[1.0, -2.0, 0.5], [0.7, 0.2, -1.5]], dtype=torch.float64)


def cost(z):
    """Neither linear nor a sum over latents."""
    return (z * VALUES).sum((1, 2)) ** 2 + z[:, 0, 1] * z[:, 1, 2] + 3


def states(latents: int = 2, categories: int = 3) -> torch.Tensor:
    indices = torch.tensor(list(itertools.product(range(categories), repeat=latents)))
    return torch.eye(categories, dtype=torch.float64)[indices]


def probabilities(logits, z):
    return (logits.softmax(-1) * z).sum(-1).prod(-1)


def exact_gradient(f, logits):
    logits = logits.clone().requires_grad_()
    z = states(*logits.shape)
    (gradient,) = torch.autograd.grad(probabilities(logits, z) @ f(z), logits)
    return gradient


def mean(weights, rows):
    return torch.einsum("n,nlc->lc", weights, rows)


@pytest.mark.parametrize("baseline", [None, 2.5])
def test_score_function_is_unbiased_over_all_states(baseline):
    z = states()
    rows = categorical_score_function(cost, LOGITS, z, baseline)
    found = mean(probabilities(LOGITS, z), rows)
    torch.testing.assert_close(found, exact_gradient(cost, LOGITS), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("baseline, factor", [("leave-one-out", 1.0), ("mean", 0.5)])
def test_leave_one_out_is_unbiased_over_all_pairs_and_the_own_mean_is_not(baseline, factor):
    z = states()
    p = probabilities(LOGITS, z)
    found = torch.zeros_like(LOGITS)
    for i, j in itertools.product(range(len(z)), repeat=2):
        rows = categorical_score_function(cost, LOGITS, z[[i, j]], baseline)
        found += p[i] * p[j] * rows.mean(0)
    expected = factor * exact_gradient(cost, LOGITS)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def bernoulli(p: float) -> torch.Tensor:
    return torch.tensor([[0.0, math.log(p / (1 - p))]], dtype=torch.float64)


@pytest.mark.parametrize("p", [0.5, 0.2, 0.97])
@pytest.mark.parametrize("f0, f1", [(1.0, 3.0), (-2.0, 0.5)])
def test_bernoulli_score_function_has_the_exact_variance_and_a_perfect_baseline(p, f0, f1):
    logits, z = bernoulli(p), states(1, 2)
    weights = probabilities(logits, z)
    f = lambda z: f0 * z[:, 0, 0] + f1 * z[:, 0, 1]  # noqa: E731
    truth, q = p * (1 - p) * (f1 - f0), 1 - p
    for baseline, variance in ((None, p * q * (q * f1 + p * f0) ** 2), (q * f1 + p * f0, 0)):
        rows = categorical_score_function(f, logits, z, baseline)[:, 0, 1]
        assert (weights @ rows).item() == pytest.approx(truth, rel=1e-12)
        found = (weights @ (rows - truth) ** 2).item()
        assert found == pytest.approx(variance, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("p", [0.5, 0.2, 0.97])
def test_straight_through_is_biased_by_the_curvature(p):
    """f quadratic in b with f'' = 2c: the bias is p (1-p) (p - 1/2) 2c, zero at p = 1/2 only."""
    c = 1.7
    logits, z = bernoulli(p), states(1, 2)
    f = lambda z: c * z[:, 0, 1] ** 2 - 0.4 * z[:, 0, 1]  # noqa: E731
    rows = straight_through(f, logits, z)[:, 0, 1]
    found = probabilities(logits, z) @ rows - exact_gradient(f, logits)[0, 1]
    assert found.item() == pytest.approx(p * (1 - p) * (p - 0.5) * 2 * c, rel=1e-10, abs=1e-13)


def test_straight_through_is_exact_for_a_linear_cost():
    f, z = lambda z: (z * VALUES).sum((1, 2)), states()
    found = straight_through(f, LOGITS, z)
    torch.testing.assert_close(found, exact_gradient(f, LOGITS).expand_as(found))


def logistic_quadrature(panels: int = 400):
    """Nodes for the difference of two Gumbels, a logistic, as gumbel [N, 1, 2] = (0, G)."""
    x, w = np.polynomial.legendre.leggauss(16)
    edges = np.linspace(-40, 40, panels + 1)[:-1, None]
    nodes = torch.from_numpy((edges + 40 / panels * (x + 1)).ravel())
    weights = torch.from_numpy(np.tile(w * 40 / panels, panels)) * torch.sigmoid(nodes)
    gumbel = torch.stack([torch.zeros_like(nodes), nodes], -1)[:, None]
    return gumbel, weights * torch.sigmoid(-nodes)


@pytest.mark.parametrize("a", [-1.5, 0.4, 2.0])
def test_gumbel_softmax_at_temperature_one_has_the_closed_form_mean(a):
    """For f(b) = b: E y = r/(r-1) - r log r/(r-1)^2 with r = e^a, whose slope is not p (1 - p)."""
    logits = torch.tensor([[0.0, a]], dtype=torch.float64)
    gumbel, weights = logistic_quadrature()
    rows = gumbel_softmax(lambda z: z[:, 0, 1], logits, gumbel, temperature=1.0)[:, 0, 1]
    r = math.exp(a)
    slope = r * ((r + 1) * a / (r - 1) ** 3 - 2 / (r - 1) ** 2)
    assert (weights @ rows).item() == pytest.approx(slope, rel=1e-10)
    assert slope != pytest.approx(r / (1 + r) ** 2, rel=0.05)


def test_gumbel_softmax_gives_a_sixth_where_the_truth_is_a_quarter():
    gumbel, weights = logistic_quadrature()
    found = []
    for temperature in (1.0, 0.3, 0.1):
        rows = gumbel_softmax(
            lambda z: z[:, 0, 1], bernoulli(0.5), gumbel, temperature=temperature
        )[:, 0, 1]
        average = weights @ rows
        found.append((average.item(), (weights @ (rows - average) ** 2).item()))
    assert found[0][0] == pytest.approx(1 / 6, rel=1e-10)
    bias = [0.25 - value for value, _ in found]
    assert bias[0] > bias[1] > bias[2] > 0
    assert bias[2] < 0.01
    assert found[0][1] < found[1][1] < found[2][1]


def test_gumbel_softmax_and_straight_through_agree_with_autograd():
    gumbel = torch.randn(6, 2, 3, dtype=torch.float64)
    z = categorical_sample(LOGITS, gumbel)
    logits = LOGITS.expand(6, 2, 3).clone().requires_grad_()
    relaxed = ((logits + gumbel) / 0.7).softmax(-1)
    (expected,) = torch.autograd.grad(cost(relaxed).sum(), logits)
    found = gumbel_softmax(cost, LOGITS, gumbel, temperature=0.7)
    torch.testing.assert_close(found, expected)
    surrogate = z + logits.softmax(-1) - logits.softmax(-1).detach()
    (expected,) = torch.autograd.grad(cost(surrogate).sum(), logits)
    torch.testing.assert_close(straight_through(cost, LOGITS, z), expected)


@pytest.mark.false_alarm(4e-9)
def test_gumbel_max_draws_have_the_softmax_probabilities(generator):
    """n = 200,000; |z| < 6.2 for each of 6 frequencies: 4e-9 false alarms in all."""
    n = 200_000
    uniform = torch.rand(n, 2, 3, dtype=torch.float64, generator=generator)
    z = categorical_sample(LOGITS, -torch.log(-torch.log(uniform)))
    assert (z.sum(-1) == 1).all() and ((z == 0) | (z == 1)).all()
    p = LOGITS.softmax(-1)
    assert ((z.mean(0) - p).abs() < 6.2 * (p * (1 - p) / n).sqrt()).all()


def test_results_are_detached():
    logits = LOGITS.clone().requires_grad_()
    gumbel = torch.randn(4, 2, 3, dtype=torch.float64)
    z = categorical_sample(logits, gumbel)
    for rows in (
        categorical_score_function(cost, logits, z, "leave-one-out"),
        gumbel_softmax(cost, logits, gumbel, temperature=1.0),
        straight_through(cost, logits, z),
        z,
    ):
        assert rows.shape == (4, 2, 3) and not rows.requires_grad


def test_arguments_that_do_not_fit_are_named():
    z = states()
    refused = ValueError, TypeError
    with pytest.raises(refused, match="logits"):
        categorical_score_function(cost, LOGITS[0], z)
    with pytest.raises(refused, match=r"z must have shape \[N, 2, 3\]"):
        categorical_score_function(cost, LOGITS, z[0])
    with pytest.raises(refused, match="gumbel"):
        categorical_sample(LOGITS, z[:, :1])
    with pytest.raises(refused, match="z must be finite"):
        straight_through(cost, LOGITS, z / 0)
    with pytest.raises(ValueError, match="f must return a tensor of shape"):
        categorical_score_function(lambda z: z[:, 0], LOGITS, z)
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature must be a positive finite number"):
            gumbel_softmax(cost, LOGITS, z, temperature=temperature)
    with pytest.raises(ValueError, match="baseline"):
        categorical_score_function(cost, LOGITS, z, "best")
