"""The labelled equations of `training`, each evaluated as written and against another route."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from vaelib import ImageData, LinearGaussianModel, elbo, fit
from vaelib.evaluation import active_units, latent_activity
from vaelib.training import mean_elbo, seeded_vae

D64 = torch.float64


def small_vae():
    return seeded_vae(0, data_dim=6, hidden_dim=5, latent_dim=2).double()


def binary(generator, *shape):
    return torch.rand(*shape, generator=generator, dtype=D64).round()


@pytest.mark.equation("eq-train-objective")
def test_objective_is_the_mean_bound_over_images(tiny_data):
    """What `fit` and `mean_elbo` report, against one image at a time with the same noise."""
    model = seeded_vae(0, hidden_dim=7, latent_dim=3)
    reported = mean_elbo(model, tiny_data.test, seed=5)
    generator = torch.Generator().manual_seed(5)
    eps = torch.randn(1, 40, 3, generator=generator)
    x = (tiny_data.test > 127).float()
    reconstruction = kl = 0.0
    with torch.no_grad():
        for n in range(40):
            mu, log_var = model.encode(x[n])
            z = mu + torch.exp(log_var / 2) * eps[0, n]
            reconstruction += model.log_likelihood(x[n], z).item() / 40
            kl += 0.5 * (mu**2 + log_var.exp() - log_var - 1).sum().item() / 40
    assert reported["reconstruction"] == pytest.approx(reconstruction, rel=1e-5)
    assert reported["kl"] == pytest.approx(kl, rel=1e-4)
    assert reported["elbo"] == pytest.approx(reconstruction - kl, rel=1e-5)
    history = fit(model, tiny_data, epochs=2, seed=5)
    assert history.rows[-1]["test"] == mean_elbo(model, tiny_data.test, seed=5)


@pytest.mark.equation("eq-train-minibatch")
def test_mini_batch_gradient_averages_to_the_full_gradient_over_all_batches(generator):
    model, x = small_vae(), binary(generator, 6, 6)
    eps = torch.randn(6, 2, generator=generator, dtype=D64)

    def gradient(rows):
        rows = torch.tensor(rows)
        value = elbo(model, x[rows], eps=eps[rows][None]).value.mean()
        parts = torch.autograd.grad(value, list(model.parameters()))
        return torch.cat([p.flatten() for p in parts])

    full = gradient(range(6))
    for size in (1, 2, 4):  # each batch without replacement is equally likely
        batches = list(itertools.combinations(range(6), size))
        mean = sum(gradient(b) for b in batches) / len(batches)
        assert_close(mean, full, rtol=1e-11, atol=1e-13)
        assert (gradient(batches[0]) - full).norm() > 1e-3 * full.norm()


@pytest.mark.equation("eq-train-minibatch")
def test_expected_gradient_over_noise_is_the_gradient_of_the_expected_bound(generator):
    """On the linear-Gaussian model, where four nodes integrate the noise exactly."""
    weight = torch.randn(3, 2, generator=generator, dtype=D64)
    oracle = LinearGaussianModel(weight, torch.zeros(3, dtype=D64), 0.5)
    x = torch.randn(1, 3, generator=generator, dtype=D64)
    mu = torch.tensor([[0.3, -0.4]], dtype=D64, requires_grad=True)
    log_var = torch.tensor([[-0.5, 0.2]], dtype=D64, requires_grad=True)

    class Model:
        log_prior, log_likelihood = oracle.log_prior, oracle.log_likelihood

        def encode(self, x):
            return mu, log_var

    identity = math.sqrt(2) * torch.eye(2, dtype=D64)
    gradients = []
    for node in torch.cat([identity, -identity]):
        value = elbo(Model(), x, eps=node[None, None]).value.sum()
        gradients.append(torch.cat(torch.autograd.grad(value, (mu, log_var)), -1))
    exact = torch.cat(oracle.elbo_gradient(x, mu.detach(), log_var.detach()), -1)
    assert_close(torch.stack(gradients).mean(0), exact, rtol=1e-11, atol=1e-12)
    assert (gradients[0] - exact).norm() > 0.1


@pytest.mark.equation("eq-train-adam")
@pytest.mark.parametrize("fused", [False, True])
def test_adam_as_written_is_torch_adam(fused):
    w = torch.linspace(-1, 1, 7, dtype=D64)
    theirs = w.clone().requires_grad_()
    optimizer = torch.optim.Adam([theirs], lr=2e-3, fused=fused)
    m = v = torch.zeros(7, dtype=D64)
    for t in range(1, 40):
        g = torch.cos(5 * w) * t - 3
        m = 0.9 * m + (1 - 0.9) * g
        v = 0.999 * v + (1 - 0.999) * g**2
        previous = w
        w = w - 2e-3 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        theirs.grad = g
        optimizer.step()
        assert_close(theirs.detach(), w, rtol=1e-12, atol=1e-14)
        if t == 1:  # the first step has the size of the learning rate
            assert_close(previous - w, 2e-3 * g.sign(), rtol=1e-6, atol=0)


@pytest.mark.equation("eq-train-bits")
def test_bits_per_pixel_of_coin_flips_is_one_and_of_a_known_coder_its_length():
    model = seeded_vae(0, data_dim=6, hidden_dim=5, latent_dim=2).double()
    with torch.no_grad():
        for weights in model.parameters():
            weights.zero_()
    x = torch.tensor([[1, 0, 1, 1, 0, 0]], dtype=D64)
    log_p = elbo(model, x).value.item()  # the code is ignored and free: this is log p(x)
    assert -log_p / (6 * math.log(2)) == pytest.approx(1.0, rel=1e-12)
    # biased coins: the entropy in base 2, by another formula
    with torch.no_grad():
        model.decoder.logits.bias.fill_(math.log(3))  # probability 3/4
    images = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=D64)] * 6)
    log_p = elbo(model, images).value
    bits = (log_p.exp() * (-log_p / (6 * math.log(2)))).sum().item()
    assert bits == pytest.approx(-0.75 * math.log2(0.75) - 0.25 * math.log2(0.25), rel=1e-12)


@pytest.mark.false_alarm(3e-9)
@pytest.mark.equation("eq-train-standard-error")
@pytest.mark.parametrize("draws", [1, 4])
def test_standard_error_adds_images_and_draws(draws):
    """2000 test sets of n = 25 images drawn with replacement from five, K draws for each.

    The variance of 2000 means has a relative standard error of sqrt(2 / 2000) = 0.032, as they are
    nearly Gaussian; the limit of 20 % stands at 6.3 of these: a false alarm of 1.3e-9 in each case.
    """
    generator = torch.Generator().manual_seed(3)
    weight = torch.tensor([[1.5, 0.2], [-0.4, 0.8], [0.6, 0.9]], dtype=D64)
    oracle = LinearGaussianModel(weight, torch.zeros(3, dtype=D64), 0.8)
    five = 0.7 * torch.randn(5, 3, generator=generator, dtype=D64)
    mu, log_var = oracle.encode(five)
    exact = oracle.elbo(five, mu, log_var)
    # variance over the noise, by quadrature: one row for each node
    axis = torch.linspace(-8, 8, 65, dtype=D64)
    nodes = torch.cartesian_prod(axis, axis)
    weights = torch.exp(-nodes.square().sum(-1) / 2) / (2 * math.pi) * (axis[1] - axis[0]) ** 2
    noise_variance = []
    for x, mean in zip(five, exact):
        values = elbo(oracle, x.expand(len(nodes), 3), eps=nodes[None]).value
        assert_close(weights @ values, mean, rtol=1e-9, atol=1e-9)
        noise_variance.append(weights @ (values - mean) ** 2)
    n = 25
    image_part, noise_part = exact.var(correction=0), torch.stack(noise_variance).mean()
    written = (image_part + noise_part / draws) / n
    rows = torch.randint(5, (2000 * n,), generator=generator)
    bound = elbo(oracle, five[rows], num_samples=draws, generator=generator).value
    means = bound.reshape(2000, n).mean(1)
    assert abs(means.var() / written - 1) < 0.2
    assert noise_part / draws > 0.3 * image_part  # both parts are needed: without it, it fails
    if draws > 1:
        assert (image_part + noise_part) / n > 1.5 * written


@pytest.mark.equation("eq-train-active")
def test_activity_is_the_variance_of_the_posterior_mean_over_images(generator):
    model, x = small_vae(), binary(generator, 9, 6)
    with torch.no_grad():
        model.encoder.mu.weight[1] = 0  # the second dimension ignores the image
        # E_q[z] by quadrature over the code, one image at a time
        mu, log_var = model.encode(x)
        axis = torch.linspace(-12, 12, 4801, dtype=D64)
        q = torch.distributions.Normal(mu[..., None], (log_var / 2).exp()[..., None])
        mean = (q.log_prob(axis).exp() * axis).sum(-1) * (axis[1] - axis[0])
    written = ((mean - mean.mean(0)) ** 2).sum(0) / 8
    assert_close(latent_activity(model, x), written, rtol=1e-9, atol=1e-15)
    assert written[0] > 1e-4 and written[1] < 1e-20
    assert active_units(model, x, threshold=float(written[0]) / 2) == 1


def test_loop_of_the_chapter_reproduces_fit_to_rounding(tiny_data):
    ours, theirs = seeded_vae(0, hidden_dim=8, latent_dim=3), seeded_vae(0, hidden_dim=8, latent_dim=3)
    generator = torch.Generator().manual_seed(7)
    adam = torch.optim.Adam(ours.parameters(), lr=1e-3, fused=True)
    running = []
    for _ in range(3):
        total = 0.0
        for rows in torch.randperm(300, generator=generator).split(128):
            bound = elbo(ours, (tiny_data.train[rows] > 127).float(), generator=generator)
            loss = -bound.value.mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            total += bound.value.sum().item()
        running.append(total / 300)
    history = fit(theirs, tiny_data, epochs=3, seed=7)
    for a, b in zip(ours.parameters(), theirs.parameters()):
        assert_close(a, b)
    assert history.curve("train", "elbo") == pytest.approx(running, rel=1e-5)
    assert isinstance(tiny_data, ImageData) and running[-1] > running[0]
