"""The labelled equations of `binary_vae`, each evaluated as written and against another route."""

import math

import mpmath
import pytest
import torch
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal, kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.testing import assert_close

from vaelib import VAE, bernoulli_log_prob, elbo, kl_standard_normal, reparametrize
from vaelib.training import seeded_vae

D64 = torch.float64


def small_vae(data_dim: int = 5, latent_dim: int = 2) -> VAE:
    model = seeded_vae(0, data_dim=data_dim, hidden_dim=6, latent_dim=latent_dim).double()
    with torch.no_grad():
        for weights in model.decoder.parameters():
            weights.mul_(2)
    return model


def all_images(data_dim: int) -> torch.Tensor:
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=D64)] * data_dim)


def grid(half_width: float = 9.0, number: int = 181):
    """Nodes [N, 2] and weights [N] of the expectation under N(0, I)."""
    axis = torch.linspace(-half_width, half_width, number, dtype=D64)
    nodes = torch.cartesian_prod(axis, axis)
    density = MultivariateNormal(torch.zeros(2, dtype=D64), torch.eye(2, dtype=D64))
    return nodes, density.log_prob(nodes).exp() * (axis[1] - axis[0]) ** 2


def binary(generator, *shape):
    return torch.rand(*shape, generator=generator, dtype=D64).round()


@pytest.mark.equation("eq-vae-model")
def test_model_multiplies_pixel_probabilities_and_sums_to_one_over_images(generator):
    model = small_vae()
    images = all_images(5)
    z = torch.randn(3, 2, generator=generator, dtype=D64)
    x_tilde = model.decode(z).sigmoid()
    for k in range(3):
        product = torch.ones(32, dtype=D64)
        for i in range(5):  # the product as written
            product *= x_tilde[k, i] ** images[:, i] * (1 - x_tilde[k, i]) ** (1 - images[:, i])
        assert_close(model.log_likelihood(images, z[k]).exp(), product, rtol=1e-12, atol=0)
    nodes, weights = grid()  # p(x) by quadrature, with the weights of torch's own prior density
    p_x = (weights[:, None] * model.log_likelihood(images, nodes[:, None]).exp()).sum(0)
    assert_close(p_x.sum(), torch.tensor(1.0, dtype=D64), rtol=1e-12, atol=0)
    prior = torch.exp(model.log_prior(nodes)) * (nodes[1, 1] - nodes[0, 1]) ** 2
    assert_close(prior, weights, rtol=1e-12, atol=1e-300)
    assert p_x.max() > 1.5 / 32  # not the uniform model


@pytest.mark.equation("eq-vae-log-likelihood")
def test_log_likelihood_is_the_negative_cross_entropy(generator):
    logits = 3 * torch.randn(6, 9, generator=generator, dtype=D64)
    x = binary(generator, 6, 9)
    x_tilde = logits.sigmoid()
    written = (x * x_tilde.log() + (1 - x) * (1 - x_tilde).log()).sum(-1)
    assert_close(bernoulli_log_prob(x, logits), written, rtol=1e-12, atol=0)
    library = Independent(Bernoulli(probs=x_tilde), 1).log_prob(x)
    assert_close(written, library, rtol=1e-12, atol=0)
    # the source's version, x log(1 - x~), is another number
    wrong = (x * (1 - x_tilde).log() + (1 - x) * (1 - x_tilde).log()).sum(-1)
    assert (wrong - written).abs().min() > 0.1


@pytest.mark.equation("eq-vae-logits")
@pytest.mark.parametrize("bit", [0.0, 1.0])
@pytest.mark.parametrize("a", [-120.0, -50.0, -17.0, -1e-3, 0.0, 0.5, 16.0, 17.0, 50.0, 120.0])
def test_logits_form_agrees_with_50_digits_also_where_probabilities_round(a, bit):
    def log_sigmoid(t):  # as written
        return -max(-t, 0.0) - math.log1p(math.exp(-abs(t)))

    with mpmath.workdps(80):
        p = 1 / (1 + mpmath.exp(-mpmath.mpf(a)))
        exact = float(mpmath.log(p if bit else 1 - p))
    written = log_sigmoid(a) - (1 - bit) * a
    # the difference of two numbers of size |a| keeps an absolute error of that many ulps
    assert written == pytest.approx(exact, rel=1e-14, abs=2e-16 * abs(a))
    for dtype, tolerance in ((D64, 1e-14), (torch.float32, 1e-6)):
        x, logits = torch.tensor([bit], dtype=dtype), torch.tensor([a], dtype=dtype)
        found = bernoulli_log_prob(x, logits).item()
        assert found == pytest.approx(exact, rel=tolerance, abs=torch.finfo(dtype).eps * abs(a))


