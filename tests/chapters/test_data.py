"""The equations of the chapter data, each against an independent route.

Expectations over binary images are sums over all of them; nothing here is random but the parameters.
"""

import math

import mpmath
import pytest
import torch
from torch.distributions import Bernoulli, ContinuousBernoulli
from torch.testing import assert_close

from vaelib import bernoulli_log_prob, binarize

F64 = torch.float64
BIT = torch.tensor([0.0, 1.0], dtype=F64)
EVERY_X = torch.cartesian_prod(BIT, BIT, BIT, BIT)  # all 16 images of four pixels
R = torch.tensor([0.9, 0.35, 0.5, 0.0], dtype=F64)  # grey levels, one of them certain
M = torch.tensor([0.7, 0.2, 0.55, 0.1], dtype=F64)  # a pixel model


def entropy(r):
    """As the chapter defines it."""
    return -torch.xlogy(r, r) - torch.xlogy(1 - r, 1 - r)


def score(r, m):
    """The formula of the log-likelihood with r where x stands, summed over pixels."""
    return (torch.xlogy(r, m) + torch.xlogy(1 - r, 1 - m)).sum(-1)


def mass_of_draws(r):
    """Probability of each of the 16 images when the pixels are drawn with probabilities r."""
    return torch.where(EVERY_X == 1, r, 1 - r).prod(-1)


def any_distribution(generator):
    return torch.softmax(3 * torch.randn(16, generator=generator, dtype=F64), 0)


@pytest.mark.equation("eq-data-binarize")
def test_binarize_is_the_two_rules_for_every_grey_level(monkeypatch):
    """P(x = 1) by counting all 255 equally likely outcomes of u, not by drawing."""
    grey = (torch.arange(784) % 256).to(torch.uint8)
    assert binarize(grey).tolist() == [float(g > 127) for g in grey.tolist()]

    outcomes = torch.arange(255, dtype=torch.uint8)[:, None].expand(255, 784)
    monkeypatch.setattr(torch, "randint", lambda high, shape, **_: outcomes[:high])
    ones = binarize(grey.expand(255, 784), "stochastic").double()
    assert_close(ones.mean(0), grey.double() / 255, atol=1e-15, rtol=0)
    by_rule = (outcomes < grey).double()
    assert torch.equal(ones, by_rule)


@pytest.mark.equation("eq-data-uniform")
def test_uniform_images_have_minus_d_log_2():
    logits = torch.zeros(4, dtype=F64)
    found = bernoulli_log_prob(EVERY_X, logits)
    assert_close(found, torch.full((16,), math.log(1 / len(EVERY_X)), dtype=F64))
    assert_close(found[3].item(), -4 * math.log(2))


@pytest.mark.equation("eq-data-independent")
def test_independent_pixels_sum_to_one_and_are_the_packages_likelihood():
    written = score(EVERY_X, M)
    assert_close(written.exp().sum().item(), 1.0)
    assert_close(written, bernoulli_log_prob(EVERY_X, torch.logit(M)))
    assert_close(written, Bernoulli(probs=M).log_prob(EVERY_X).sum(-1))


@pytest.mark.equation("eq-data-independent")
@pytest.mark.parametrize("ones, images", [(0, 5), (3, 5), (5, 5), (17, 40)])
def test_smoothed_mean_is_the_posterior_mean_under_a_uniform_prior(ones, images):
    """Laplace: the mean of m under a density proportional to m^ones (1-m)^(N-ones)."""
    weight = lambda m: m**ones * (1 - m) ** (images - ones)  # noqa: E731
    with mpmath.workdps(30):
        top = mpmath.quad(lambda m: m * weight(m), [0, 0.5, 1])
        mean = top / mpmath.quad(weight, [0, 0.5, 1])
    assert_close((1 + ones) / (2 + images), float(mean))
    assert abs(ones / images - float(mean)) > 1e-3  # the plain mean is another number


