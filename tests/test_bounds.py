"""The bounds, first where the truth is known (linear-Gaussian model, quadrature), then on the VAE."""

import itertools
import math

import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal
from torch.distributions import MultivariateNormal as MVN
from torch.testing import assert_close

from vaelib import VAE, LinearGaussianModel, elbo, iwae_bound, log_likelihood
from vaelib.bounds import importance_log_weights

D64 = torch.float64


def oracle(data_dim: int, latent_dim: int, *, orthogonal: bool, seed: int = 0):
    """A linear-Gaussian model and data drawn from it."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(data_dim, latent_dim, generator=generator, dtype=D64)
    if orthogonal:
        scale = torch.linspace(0.5, 2.0, latent_dim, dtype=D64)
        weight = torch.linalg.qr(weight).Q * scale
    bias = torch.randn(data_dim, generator=generator, dtype=D64)
    model = LinearGaussianModel(weight, bias, 0.7)
    z = torch.randn(1000, latent_dim, generator=generator, dtype=D64)
    noise = torch.randn(1000, data_dim, generator=generator, dtype=D64)
    return model, z @ weight.mT + bias + math.sqrt(0.7) * noise


def cubature(batch: int, latent_dim: int) -> torch.Tensor:
    """Noise [2L, B, L] whose plain mean is exact for polynomials of degree three."""
    nodes = math.sqrt(latent_dim) * torch.eye(latent_dim, dtype=D64)
    return torch.cat([nodes, -nodes])[:, None].expand(-1, batch, -1)


def trapezoid(latent_dim: int, half_width: float = 9.0, number: int = 73):
    """Nodes [N, L] and weights [N] for expectations under N(0, I)."""
    axis = torch.linspace(-half_width, half_width, number, dtype=D64)
    nodes = torch.cartesian_prod(*[axis] * latent_dim).reshape(-1, latent_dim)
    log_weights = Independent(Normal(torch.zeros_like(nodes), 1.0), 1).log_prob(nodes)
    return nodes, log_weights.exp() * (axis[1] - axis[0]) ** latent_dim


def small_vae(seed: int = 0, latent_dim: int = 2, spread: float = 3.0) -> VAE:
    """A VAE whose posterior is no Gaussian: weights far from zero."""
    torch.manual_seed(seed)
    model = VAE(data_dim=5, hidden_dim=6, latent_dim=latent_dim).double()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(spread)
    return model


BINARY = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=D64)


# ---------------------------------------------------------------- the ELBO


@pytest.mark.parametrize("orthogonal", [True, False])
@pytest.mark.parametrize("data_dim, latent_dim", [(5, 1), (5, 3), (8, 8), (50, 8)])
@pytest.mark.parametrize("kl", ["analytic", "sampled"])
def test_elbo_equals_evidence_minus_kl_to_the_posterior(data_dim, latent_dim, orthogonal, kl):
    model, x = oracle(data_dim, latent_dim, orthogonal=orthogonal)
    x = x[:6]
    value = elbo(model, x, eps=cubature(6, latent_dim), kl=kl).value
    mu, log_var = model.encode(x)
    mean, cov = model.posterior(x)
    gap = torch.distributions.kl_divergence(MVN(mu, log_var.exp().diag_embed()), MVN(mean, cov))
    noise = 0.7 * torch.eye(data_dim, dtype=D64)
    marginal = MVN(model.bias, model.weight @ model.weight.mT + noise)
    assert_close(value, marginal.log_prob(x) - gap, rtol=1e-11, atol=1e-11)
    assert (gap.max() < 1e-12) == (orthogonal or latent_dim == 1)


@pytest.mark.parametrize("latent_dim", [1, 2])
@pytest.mark.parametrize("kl", ["analytic", "sampled"])
def test_elbo_of_a_vae_equals_evidence_minus_kl_by_quadrature(latent_dim, kl):
    model = small_vae(latent_dim=latent_dim)
    nodes, weights = trapezoid(latent_dim, number=361 if latent_dim == 1 else 73)
    for x in BINARY:
        # the bound, with the quadrature's nodes as noise: one row of the batch for each node
        rows = x.expand(len(nodes), -1)
        bound = weights @ elbo(model, rows, eps=nodes[None], kl=kl).value
        # the truth, on a grid over the codes and through torch.distributions alone
        grid, prior = trapezoid(latent_dim, half_width=12.0, number=241 * 3 ** (2 - latent_dim))
        likelihood = Independent(Bernoulli(logits=model.decode(grid)), 1).log_prob(x)
        log_evidence = torch.logsumexp(likelihood + prior.log(), 0)
        log_posterior = likelihood + Normal(0.0, 1.0).log_prob(grid).sum(-1) - log_evidence
        mu, log_var = model.encode(x)
        q = Independent(Normal(mu, (log_var / 2).exp()), 1)
        cell = prior / Normal(0.0, 1.0).log_prob(grid).sum(-1).exp()
        log_q = q.log_prob(grid)
        gap = (cell * log_q.exp() * (log_q - log_posterior)).sum()
        assert gap > 0.01
        assert_close(bound, log_evidence - gap, rtol=1e-9, atol=1e-9)


def test_elbo_parts_are_the_mean_log_likelihood_and_the_kl(generator):
    model = small_vae()
    eps = torch.randn(7, 3, 2, generator=generator, dtype=D64)
    mu, log_var = model.encode(BINARY)
    q = Independent(Normal(mu, (log_var / 2).exp()), 1)
    z = mu + (log_var / 2).exp() * eps
    reconstruction = sum(model.log_likelihood(BINARY, z[k]) for k in range(7)) / 7
    sampled = sum(q.log_prob(z[k]) - Normal(0.0, 1.0).log_prob(z[k]).sum(-1) for k in range(7)) / 7
    prior = Independent(Normal(torch.zeros(3, 2, dtype=D64), 1.0), 1)
    for kl, expected in (
        ("analytic", torch.distributions.kl_divergence(q, prior)),
        ("sampled", sampled),
    ):
        bound = elbo(model, BINARY, eps=eps, kl=kl)
        assert_close(bound.reconstruction, reconstruction, rtol=1e-12, atol=0)
        assert_close(bound.kl, expected, rtol=1e-11, atol=1e-13)
        assert torch.equal(bound.value, bound.reconstruction - bound.kl)
    assert (elbo(model, BINARY, eps=eps).kl >= 0).all()


@pytest.mark.parametrize("data_dim, latent_dim", [(2, 1), (5, 3), (50, 8)])
def test_elbo_equals_evidence_at_true_posterior_for_every_sample(data_dim, latent_dim, generator):
    model, x = oracle(data_dim, latent_dim, orthogonal=True)
    eps = torch.randn(1, 1000, latent_dim, generator=generator, dtype=D64)
    sampled = elbo(model, x, eps=eps, kl="sampled").value
    assert_close(sampled, model.log_evidence(x), rtol=0, atol=1e-10)
    analytic = elbo(model, x, eps=eps, kl="analytic").value
    assert (analytic - model.log_evidence(x)).std() > 0.1  # its two terms no longer share noise


@pytest.mark.parametrize("kl", ["analytic", "sampled"])
def test_gradient_of_the_elbo_equals_the_exact_gradient(kl):
    oracle_model, x = oracle(6, 3, orthogonal=False)
    x, generator = x[:4], torch.Generator().manual_seed(1)
    mu = torch.randn(4, 3, generator=generator, dtype=D64).requires_grad_()
    log_var = torch.randn(4, 3, generator=generator, dtype=D64).requires_grad_()

    class AnyGaussian:
        log_prior, log_likelihood = oracle_model.log_prior, oracle_model.log_likelihood

        def encode(self, x):
            return mu, log_var

    bound = elbo(AnyGaussian(), x, eps=cubature(4, 3), kl=kl)
    assert_close(bound.value, oracle_model.elbo(x, mu, log_var), rtol=1e-12, atol=0)
    gradients = torch.autograd.grad(bound.value.sum(), (mu, log_var))
    exact = oracle_model.elbo_gradient(x, mu.detach(), log_var.detach())
    for found, expected in zip(gradients, exact):
        assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_elbo_draws_num_samples_from_the_generator():
    model = small_vae()
    noise = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(3), dtype=D64)
    drawn = elbo(model, BINARY, num_samples=5, generator=torch.Generator().manual_seed(3))
    injected = elbo(model, BINARY, eps=noise)
    assert torch.equal(drawn.value, injected.value)


# ------------------------------------------- the importance-weighted bound


@pytest.mark.parametrize("model, x", [(small_vae(), BINARY), oracle(5, 3, orthogonal=False)])
def test_iwae_bound_with_one_sample_is_the_elbo_with_sampled_kl(model, x, generator):
    mu, _ = model.encode(x)
    eps = torch.randn(1, *mu.shape, generator=generator, dtype=D64)
    one = iwae_bound(model, x, num_samples=1, eps=eps)
    assert_close(one, elbo(model, x, eps=eps, kl="sampled").value, rtol=1e-12, atol=1e-13)


def test_iwae_bound_is_the_log_of_the_mean_weight(generator):
    model = small_vae()
    eps = torch.randn(9, 3, 2, generator=generator, dtype=D64)
    mu, log_var = model.encode(BINARY)
    q = Independent(Normal(mu, (log_var / 2).exp()), 1)
    z = mu + (log_var / 2).exp() * eps
    p_x = Independent(Bernoulli(logits=model.decode(z)), 1).log_prob(BINARY).exp()
    weights = p_x * Normal(0.0, 1.0).log_prob(z).sum(-1).exp() / q.log_prob(z).exp()
    bound = iwae_bound(model, BINARY, num_samples=9, eps=eps)
    assert_close(bound, weights.mean(0).log(), rtol=1e-12, atol=0)
    log_w = importance_log_weights(model, BINARY, num_samples=9, eps=eps)
    assert_close(log_w, weights.log(), rtol=1e-12, atol=1e-12)


def test_expected_iwae_bound_by_quadrature_rises_with_k_towards_the_evidence():
    model = small_vae(latent_dim=1)
    nodes, weights = trapezoid(1, half_width=8.5, number=35)
    grid, prior = trapezoid(1, half_width=12.0, number=2401)
    x = BINARY[:1]
    evidence = torch.logsumexp(model.log_likelihood(x, grid) + prior.log(), 0)
    expected = []
    for k in (1, 2, 3):  # a K-fold integral over independent noise, one row for each node
        product = torch.cartesian_prod(*[torch.arange(35)] * k).reshape(-1, k)
        eps = nodes[product].permute(1, 0, 2)
        rows = x.expand(len(product), -1)
        bounds = iwae_bound(model, rows, num_samples=k, eps=eps)
        expected.append(weights[product].prod(-1) @ bounds)
    assert expected[0] + 1e-3 < expected[1] and expected[1] + 1e-3 < expected[2]
    assert expected[2] + 1e-3 < evidence
    mu, log_var = model.encode(x)
    single = weights @ elbo(model, x.expand(35, -1), eps=nodes[None], kl="sampled").value
    assert_close(expected[0], single, rtol=1e-12, atol=0)


def test_iwae_bound_of_all_samples_is_above_the_mean_of_its_parts(generator):
    """Jensen's inequality holds draw by draw: no statistics are needed."""
    for model, x in ((small_vae(), BINARY), oracle(8, 4, orthogonal=False)):
        mu, _ = model.encode(x)
        eps = torch.randn(12, *mu.shape, generator=generator, dtype=D64)
        whole = iwae_bound(model, x, num_samples=12, eps=eps)
        parts = [iwae_bound(model, x, num_samples=3, eps=part) for part in eps.split(3)]
        assert (whole > torch.stack(parts).mean(0)).all()


