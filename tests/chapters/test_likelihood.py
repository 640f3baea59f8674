"""The labelled equations of `likelihood`, each evaluated as written and against another route."""

import itertools
import math

import pytest
import torch
from torch.distributions import MultivariateNormal as MVN
from torch.testing import assert_close

from vaelib import LinearGaussianModel, annealed_importance_sampling, bernoulli_log_prob
from vaelib import elbo, iwae_bound, log_likelihood
from vaelib.bounds import importance_log_weights

D64 = torch.float64


def oracle():
    """The chapter's model, with a stronger posterior correlation, and one row."""
    weight = torch.tensor([[1.0, 0.9], [0.0, 0.8], [0.6, -0.1]], dtype=D64)
    model = LinearGaussianModel(weight, torch.zeros(3, dtype=D64), 0.8)
    return model, torch.tensor([[1.0, -0.5, 0.8]], dtype=D64)


def nodes(number: int = 61, half_width: float = 8.5):
    """Noise [N, 2] and weights [N] of the expectation under N(0, I) by the trapezoid rule."""
    axis = torch.linspace(-half_width, half_width, number, dtype=D64)
    eps = torch.cartesian_prod(axis, axis)
    density = MVN(torch.zeros(2, dtype=D64), torch.eye(2, dtype=D64)).log_prob(eps).exp()
    return eps, density * (axis[1] - axis[0]) ** 2


def evidence(model, x):
    noise = model.noise_var * torch.eye(3, dtype=D64)
    return MVN(model.bias, model.weight @ model.weight.mT + noise).log_prob(x)


@pytest.mark.equation("eq-lik-weight")
def test_mean_weight_is_the_evidence_by_quadrature():
    model, x = oracle()
    eps, weights = nodes()
    log_w = importance_log_weights(model, x, num_samples=len(eps), eps=eps[:, None])[:, 0]
    assert_close(weights @ log_w.exp(), evidence(model, x)[0].exp(), rtol=1e-9, atol=0)
    mu, log_var = model.encode(x)  # the ratio as written, from torch's own densities
    z = mu + (log_var / 2).exp() * eps
    likelihood = MVN(z @ model.weight.mT, model.noise_var * torch.eye(3, dtype=D64)).log_prob(x)
    prior = MVN(torch.zeros(2, dtype=D64), torch.eye(2, dtype=D64)).log_prob(z)
    q = MVN(mu[0], log_var[0].exp().diag()).log_prob(z)
    assert_close(log_w, likelihood + prior - q, rtol=1e-10, atol=1e-10)


def expected_bounds():
    """L_1 and L_2 exactly, by quadrature over one and two draws."""
    model, x = oracle()
    eps, weights = nodes(number=25, half_width=7.0)
    log_w = importance_log_weights(model, x, num_samples=len(eps), eps=eps[:, None])[:, 0]
    first = weights @ log_w
    pairs = torch.logaddexp(log_w[:, None], log_w) - math.log(2)
    return model, x, first, weights @ pairs @ weights


