"""The equations of the chapter elbo_gradient, each against an independent route.

Noise is quadrature nodes, so that means and variances are exact; nothing here is random.
"""

import math

import mpmath
import numpy as np
import pytest
import torch
from torch.distributions import LogNormal, Normal
from torch.func import grad, jacrev, vmap
from torch.testing import assert_close

from vaelib import (
    VAE,
    LinearGaussianModel,
    elbo,
    gaussian_log_prob,
    gaussian_score,
    kl_diagonal,
    reparametrize,
)
from vaelib.estimators import pathwise, score_function, sticking_the_landing

F64 = torch.float64


def tensor(values):
    return torch.tensor(values, dtype=F64)


def normal_nodes(count, dimensions=1):
    """Product Gauss-Hermite nodes [count^L, L] and their weights [count^L]."""
    points, weights = np.polynomial.hermite_e.hermegauss(count)
    points, weights = tensor(points), tensor(weights / weights.sum())
    if dimensions == 1:
        return points[:, None], weights
    nodes = torch.cartesian_prod(*[points] * dimensions)
    return nodes, torch.cartesian_prod(*[weights] * dimensions).prod(1)


MU, LOG_VAR = tensor([0.3, -0.8]), tensor([-0.5, 0.4])
STD = (LOG_VAR / 2).exp()
EPS, WEIGHT = normal_nodes(12, 2)


@pytest.fixture
def oracle():
    weight = tensor([[1.0, -0.3], [0.4, 0.8], [-0.6, 1.5]])
    return LinearGaussianModel(weight, tensor([0.1, -0.2, 0.3]), 0.6)


X = tensor([0.9, -1.1, 0.4])


def log_joint(oracle):
    return lambda z: oracle.log_prior(z) + oracle.log_likelihood(X, z)


def log_w(oracle, mu=MU, log_var=LOG_VAR):
    return lambda z: log_joint(oracle)(z) - gaussian_log_prob(z, mu, log_var)


@pytest.mark.equation("eq-grad-elbo")
def test_elbo_is_the_mean_log_weight(oracle):
    z = reparametrize(MU, LOG_VAR, EPS)
    assert_close(WEIGHT @ log_w(oracle)(z), oracle.elbo(X, MU, LOG_VAR), rtol=1e-12, atol=0)


@pytest.mark.equation("eq-grad-exchange")
def test_gradient_goes_inside_under_a_dominating_function():
    eps, weight = normal_nodes(40)
    for theta in (0.3, -1.1):
        exact = theta * math.exp(theta**2 / 2)  # d/dtheta E exp(theta Z)
        inside = weight @ (eps * torch.exp(theta * eps))[:, 0]
        assert inside.item() == pytest.approx(exact, rel=1e-12)


@pytest.mark.equation("eq-grad-exchange")
def test_gradient_goes_inside_past_a_kink():
    theta = 0.4
    density = mpmath.npdf
    slope = mpmath.diff(
        lambda t: mpmath.quad(lambda z: abs(z - t) * density(z), [-12, t, 12]), theta
    )
    inside = mpmath.quad(density, [-12, theta]) - mpmath.quad(density, [theta, 12])
    assert float(slope) == pytest.approx(float(inside), abs=1e-10)
    assert float(inside) == pytest.approx(2 * float(mpmath.ncdf(theta)) - 1, abs=1e-10)


def test_smooth_counterexample_has_slope_one_outside_and_zero_inside():
    def mean(theta):
        return mpmath.quad(
            lambda z: theta**3 * mpmath.exp(-(theta**2) * z), [0, 1 / theta**2, mpmath.inf]
        )

    for h in (1.0, 0.05):
        assert float(mean(h) / h) == pytest.approx(1, rel=1e-10)
    for z in (0.1, 3.0, 50.0):
        slope = mpmath.diff(lambda t: t**3 * mpmath.exp(z - t**2 * z), 0)
        assert float(slope) == pytest.approx(0, abs=1e-10)