@pytest.mark.false_alarm(5e-9)
def test_mean_iwae_bound_rises_with_k_and_stays_below_the_evidence(generator):
    """n = 4000 independent rows for each K. A rise smaller than 6 standard errors fails.

    The true rises are 20 standard errors and more, so that a false alarm has a probability below
    1e-40; a bound that does not rise passes with a probability below 1e-8. The mean of L_K may
    exceed log p(x) by 6 standard errors: a false alarm of 1e-9 for each K.
    """
    model, x = oracle(8, 4, orthogonal=False)
    rows, n = x[:1].expand(4000, -1), 4000
    means, errors = [], []
    for k in (1, 2, 4, 16, 64):
        bounds = iwae_bound(model, rows, num_samples=k, generator=generator)
        means.append(bounds.mean())
        errors.append(bounds.std() / math.sqrt(n))
    for (m1, e1), (m2, e2) in itertools.pairwise(zip(means, errors)):
        assert m2 - m1 > 6 * torch.hypot(e1, e2)
    evidence = model.log_evidence(x[0])
    for mean, error in zip(means, errors):
        assert mean < evidence + 6 * error
    assert means[0] < evidence - 20 * errors[0]


# ------------------------------------------------ the estimate of log p(x)


@pytest.mark.parametrize("chunk_size", [1, 3, 17, 1000, 50_000])
def test_log_likelihood_is_exact_at_the_posterior_however_it_is_chunked(chunk_size, generator):
    model, x = oracle(6, 3, orthogonal=True)
    x = x[:17]
    estimate = log_likelihood(
        model, x, num_samples=20, chunk_size=chunk_size, generator=generator
    )
    assert_close(estimate.value, model.log_evidence(x), rtol=0, atol=1e-10)
    assert_close(estimate.effective_sample_size, torch.full((17,), 20.0, dtype=D64))
    assert estimate.standard_error.max() < 1e-6
    assert len(estimate.value) == len(estimate.standard_error) == 17


