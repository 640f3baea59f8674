"""The labelled equations of `generation`, each evaluated as written and against another route."""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal
from torch.distributions import Independent, kl_divergence
from torch.testing import assert_close

from vaelib import gaussian_log_prob, kl_standard_normal
from vaelib.training import seeded_vae

D64 = torch.float64


def small_vae(data_dim=4, latent_dim=2):
    model = seeded_vae(0, data_dim=data_dim, hidden_dim=6, latent_dim=latent_dim).double()
    with torch.no_grad():
        for weights in model.decoder.parameters():
            weights.mul_(3)
    return model


def grid(half_width=8.0, number=161):
    axis = torch.linspace(-half_width, half_width, number, dtype=D64)
    nodes = torch.cartesian_prod(axis, axis)
    density = Independent(Normal(torch.zeros(2, dtype=D64), 1.0), 1).log_prob(nodes).exp()
    return nodes, density * (axis[1] - axis[0]) ** 2


def all_images(data_dim):
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=D64)] * data_dim)


def mixture(mu, log_var):
    parts = Independent(Normal(mu, (log_var / 2).exp()), 1)
    return MixtureSameFamily(Categorical(torch.ones(len(mu), dtype=D64)), parts)


MU = torch.tensor([[0.5, -1.0], [1.5, 0.3], [-0.7, 0.9]], dtype=D64)
LOG_VAR = torch.tensor([[-1.0, 0.2], [-0.3, -2.0], [0.1, -0.5]], dtype=D64)


@pytest.mark.false_alarm(6e-8)
@pytest.mark.equation("eq-gen-ancestral")
def test_ancestral_draws_have_the_probabilities_of_the_model(generator):
    """n = 200,000 draws of 16 images; each frequency within 5.9 standard errors of p(x).

    A false alarm has a probability below 16 * 4e-9 < 1e-7. Drawing all images from one code, or
    rounding the means instead of drawing, fails.
    """
    model, n = small_vae(), 200_000
    with torch.no_grad():
        z = torch.randn(n, 2, generator=generator, dtype=D64)
        x = torch.bernoulli(model.decode(z).sigmoid(), generator=generator)
        nodes, weights = grid()
        likelihood = model.log_likelihood(all_images(4), nodes[:, None]).exp()
        p = (weights[:, None] * likelihood).sum(0)
        rounded = (model.decode(z) > 0).double()
    powers = torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=D64)
    error = (p * (1 - p) / n).sqrt()
    frequency = torch.bincount((x @ powers).long(), minlength=16) / n
    assert ((frequency - p).abs() < 5.9 * error).all()
    frequency = torch.bincount((rounded @ powers).long(), minlength=16) / n
    assert ((frequency - p).abs() > 50 * error).any()


@pytest.mark.equation("eq-gen-flips")
def test_expected_number_of_speckles_by_enumeration():
    model = small_vae()
    with torch.no_grad():
        for z in torch.tensor([[0.0, 0.0], [1.3, -0.4], [-2.0, 0.7]], dtype=D64):
            x_tilde = model.decode(z).sigmoid()
            written = torch.minimum(x_tilde, 1 - x_tilde).sum()
            images = all_images(4)
            star = (x_tilde > 0.5).double()
            differing = (images != star).sum(-1).double()
            exact = (model.log_likelihood(images, z).exp() * differing).sum()
            assert_close(written, exact, rtol=1e-12, atol=0)
            assert_close(torch.sigmoid(-model.decode(z).abs()).sum(), written, rtol=1e-12, atol=0)
            assert model.log_likelihood(star, z) == model.log_likelihood(images, z).max()


@pytest.mark.equation("eq-gen-variance")
def test_pixel_variance_is_drawing_the_pixel_plus_drawing_the_code():
    model, (nodes, weights) = small_vae(), grid()
    with torch.no_grad():
        x_tilde = model.decode(nodes).sigmoid()
        mean = weights @ x_tilde
        pixel = weights @ (x_tilde * (1 - x_tilde))
        code = weights @ (x_tilde - mean) ** 2
        # the variance of the pixels themselves, from the probabilities of all images
        likelihood = model.log_likelihood(all_images(4), nodes[:, None]).exp()
        p = (weights[:, None] * likelihood).sum(0)
        m = p @ all_images(4)
        variance = p @ (all_images(4) - m) ** 2
    assert_close(mean, m, rtol=1e-11, atol=0)
    assert_close(m * (1 - m), variance, rtol=1e-11, atol=0)
    assert_close(pixel + code, variance, rtol=1e-11, atol=0)
    assert pixel.min() > 0.01 and code.min() > 1e-3