@pytest.mark.equation("eq-grad-theta")
def test_decoder_gradient_is_the_mean_of_the_gradients_of_the_joint(oracle):
    def closed(weight, bias):
        return LinearGaussianModel(weight, bias, 0.6).elbo(X, MU, LOG_VAR)

    for_weight, for_bias = grad(closed, argnums=(0, 1))(oracle.weight, oracle.bias)
    z = reparametrize(MU, LOG_VAR, EPS)
    residual = (X - oracle.bias - z @ oracle.weight.mT) / 0.6
    assert_close(torch.einsum("n,nd,nl->dl", WEIGHT, residual, z), for_weight)
    assert_close(WEIGHT @ residual, for_bias)


@pytest.mark.equation("eq-grad-theta")
def test_decoder_gradient_needs_the_term_of_a_prior_that_learns():
    prior_mean, prior_log_var = tensor([0.5, -0.2]), tensor([0.3, -0.1])
    closed = grad(
        lambda m, s: -kl_diagonal(MU, LOG_VAR, m, s), argnums=(0, 1)
    )(prior_mean, prior_log_var)
    z = reparametrize(MU, LOG_VAR, EPS)
    standardized = (z - prior_mean) / (prior_log_var / 2).exp()
    assert_close(WEIGHT @ (standardized / (prior_log_var / 2).exp()), closed[0])
    assert_close(WEIGHT @ (standardized**2 - 1) / 2, closed[1])
    assert closed[0].abs().min() > 0.1  # what a formula without the prior would miss


@pytest.fixture
def categorical():
    """Seven states: log p(x, z), logits of q, q, and its Jacobian with rows z."""
    log_p = tensor([-1.0, -2.5, -0.3, -4.0, -1.7, -2.2, -3.1])
    phi = tensor([0.2, -0.7, 0.9, 0.0, -1.4, 0.5, 0.1])
    return log_p, phi, phi.softmax(0), jacrev(lambda p: p.softmax(0))(phi)


def discrete_elbo_by_difference(log_p, phi, h=1e-5):
    """Central differences of sum q (log p - log q), which know nothing of scores."""

    def value(phi):
        q = phi.softmax(0)
        return (q * (log_p - q.log())).sum()

    steps = h * torch.eye(len(phi), dtype=F64)
    return torch.stack([(value(phi + e) - value(phi - e)) / (2 * h) for e in steps])


@pytest.mark.equation("eq-grad-plus-one")
def test_line_with_the_one_is_the_gradient(categorical):
    log_p, phi, q, jac = categorical
    line = (log_p - q.log() - 1) @ jac
    assert_close(line, discrete_elbo_by_difference(log_p, phi), atol=1e-9, rtol=0)


@pytest.mark.equation("eq-grad-plus-one")
def test_the_one_counts_where_masses_do_not_add_up_to_one(categorical):
    log_p, phi, _, _ = categorical
    masses = phi.exp()  # no softmax: their sum depends on phi
    exact = grad(lambda p: (p.exp() * (log_p - p)).sum())(phi)
    jac = torch.diag(masses)
    assert_close((log_p - phi - 1) @ jac, exact, atol=1e-12, rtol=0)
    assert_close((log_p - phi) @ jac - exact, masses, atol=1e-12, rtol=0)


@pytest.mark.equation("eq-grad-total-probability")
def test_gradients_of_probabilities_add_up_to_zero(categorical):
    _, phi, _, jac = categorical
    assert_close(jac.sum(0), torch.zeros(7, dtype=F64), atol=1e-15, rtol=0)
    score = jacrev(lambda p: p.log_softmax(0))(phi)
    assert_close(phi.softmax(0) @ score, torch.zeros(7, dtype=F64), atol=1e-15, rtol=0)
    for mean_score in gaussian_score(reparametrize(MU, LOG_VAR, EPS), MU, LOG_VAR):
        assert_close(WEIGHT @ mean_score, torch.zeros(2, dtype=F64), atol=1e-14, rtol=0)