def test_log_likelihood_gives_the_same_numbers_in_chunks_of_samples():
    """The generator is read sample by sample. (torch fills normal noise in blocks of 16, hence
    B * L = 16 here; other sizes and chunks of images read the stream differently.)"""
    model = small_vae()
    x = torch.cat([BINARY, BINARY, BINARY[:2]])
    results = [
        log_likelihood(
            model, x, num_samples=60, chunk_size=c, generator=torch.Generator().manual_seed(5)
        )
        for c in (8, 56, 10_000)
    ]
    eps = torch.randn(60, 8, 2, generator=torch.Generator().manual_seed(5), dtype=D64)
    log_w = importance_log_weights(model, x, num_samples=60, eps=eps)
    weights = log_w.exp()
    mean = weights.mean(0)
    ess = weights.sum(0) ** 2 / (weights**2).sum(0)
    error = weights.std(0, correction=0) / mean / math.sqrt(60)  # the delta method, by hand
    for result in results:
        assert_close(result.value, mean.log(), rtol=1e-12, atol=0)
        assert_close(result.effective_sample_size, ess, rtol=1e-12, atol=0)
        assert_close(result.standard_error, error, rtol=1e-9, atol=0)


def test_log_likelihood_decodes_at_most_chunk_size_codes_at_a_time(generator):
    model = small_vae()
    shapes = []

    class Recorder:
        encode, log_prior = model.encode, model.log_prior

        def log_likelihood(self, x, z):
            shapes.append(z.shape[0] * z.shape[1])
            return model.log_likelihood(x, z)

    x = BINARY.repeat(7, 1)
    for num_samples, chunk_size in ((50, 100), (50, 5), (50, 21), (3, 1000)):
        shapes.clear()
        log_likelihood(
            Recorder(), x, num_samples=num_samples, chunk_size=chunk_size, generator=generator
        )
        assert max(shapes) <= chunk_size
        assert sum(shapes) == num_samples * len(x)