@pytest.mark.equation("eq-vae-logit-gradient")
def test_gradient_with_respect_to_logits_is_image_minus_probability(generator):
    x = binary(generator, 4, 7)
    logits = (30 * torch.randn(4, 7, generator=generator, dtype=D64)).requires_grad_()
    (found,) = torch.autograd.grad(bernoulli_log_prob(x, logits).sum(), logits)
    assert_close(found, x - logits.sigmoid(), rtol=1e-12, atol=1e-15)
    step = 1e-5  # central differences, where they have digits
    at = logits.detach() / 30
    differences = []
    for i in range(7):
        shift = torch.zeros(7, dtype=D64)
        shift[i] = step
        up, down = bernoulli_log_prob(x, at + shift), bernoulli_log_prob(x, at - shift)
        differences.append((up - down) / (2 * step))
    assert_close(torch.stack(differences, -1), x - at.sigmoid(), rtol=1e-7, atol=1e-9)


@pytest.mark.equation("eq-vae-q")
def test_q_is_a_gaussian_over_codes_with_its_variances_on_the_diagonal(generator):
    model = small_vae()
    x = binary(generator, 1, 5)
    mu, log_var = model.encode(x)
    assert mu.shape == log_var.shape == (1, 2)
    sigma2 = log_var.exp()
    assert (sigma2 > 0).all()
    # the sampled KL of the ELBO holds log q: recover it and compare with the full Gaussian
    eps = torch.randn(50, 1, 2, generator=generator, dtype=D64)
    z = reparametrize(mu, log_var, eps)
    q = MultivariateNormal(mu[0], sigma2[0].diag())
    log_q = elbo(model, x.expand(50, 5), eps=eps.transpose(0, 1), kl="sampled").kl
    log_q = log_q + model.log_prior(z[:, 0])
    assert_close(log_q, q.log_prob(z[:, 0]), rtol=1e-11, atol=1e-11)


@pytest.mark.equation("eq-vae-encoder")
@pytest.mark.equation("eq-vae-decoder")
def test_networks_compute_the_equations_with_explicit_sums(generator):
    model = small_vae()
    x = binary(generator, 5)
    W1, b1, W2, b2, W3, b3 = (w.detach() for w in model.encoder.parameters())
    W4, b4, W5, b5 = (w.detach() for w in model.decoder.parameters())

    def affine(W, v, b):
        rows = [sum(float(w) * float(u) for w, u in zip(row, v)) for row in W]
        return [r + float(c) for r, c in zip(rows, b)]

    h = [math.tanh(t) for t in affine(W1, x, b1)]
    mu, log_var = model.encode(x)
    assert mu.tolist() == pytest.approx(affine(W2, h, b2), rel=1e-12)
    assert log_var.tolist() == pytest.approx(affine(W3, h, b3), rel=1e-12)
    mu = mu.detach()
    h = [math.tanh(t) for t in affine(W4, mu, b4)]
    a = affine(W5, h, b5)
    assert model.decode(mu).tolist() == pytest.approx(a, rel=1e-12)
    x_tilde = [1 / (1 + math.exp(-t)) for t in a]
    log_p = sum(math.log(p if bit else 1 - p) for p, bit in zip(x_tilde, x))
    assert model.log_likelihood(x, mu).item() == pytest.approx(log_p, rel=1e-12)


@pytest.mark.equation("eq-vae-reparametrization")
def test_reparametrized_draws_have_standard_deviation_sigma():
    mu = torch.tensor([1.0, -2.0, 0.5], dtype=D64)
    log_var = torch.tensor([-2.0, 0.0, 1.5], dtype=D64)
    axis = torch.linspace(-9, 9, 361, dtype=D64)
    weights = Normal(0.0, 1.0).log_prob(axis).exp() * 0.05
    z = reparametrize(mu, log_var, axis[:, None].expand(-1, 3))
    assert_close(weights @ z, mu, rtol=1e-12, atol=1e-12)
    assert_close(weights @ (z - mu) ** 2, log_var.exp(), rtol=1e-12, atol=0)
    assert_close(weights @ (z - mu) ** 4, 3 * log_var.exp() ** 2, rtol=1e-11, atol=0)  # Gaussian
    # the source's mu + sigma^2 eps would have the variance sigma^4
    assert (log_var.exp() ** 2 - log_var.exp()).abs()[[0, 2]].min() > 0.1


@pytest.mark.equation("eq-vae-count")
@pytest.mark.parametrize("sizes", [(784, 500, 20), (784, 500, 2), (784, 10, 20), (3, 9, 4)])
def test_parameter_count(sizes):
    D, H, L = sizes
    written = (D + 1) * H + 2 * (H + 1) * L + (L + 1) * H + (H + 1) * D
    assert sum(w.numel() for w in VAE(*sizes).parameters()) == written