@pytest.mark.false_alarm(2e-9)
@pytest.mark.equation("eq-lik-bound")
def test_bound_is_the_expected_log_of_the_mean_weight():
    """n = 200,000 draws of the package's bound for k = 2, within 6 standard errors of the
    quadrature: a false alarm of 2e-9. The mean of two logarithms (L_1) is 20 errors off."""
    model, x, first, second = expected_bounds()
    generator = torch.Generator().manual_seed(0)
    draws = iwae_bound(model, x.expand(200_000, -1), num_samples=2, generator=generator)
    error = draws.std() / math.sqrt(len(draws))
    assert (draws.mean() - second).abs() < 6 * error
    assert (second - first) > 20 * error
    mu, log_var = model.encode(x)
    assert_close(first, model.elbo(x, mu, log_var)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.equation("eq-lik-monotone")
def test_bounds_rise_from_the_elbo_to_the_evidence():
    model, x, first, second = expected_bounds()
    mu, log_var = model.encode(x)
    one = elbo(model, x, eps=torch.zeros(1, 1, 2, dtype=D64), kl="sampled").value
    assert_close(one, iwae_bound(model, x, num_samples=1, eps=torch.zeros(1, 1, 2, dtype=D64)))
    gap = torch.distributions.kl_divergence(
        MVN(mu, log_var.exp().diag_embed()), MVN(*model.posterior(x))
    )
    assert_close(first, (evidence(model, x) - gap)[0], rtol=1e-6, atol=1e-6)
    assert first + 0.01 < second < evidence(model, x)[0] - 0.01


@pytest.mark.equation("eq-lik-leave-one-out")
@pytest.mark.parametrize("k", [1, 2, 5])
def test_leave_one_out_averages_average_to_the_whole_and_bound_it(k, generator):
    model, x = oracle()
    eps = torch.randn(k + 1, 1, 2, generator=generator, dtype=D64)
    w = importance_log_weights(model, x, num_samples=k + 1, eps=eps)[:, 0].exp()
    A = [sum(w[j] for j in range(k + 1) if j != i) / k for i in range(k + 1)]
    assert_close(sum(A) / (k + 1), w.mean(), rtol=1e-13, atol=0)
    whole = iwae_bound(model, x, num_samples=k + 1, eps=eps)[0]
    parts = [
        iwae_bound(model, x, num_samples=k, eps=torch.cat([eps[:i], eps[i + 1 :]]))[0]
        for i in range(k + 1)
    ]
    assert_close(torch.stack(parts), torch.stack(A).log(), rtol=1e-12, atol=1e-12)
    assert whole >= sum(parts) / (k + 1)


@pytest.mark.equation("eq-lik-bias")
def test_bias_is_half_the_variance_over_k_by_enumerating_a_two_valued_weight():
    """The remainder times k squared stays bounded: the leading term is exact."""
    for low, high in ((0.5, 1.5), (0.8, 1.4)):
        chance = (1 - low) / (high - low)  # of the high value: the mean is one
        v = chance * high**2 + (1 - chance) * low**2 - 1
        scaled = []
        for k in (50, 100, 200, 400):
            bias = -sum(
                math.comb(k, m)
                * chance**m
                * (1 - chance) ** (k - m)
                * math.log(low + (high - low) * m / k)
                for m in range(k + 1)
            )
            scaled.append((bias - v / (2 * k)) * k**2)
        assert max(scaled) - min(scaled) < 0.05 and max(map(abs, scaled)) < 0.5
        assert abs(bias - v / k) > 0.4 * v / k  # without the factor of one half it is no match


@pytest.mark.equation("eq-lik-chi-square")
def test_variance_of_the_weight_in_closed_form_agrees_with_quadrature():
    model, x = oracle()
    eps, weights = nodes()
    log_w = importance_log_weights(model, x, num_samples=len(eps), eps=eps[:, None])[:, 0]
    second = weights @ (2 * (log_w - evidence(model, x)[0])).exp()
    P = torch.eye(2, dtype=D64) + model.weight.mT @ model.weight / 0.8
    Lam = torch.diag(torch.exp(-model.encode(x)[1][0]))
    assert torch.linalg.eigvalsh(2 * P - Lam).min() > 0
    written = torch.det(P) / torch.sqrt(torch.det(Lam) * torch.det(2 * P - Lam))
    assert written > 1.05
    assert_close(second, written, rtol=1e-6, atol=0)


@pytest.mark.equation("eq-lik-error")
@pytest.mark.parametrize("k", [1, 7, 300])
def test_standard_error_is_the_jackknife_of_the_log_of_a_mean(k):
    model, x = oracle()
    estimate = log_likelihood(
        model, x, num_samples=k, generator=torch.Generator().manual_seed(0)
    )
    w = importance_log_weights(
        model, x, num_samples=k, generator=torch.Generator().manual_seed(0)
    )[:, 0].exp()
    ess = w.sum() ** 2 / w.square().sum()
    assert_close(estimate.effective_sample_size[0], ess, rtol=1e-12, atol=0)
    by_hand = w.std(correction=0) / w.mean() / math.sqrt(k)
    assert_close(estimate.standard_error[0], by_hand, rtol=1e-6, atol=1e-7)
    if k == 300:  # the ordinary jackknife, by leaving out one weight at a time
        left = torch.stack([(w.sum() - w[i]).div(k - 1).log() for i in range(k)])
        jackknife = math.sqrt(k - 1) * left.std(correction=0)
        assert_close(estimate.standard_error[0], jackknife, rtol=0.02, atol=0)


@pytest.mark.equation("eq-lik-ais")
def test_annealed_weight_has_the_evidence_as_its_mean_on_a_grid():
    """A chain on 200 points with exact Metropolis moves: the mean weight, without sampling.

    The expectation of w_t h(z_t) is carried forward as a vector; its sum at the end is Z_1.
    """
    z = torch.linspace(-4, 4, 200, dtype=D64)
    log_p0 = -(z**2) / 2
    log_p0 = log_p0 - torch.logsumexp(log_p0, 0)
    log_joint = -((z - 1.5) ** 2) / 0.2 - 3.0
    betas = [0.0, 0.1, 0.4, 1.0]
    carried = log_p0.exp()
    for before, beta in itertools.pairwise(betas):
        f_before = (1 - before) * log_p0 + before * log_joint
        f = (1 - beta) * log_p0 + beta * log_joint
        factor = (f - f_before).exp()
        assert_close(factor, ((beta - before) * (log_joint - log_p0)).exp(), rtol=1e-12, atol=0)
        carried = carried * factor
        move = torch.zeros(200, 200, dtype=D64)  # to a neighbour, accepted by the ratio of f
        for i in range(200):
            for j in (i - 1, i + 1):
                if 0 <= j < 200:
                    move[i, j] = 0.5 * min(1.0, math.exp(f[j] - f[i]))
            move[i, i] = 1 - move[i].sum()
        carried = carried @ move
    assert_close(carried.sum(), log_joint.exp().sum(), rtol=1e-12, atol=0)


@pytest.mark.false_alarm(2e-9)
@pytest.mark.equation("eq-lik-ais")
def test_annealing_in_the_package_has_the_evidence_as_its_mean():
    """n = 40,000 chains of three temperatures, within 6 standard errors of 1: 2e-9 false alarms."""
    model, x = oracle()
    estimate = annealed_importance_sampling(
        model,
        x.expand(40_000, -1),
        num_chains=1,
        num_steps=3,
        step_size=0.8,
        leapfrog_steps=2,
        chunk_size=40_000,
        generator=torch.Generator().manual_seed(0),
    )
    weights = (estimate.value - evidence(model, x)).exp()
    error = weights.std() / math.sqrt(len(weights))
    assert error < 0.02 and (weights.mean() - 1).abs() < 6 * error


LOGITS = torch.tensor([-30.0, -6.0, -0.5, -1e-6, 1e-3, 0.7, 2.0, 9.0, 30.0], dtype=D64)


def mass_by_quadrature(a: torch.Tensor) -> torch.Tensor:
    """The integral of exp of the package's Bernoulli formula over grey levels (Gauss-Legendre)."""
    import numpy as np

    points, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(120))
    x = (points + 1) / 2
    formula = torch.stack([bernoulli_log_prob(v.expand(1), a[:, None]) for v in x])
    return (weights[:, None] / 2 * formula.exp()).sum(0)


