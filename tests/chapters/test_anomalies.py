"""The labelled equations of `anomalies`, each evaluated as written and against another route."""

import itertools
import math

import pytest
import torch
from sklearn.metrics import roc_curve
from torch.distributions import Bernoulli, Binomial, Independent
from torch.testing import assert_close

from vaelib import alarm_threshold, anomaly_scores, bernoulli_log_prob, detection
from vaelib import likelihood_regret
from vaelib.training import seeded_vae

D64 = torch.float64


def small_vae():
    """Five binary pixels, one latent: everything can be added up on a grid."""
    model = seeded_vae(0, data_dim=5, hidden_dim=6, latent_dim=1).double()
    with torch.no_grad():
        for weights in model.decoder.parameters():
            weights.mul_(3)
    return model


def all_images(size: int = 5):
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=size)), dtype=D64)


def on_grid(model, x):
    """log p(x), and KL(N(mu, s^2) || p(z|x)) as a function of mu [B] and log_var [B]."""
    z = torch.linspace(-14, 14, 6001, dtype=D64)[:, None]
    cell = math.log(28 / 6000)
    log_joint = (model.log_likelihood(x, z[:, None]) + model.log_prior(z[:, None])).detach()
    log_p = torch.logsumexp(log_joint + cell, 0)

    def gap(mu, log_var):
        q = torch.distributions.Normal(mu, (log_var / 2).exp())
        log_q = q.log_prob(z)
        return (log_q.exp() * (log_q - log_joint + log_p)).sum(0) * math.exp(cell)

    return log_p, gap


@pytest.mark.equation("eq-anom-auc")
def test_area_under_the_curve_is_the_probability_of_a_right_order(generator):
    normal = torch.randint(7, (25,), generator=generator).double()
    anomalous = torch.randint(3, 10, (18,), generator=generator).double()
    pairs = [((a > n) + 0.5 * (a == n)).item() for a in anomalous for n in normal]
    probability = sum(pairs) / len(pairs)
    result = detection(normal, anomalous, num_replicates=5, generator=generator)
    assert result.auc == pytest.approx(probability, abs=1e-12)
    labels = [0] * 25 + [1] * 18
    false_alarms, hits, _ = roc_curve(labels, torch.cat([normal, anomalous]))
    strips = [
        (f1 - f0) * (h0 + h1) / 2
        for (f0, h0), (f1, h1) in itertools.pairwise(zip(false_alarms, hits))
    ]
    assert sum(strips) == pytest.approx(probability, abs=1e-12)
    assert abs(probability - sum(p == 1 for p in pairs) / len(pairs)) > 0.01  # ties count


@pytest.mark.false_alarm(1e-8)
@pytest.mark.equation("eq-anom-scores")
def test_scores_agree_with_quadrature_over_the_code():
    """n = 20,000 draws for each of 32 images, within 6.3 standard errors: 1e-8 together."""
    model, x = small_vae(), all_images()
    log_p, gap = on_grid(model, x)
    mu, log_var = (value.detach() for value in model.encode(x))
    scores = anomaly_scores(
        model, x, num_samples=20_000, generator=torch.Generator().manual_seed(0)
    )
    kl = 0.5 * (mu**2 + log_var.exp() - log_var - 1).sum(-1)
    elbo = log_p - gap(mu[:, 0], log_var[:, 0])
    eps = torch.randn(20_000, 1, 1, generator=torch.Generator().manual_seed(1), dtype=D64)
    z = mu + (log_var / 2).exp() * eps
    error = 6.3 * model.log_likelihood(x, z).std(0).detach() / math.sqrt(20_000)
    assert ((scores["ELBO"] + elbo).abs() < error).all()
    assert ((scores["reconstruction"] + elbo + kl).abs() < error).all()
    assert_close(scores["log p(x)"], -log_p, rtol=0, atol=0.05)
    assert (scores["ELBO"] - scores["log p(x)"]).max() > 0.1  # another quantity
    assert_close(scores["latent distance"], mu.square().sum(-1).sqrt(), rtol=1e-12, atol=0)