@pytest.mark.false_alarm(2e-9)
@pytest.mark.parametrize(
    "data_dim, latent_dim, orthogonal",
    [(2, 1, True), (10, 2, False), (50, 2, False), (50, 3, False)],
)
def test_standard_error_of_log_likelihood_is_calibrated(data_dim, latent_dim, orthogonal):
    """n = 1000 rows, each with its own noise, 4000 samples each.

    Were the errors Gaussian with the reported width, 2.7 rows in 1000 would lie outside three of
    them: more than 40 outside has a probability below 1e-30. Their mean square is then 1 with a
    standard error of sqrt(2 / n) = 0.045, and the limits 0.7 and 1.3 stand at 6.7 of these:
    a false alarm of 4e-10 in each case, by the tail of chi-squared.
    """
    model, x = oracle(data_dim, latent_dim, orthogonal=orthogonal, seed=4)
    estimate = log_likelihood(
        model, x, num_samples=4000, generator=torch.Generator().manual_seed(1)
    )
    error = estimate.value - model.log_evidence(x)
    assert (estimate.effective_sample_size > 1000).all()
    assert (error.abs() > 3 * estimate.standard_error + 1e-10).sum() <= 40
    if not (orthogonal or latent_dim == 1):
        assert 0.7 < (error / estimate.standard_error).square().mean() < 1.3