@pytest.mark.equation("eq-lik-grey-mass")
def test_bernoulli_formula_has_at_most_half_the_mass_on_grey_levels():
    mass = mass_by_quadrature(LOGITS)
    assert_close(mass, torch.tanh(LOGITS / 2) / LOGITS, rtol=1e-9, atol=0)
    large = LOGITS.abs() > 0.1
    lam = LOGITS.sigmoid()
    assert_close(mass[large], ((2 * lam - 1) / LOGITS)[large], rtol=1e-9, atol=0)
    assert (mass <= 0.5 + 1e-12).all()


@pytest.mark.equation("eq-lik-continuous-bernoulli")
def test_continuous_bernoulli_has_mass_one_and_agrees_with_torch():
    C = LOGITS / torch.tanh(LOGITS / 2)
    assert_close(C * mass_by_quadrature(LOGITS), torch.ones_like(C), rtol=1e-9, atol=0)
    assert (C >= 2 - 1e-12).all()
    a = LOGITS[(LOGITS.abs() > 0.1) & (LOGITS.abs() < 10)]  # torch expands around 1/2 elsewhere
    lam = a.sigmoid()
    library = torch.distributions.ContinuousBernoulli(probs=lam)
    for x in (0.0, 0.3, 1.0):
        density = a / torch.tanh(a / 2) * lam**x * (1 - lam) ** (1 - x)
        assert_close(library.log_prob(torch.full_like(a, x)), density.log(), rtol=1e-6, atol=1e-8)