@pytest.mark.equation("eq-grad-log-derivative")
def test_gradient_of_a_probability_is_probability_times_score(categorical):
    _, phi, q, jac = categorical
    closed_score = torch.eye(7, dtype=F64) - q  # of a softmax: 1[z = j] - q_j
    assert_close(jac, q[:, None] * closed_score, atol=1e-15, rtol=0)
    z = tensor([[0.7, -1.2]])
    density_jac = jacrev(lambda m: gaussian_log_prob(z, m, LOG_VAR).exp())(MU)
    score, _ = gaussian_score(z, MU, LOG_VAR)
    assert_close(density_jac, gaussian_log_prob(z, MU, LOG_VAR).exp()[:, None] * score)


@pytest.mark.equation("eq-grad-discrete")
def test_discrete_score_function_is_the_gradient(categorical):
    log_p, phi, q, _ = categorical
    score = torch.eye(7, dtype=F64) - q
    line = (q * (log_p - q.log())) @ score
    exact = grad(lambda p: (p.softmax(0) * (log_p - p.log_softmax(0))).sum())(phi)
    assert_close(line, exact, atol=1e-12, rtol=0)
    assert_close(line, discrete_elbo_by_difference(log_p, phi), atol=1e-9, rtol=0)
    flipped = (q * (q.log() - log_p)) @ score  # the gradient of the loss, not of the ELBO
    assert_close(flipped, -exact, atol=1e-12, rtol=0)


@pytest.mark.equation("eq-grad-score-function")
def test_score_function_is_the_gradient_of_the_elbo(oracle):
    rows = score_function(log_w(oracle), MU, LOG_VAR, EPS)
    for mean, exact in zip(rows, oracle.elbo_gradient(X, MU, LOG_VAR)):
        assert_close(WEIGHT @ mean, exact, rtol=1e-11, atol=1e-13)


@pytest.mark.equation("eq-grad-gaussian-score")
def test_gaussian_score_is_the_derivative_at_a_fixed_z():
    z = reparametrize(MU, LOG_VAR, EPS[:50])
    by_autograd = jacrev(
        lambda m, s: Normal(m, (s / 2).exp(), validate_args=False).log_prob(z).sum(1),
        argnums=(0, 1),
    )(MU, LOG_VAR)
    by_formula = EPS[:50] / STD, (EPS[:50] ** 2 - 1) / 2
    for formula, exact, packaged in zip(by_formula, by_autograd, gaussian_score(z, MU, LOG_VAR)):
        assert_close(formula, exact)
        assert_close(packaged, exact)


@pytest.mark.equation("eq-grad-estimator")
def test_mean_of_draws_is_unbiased_with_variance_over_n(oracle):
    """Every pair of nodes is one outcome of N = 2 draws."""
    eps, weight = normal_nodes(10)
    model = LinearGaussianModel(tensor([[1.0]]), tensor([0.0]), 0.5)
    x, mu, log_var = tensor([1.5]), tensor([0.2]), tensor([-0.3])

    def cost(z):
        log_p = model.log_prior(z) + model.log_likelihood(x, z)
        return log_p - gaussian_log_prob(z, mu, log_var)

    rows = torch.cat(score_function(cost, mu, log_var, eps), 1)
    exact = torch.cat(model.elbo_gradient(x, mu, log_var))
    one = weight @ rows**2 - exact**2
    pairs = (rows[:, None] + rows[None]) / 2
    chance = weight[:, None] * weight
    assert_close(torch.einsum("ij,ijp->p", chance, pairs), exact)
    two = torch.einsum("ij,ijp->p", chance, pairs**2) - exact**2
    assert_close(two, one / 2)


@pytest.mark.equation("eq-grad-chain")
def test_encoder_gradient_is_jacobian_times_gradient_of_its_outputs():
    vae = VAE(data_dim=4, hidden_dim=3, latent_dim=2).double()
    x, noise = tensor([[1.0, 0.0, 1.0, 1.0]]), EPS[::7, None]
    weights = list(vae.encoder.parameters())
    by_backprop = torch.autograd.grad(elbo(vae, x, eps=noise).value.sum(), weights)

    mu, log_var = (part.detach() for part in vae.encode(x))

    def value(mu, log_var):
        z = reparametrize(mu, log_var, noise)
        kl = kl_diagonal(mu, log_var, torch.zeros_like(mu), torch.zeros_like(mu))
        return (vae.log_likelihood(x, z).mean(0) - kl).sum()

    for_mu, for_log_var = grad(value, argnums=(0, 1))(mu, log_var)
    for weight, expected in zip(weights, by_backprop):
        total = torch.zeros_like(weight)
        for output, upstream in zip(vae.encode(x), (for_mu, for_log_var)):
            for i in range(2):  # one row of the Jacobian at a time
                (row,) = torch.autograd.grad(
                    output[0, i], weight, retain_graph=True, materialize_grads=True
                )
                total += row * upstream[0, i]
        assert_close(total, expected)


