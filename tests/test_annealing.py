"""Annealed importance sampling, against the exact evidence and against quadrature."""

import math

import pytest
import torch
from torch.testing import assert_close

from vaelib import VAE, LinearGaussianModel, annealed_importance_sampling
from vaelib.bounds import importance_log_weights
from vaelib.training import seeded_vae

D64 = torch.float64


def oracle(data_dim: int = 4, latent_dim: int = 2, *, orthogonal: bool = False, scale=1.0):
    """A linear-Gaussian model and 50 rows drawn from it."""
    generator = torch.Generator().manual_seed(3)
    weight = scale * torch.randn(data_dim, latent_dim, generator=generator, dtype=D64)
    if orthogonal:
        weight = torch.linalg.qr(weight).Q
    model = LinearGaussianModel(weight, torch.zeros(data_dim, dtype=D64), 0.5)
    z = torch.randn(50, latent_dim, generator=generator, dtype=D64)
    noise = torch.randn(50, data_dim, generator=generator, dtype=D64)
    return model, z @ weight.mT + math.sqrt(0.5) * noise


@pytest.mark.false_alarm(8e-9)
@pytest.mark.parametrize("start", ["prior", "posterior"])
@pytest.mark.parametrize("leapfrog_steps, step_size", [(1, 1.0), (3, 0.8)])
def test_mean_weight_is_the_evidence_for_few_and_coarse_steps(start, leapfrog_steps, step_size):
    """n = 60,000 chains of 5 temperatures: the mean of w / p(x) is 1 within 6 standard errors.

    A false alarm has a probability of 2e-9 a case. One standard error is 1 % and less. Without the
    accept step, or with weights taken after the move, the mean is 5 to 40 % off.
    """
    model, x = oracle()
    rows = x[:1].expand(60_000, -1)
    estimate = annealed_importance_sampling(
        model,
        rows,
        num_chains=1,
        num_steps=5,
        leapfrog_steps=leapfrog_steps,
        step_size=step_size,
        start=start,
        chunk_size=60_000,
        generator=torch.Generator().manual_seed(1),
    )
    weights = (estimate.value - model.log_evidence(x[0])).exp()
    error = weights.std() / math.sqrt(len(rows))
    assert error < 0.01
    assert (weights.mean() - 1).abs() < 6 * error
    assert 0.3 < estimate.acceptance_rate.mean() < 0.98  # the accept step has something to do


def test_one_temperature_is_plain_importance_sampling():
    model, x = oracle()
    estimate = annealed_importance_sampling(
        model,
        x,
        num_chains=7,
        num_steps=1,
        start="posterior",
        generator=torch.Generator().manual_seed(2),
    )
    log_w = importance_log_weights(
        model, x, num_samples=7, generator=torch.Generator().manual_seed(2)
    )
    weights = log_w.exp()
    assert_close(estimate.value, weights.mean(0).log(), rtol=1e-12, atol=0)
    ess = weights.sum(0) ** 2 / weights.square().sum(0)
    assert_close(estimate.effective_sample_size, ess, rtol=1e-12, atol=0)
    assert_close(estimate.standard_error, (1 / ess - 1 / 7).sqrt(), rtol=1e-9, atol=0)


def test_every_chain_gives_the_evidence_from_the_exact_posterior(generator):
    model, x = oracle(orthogonal=True)
    estimate = annealed_importance_sampling(
        model, x, num_chains=1, num_steps=4, start="posterior", generator=generator
    )
    assert_close(estimate.value, model.log_evidence(x), rtol=0, atol=1e-10)


@pytest.mark.false_alarm(1e-9)
@pytest.mark.parametrize("data_dim, latent_dim", [(2, 1), (20, 4)])
def test_many_temperatures_reach_the_exact_evidence_from_the_prior(data_dim, latent_dim, generator):
    """50 rows, 16 chains each: the errors in units of the reported ones average to 0 within 1.

    Their mean has a standard error near 1 / sqrt(50) = 0.14; 1 stands at 7 of these, less a
    bias of half the reported error (0.1 and less): a false alarm of 2e-10 in each case.
    """
    model, x = oracle(data_dim, latent_dim, scale=0.4)
    few = annealed_importance_sampling(model, x, num_steps=3, generator=generator)
    many = annealed_importance_sampling(
        model, x, num_steps=80, leapfrog_steps=3, generator=generator
    )
    error = many.value - model.log_evidence(x)
    assert (error / many.standard_error.clamp(min=1e-3)).mean().abs() < 1
    assert many.effective_sample_size.mean() > few.effective_sample_size.mean() + 0.5
    assert many.effective_sample_size.mean() > 8