@pytest.mark.false_alarm(3e-9)
def test_log_likelihood_of_a_vae_agrees_with_quadrature():
    """500 rows of the same image: the mean of (estimate - truth) / error is 0 within 0.3.

    Its standard error is 1 / sqrt(500) = 0.045; the limit stands at 6.7 of these less the bias of
    the logarithm, -error / 2 = -0.01: a false alarm below 1e-9.
    """
    model = small_vae()
    grid, prior = trapezoid(2, half_width=12.0, number=241)
    for image in BINARY:
        evidence = torch.logsumexp(model.log_likelihood(image, grid) + prior.log(), 0)
        estimate = log_likelihood(
            model,
            image.expand(500, -1),
            num_samples=2000,
            generator=torch.Generator().manual_seed(2),
        )
        standardized = (estimate.value - evidence) / estimate.standard_error
        assert standardized.mean().abs() < 0.3
        assert (standardized.abs() < 3).sum() >= 480


def test_log_likelihood_is_in_float64_and_has_no_gradient(generator):
    model = VAE(data_dim=5, hidden_dim=6, latent_dim=2)
    estimate = log_likelihood(model, BINARY.float(), num_samples=10, generator=generator)
    for value in (estimate.value, estimate.standard_error, estimate.effective_sample_size):
        assert value.dtype == D64 and not value.requires_grad and value.shape == (3,)
    assert all(p.grad is None for p in model.parameters())


# --------------------------------------------------------------- stability


def extreme_vae(dtype, mu: float) -> VAE:
    """Logits of +-50 at every code; codes around ``mu`` with unit standard deviation."""
    model = VAE(data_dim=784, hidden_dim=4, latent_dim=3).to(dtype)
    with torch.no_grad():
        for layer in (model.encoder.mu, model.encoder.log_var, model.decoder.logits):
            layer.weight.zero_()
            layer.bias.zero_()
        model.encoder.mu.bias.fill_(mu)
        model.decoder.logits.bias.copy_(50 - 100 * (torch.arange(784) % 2))
    return model


@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 1e-5), (D64, 1e-13)])
@pytest.mark.parametrize("mu", [0.0, 20.0])
@pytest.mark.parametrize("num_samples", [1, 6])
def test_bounds_are_finite_and_right_at_logits_of_50_and_codes_20_sigma_away(
    dtype, rtol, mu, num_samples
):
    model = extreme_vae(dtype, mu)
    x = (torch.arange(784) < 392).to(dtype)[None]  # 196 + 196 pixels contradict their logits
    log_p = -50.0 * 392
    eps = torch.linspace(-1, 1, num_samples * 3, dtype=D64).reshape(num_samples, 1, 3)
    # log N(z; 0, I) - log N(z; mu, I), by hand
    log_ratio = (eps.square() - (mu + eps).square()).sum((1, 2)) / 2
    noise = eps.to(dtype)
    analytic = elbo(model, x, eps=noise)
    assert analytic.reconstruction.item() == pytest.approx(log_p, rel=rtol)
    assert analytic.kl.item() == pytest.approx(1.5 * mu**2, rel=rtol)
    sampled = elbo(model, x, eps=noise, kl="sampled").value
    assert sampled.item() == pytest.approx(log_p + log_ratio.mean().item(), rel=rtol)
    bound = iwae_bound(model, x, num_samples=num_samples, eps=noise).item()
    expected = log_p + (torch.logsumexp(log_ratio, 0) - math.log(num_samples)).item()
    assert bound == pytest.approx(expected, rel=rtol)
    (analytic.value.sum() + sampled.sum()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 1e-5), (D64, 1e-13)])