@pytest.mark.equation("eq-data-gibbs")
@pytest.mark.parametrize("r", [0.0, 0.1, 0.5, 0.7, 1.0])
def test_one_pixel_scores_at_most_minus_its_entropy(r):
    """The entropy from torch.distributions; the best m from the derivative r/m - (1-r)/(1-m)."""
    r = torch.tensor([r], dtype=F64)
    m = torch.linspace(0.001, 0.999, 999, dtype=F64)[:, None]
    limit = -Bernoulli(probs=r).entropy().item()
    assert_close(-entropy(r).item(), limit, atol=1e-15, rtol=1e-12)
    values = score(r, m)
    assert (values <= limit + 1e-14).all()
    away = (m[:, 0] - r).abs() > 1e-9
    assert (values[away] < limit - 1e-9).all()  # equality only at m = r
    if 0 < r < 1:
        at_r = r.clone().requires_grad_()
        score(r, at_r).backward()
        assert abs(at_r.grad.item()) < 1e-12
        assert_close(score(r, r).item(), limit)


@pytest.mark.equation("eq-data-expected")
@pytest.mark.equation("eq-data-draw-variance")
def test_mean_and_variance_over_draws_are_sums_over_all_images():
    b, log_p = mass_of_draws(R), score(EVERY_X, M)
    assert_close(b.sum().item(), 1.0)
    mean = b @ log_p
    assert_close(score(R, M), mean)
    variance = b @ (log_p - mean) ** 2
    assert_close((torch.logit(M) ** 2 * R * (1 - R)).sum(), variance)
    for wrong in (torch.logit(M) * R * (1 - R), torch.logit(M) ** 2 * R):
        assert abs(wrong.sum() - variance) > 0.05


@pytest.mark.equation("eq-data-floor")
def test_no_distribution_beats_the_entropy_of_the_draws(generator):
    """For 200 random distributions over the 16 images, dependent pixels included."""
    b = mass_of_draws(R)
    limit = -Bernoulli(probs=R).entropy().sum()
    assert_close(-entropy(R).sum(), limit)
    possible = b > 0
    for _ in range(200):
        p = any_distribution(generator)
        expected = (b * p.log()).sum()
        kl = (b[possible] * (b[possible] / p[possible]).log()).sum()
        assert_close(expected, limit - kl)
        assert kl > 0 and expected < limit
    assert_close((b[possible] * b[possible].log()).sum(), limit)  # p = b reaches it


@pytest.mark.equation("eq-data-mass")
@pytest.mark.parametrize("m", [1e-6, 0.01, 0.3, 0.499, 0.51, 0.8, 0.999])
def test_grey_cross_entropy_has_at_most_half_the_mass_of_a_density(m):
    """Quadrature with 30 digits, and the normaliser of torch's continuous Bernoulli."""
    closed = (2 * m - 1) / (math.log(m) - math.log(1 - m))
    with mpmath.workdps(30):
        area = mpmath.quad(lambda r: mpmath.mpf(m) ** r * (1 - mpmath.mpf(m)) ** (1 - r), [0, 1])
    assert_close(closed, float(area), rtol=1e-11, atol=0)
    half = torch.tensor(0.5, dtype=F64)
    density = ContinuousBernoulli(probs=torch.tensor(m, dtype=F64)).log_prob(half)
    if not 0.499 <= m <= 0.501:  # torch expands in a series there
        unnormalised = score(half[None], torch.tensor([m], dtype=F64))
        assert_close(density.item(), unnormalised.item() - math.log(closed))
    assert closed < 0.5


@pytest.mark.equation("eq-data-grey-bound")
def test_grey_elbo_is_the_mean_over_draws_of_each_draws_elbo(generator):
    """Its gap to E log p(x) is the mean of KL(q(z | r) || p(z | x)), to rounding, so never negative.

    Everything is a sum: three codes, four pixels, sixteen images.
    """
    prior = torch.softmax(torch.randn(3, generator=generator, dtype=F64), 0)
    decoder = torch.rand(3, 4, generator=generator, dtype=F64)
    log_joint = score(EVERY_X[:, None], decoder) + prior.log()  # [16, 3]
    log_p = torch.logsumexp(log_joint, 1)
    b = mass_of_draws(R)
    for _ in range(100):
        q = torch.softmax(2 * torch.randn(3, generator=generator, dtype=F64), 0)
        grey = q @ score(R, decoder) - q @ (q / prior).log()
        posterior = log_joint - log_p[:, None]
        gap = b @ (q * (q.log() - posterior)).sum(1)
        assert gap > 0
        assert_close(grey, b @ log_p - gap)