@pytest.mark.false_alarm(6e-9)
def test_annealing_a_vae_agrees_with_quadrature(generator):
    model = seeded_vae(0, data_dim=5, hidden_dim=6, latent_dim=2).double()
    with torch.no_grad():
        for weights in model.decoder.parameters():
            weights.mul_(3)
    x = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=D64)
    axis = torch.linspace(-9, 9, 241, dtype=D64)
    grid = torch.cartesian_prod(axis, axis)
    log_joint = model.log_likelihood(x, grid[:, None]) + model.log_prior(grid)[:, None]
    exact = torch.logsumexp(log_joint, 0).detach() + 2 * (axis[1] - axis[0]).log()
    estimate = annealed_importance_sampling(
        model, x, num_chains=500, num_steps=60, generator=generator
    )
    assert estimate.standard_error.max() < 0.01
    error = (estimate.value - exact).abs()
    assert (error < 6 * estimate.standard_error).all()  # a false alarm of 2e-9 for each image


def test_small_steps_are_all_accepted_and_huge_ones_refused(generator):
    model, x = oracle()
    rates = [
        annealed_importance_sampling(
            model, x, num_steps=20, step_size=size, generator=generator
        ).acceptance_rate
        for size in (0.01, 0.5, 8.0)
    ]
    assert rates[0].min() > 0.99
    assert rates[2].max() < 0.1
    assert rates[0].mean() > rates[1].mean() > rates[2].mean()


def test_at_most_chunk_size_chains_move_at_a_time(generator):
    model, x = oracle()
    moving = []

    class Recorder:
        encode, log_prior = model.encode, model.log_prior

        def log_likelihood(self, x, z):
            moving.append(z.shape[0] * z.shape[1])
            return model.log_likelihood(x, z)

    for chunk_size in (7, 100, 1000):
        moving.clear()
        estimate = annealed_importance_sampling(
            Recorder(),
            x,
            num_chains=5,
            num_steps=3,
            leapfrog_steps=2,
            chunk_size=chunk_size,
            generator=generator,
        )
        assert max(moving) <= chunk_size
        assert sum(moving) == 50 * 5 * (1 + 2 * 2)
        assert all(len(value) == 50 for value in vars(estimate).values())


def test_result_is_float64_without_gradient_for_a_float32_model(generator):
    model = VAE(data_dim=5, hidden_dim=4, latent_dim=2)
    estimate = annealed_importance_sampling(
        model, torch.ones(3, 5), num_chains=4, num_steps=3, generator=generator
    )
    for value in vars(estimate).values():
        assert value.dtype == D64 and not value.requires_grad and value.shape == (3,)
        assert value.isfinite().all()
    assert all(p.grad is None for p in model.parameters())
    again = annealed_importance_sampling(
        model, torch.ones(3, 5), num_chains=4, num_steps=3, generator=generator.manual_seed(0)
    )
    assert torch.equal(estimate.value, again.value)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_chains": 0}, "num_chains must be an integer of at least 1"),
        ({"num_steps": 2.0}, "num_steps must be an integer of at least 1"),
        ({"leapfrog_steps": 0}, "leapfrog_steps must be an integer of at least 1"),
        ({"chunk_size": -1}, "chunk_size must be an integer of at least 1"),
        ({"step_size": 0.0}, "step_size must be a positive number, found 0.0"),
        ({"step_size": math.nan}, "step_size must be a positive number, found nan"),
        ({"start": "encoder"}, "start must be 'prior' or 'posterior', found 'encoder'"),
        ({"x": torch.zeros(4, dtype=D64)}, r"x must have shape \[B, D\] and not be empty"),
        ({"x": torch.zeros(0, 4, dtype=D64)}, r"x must have shape \[B, D\] and not be empty"),
        ({"x": torch.full((2, 4), math.nan, dtype=D64)}, "x must be finite"),
        ({"x": torch.zeros(2, 3, dtype=D64)}, "x must have a last axis of 4"),
    ],
)
def test_bad_arguments_are_refused_by_name(change, message):
    model, x = oracle()
    with pytest.raises(ValueError, match=message):
        annealed_importance_sampling(model, **{"x": x[:2], **change})