def uniform_nodes(theta, count=40):
    points, weights = np.polynomial.legendre.leggauss(count)
    return theta * tensor((points + 1) / 2), tensor(weights / 2)


@pytest.mark.equation("eq-grad-leibniz")
def test_moving_support_needs_its_boundary_term():
    theta = tensor(1.7)
    z, weight = uniform_nodes(theta)
    inside = weight @ torch.cos(z) * (-1 / theta)  # E[f score]
    exact = grad(lambda t: torch.sin(t) / t)(theta)
    assert_close(torch.cos(theta) / theta + inside, exact)


@pytest.mark.equation("eq-grad-leibniz")
def test_score_function_of_a_moving_support_has_the_wrong_sign():
    theta = tensor(1.7)
    z, weight = uniform_nodes(theta)
    score = torch.full_like(z, -1 / theta)
    assert_close(weight @ (z * score), tensor(-0.5))
    assert_close(weight @ score, -1 / theta)  # the alarm: a score whose mean is not zero
    assert_close(grad(lambda t: weight @ (t * (z / theta)))(theta), tensor(0.5))


@pytest.mark.equation("eq-grad-lotus")
def test_mean_over_z_is_mean_over_noise():
    """z = exp(mu + sigma eps) has another density than z = mu + sigma eps; the law holds alike."""
    mu, std = 0.3, 0.6
    eps, weight = normal_nodes(60)
    z = torch.linspace(math.log(1e-5), math.log(1e4), 40_001, dtype=F64).exp()
    density = LogNormal(tensor(mu), tensor(std)).log_prob(z).exp()
    over_z = torch.trapezoid(density * z.log1p(), z)
    over_noise = weight @ torch.exp(mu + std * eps[:, 0]).log1p()
    assert_close(over_noise, over_z, rtol=1e-6, atol=0)

    z = torch.linspace(-14, 14, 4001, dtype=F64)
    density = Normal(tensor(mu), tensor(std)).log_prob(z).exp()
    assert_close(weight @ torch.sin(mu + std * eps[:, 0]), torch.trapezoid(density * z.sin(), z))


@pytest.mark.equation("eq-grad-total")
def test_total_derivative_is_path_minus_score(oracle):
    """Autograd through the sampled ELBO, one node at a time."""

    def sampled_elbo(mu, log_var):
        z = reparametrize(mu, log_var, EPS[::9])
        return log_joint(oracle)(z) - gaussian_log_prob(z, mu, log_var)

    total = jacrev(sampled_elbo, argnums=(0, 1))(MU, LOG_VAR)
    path = pathwise(log_w(oracle), MU, LOG_VAR, EPS[::9])
    score = gaussian_score(reparametrize(MU, LOG_VAR, EPS[::9]), MU, LOG_VAR)
    for whole, along, direct in zip(total, path, score):
        assert_close(whole, along - direct)


@pytest.mark.equation("eq-grad-total")
def test_total_derivative_has_the_right_mean(oracle):
    path = pathwise(log_w(oracle), MU, LOG_VAR, EPS)
    score = gaussian_score(reparametrize(MU, LOG_VAR, EPS), MU, LOG_VAR)
    for along, direct, exact in zip(path, score, oracle.elbo_gradient(X, MU, LOG_VAR)):
        assert_close(WEIGHT @ (along - direct), exact, rtol=1e-11, atol=1e-13)


