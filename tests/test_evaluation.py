"""Held-out measures, against closed forms, enumeration and scikit-learn."""

import math

import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from torch.testing import assert_close

from vaelib import LinearGaussianModel, elbo, log_likelihood
from vaelib.evaluation import (
    active_units,
    alarm_threshold,
    anomaly_scores,
    bits_per_dimension,
    data_log_likelihood,
    detection,
    latent_activity,
    likelihood_regret,
    mean_and_error,
)
from vaelib.training import seeded_vae

D64 = torch.float64


def oracle(orthogonal: bool = True):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 3, generator=generator, dtype=D64)
    if orthogonal:
        weight = torch.linalg.qr(weight).Q * torch.tensor([2.0, 1.0, 0.5], dtype=D64)
    model = LinearGaussianModel(weight, torch.zeros(6, dtype=D64), 0.5)
    return model, torch.randn(230, 6, generator=generator, dtype=D64)


# ------------------------------------------------------- likelihood of a set


def test_data_log_likelihood_is_exact_at_the_posterior_over_several_batches(generator):
    model, x = oracle()
    estimate = data_log_likelihood(model, x, num_samples=4, generator=generator)
    assert_close(estimate.value, model.log_evidence(x), rtol=0, atol=1e-10)
    assert_close(estimate.effective_sample_size, torch.full((230,), 4.0, dtype=D64))
    assert estimate.standard_error.shape == (230,)


def test_data_log_likelihood_of_one_batch_is_log_likelihood():
    model, x = oracle(orthogonal=False)
    both = [
        function(model, x[:80], num_samples=30, generator=torch.Generator().manual_seed(1))
        for function in (data_log_likelihood, log_likelihood)
    ]
    for name, value in vars(both[0]).items():
        assert torch.equal(value, getattr(both[1], name))