@pytest.mark.parametrize("num_samples", [1, 50])
def test_log_likelihood_is_finite_and_right_at_extremes(dtype, rtol, num_samples):
    x = torch.zeros(1, 784, dtype=dtype)
    near = log_likelihood(extreme_vae(dtype, 0.0), x, num_samples=num_samples)
    assert near.value.item() == pytest.approx(-50.0 * 392, rel=rtol)  # here q is the posterior
    assert near.effective_sample_size.item() == pytest.approx(num_samples, rel=1e-5)
    generator = torch.Generator().manual_seed(1)
    far = log_likelihood(extreme_vae(dtype, 20.0), x, num_samples=num_samples, generator=generator)
    eps = torch.randn(
        num_samples, 1, 3, generator=torch.Generator().manual_seed(1), dtype=dtype
    ).double()
    log_ratio = (eps.square() - (20 + eps).square()).sum((1, 2)) / 2
    expected = -50.0 * 392 + (torch.logsumexp(log_ratio, 0) - math.log(num_samples)).item()
    assert far.value.item() == pytest.approx(expected, rel=rtol)
    assert 1 <= far.effective_sample_size.item() <= 1 + 0.1 * num_samples
    assert math.isfinite(far.standard_error.item())


# ------------------------------------------------------------------ errors

BOUNDS = [
    elbo,
    lambda model, x: iwae_bound(model, x, num_samples=2),
    lambda model, x: log_likelihood(model, x, num_samples=2),
]


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize(
    "change, error, message",
    [
        (lambda x: 1.5 * x, ValueError, r"x must lie in \[0, 1\], found values from 0 to 1.5"),
        (lambda x: x - 0.25, ValueError, r"x must lie in \[0, 1\], found values from -0.25"),
        (lambda x: x / 0, ValueError, "x must be finite, found"),
        (lambda x: x * math.nan, ValueError, "x must be finite, found 15 of 15"),
        (lambda x: x[:, :4], ValueError, r"x must have a last axis of 5, found shape \(3, 4\)"),
        (lambda x: x[:, :1], ValueError, r"x must have a last axis of 5, found shape \(3, 1\)"),
        (lambda x: x[0], ValueError, r"x must have shape \[B, D\] and not be empty"),
        (lambda x: x[None], ValueError, r"x must have shape \[B, D\] and not be empty"),
        (lambda x: x[:0], ValueError, r"x must have shape \[B, D\] and not be empty"),
        (lambda x: x.to(torch.uint8), TypeError, "x must be of a floating-point dtype"),
        (lambda x: x.tolist(), TypeError, "x must be a torch.Tensor, found list"),
    ],
)
def test_bad_data_are_refused_by_name(bound, change, error, message):
    with pytest.raises(error, match=message):
        bound(small_vae(), change(BINARY))


@pytest.mark.parametrize("bound", BOUNDS)
def test_the_oracle_takes_real_data_but_no_wrong_width(bound):
    model, x = oracle(5, 3, orthogonal=False)
    bound(model, 10 * x[:3])
    with pytest.raises(ValueError, match="x"):
        bound(model, x[:3, :4])


@pytest.mark.parametrize("shape", [(3, 2), (1, 2, 2), (1, 3, 1), (1, 3, 3), (0, 3, 2), (1, 1, 2)])
def test_noise_of_another_shape_is_refused(shape):
    eps = torch.zeros(shape, dtype=D64)
    for call in (elbo, lambda *args, eps: iwae_bound(*args, num_samples=1, eps=eps)):
        with pytest.raises(ValueError, match=r"eps must have shape \[K, 3, 2\], found"):
            call(small_vae(), BINARY, eps=eps)


def test_unknown_choices_and_sizes_are_refused():
    model = small_vae()
    with pytest.raises(ValueError, match="kl must be 'analytic' or 'sampled', found 'exact'"):
        elbo(model, BINARY, kl="exact")
    for value in (0, -1, 2.0, True, None):
        with pytest.raises(ValueError, match="num_samples must be an integer of at least 1"):
            elbo(model, BINARY, num_samples=value)
        with pytest.raises(ValueError, match="num_samples must be an integer of at least 1"):
            iwae_bound(model, BINARY, num_samples=value)
        with pytest.raises(ValueError, match="num_samples must be an integer of at least 1"):
            log_likelihood(model, BINARY, num_samples=value)
        with pytest.raises(ValueError, match="chunk_size must be an integer of at least 1"):
            log_likelihood(model, BINARY, chunk_size=value)