@pytest.mark.equation("eq-gen-norm")
@pytest.mark.parametrize("L", [1, 2, 3, 20, 200])
def test_length_of_a_standard_normal_vector(L):
    """Against the radial density r^(L-1) exp(-r^2/2), integrated numerically."""
    r = torch.linspace(0, math.sqrt(L) + 12, 200_001, dtype=D64)[1:]
    log_density = (L - 1) * r.log() - r**2 / 2
    density = (log_density - torch.logsumexp(log_density, 0)).exp()
    mean = math.sqrt(2) * math.exp(math.lgamma((L + 1) / 2) - math.lgamma(L / 2))
    tolerance = 1e-4 if L == 1 else 1e-7  # the density jumps at zero for L = 1
    assert (density @ r).item() == pytest.approx(mean, rel=tolerance)
    assert (density @ r**2).item() == pytest.approx(L, rel=tolerance)
    assert (density @ (r**2 - L) ** 2).item() == pytest.approx(2 * L, rel=tolerance)
    assert mean < math.sqrt(L)


@pytest.mark.false_alarm(8e-8)
@pytest.mark.equation("eq-gen-line")
def test_covariance_along_the_line(generator):
    """n = 400,000 pairs; a sample variance has the relative standard error sqrt(2 / n) = 0.0022.

    The limit of 1.3 % stands at 5.8 of these: a false alarm below 1e-8 for each entry.
    """
    n = 400_000
    z0, z1 = torch.randn(2, n, 3, generator=generator, dtype=D64)
    for t in (0.0, 0.25, 0.5, 0.9):
        written = (1 - t) ** 2 + t**2
        cov = torch.cov(((1 - t) * z0 + t * z1).T)
        assert ((cov / written - torch.eye(3)).abs() < 0.013).all()
    assert 0.5**2 + 0.5**2 == 0.5


@pytest.mark.equation("eq-gen-slerp")
def test_arc_keeps_length_and_moves_at_constant_angle(generator):
    def arc(z0, z1, t):  # as written
        cosine = (z0 @ z1) / (z0.norm() * z1.norm())
        omega = torch.arccos(cosine)
        return (torch.sin((1 - t) * omega) * z0 + torch.sin(t * omega) * z1) / torch.sin(omega)

    for length in (0.3, 1.0, 4.4):
        z0, z1 = torch.randn(2, 5, generator=generator, dtype=D64)
        z0, z1 = length * z0 / z0.norm(), length * z1 / z1.norm()
        angle = torch.arccos((z0 @ z1) / length**2)
        # another route: rotate z0 in the plane of both by the angle t * omega
        normal = z1 - (z1 @ z0) / length**2 * z0
        normal = length * normal / normal.norm()
        for t in (0.0, 0.2, 0.5, 1.0):
            rotated = torch.cos(t * angle) * z0 + torch.sin(t * angle) * normal
            assert_close(arc(z0, z1, t), rotated, rtol=1e-10, atol=1e-12)
            assert arc(z0, z1, t).norm().item() == pytest.approx(length, rel=1e-12)
    z0 = torch.tensor([2.0, 0.0], dtype=D64)
    z1 = torch.tensor([0.0, 2.0], dtype=D64)
    for t in (0.1, 0.5):  # a right angle: the squares of the weights sum to one
        a, b = math.cos(math.pi * t / 2), math.sin(math.pi * t / 2)
        assert_close(arc(z0, z1, t), torch.tensor([2 * a, 2 * b], dtype=D64), rtol=1e-12, atol=1e-15)