def test_mean_and_error_are_those_of_the_mean():
    mean, error = mean_and_error(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert mean == pytest.approx(3.0)
    assert error == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 3 / 4))
    for values, message in (
        (torch.tensor([1.0]), "values must be at least two"),
        (torch.tensor([]), r"values must have shape \[N\] and not be empty"),
        (torch.tensor([1.0, math.nan]), "values must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            mean_and_error(values)


def test_bits_of_the_uniform_model_are_one_per_pixel():
    log_p = torch.tensor([-784 * math.log(2), -784 * math.log(4)], dtype=D64)
    assert_close(bits_per_dimension(log_p, 784), torch.tensor([1.0, 2.0], dtype=D64))
    with pytest.raises(ValueError, match="data_dim must be an integer of at least 1"):
        bits_per_dimension(log_p, 0)


# ---------------------------------------------------------------- active units


def test_activity_is_the_variance_of_the_posterior_means():
    model, x = oracle()
    mean, _ = model.posterior(x)
    centred = mean - mean.mean(0)
    assert_close(latent_activity(model, x), centred.square().sum(0) / 229, rtol=1e-12, atol=0)


def test_a_latent_that_the_decoder_ignores_is_not_active():
    model, x = oracle()
    weight = torch.cat([model.weight, torch.zeros(6, 2, dtype=D64)], 1)
    padded = LinearGaussianModel(weight, model.bias, 0.5)
    activity = latent_activity(padded, x)
    assert (activity[:3] > 0.01).all() and (activity[3:] < 1e-20).all()
    assert active_units(padded, x) == 3
    assert active_units(padded, x, threshold=activity[:3].median().item()) == 1
    with pytest.raises(ValueError, match="x must have at least two rows"):
        latent_activity(model, x[:1])


# --------------------------------------------------------------------- scores


@pytest.mark.false_alarm(4e-9)
def test_scores_are_minus_the_quantities_that_they_name():
    """At the exact posterior two scores are known exactly; the others are means over 4,000 draws,
    within 6.2 of their standard errors for each of 7 rows: 4e-9 false alarms in all."""
    model, x = oracle()
    x = x[:7]
    scores = anomaly_scores(
        model, x, num_samples=4000, generator=torch.Generator().manual_seed(0)
    )
    mean, cov = model.posterior(x)
    assert_close(scores["log p(x)"], -model.log_evidence(x), rtol=0, atol=1e-10)
    assert_close(scores["latent distance"], mean.square().sum(1).sqrt(), rtol=1e-12, atol=0)
    q = MultivariateNormal(mean, cov)
    prior = MultivariateNormal(torch.zeros(3, dtype=D64), torch.eye(3, dtype=D64))
    kl = kl_divergence(q, prior)
    z = q.rsample((4000,))
    spread = model.log_likelihood(x, z).std(0) / math.sqrt(4000)
    reconstruction = -(model.log_evidence(x) + kl)  # the bound is tight
    assert ((scores["reconstruction"] - reconstruction).abs() < 6.2 * spread).all()
    assert ((scores["ELBO"] + model.log_evidence(x)).abs() < 6.2 * spread).all()
    assert_close(scores["ELBO"] - scores["reconstruction"], kl, rtol=1e-10, atol=1e-10)


def test_scores_of_more_rows_than_a_batch_keep_their_order(generator):
    model, x = oracle()
    scores = anomaly_scores(model, x, num_samples=2, generator=generator)
    assert_close(scores["log p(x)"], -model.log_evidence(x), rtol=0, atol=1e-10)
    assert all(len(values) == 230 and values.dtype == D64 for values in scores.values())


class Shifted:
    """The oracle with an encoder that is off: means moved, variances scaled."""

    def __init__(self, model, shift: float, log_scale: float):
        self.log_prior, self.log_likelihood = model.log_prior, model.log_likelihood
        self.model, self.shift, self.log_scale = model, shift, log_scale

    def encode(self, x):
        mu, log_var = self.model.encode(x)
        return mu + self.shift, log_var + self.log_scale


@pytest.mark.parametrize("orthogonal", [True, False])
def test_regret_is_the_divergence_that_fitting_q_removes(orthogonal, generator):
    """KL(q || p(z|x)) before, less the smallest that a diagonal Gaussian reaches: exact here."""
    model, x = oracle(orthogonal)
    x = x[:8]
    wrong = Shifted(model, 0.4, 0.5)
    regret = likelihood_regret(
        wrong, x, num_steps=150, learning_rate=0.03, num_samples=1000, generator=generator
    )
    mean, cov = model.posterior(x)
    posterior = MultivariateNormal(mean, cov)

    def gap(mu, log_var):
        return kl_divergence(MultivariateNormal(mu, log_var.exp().diag_embed()), posterior)

    exact = gap(*wrong.encode(x)) - gap(*model.encode(x))  # the oracle's q is the best one
    assert exact.min() > 0.3
    assert_close(regret, exact, rtol=0.1, atol=0.08)


def test_regret_of_the_best_q_is_about_zero_and_leaves_the_model_alone(generator):
    model, x = oracle(orthogonal=False)
    regret = likelihood_regret(model, x[:20], num_steps=50, learning_rate=1e-3, generator=generator)
    assert regret.abs().max() < 0.02
    vae = seeded_vae(0, data_dim=6, hidden_dim=4, latent_dim=2)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    binary = (x[:5] > 0).float()
    regret = likelihood_regret(vae, binary, num_steps=3, generator=generator)
    assert regret.shape == (5,) and regret.dtype == D64
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert all(p.grad is None for p in vae.parameters())
    first = elbo(vae, binary, generator=generator.manual_seed(0)).value
    assert first.requires_grad  # the model still learns


# ------------------------------------------------------------------- detection


def test_auc_is_the_share_of_pairs_in_the_right_order(generator):
    normal = torch.randint(6, (40,), generator=generator).double()
    anomalous = torch.randint(9, (30,), generator=generator).double()
    result = detection(normal, anomalous, generator=generator)
    wins = [(a > n) + 0.5 * (a == n) for a in anomalous.tolist() for n in normal.tolist()]
    assert result.auc == pytest.approx(sum(wins) / len(wins), abs=1e-12)
    labels = [0] * 40 + [1] * 30
    false_alarms, hits, _ = roc_curve(labels, torch.cat([normal, anomalous]))
    area = sum(
        (f1 - f0) * (h0 + h1) / 2
        for f0, f1, h0, h1 in zip(false_alarms, false_alarms[1:], hits, hits[1:])
    )
    assert result.auc == pytest.approx(area, abs=1e-12)
    assert result.low < result.auc < result.high


def test_perfect_reversed_and_constant_scores_have_known_areas(generator):
    low, high = torch.zeros(20, dtype=D64), torch.ones(20, dtype=D64)
    for normal, anomalous, auc in ((low, high, 1.0), (high, low, 0.0), (low, low, 0.5)):
        result = detection(normal, anomalous, generator=generator)
        assert (result.auc, result.low, result.high) == (auc, auc, auc)
    assert detection(low, high).average_precision == 1.0
    assert detection(low, low).average_precision == 0.5  # the share of anomalies


def test_bootstrap_area_is_that_of_the_resampled_rows():
    """The matrix form against scikit-learn on rows drawn with the same indices."""
    normal = torch.tensor([0.0, 1.0, 2.0, 2.0, 5.0], dtype=D64)
    anomalous = torch.tensor([1.0, 2.0, 6.0], dtype=D64)
    generator = torch.Generator().manual_seed(4)
    result = detection(normal, anomalous, num_replicates=1, generator=generator)
    generator.manual_seed(4)
    rows = torch.randint(3, (1, 3), generator=generator)[0]
    columns = torch.randint(5, (1, 5), generator=generator)[0]
    scores = torch.cat([normal[columns], anomalous[rows]])
    area = roc_auc_score([0] * 5 + [1] * 3, scores)
    assert result.low == result.high == pytest.approx(area, abs=1e-12)


@pytest.mark.false_alarm(1e-8)
def test_bootstrap_interval_covers_the_true_area():
    """Normal scores N(0, 1) and N(1, 1): the area is Phi(1 / sqrt 2).

    Of n = 300 repetitions with 60 + 60 rows, about 94 % should cover it; the standard error is
    1.4 %. Fewer than 83 % has a probability below 1e-9 (at 93 %, too), all of them one of 9e-9; an
    interval of half the width covers 67 %.
    """
    truth = Normal(0.0, 1.0).cdf(torch.tensor(math.sqrt(0.5))).item()
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(300):
        scores = torch.randn(2, 60, generator=generator, dtype=D64)
        result = detection(scores[0], scores[1] + 1, num_replicates=200, generator=generator)
        covered += result.low <= truth <= result.high
    assert 0.83 * 300 <= covered < 300


@pytest.mark.parametrize("n, alpha", [(99, 0.05), (200, 0.1), (19, 0.05), (57, 0.3)])
def test_false_alarm_rate_is_at_most_alpha_by_enumerating_the_ranks(n, alpha):
    """The n + 1 ranks of a new row among n + 1 distinct scores are equally likely."""
    scores = torch.arange(n + 1, dtype=D64)
    alarms = 0
    for new in range(n + 1):
        validation = scores[scores != new]
        alarms += scores[new].item() > alarm_threshold(validation, alpha)
    assert alarms / (n + 1) <= alpha + 1e-12
    assert alarms / (n + 1) > alpha - 1 / (n + 1)  # and no smaller than it need be


def test_too_few_rows_give_no_alarm_and_ties_stay_below_the_rate():
    assert alarm_threshold(torch.arange(18.0), 0.05) == math.inf
    assert alarm_threshold(torch.arange(19.0), 0.05) == 18.0
    assert alarm_threshold(torch.zeros(100), 0.05) == 0.0


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda s: detection(s[:0], s), r"normal must have shape \[N\] and not be empty"),
        (lambda s: detection(s, s[None]), r"anomalous must have shape \[N\]"),
        (lambda s: detection(s, s / 0), "anomalous must be finite"),
        (lambda s: detection(s, s, level=1.0), "level must lie between 0 and 1, found 1.0"),
        (lambda s: detection(s, s, num_replicates=0), "num_replicates must be an integer"),
        (lambda s: alarm_threshold(s, 0.0), "false_alarm_rate must lie between 0 and 1"),
        (lambda s: alarm_threshold(s * math.nan, 0.1), "validation must be finite"),
        (lambda s: likelihood_regret(oracle()[0], s[None], num_steps=0), "num_steps must be"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ones(6, dtype=D64))