@pytest.mark.equation("eq-grad-path")
def test_path_part_alone_has_the_right_mean(oracle):
    rows = sticking_the_landing(log_joint(oracle), MU, LOG_VAR, EPS)
    again = pathwise(log_w(oracle), MU, LOG_VAR, EPS)
    for row, same, exact in zip(rows, again, oracle.elbo_gradient(X, MU, LOG_VAR)):
        assert_close(row, same)
        assert_close(WEIGHT @ row, exact, rtol=1e-11, atol=1e-13)


@pytest.mark.equation("eq-grad-path")
def test_path_part_is_noiseless_at_the_posterior():
    model = LinearGaussianModel(tensor([[1.0, 0.5], [-0.5, 1.0]]), tensor([0.0, 0.0]), 0.4)
    x = tensor([0.8, -0.3])
    mu, log_var = model.encode(x)  # orthogonal columns: this is the posterior
    rows = sticking_the_landing(
        lambda z: model.log_prior(z) + model.log_likelihood(x, z), mu, log_var, EPS
    )
    for row in rows:
        assert_close(row, torch.zeros_like(row), atol=1e-12, rtol=0)


@pytest.mark.equation("eq-grad-gaussian-path")
def test_path_derivatives_of_the_gaussian():
    eps = tensor([1.3, -0.4])
    for_mu, for_log_var = jacrev(reparametrize, argnums=(0, 1))(MU, LOG_VAR, eps)
    assert_close(for_mu, torch.eye(2, dtype=F64))
    assert_close(for_log_var, torch.diag(0.5 * STD * eps))
    as_variance = torch.diag(STD**2 * eps)  # of the wrong z = mu + sigma^2 eps
    assert not torch.allclose(for_log_var, as_variance)


@pytest.mark.equation("eq-grad-stein")
def test_score_and_path_have_one_mean():
    eps, weight = normal_nodes(30)
    mu, std = 0.4, 1.2
    z = mu + std * eps[:, 0]
    f, slope = torch.sin(z) + z**3, torch.cos(z) + 3 * z**2
    exact = math.exp(-(std**2) / 2) * math.cos(mu) + 3 * (mu**2 + std**2)
    assert (weight @ (f * eps[:, 0] / std)).item() == pytest.approx(exact, rel=1e-12)
    assert (weight @ slope).item() == pytest.approx(exact, rel=1e-12)


@pytest.mark.equation("eq-grad-jump")
def test_score_function_sees_a_jump_and_the_path_does_not():
    mu, log_var = tensor([0.5]), tensor([-0.4])
    std = (log_var / 2).exp()
    points, lengths = np.polynomial.legendre.leggauss(80)
    low, high = -(mu / std).item(), 12.0
    eps = tensor(low + (high - low) * (points + 1) / 2)[:, None]
    mass = tensor(lengths) * (high - low) / 2 * Normal(0.0, 1.0).log_prob(eps[:, 0]).exp()

    def jump(z):
        return (z[:, 0] > 0).to(F64)

    h = 1e-5
    standard = Normal(tensor(0.0), tensor(1.0))
    slope = (standard.cdf((mu + h) / std) - standard.cdf((mu - h) / std)) / (2 * h)
    formula = standard.log_prob(mu / std).exp() / std
    assert_close(formula, slope, rtol=1e-8, atol=0)
    assert_close(mass @ score_function(jump, mu, log_var, eps).mu, formula)
    assert (pathwise(jump, mu, log_var, eps).mu == 0).all()


def surrogate_gradient(surrogate, mu=MU, log_var=LOG_VAR):
    """Gradient of sum_n a_n S(z_n), which is the surrogate with nodes in place of draws."""
    mu, log_var = (part.clone().requires_grad_() for part in (mu, log_var))
    z = reparametrize(mu, log_var, EPS)
    total = WEIGHT @ surrogate(z, mu, log_var)
    return torch.autograd.grad(total, (mu, log_var))