@pytest.mark.equation("eq-gen-quantile")
@pytest.mark.parametrize("n", [2, 5, 15])
def test_each_tile_of_the_quantile_grid_has_the_same_prior_probability(n):
    normal = Normal(torch.tensor(0.0, dtype=D64), 1.0)
    centres = torch.special.ndtri((torch.arange(1, n + 1, dtype=D64) - 0.5) / n)
    edges = normal.icdf(torch.arange(n + 1, dtype=D64) / n)
    assert ((edges[:-1] < centres) & (centres < edges[1:])).all()
    # the mass of each interval by integrating the density, half of it on either side of the centre
    for low, centre, high in zip(edges.clamp(-9, 9), centres, edges[1:].clamp(-9, 9)):
        for a, b in ((low, centre), (centre, high)):
            points = a + (b - a) * torch.linspace(0, 1, 20_001, dtype=D64)
            mass = torch.trapezoid(normal.log_prob(points).exp(), points)
            assert mass.item() == pytest.approx(0.5 / n, rel=1e-5)


@pytest.mark.equation("eq-gen-aggregate")
def test_moments_of_the_aggregate_posterior(generator):
    q = mixture(MU, LOG_VAR)
    nodes, weights = grid(half_width=14.0, number=561)
    cell = weights / Independent(Normal(torch.zeros(2, dtype=D64), 1.0), 1).log_prob(nodes).exp()
    density = q.log_prob(nodes).exp() * cell
    by_hand = torch.stack(
        [gaussian_log_prob(nodes, m, v).exp() for m, v in zip(MU, LOG_VAR)]
    ).mean(0)
    assert_close(q.log_prob(nodes).exp(), by_hand, rtol=1e-9, atol=1e-300)
    mean = density @ nodes
    centred = nodes - mean
    cov = (density[:, None] * centred).T @ centred
    bar = MU.mean(0)
    written = LOG_VAR.exp().mean(0).diag() + (MU - bar).T @ (MU - bar) / 3
    assert_close(mean, bar, rtol=1e-9, atol=1e-10)
    assert_close(cov, written, rtol=1e-9, atol=1e-10)


@pytest.mark.equation("eq-gen-surgery")
def test_mean_kl_is_information_plus_kl_of_the_aggregate():
    nodes, weights = grid(half_width=14.0, number=561)
    log_p = Independent(Normal(torch.zeros(2, dtype=D64), 1.0), 1).log_prob(nodes)
    cell = weights / log_p.exp()
    for spread in (0.0, 1.0, 30.0):
        mu = spread * MU if spread < 30 else 4 * MU
        log_var = LOG_VAR if spread else LOG_VAR[:1].expand(3, 2)
        log_q = mixture(mu, log_var).log_prob(nodes)
        information = torch.zeros((), dtype=D64)
        for m, v in zip(mu, log_var):
            log_qn = Independent(Normal(m, (v / 2).exp()), 1).log_prob(nodes)
            information += (cell * log_qn.exp() * (log_qn - log_q)).sum() / 3
        mismatch = (cell * log_q.exp() * (log_q - log_p)).sum()
        mean_kl = kl_standard_normal(mu, log_var).mean()
        assert_close(mean_kl, information + mismatch, rtol=1e-8, atol=1e-9)
        assert -1e-12 < information < math.log(3) + 1e-12
        if spread == 0:  # all codes alike: no information
            assert information.abs() < 1e-12
        if spread == 30:  # balls apart: all of it
            assert information > 0.95 * math.log(3)


def test_replacing_the_prior_by_a_gaussian_of_equal_moments_gains_its_kl():
    """The identity of the last exercise, through torch.distributions."""
    bar = MU.mean(0)
    cov = LOG_VAR.exp().mean(0).diag() + (MU - bar).T @ (MU - bar) / 3
    r = MultivariateNormal(bar, cov)
    p = MultivariateNormal(torch.zeros(2, dtype=D64), torch.eye(2, dtype=D64))
    gains = []
    for m, v in zip(MU, LOG_VAR):
        q = MultivariateNormal(m, v.exp().diag())
        gains.append(kl_divergence(q, p) - kl_divergence(q, r))
    assert_close(torch.stack(gains).mean(), kl_divergence(r, p), rtol=1e-12, atol=1e-13)
