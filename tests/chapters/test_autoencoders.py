"""Equations of the chapter "Go from auto-encoders to latent-variable models"."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from vaelib import LinearGaussianModel, kl_full

D, L, N = 7, 3, 60


@pytest.fixture
def data(generator) -> torch.Tensor:
    """Correlated data with well separated eigenvalues and a mean that is not zero, [N, D]."""
    mixing = torch.randn(D, D, generator=generator, dtype=torch.float64)
    return torch.randn(N, D, generator=generator, dtype=torch.float64) @ mixing + 2.0


def spectrum(data):
    """Mean, covariance, and its eigenvalues and eigenvectors, largest first."""
    centred = data - data.mean(0)
    covariance = centred.mT @ centred / len(data)
    values, vectors = torch.linalg.eigh(covariance)
    return data.mean(0), covariance, values.flip(0), vectors.flip(1)


def ppca(data, latent_dim=L):
    """The maximum-likelihood parameters as the chapter states them."""
    mean, _, values, vectors = spectrum(data)
    noise_var = values[latent_dim:].sum() / (data.shape[1] - latent_dim)
    weight = vectors[:, :latent_dim] * (values[:latent_dim] - noise_var).sqrt()
    return weight, mean, noise_var


def minimise(loss_of, *parameters, max_iter=500):
    parameters = [p.detach().clone().requires_grad_() for p in parameters]
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=max_iter,
        tolerance_grad=1e-10,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        loss = loss_of(*parameters)
        loss.backward()
        return loss

    optimizer.step(closure)
    return [p.detach() for p in parameters]


@pytest.mark.equation("eq-ae-loss")
def test_loss_of_pca_is_the_tail_of_the_singular_values(data):
    mean, _, _, vectors = spectrum(data)
    U = vectors[:, :L]

    def f(x):
        return U.mT @ (x - mean)

    def g(z):
        return mean + U @ z

    loss = sum(torch.linalg.vector_norm(x - g(f(x))) ** 2 for x in data) / N
    singular = np.linalg.svd((data - mean).numpy(), compute_uv=False)
    assert loss.item() == pytest.approx((singular[L:] ** 2).sum() / N, rel=1e-12)


@pytest.mark.equation("eq-ae-covariance-loss")
def test_loss_depends_on_the_data_through_the_covariance_only(data, generator):
    _, S, _, _ = spectrum(data)
    A = torch.randn(L, D, generator=generator, dtype=torch.float64)
    W = torch.randn(D, L, generator=generator, dtype=torch.float64)
    centred = data - data.mean(0)
    direct = (centred - centred @ A.mT @ W.mT).square().sum(1).mean()
    formula = S.trace() - 2 * (W @ A @ S).trace() + (W.mT @ W @ A @ S @ A.mT).trace()
    torch.testing.assert_close(formula, direct)


@pytest.mark.equation("eq-ae-residual")
def test_best_encoder_of_a_decoder_is_the_projection(data, generator):
    _, S, _, _ = spectrum(data)
    centred = data - data.mean(0)
    W = torch.randn(D, L, generator=generator, dtype=torch.float64)
    codes = torch.linalg.lstsq(W, centred.mT).solution  # the best code of each example
    best = (centred.mT - W @ codes).square().sum() / N
    Q = torch.linalg.qr(W).Q
    torch.testing.assert_close(S.trace() - (Q.mT @ S @ Q).trace(), best)


@pytest.mark.equation("eq-ae-pca-optimum")
@pytest.mark.parametrize("seed", range(3))
def test_trained_linear_autoencoder_reaches_the_tail_of_the_eigenvalues(data, seed):
    generator = torch.Generator().manual_seed(seed)
    _, _, values, _ = spectrum(data)
    centred = data - data.mean(0)

    def loss_of(A, W):
        return (centred - centred @ A.mT @ W.mT).square().sum(1).mean()

    start = (
        torch.randn(L, D, generator=generator, dtype=torch.float64) / 3,
        torch.randn(D, L, generator=generator, dtype=torch.float64) / 3,
    )
    A, W = minimise(loss_of, *start)
    torch.testing.assert_close(loss_of(A, W), values[L:].sum(), rtol=1e-8, atol=0)
    assert loss_of(A, W) < values[L - 1 : -1].sum()  # not the tail shifted by one


@pytest.mark.equation("eq-ae-principal-angles")
def test_principal_angles_agree_with_scipy_and_with_a_known_rotation(generator):
    first = torch.randn(D, L, generator=generator, dtype=torch.float64)
    second = torch.randn(D, L, generator=generator, dtype=torch.float64)
    Q, U = torch.linalg.qr(first).Q, torch.linalg.qr(second).Q
    angles = torch.acos(torch.linalg.svdvals(Q.mT @ U))
    expected = scipy.linalg.subspace_angles(first.numpy(), second.numpy())
    np.testing.assert_allclose(angles.flip(0).numpy(), expected, rtol=1e-8)

    turned = torch.eye(D, 2, dtype=torch.float64)
    turned[:, 1] = 0
    turned[1, 1], turned[2, 1] = math.cos(0.3), math.sin(0.3)
    plane = torch.eye(D, 2, dtype=torch.float64)
    known = torch.acos(torch.linalg.svdvals(plane.mT @ turned).clamp(max=1))
    torch.testing.assert_close(known, torch.tensor([0.0, 0.3], dtype=torch.float64))


@pytest.mark.equation("eq-ae-invariance")
def test_loss_does_not_see_an_invertible_map_of_the_codes(data):
    encode = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, L)).double()
    decode = nn.Sequential(nn.Linear(L, 8), nn.Tanh(), nn.Linear(8, D)).double()
    mix = torch.eye(L, dtype=torch.float64) + torch.ones(L, L, dtype=torch.float64)

    def moved_encode(x):
        return torch.sinh(encode(x)) @ mix + 5

    def moved_decode(z):
        return decode(torch.asinh(torch.linalg.solve(mix.mT, (z - 5).mT).mT))

    def loss_of(f, g):
        return (data - g(f(data))).square().sum(1).mean()

    torch.testing.assert_close(loss_of(moved_encode, moved_decode), loss_of(encode, decode))
    assert (moved_encode(data).mean(0) - encode(data).mean(0)).abs().min() > 1


@pytest.mark.equation("eq-ae-evidence")
def test_evidence_is_the_integral_over_the_prior(generator):
    weight = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    model = LinearGaussianModel(weight, torch.ones(4, dtype=torch.float64), 0.7)
    x = torch.randn(4, generator=generator, dtype=torch.float64)
    axis = torch.linspace(-8, 8, 401, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    density = (model.log_likelihood(x, z) + model.log_prior(z)).exp()
    integral = torch.trapezoid(torch.trapezoid(density.view(401, 401), axis), axis)
    torch.testing.assert_close(integral.log(), model.log_evidence(x))


@pytest.mark.equation("eq-ae-ppca-evidence")
def test_evidence_is_gaussian_with_covariance_wwt_plus_noise(data, generator):
    weight = torch.randn(D, L, generator=generator, dtype=torch.float64)
    model = LinearGaussianModel(weight, data.mean(0), 0.4)
    C = weight @ weight.mT + 0.4 * torch.eye(D, dtype=torch.float64)
    expected = MultivariateNormal(data.mean(0), C).log_prob(data)
    torch.testing.assert_close(model.log_evidence(data), expected)


@pytest.mark.equation("eq-ae-ppca-average")
def test_average_log_evidence_needs_the_covariance_only(data, generator):
    mean, S, _, _ = spectrum(data)
    weight = torch.randn(D, L, generator=generator, dtype=torch.float64)
    model = LinearGaussianModel(weight, mean, 0.4)
    C = weight @ weight.mT + 0.4 * torch.eye(D, dtype=torch.float64)
    formula = -0.5 * (
        D * math.log(2 * math.pi) + torch.logdet(C) + torch.linalg.solve(C, S).trace()
    )
    torch.testing.assert_close(formula, model.log_evidence(data).mean())


@pytest.mark.equation("eq-ae-ppca-ml")
@pytest.mark.parametrize("seed", range(3))
def test_gradient_ascent_on_the_evidence_ends_at_the_closed_form(data, seed):
    generator = torch.Generator().manual_seed(seed)
    weight, mean, noise_var = ppca(data)
    identity = torch.eye(D, dtype=torch.float64)

    def loss_of(W, log_noise):
        covariance = W @ W.mT + log_noise.exp() * identity
        return -MultivariateNormal(mean, covariance).log_prob(data).mean()

    start = torch.randn(D, L, generator=generator, dtype=torch.float64)
    W, log_noise = minimise(loss_of, start, torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(log_noise.exp(), noise_var, rtol=1e-5, atol=0)
    torch.testing.assert_close(W @ W.mT, weight @ weight.mT, rtol=1e-4, atol=1e-4)


@pytest.mark.equation("eq-ae-ppca-ml")
def test_every_step_away_from_maximum_likelihood_costs(data, generator):
    weight, mean, noise_var = ppca(data)
    best = LinearGaussianModel(weight, mean, noise_var).log_evidence(data).mean()
    for size in (1e-3, 1e-1, 1.0):
        for _ in range(20):
            step = size * torch.randn(D, L + 1, generator=generator, dtype=torch.float64)
            other = LinearGaussianModel(
                weight + step[:, :L], mean, noise_var * torch.exp(step[0, L])
            )
            assert other.log_evidence(data).mean() < best
    # the eigenvalues alone, without the noise taken off, are a plausible wrong weight
    _, _, values, vectors = spectrum(data)
    wrong = LinearGaussianModel(vectors[:, :L] * values[:L].sqrt(), mean, noise_var)
    assert wrong.log_evidence(data).mean() < best - 1e-3


@pytest.mark.equation("eq-ae-ppca-max")
def test_maximum_of_the_evidence_has_a_closed_form(data):
    _, _, values, _ = spectrum(data)
    weight, mean, noise_var = ppca(data)
    formula = -0.5 * (
        D * math.log(2 * math.pi) + values[:L].log().sum() + (D - L) * noise_var.log() + D
    )
    model = LinearGaussianModel(weight, mean, noise_var)
    torch.testing.assert_close(model.log_evidence(data).mean(), formula)


@pytest.mark.equation("eq-ae-ppca-limit")
def test_without_noise_the_posterior_mean_is_the_pseudoinverse(data, generator):
    weight = torch.randn(D, L, generator=generator, dtype=torch.float64)
    mean = data.mean(0)
    limit = (data - mean) @ torch.linalg.pinv(weight).mT
    gaps = []
    for noise_var in (1e-4, 1e-6):
        codes, _ = LinearGaussianModel(weight, mean, noise_var).posterior(data)
        gaps.append((codes - limit).abs().max().item())
    assert gaps[1] < 1e-4
    assert gaps[0] / gaps[1] == pytest.approx(100, rel=1e-2)  # linear in the noise variance


@pytest.mark.equation("eq-ae-ppca-shrinkage")
def test_reconstruction_shrinks_each_component_by_its_share_of_noise(data):
    mean, _, values, vectors = spectrum(data)
    weight, _, noise_var = ppca(data)
    codes, _ = LinearGaussianModel(weight, mean, noise_var).posterior(data)
    shrink = 1 - noise_var / values[:L]
    expected = sum(
        shrink[i] * torch.outer((data - mean) @ vectors[:, i], vectors[:, i]) for i in range(L)
    )
    torch.testing.assert_close(codes @ weight.mT, expected)
    assert (shrink < 0.999).all()  # else the shrinkage could be left out unnoticed


@pytest.mark.equation("eq-ae-aggregate-moments")
def test_average_posterior_has_the_moments_of_the_prior(data):
    weight, mean, noise_var = ppca(data)
    identity = torch.eye(L, dtype=torch.float64)

    def second_moment(noise):
        codes, cov = LinearGaussianModel(weight, mean, noise).posterior(data)
        return (cov + codes[:, :, None] * codes[:, None, :]).mean(0)

    torch.testing.assert_close(second_moment(noise_var), identity)
    assert (second_moment(2 * noise_var) - identity).abs().max() > 1e-3


@pytest.mark.equation("eq-ae-amortisation")
def test_sharing_and_the_family_each_cost_what_the_theory_says(generator):
    weight = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    model = LinearGaussianModel(weight, torch.zeros(5, dtype=torch.float64), 0.5)
    x = torch.randn(50, 5, generator=generator, dtype=torch.float64)

    def fit_shared(visible):
        def loss_of(matrix, offset, log_var):
            return -model.elbo(x, x[:, :visible] @ matrix + offset, log_var).mean()

        parameters = [torch.zeros(*s, dtype=torch.float64) for s in ((visible, 2), (2,), (2,))]
        return -loss_of(*minimise(loss_of, *parameters))

    mu, log_var = minimise(
        lambda mu, log_var: -model.elbo(x, mu, log_var).mean(),
        *torch.zeros(2, 50, 2, dtype=torch.float64),
        max_iter=2000,
    )
    separate = model.elbo(x, mu, log_var).mean()
    evidence = model.log_evidence(x).mean()
    mean, cov = model.posterior(x)
    family_gap = kl_full(mu, torch.diag_embed(log_var.exp()), mean, cov.expand(50, 2, 2)).mean()
    torch.testing.assert_close(evidence - separate, family_gap)
    assert family_gap > 1e-3

    torch.testing.assert_close(fit_shared(5), separate, rtol=1e-7, atol=0)  # linear is enough
    assert fit_shared(2) < separate - 1e-2  # an encoder that sees two coordinates is not