@pytest.mark.equation("eq-anom-regret")
def test_regret_is_a_difference_of_divergences_and_free_of_the_evidence():
    model, x = small_vae(), all_images()[::5]
    log_p, gap = on_grid(model, x)
    mu, log_var = (value.detach()[:, 0] for value in model.encode(x))
    best = torch.full_like(mu, math.inf)
    for shift in torch.linspace(-2, 2, 41, dtype=D64):  # a search that shares no code
        for scale in torch.linspace(-2.5, 1.0, 36, dtype=D64):
            best = torch.minimum(best, gap(mu + shift, torch.full_like(mu, scale)))
    exact = gap(mu, log_var) - best
    regret = likelihood_regret(
        model,
        x,
        num_steps=300,
        learning_rate=0.02,
        num_samples=4000,
        generator=torch.Generator().manual_seed(0),
    )
    assert exact.max() > 0.1
    assert_close(regret, exact, rtol=0.1, atol=0.04)


@pytest.mark.equation("eq-anom-threshold")
@pytest.mark.parametrize("n, alpha", [(199, 0.05), (50, 0.1), (33, 0.3)])
def test_alarm_has_at_most_the_declared_probability_over_all_ranks(n, alpha):
    scores = torch.arange(n + 1, dtype=D64).square()
    k = math.ceil((1 - alpha) * (n + 1) - 1e-9)
    alarms = 0
    for new in range(n + 1):
        others = torch.cat([scores[:new], scores[new + 1 :]])
        t = alarm_threshold(others, alpha)
        assert t == others.sort().values[k - 1]
        alarms += (scores[new] > t).item()
    assert alarms == n + 1 - k
    assert alpha - 1 / (n + 1) < alarms / (n + 1) <= alpha + 1e-12


@pytest.mark.equation("eq-anom-mode")
@pytest.mark.parametrize("size, ink", [(6, 0.2), (9, 0.45), (4, 0.01)])
def test_blank_image_exceeds_the_average_sample_by_enumeration(size, ink):
    x = all_images(size)
    logits = torch.full((size,), math.log(ink / (1 - ink)), dtype=D64)
    log_p = bernoulli_log_prob(x, logits)
    assert_close(log_p.exp().sum(), torch.tensor(1.0, dtype=D64))
    excess = log_p[0] - log_p.exp() @ log_p
    assert x[0].sum() == 0 and log_p.argmax() == 0
    entropy = -ink * math.log(ink) - (1 - ink) * math.log(1 - ink)
    assert excess.item() == pytest.approx(size * math.log(1 - ink) + size * entropy, rel=1e-10)
    assert excess.item() == pytest.approx(size * ink * math.log((1 - ink) / ink), rel=1e-10)


@pytest.mark.equation("eq-anom-typicality")
def test_typicality_finds_the_blank_image_that_the_likelihood_prefers():
    """Independent pixels, D = 784: exact over the number of inked pixels, a binomial variable."""
    size, ink = 784, 0.13
    count = torch.arange(size + 1, dtype=D64)
    chance = Binomial(size, torch.tensor(ink, dtype=D64)).log_prob(count).exp()
    minus_log_p = -(count * math.log(ink) + (size - count) * math.log(1 - ink))
    entropy = chance @ minus_log_p
    single = Independent(Bernoulli(torch.full((size,), ink, dtype=D64)), 1).entropy()
    assert_close(entropy, single, rtol=1e-9, atol=0)
    typicality = (minus_log_p - entropy).abs()
    below = chance[minus_log_p < minus_log_p[0]].sum()  # as seen by -log p: nothing is more normal
    assert below == 0
    assert chance[typicality < typicality[0]].sum() > 1 - 1e-12
    spread = math.sqrt(size * ink * (1 - ink)) * math.log((1 - ink) / ink)
    near = chance[typicality < 3 * spread].sum()
    assert 0.99 < near < 0.9999  # samples do lie within a few standard deviations of the entropy


@pytest.mark.equation("eq-anom-ratio")
def test_ratio_has_the_best_hit_rate_against_its_own_background():
    """Neyman and Pearson: the largest hit rate less false-alarm rate is the total variation."""
    x = all_images(6)
    logits = torch.linspace(-1.5, 2.0, 6, dtype=D64)
    log_p, log_p0 = bernoulli_log_prob(x, logits), bernoulli_log_prob(x, 0.3 * logits - 0.4)
    total_variation = 0.5 * (log_p.exp() - log_p0.exp()).abs().sum()

    def best_difference(score):
        return max(
            (log_p0.exp()[score > t].sum() - log_p.exp()[score > t].sum()) for t in score
        )

    ratio = -log_p + log_p0
    assert_close(best_difference(ratio), total_variation, rtol=1e-9, atol=1e-9)
    assert best_difference(-log_p) < total_variation - 0.01
    assert best_difference(-log_p - log_p0) < total_variation - 0.01  # the wrong sign