@pytest.mark.equation("eq-vae-elbo")
@pytest.mark.equation("eq-vae-kl")
def test_three_forms_of_the_bound_agree_and_stay_below_the_evidence():
    model, (nodes, weights) = small_vae(), grid()
    for x in all_images(5)[[0, 13, 31]]:
        mu, log_var = model.encode(x)
        q = Independent(Normal(mu, (log_var / 2).exp()), 1)
        z = mu + (log_var / 2).exp() * nodes
        log_joint = model.log_likelihood(x, z) + model.log_prior(z)
        joint_form = weights @ (log_joint - q.log_prob(z))
        reconstruction = weights @ model.log_likelihood(x, z)
        kl = weights @ (q.log_prob(z) - model.log_prior(z))
        assert_close(joint_form, reconstruction - kl, rtol=1e-11, atol=1e-11)
        # the closed form of the divergence as written, the package's and torch's
        closed = 0.5 * (mu**2 + log_var.exp() - log_var - 1).sum()
        prior = Independent(Normal(torch.zeros(2, dtype=D64), 1.0), 1)
        assert_close(kl, closed, rtol=1e-10, atol=1e-10)
        assert_close(closed, kl_divergence(q, prior), rtol=1e-11, atol=1e-12)
        assert_close(kl_standard_normal(mu, log_var), closed, rtol=1e-11, atol=1e-12)
        # the package's bound, a row of the batch for each node
        rows = x.expand(len(nodes), -1)
        package = elbo(model, rows, eps=nodes[None])
        assert_close(weights @ package.value, joint_form, rtol=1e-10, atol=1e-10)
        assert_close(weights @ package.reconstruction, reconstruction, rtol=1e-11, atol=0)
        evidence = (weights @ model.log_likelihood(x, nodes).exp()).log()
        assert joint_form < evidence - 1e-3
        assert reconstruction <= 0 <= kl


@pytest.mark.equation("eq-vae-loss")
def test_loss_is_a_sum_over_pixels_and_latents_and_a_mean_over_images(generator):
    model = small_vae()
    x = binary(generator, 4, 5)
    eps = torch.randn(4, 2, generator=generator, dtype=D64)
    total = 0.0
    for b in range(4):
        mu, log_var = model.encode(x[b])
        logits = model.decode(mu + torch.exp(log_var / 2) * eps[b])
        total += binary_cross_entropy_with_logits(logits, x[b], reduction="sum").item()
        q = Independent(Normal(mu, (log_var / 2).exp()), 1)
        prior = Independent(Normal(torch.zeros(2, dtype=D64), 1.0), 1)
        total += kl_divergence(q, prior).item()
    loss = -elbo(model, x, eps=eps[None]).value.mean()
    assert loss.item() == pytest.approx(total / 4, rel=1e-12)


@pytest.mark.equation("eq-vae-beta")
def test_a_mean_over_pixels_is_a_beta_of_d(generator):
    model = small_vae()
    x = binary(generator, 4, 5)
    eps = torch.randn(4, 2, generator=generator, dtype=D64)
    D, L = 5, 2
    for pixels, latents, beta in ((1, 1, 1), (D, 1, D), (D, L, D / L), (1, L, 1 / L)):
        mu, log_var = model.encode(x)
        logits = model.decode(mu + torch.exp(log_var / 2) * eps)
        per_pixel = binary_cross_entropy_with_logits(logits, x, reduction="none")
        per_latent = 0.5 * (mu**2 + log_var.exp() - log_var - 1)
        written = per_pixel.sum(-1) / pixels + per_latent.sum(-1) / latents
        bound = elbo(model, x, eps=eps[None])
        meant = -(bound.reconstruction - beta * bound.kl) / pixels
        assert_close(written, meant, rtol=1e-12, atol=0)
    # larger beta, lower value: still a bound; beta < 1 need not be one
    assert (bound.reconstruction - D * bound.kl < bound.value).all()


@pytest.mark.equation("eq-vae-beta")
def test_small_beta_can_exceed_the_evidence():
    """A model whose evidence is known: the decoder ignores z, so that log p(x) = D log(1/2)."""
    model = VAE(data_dim=5, hidden_dim=3, latent_dim=2).double()
    with torch.no_grad():
        for weights in model.parameters():
            weights.zero_()
        model.encoder.mu.bias.fill_(1.0)  # KL = 1
    bound = elbo(model, torch.ones(1, 5, dtype=D64))
    evidence = -5 * math.log(2)
    assert bound.kl.item() == pytest.approx(1.0, rel=1e-12)
    for beta, holds in ((2.0, True), (1.0, True), (0.0, True), (-0.1, False)):
        assert ((bound.reconstruction - beta * bound.kl).item() <= evidence + 1e-12) == holds


@pytest.mark.equation("eq-vae-memory-limit")
def test_mean_log_probability_of_distinct_images_is_at_most_minus_log_n():
    model, (nodes, weights) = small_vae(), grid()
    images = all_images(5)
    log_p = (weights[:, None] * model.log_likelihood(images, nodes[:, None]).exp()).sum(0).log()
    for chosen in (slice(0, 1), slice(3, 9), slice(0, 32)):
        n = len(images[chosen])
        bounds = [weights @ elbo(model, x.expand(len(nodes), -1), eps=nodes[None]).value
                  for x in images[chosen]]
        mean_bound, mean_log_p = torch.stack(bounds).mean(), log_p[chosen].mean()
        log_mean_p = log_p[chosen].exp().mean().log()
        assert mean_bound <= mean_log_p <= log_mean_p + 1e-12 <= -math.log(n) + 2e-12
    # the limit is reached by the uniform model on all images, and by no other
    uniform = torch.full((32,), -math.log(32), dtype=D64)
    assert uniform.mean().item() == pytest.approx(-math.log(32), rel=1e-12)
    assert log_p.mean() < -math.log(32) - 0.01