@pytest.mark.equation("eq-grad-surrogate")
def test_held_surrogate_has_the_score_functions_gradient(oracle):
    def surrogate(z, mu, log_var):
        z = z.detach()
        log_q = gaussian_log_prob(z, mu, log_var)
        return (log_joint(oracle)(z) - log_q).detach() * log_q

    rows = score_function(log_w(oracle), MU, LOG_VAR, EPS)
    exact = oracle.elbo_gradient(X, MU, LOG_VAR)
    for mine, packaged, truth in zip(surrogate_gradient(surrogate), rows, exact):
        assert_close(mine, WEIGHT @ packaged)
        assert_close(mine, truth, rtol=1e-11, atol=1e-13)


@pytest.mark.equation("eq-grad-surrogate-path")
def test_attached_surrogates_have_the_reparametrized_gradient(oracle):
    def total(z, mu, log_var):
        return log_joint(oracle)(z) - gaussian_log_prob(z, mu, log_var)

    def path(z, mu, log_var):
        return log_joint(oracle)(z) - gaussian_log_prob(z, mu.detach(), log_var.detach())

    exact = oracle.elbo_gradient(X, MU, LOG_VAR)
    for surrogate in (total, path):
        for mine, truth in zip(surrogate_gradient(surrogate), exact):
            assert_close(mine, truth, rtol=1e-11, atol=1e-13)


# The five mistakes, with f = |z|^2 in two dimensions: each mean is the predicted wrong value.


def square(z):
    return z.square().sum(1)


def right_gradient():
    return 2 * MU, STD**2  # with respect to mu and log_var


def test_mistake_1_nothing_held_gives_minus_entropy():
    found, _ = surrogate_gradient(lambda z, m, s: square(z) * gaussian_log_prob(z, m, s))
    entropy = 0.5 * (math.log(2 * math.pi * math.e) + LOG_VAR).sum()
    assert_close(found, -2 * MU * entropy)
    assert not torch.allclose(found, right_gradient()[0])


def test_mistake_2_cost_not_held_adds_the_entropys_gradient(oracle):
    def surrogate(z, mu, log_var):
        z = z.detach()
        log_q = gaussian_log_prob(z, mu, log_var)
        return (log_joint(oracle)(z) - log_q) * log_q

    for_mu, for_log_var = surrogate_gradient(surrogate)
    true_mu, true_log_var = oracle.elbo_gradient(X, MU, LOG_VAR)
    assert_close(for_mu, true_mu, rtol=1e-11, atol=1e-12)
    bias_in_sigma = (for_log_var - true_log_var) * 2 / STD
    assert_close(bias_in_sigma, 1 / STD)


def test_mistake_3_sample_not_held_loses_mu():
    found = surrogate_gradient(lambda z, m, s: square(z).detach() * gaussian_log_prob(z, m, s))
    mean_cost = (MU**2 + STD**2).sum()
    assert_close(found[0], torch.zeros_like(MU), atol=1e-13, rtol=0)
    assert_close(found[1], -mean_cost / 2 * torch.ones(2, dtype=F64))
    alone = surrogate_gradient(lambda z, m, s: gaussian_log_prob(z, m, s))
    assert_close(alone[1] * 2 / STD, -1 / STD)


@pytest.mark.parametrize("count", [2, 3])
def test_mistake_4_own_sample_baseline_shrinks_the_gradient(count):
    """All outcomes of the package's estimator with N = count rows of noise."""
    mu, log_var = tensor([0.7]), tensor([0.5])
    outcomes, chance = normal_nodes(6, count)

    def mean_of(baseline):
        rows = [
            score_function(lambda z: z[:, 0] ** 2, mu, log_var, row[:, None], baseline).mu.mean()
            for row in outcomes
        ]
        return chance @ torch.stack(rows)

    assert_close(mean_of("mean"), tensor((count - 1) / count * 2 * 0.7))
    assert_close(mean_of("leave-one-out"), tensor(2 * 0.7))


@pytest.mark.parametrize("count", [2, 3])
def test_mistake_5_broadcast_divides_the_gradient_by_n(count):
    outcomes, chance = normal_nodes(6, count)
    f, score = (0.7 + 1.3 * outcomes) ** 2, outcomes / 1.3
    found = chance @ vmap(lambda f, score: (f * score[:, None]).mean())(f, score)
    assert_close(found, tensor(2 * 0.7 / count))
