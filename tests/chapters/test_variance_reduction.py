"""The equations of the chapter variance_reduction, each against an independent route."""

import itertools
import math

import estimator_oracles as oracle
import numpy as np
import pytest
import torch

from vaelib import LinearGaussianModel, gaussian_log_prob
from vaelib.estimators import (
    MeasureValuedNoise,
    antithetic,
    categorical_score_function,
    doubly_reparametrized,
    gumbel_softmax,
    importance_weighted_pathwise,
    local_score_function,
    measure_valued,
    pathwise,
    score_function,
    sticking_the_landing,
    straight_through,
)

EPS, WEIGHTS = oracle.quadrature()
PLACES = [(0.5, 0.8, -1.0), (-0.3, 1.3, 0.4), (1.0, 0.6, 1.0)]  # mu, sigma and k of the parabola


def tensor(*values):
    return [torch.tensor([value], dtype=torch.float64) for value in values]


def at(mu, sigma):
    return tensor(mu, 2 * math.log(sigma))


def parabola(k):
    return lambda z: (z[:, 0] - k) ** 2


def moments(rows, weights=WEIGHTS):
    return [value.item() for value in oracle.moments(rows, weights)]


def wavy(z):
    """A smooth cost with no symmetry, and no closed form needed."""
    return torch.sin(1.3 * z[:, 0]) + 0.2 * z[:, 0] ** 2 + 1


def derivative_of_expectation(f, mu, sigma):
    """Of the integral of f q, for (mu, log sigma^2), through the density: no estimator."""
    z = torch.linspace(mu - 14 * sigma, mu + 14 * sigma, 20_001, dtype=torch.float64)[:, None]
    where = [p.requires_grad_() for p in at(mu, sigma)]
    density = gaussian_log_prob(z, *where).exp()
    integral = torch.trapezoid(density * f(z), z[:, 0])
    return [g.item() for g in torch.autograd.grad(integral, where)]


@pytest.mark.equation("eq-red-score")
@pytest.mark.parametrize("mu, sigma, _", PLACES)
def test_the_gradient_is_the_mean_of_cost_times_score(mu, sigma, _):
    scores = EPS / sigma, (EPS**2 - 1) / 2
    z = mu + sigma * EPS
    where = [p.expand(len(z), 1).clone().requires_grad_() for p in at(mu, sigma)]
    by_autograd = torch.autograd.grad(gaussian_log_prob(z, *where).sum(), where)
    for score, exact, g in zip(scores, by_autograd, derivative_of_expectation(wavy, mu, sigma)):
        torch.testing.assert_close(score, exact)
        assert (WEIGHTS @ (wavy(z)[:, None] * score)).item() == pytest.approx(g, rel=1e-9)


@pytest.mark.equation("eq-red-baseline")
@pytest.mark.parametrize("baseline", [0.0, -3.0, 1e3])
def test_a_constant_baseline_keeps_the_mean(baseline):
    mu, sigma = 0.4, 0.9
    rows = score_function(wavy, *at(mu, sigma), EPS, baseline)
    for part, exact in zip(rows, derivative_of_expectation(wavy, mu, sigma)):
        assert moments(part)[0] == pytest.approx(exact, rel=1e-8)
    ones = score_function(lambda z: torch.ones(len(z), dtype=z.dtype), *at(mu, sigma), EPS)
    for score in ones:
        assert moments(score)[0] == pytest.approx(0, abs=1e-14)
        assert moments(score**2)[0] > 0.4  # no constant, though its mean is zero


def score_moments(f, mu, sigma):
    """E[f^2 s^2], E[f s^2], E[s^2] and g for mu and log sigma^2, by quadrature."""
    values = f(mu + sigma * EPS)[:, None]
    for score in (EPS / sigma, (EPS**2 - 1) / 2):
        terms = (values**2 * score**2, values * score**2, score**2, values * score)
        yield [(WEIGHTS @ term).item() for term in terms]


@pytest.mark.equation("eq-red-baseline-variance")
@pytest.mark.equation("eq-red-optimal-baseline")
def test_the_variance_is_a_parabola_in_the_baseline_with_its_minimum_at_b_star():
    mu, sigma = 0.4, 0.9
    for i, (ff, f, one, g) in enumerate(score_moments(wavy, mu, sigma)):
        variances = {}
        best = f / one
        for b in (0.0, 1.0, -2.0, best, best - 1e-3, best + 1e-3):
            rows = score_function(wavy, *at(mu, sigma), EPS, b)[i]
            variances[b] = moments(rows)[1]
            expected = ff - 2 * b * f + b**2 * one - g**2
            assert variances[b] == pytest.approx(expected, rel=1e-9)
        assert min(variances, key=variances.get) == best
        assert variances[0.0] - variances[best] == pytest.approx(f**2 / one, rel=1e-9)


@pytest.mark.equation("eq-red-quadratic")
@pytest.mark.parametrize("mu, sigma, k", PLACES)
def test_baselines_on_the_parabola(mu, sigma, k):
    d2, s2 = (mu - k) ** 2, sigma**2
    for b in (0.0, 1.7, d2 + s2):
        a = d2 - b
        rows = score_function(parabola(k), *at(mu, sigma), EPS, b).mu
        expected = 15 * s2 + 8 * d2 + 6 * a + a**2 / s2
        assert moments(rows)[1] == pytest.approx(expected, rel=1e-9)
    best = [f / one for _, f, one, _ in score_moments(parabola(k), mu, sigma)]
    assert best == pytest.approx([d2 + 3 * s2, d2 + 5 * s2], rel=1e-9)


def two_draws():
    """All pairs of Gauss-Hermite nodes, [M, 2], and weights: exact for the parabola."""
    x, w = np.polynomial.hermite_e.hermegauss(10)
    x, w = torch.from_numpy(x), torch.from_numpy(w / w.sum())
    return torch.cartesian_prod(x, x), torch.outer(w, w).ravel()


@pytest.mark.equation("eq-red-leave-one-out")
@pytest.mark.equation("eq-red-covariance")
def test_leave_one_out_is_the_sample_covariance_of_cost_and_score():
    eps = torch.randn(7, 1, dtype=torch.float64)
    mu, sigma = 0.3, 0.7
    rows = score_function(wavy, *at(mu, sigma), eps, "leave-one-out")
    f = wavy(mu + sigma * eps)
    for found, s in zip(rows, (eps[:, 0] / sigma, (eps[:, 0] ** 2 - 1) / 2)):
        others = torch.stack([torch.cat([f[:i], f[i + 1 :]]).mean() for i in range(7)])
        assert found.mean().item() == pytest.approx(((f - others) * s).mean().item(), rel=1e-12)
        covariance = np.cov(f.numpy(), s.numpy())[0, 1]
        assert found.mean().item() == pytest.approx(covariance, rel=1e-12)


@pytest.mark.equation("eq-red-mean-bias")
@pytest.mark.equation("eq-red-loo-variance")
@pytest.mark.parametrize("mu, sigma, k", PLACES)
def test_leave_one_out_law_and_the_bias_of_the_own_mean(mu, sigma, k):
    grid, weights = two_draws()
    f = (mu + sigma * grid - k) ** 2
    g = 2 * (mu - k), sigma**2
    centred = f[:, 0] - (weights @ f[:, 0])
    variance_f = weights @ centred**2
    for i, s in enumerate((grid / sigma, (grid**2 - 1) / 2)):
        kappa, info = weights @ (centred * s[:, 0]) ** 2, weights @ s[:, 0] ** 2
        estimates = {}
        for baseline in ("leave-one-out", "mean"):
            estimates[baseline] = torch.stack(
                [
                    score_function(parabola(k), *at(mu, sigma), eps[:, None], baseline)[i].mean()
                    for eps in grid
                ]
            )
        mean, variance = oracle.moments(estimates["leave-one-out"], weights)
        assert mean.item() == pytest.approx(g[i], rel=1e-9, abs=1e-12)
        n = 2
        law = (kappa - g[i] ** 2) / n + (variance_f * info + g[i] ** 2) / (n * (n - 1))
        assert variance.item() == pytest.approx(law.item(), rel=1e-9)
        biased = (weights @ estimates["mean"]).item()
        assert biased == pytest.approx((n - 1) / n * g[i], rel=1e-9, abs=1e-12)


@pytest.mark.equation("eq-red-antithetic")
@pytest.mark.equation("eq-red-even-odd")
@pytest.mark.parametrize("estimator", [pathwise, score_function])
def test_a_pair_keeps_the_even_part(estimator):
    where = at(0.3, 0.8)
    plain, mirrored = estimator(wavy, *where, EPS), estimator(wavy, *where, -EPS)
    pair = antithetic(estimator)(wavy, *where, EPS)
    for h, back, both in zip(plain, mirrored, pair):
        mean, variance = moments(h)
        covariance = (WEIGHTS @ ((h - mean) * (back - mean))).item()
        pair_mean, pair_variance = moments(both)
        assert pair_mean == pytest.approx(mean, rel=1e-10)
        assert pair_variance == pytest.approx((variance + covariance) / 2, rel=1e-9)
        even, odd = (h + h.flip(0)) / 2, (h - h.flip(0)) / 2  # the grid is symmetric
        assert pair_variance == pytest.approx(moments(even)[1], rel=1e-10)
        assert variance == pytest.approx(moments(even)[1] + moments(odd)[1], rel=1e-10)


@pytest.mark.equation("eq-red-weak-mu")
@pytest.mark.equation("eq-red-weak-log-var")
@pytest.mark.parametrize("coupled", [True, False])
def test_weak_derivatives_have_the_mean_of_the_gradient(coupled):
    mu, sigma = 0.3, 0.8
    exact = derivative_of_expectation(wavy, mu, sigma)
    r, r_weights = oracle.rayleigh_quadrature()
    if coupled:
        plus, minus, r_weights = r, r, r_weights
        m, normal, m_weights = oracle.maxwell_uniform_quadrature()
    else:
        r, r_weights = oracle.half_line(12.0, 10)
        r_weights = r_weights * r[:, 0] * torch.exp(-(r[:, 0] ** 2) / 2)
        plus, minus = torch.cartesian_prod(r[:, 0], r[:, 0]).T[..., None]
        r_weights = torch.outer(r_weights, r_weights).ravel()
        x, w = oracle.quadrature(12.0, 301)
        m, normal = torch.cartesian_prod(x[:, 0], x[:, 0]).T[..., None]
        m_weights = torch.outer(w * x[:, 0] ** 2, w).ravel()
    for i, (weights, draws) in enumerate(
        (
            (r_weights, (plus * 0, plus, minus, plus * 0, plus * 0)),
            (m_weights, (m * 0, m * 0, m * 0, m, normal)),
        )
    ):
        noise = MeasureValuedNoise(*draws)
        rows = measure_valued(wavy, *at(mu, sigma), num_samples=len(weights), noise=noise)[i]
        assert (weights @ rows).item() == pytest.approx(exact[i], rel=1e-8)


@pytest.mark.equation("eq-red-coupling")
def test_maxwell_times_uniform_is_normal():
    """The mixture's density by quadrature, and its moments as those of the product."""
    for x in (0.1, 0.7, 2.0):
        m = torch.linspace(x, x + 14, 200_001, dtype=torch.float64)
        phi = torch.exp(-(m**2) / 2) / math.sqrt(2 * math.pi)
        mixture = torch.trapezoid(1 / m * m**2 * phi, m)
        assert mixture.item() == pytest.approx(phi[0].item(), rel=1e-8)
    _, product, weights = oracle.maxwell_uniform_quadrature()
    for power, moment in ((0, 1), (1, 0), (2, 1), (4, 3), (6, 15)):
        found = (weights @ product**power).item()
        assert found == pytest.approx(moment, rel=1e-9, abs=1e-12)


@pytest.mark.equation("eq-red-mvd-quadratic")
@pytest.mark.parametrize("mu, sigma, k", PLACES)
def test_measure_valued_variances_on_the_parabola(mu, sigma, k):
    d2, s2 = (mu - k) ** 2, sigma**2
    f, where = parabola(k), at(mu, sigma)

    def variance(part, weights, *draws):
        noise = MeasureValuedNoise(*draws)
        return moments(
            measure_valued(f, *where, num_samples=len(weights), noise=noise)[part], weights
        )[1]

    r, r_weights = oracle.rayleigh_quadrature()
    m, product, m_weights = oracle.maxwell_uniform_quadrature()
    coupled = (
        variance(0, r_weights, r * 0, r, r, r * 0, r * 0),
        variance(1, m_weights, m * 0, m * 0, m * 0, m, product),
    )
    assert coupled == pytest.approx(
        ((16 / math.pi - 4) * d2, d2 * s2 + s2**2), rel=1e-9, abs=1e-12
    )
    r, r_weights = oracle.half_line(12.0, 6)
    r_weights = r_weights * r[:, 0] * torch.exp(-(r[:, 0] ** 2) / 2)
    plus, minus = torch.cartesian_prod(r[:, 0], r[:, 0]).T[..., None]
    both = torch.outer(r_weights, r_weights).ravel()
    x, w = oracle.quadrature(12.0, 301)
    m, normal = torch.cartesian_prod(x[:, 0], x[:, 0]).T[..., None]
    m_weights = torch.outer(w * x[:, 0] ** 2, w).ravel()
    independent = (
        variance(0, both, plus * 0, plus, minus, plus * 0, plus * 0),
        variance(1, m_weights, m * 0, m * 0, m * 0, m, normal),
    )
    expected = (8 / math.pi - 2) * d2 + 4 * s2 / math.pi, 4 * d2 * s2 + 2 * s2**2
    assert independent == pytest.approx(expected, rel=1e-9)
    assert (coupled[0] < independent[0]) == (d2 < 4 * s2 / (8 - 2 * math.pi))


MODEL = LinearGaussianModel(*(torch.tensor(v).double() for v in ([[1.3]], [0.0])), 0.49)
X = torch.tensor([0.9], dtype=torch.float64)
M, V = (value.item() for value in MODEL.posterior(X))
Q = [(0.2, 0.9), (1.1, 0.3), (M, math.sqrt(V)), (M + 0.3, math.sqrt(V / 2))]


def log_joint(z):
    return MODEL.log_prior(z) + MODEL.log_likelihood(X, z)


@pytest.mark.equation("eq-red-total")
@pytest.mark.equation("eq-red-stl")
@pytest.mark.parametrize("mu, sigma", Q)
def test_total_derivative_is_path_less_score(mu, sigma):
    stl = sticking_the_landing(log_joint, *at(mu, sigma), EPS)
    where = [p.expand(len(EPS), 1).clone().requires_grad_() for p in at(mu, sigma)]
    z = where[0] + torch.exp(where[1] / 2) * EPS
    log_w = log_joint(z) - gaussian_log_prob(z, *where)
    total = torch.autograd.grad(log_w.sum(), where)
    exact = MODEL.elbo_gradient(X, *at(mu, sigma))
    for path, whole, score, g in zip(stl, total, (EPS / sigma, (EPS**2 - 1) / 2), exact):
        torch.testing.assert_close(whole, path - score, rtol=1e-9, atol=1e-9)
        assert moments(path)[0] == pytest.approx(g.item(), rel=1e-9, abs=1e-12)


@pytest.mark.equation("eq-red-log-w")
@pytest.mark.equation("eq-red-stl-variance")
@pytest.mark.parametrize("mu, sigma", Q)
def test_log_w_is_a_parabola_and_its_gradient_has_the_stated_variance(mu, sigma):
    where, u, delta = at(mu, sigma), sigma**2 / V, mu - M
    b, c = -delta * sigma / V, 0.5 - sigma**2 / (2 * V)
    z = mu + sigma * EPS
    log_w = log_joint(z) - gaussian_log_prob(z, *where)
    rest = log_w - (b * EPS + c * EPS**2)[:, 0]
    torch.testing.assert_close(rest, rest[:1].expand_as(rest), rtol=1e-9, atol=1e-9)
    for rows, slope in (
        (sticking_the_landing(log_joint, *where, EPS), 1 - u),
        (pathwise(log_joint, *where, EPS), -u),
    ):
        expected = slope**2 / sigma**2, (b**2 + 2 * slope**2) / 4
        found = moments(rows.mu)[1], moments(rows.log_var)[1]
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def all_pairs():
    """K = 2 draws on a product grid, eps [M, 2, 1]."""
    eps, weights = oracle.quadrature(10.0, 301)
    return torch.cartesian_prod(eps[:, 0], eps[:, 0])[..., None], torch.outer(
        weights, weights
    ).ravel()


def log_weights(eps, mu, log_var):
    z = mu + torch.exp(log_var / 2) * eps
    log_q = gaussian_log_prob(z, mu, log_var)
    return log_joint(z.reshape(-1, 1)).reshape(eps.shape[:2]) - log_q


@pytest.mark.equation("eq-red-iwae-gradient")
@pytest.mark.equation("eq-red-dreg")
@pytest.mark.parametrize("mu, sigma", Q[:2])
def test_importance_weighted_gradients_have_the_mean_of_the_bounds_gradient(mu, sigma):
    eps, weights = all_pairs()
    where = [p.requires_grad_() for p in at(mu, sigma)]
    bound = weights @ (torch.logsumexp(log_weights(eps, *where), 1) - math.log(2))
    exact = torch.autograd.grad(bound, where)
    few = eps[::5000]  # row by row, the plain estimator is the chain rule
    repeated = [p.detach().expand(len(few), 1, 1).clone().requires_grad_() for p in where]
    rows = torch.logsumexp(log_weights(few, *repeated), 1)
    by_row = torch.autograd.grad(rows.sum(), repeated)
    plain = importance_weighted_pathwise(log_joint, *where, few)
    for part in range(2):
        torch.testing.assert_close(plain[part], by_row[part][..., 0])
        for estimator in (importance_weighted_pathwise, doubly_reparametrized):
            found = weights @ estimator(log_joint, *where, eps)[part]
            torch.testing.assert_close(found, exact[part], rtol=1e-9, atol=1e-12)


@pytest.mark.equation("eq-red-second")
@pytest.mark.parametrize("mu, sigma", Q[:2])
def test_weights_times_score_have_a_pathwise_form(mu, sigma):
    eps, weights = all_pairs()
    where = at(mu, sigma)
    z = (mu + sigma * eps).requires_grad_()
    log_q = gaussian_log_prob(z, *where)  # the parameters are held still
    log_w = log_joint(z.reshape(-1, 1)).reshape(eps.shape[:2]) - log_q
    first = log_w.softmax(1)[:, 0]
    (slope,) = torch.autograd.grad(first.sum(), z)
    eps_1, slope_1 = eps[:, 0, 0], slope[:, 0, 0]
    for score, path in ((eps_1 / sigma, 1), ((eps_1**2 - 1) / 2, sigma * eps_1 / 2)):
        left, right = weights @ (first.detach() * score), weights @ (path * slope_1)
        assert left.item() == pytest.approx(right.item(), rel=1e-9)
        assert abs(left) > 1e-3  # so the score may not be dropped


@pytest.mark.equation("eq-red-local")
def test_terms_without_a_latent_have_no_part_in_its_gradient():
    x, w = np.polynomial.hermite_e.hermegauss(20)
    x, w = torch.from_numpy(x), torch.from_numpy(w / w.sum())
    grid, weights = torch.cartesian_prod(x, x), torch.outer(w, w).ravel()
    where = torch.tensor([0.4, -0.7]).double(), torch.tensor([0.1, -0.5]).double()

    def f(z):
        return z[:, 0] ** 3 + z[:, 0] * z[:, 1] + torch.cos(z[:, 1]) + 5

    def local(z):
        shared = z[:, 0] * z[:, 1]
        return torch.stack([z[:, 0] ** 3 + shared, shared + torch.cos(z[:, 1])], 1)

    whole = score_function(f, *where, grid)
    own = local_score_function(local, *where, grid)
    path = pathwise(f, *where, grid)
    for one, two, three in zip(whole, own, path):
        torch.testing.assert_close(weights @ one, weights @ two, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(weights @ two, weights @ three, rtol=1e-10, atol=1e-10)


@pytest.mark.equation("eq-red-dimension")
@pytest.mark.parametrize("dim", [2, 3])
def test_the_whole_cost_grows_with_the_square_of_the_dimension(dim):
    x, w = np.polynomial.hermite_e.hermegauss(8)
    x, w = torch.from_numpy(x), torch.from_numpy(w / w.sum())
    grid, weights = torch.cartesian_prod(*[x] * dim), torch.cartesian_prod(*[w] * dim).prod(1)
    sigma = 0.7
    mu = torch.zeros(dim, dtype=torch.float64)
    where = mu, mu + 2 * math.log(sigma)
    whole = score_function(lambda z: z.square().sum(1), *where, grid).mu
    own = local_score_function(torch.square, *where, grid).mu
    expected = (dim + 2) * (dim + 4) * sigma**2
    for rows, variance in ((whole, expected), (own, 15 * sigma**2)):
        mean, found = oracle.moments(rows, weights)
        torch.testing.assert_close(mean, torch.zeros_like(mean))
        assert found.tolist() == pytest.approx([variance] * dim, rel=1e-9)


def bernoulli(p):
    return torch.tensor([[0.0, math.log(p / (1 - p))]], dtype=torch.float64)


BOTH = torch.eye(2, dtype=torch.float64)[:, None]  # the states z = 0 and z = 1, one-hot


@pytest.mark.equation("eq-red-bernoulli")
@pytest.mark.equation("eq-red-bernoulli-variance")
@pytest.mark.parametrize("p", [0.5, 0.15, 0.9])
def test_bernoulli_gradient_and_the_variance_of_its_score_function(p):
    f0, f1 = 1.2, -0.7
    logit = torch.tensor(math.log(p / (1 - p)), dtype=torch.float64, requires_grad=True)
    chance = torch.sigmoid(logit)
    (g,) = torch.autograd.grad(chance * f1 + (1 - chance) * f0, logit)
    assert g.item() == pytest.approx(p * (1 - p) * (f1 - f0), rel=1e-12)
    weights = torch.tensor([1 - p, p], dtype=torch.float64)
    for b in (0.0, 2.0, (1 - p) * f1 + p * f0):
        rows = categorical_score_function(
            lambda z: f0 * z[:, 0, 0] + f1 * z[:, 0, 1], bernoulli(p), BOTH, b
        )[:, 0, 1]
        mean, variance = moments(rows, weights)
        assert mean == pytest.approx(g.item(), rel=1e-12)
        expected = p * (1 - p) * ((1 - p) * f1 + p * f0 - b) ** 2
        assert variance == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.equation("eq-red-straight-through")
@pytest.mark.parametrize("p", [0.5, 0.15, 0.9])
def test_straight_through_averages_the_end_slopes(p):
    def f(z):
        return torch.sin(2 * z[:, 0, 1])

    rows = straight_through(f, bernoulli(p), BOTH)[:, 0, 1]
    mean = (1 - p) * rows[0].item() + p * rows[1].item()
    slopes = p * 2 * math.cos(2) + (1 - p) * 2
    assert mean == pytest.approx(p * (1 - p) * slopes, rel=1e-12)
    assert mean != pytest.approx(p * (1 - p) * math.sin(2), rel=0.05)


def logistic():
    ell = torch.linspace(-50, 50, 200_001, dtype=torch.float64)
    weights = torch.sigmoid(ell) * torch.sigmoid(-ell) * (ell[1] - ell[0])
    return ell, weights


@pytest.mark.equation("eq-red-gumbel-softmax")
@pytest.mark.parametrize("a, tau", [(0.0, 1.0), (0.7, 0.5), (-1.2, 2.0)])
def test_gumbel_softmax_is_the_exact_gradient_of_the_relaxed_expectation(a, tau):
    ell, weights = logistic()
    noise = torch.stack([torch.zeros_like(ell), ell], 1)[:, None]
    logits = torch.tensor([[0.0, a]], dtype=torch.float64)
    rows = gumbel_softmax(lambda z: z[:, 0, 1] ** 2, logits, noise, temperature=tau)[:, 0, 1]
    y = torch.sigmoid((a + ell) / tau)
    torch.testing.assert_close(rows, 2 * y * y * (1 - y) / tau)
    h = 1e-4
    shifted = [weights @ torch.sigmoid((a + s + ell) / tau) ** 2 for s in (h, -h)]
    slope = ((shifted[0] - shifted[1]) / (2 * h)).item()
    assert (weights @ rows).item() == pytest.approx(slope, rel=1e-7)


def test_gumbel_softmax_at_the_fair_coin_is_a_sixth():
    ell, weights = logistic()
    noise = torch.stack([torch.zeros_like(ell), ell], 1)[:, None]
    rows = gumbel_softmax(lambda z: z[:, 0, 1], bernoulli(0.5), noise, temperature=1.0)[:, 0, 1]
    assert (weights @ rows).item() == pytest.approx(1 / 6, rel=1e-9)


@pytest.mark.equation("eq-red-gumbel-variance")
@pytest.mark.parametrize("p", [0.5, 0.2])
def test_gumbel_softmax_mean_square_grows_like_one_over_the_temperature(p):
    """The ratio to the limit tends to one, at second order in the temperature."""
    ell, weights = logistic()
    noise = torch.stack([torch.zeros_like(ell), ell], 1)[:, None]
    off = []
    for tau in (0.08, 0.04, 0.02):
        rows = gumbel_softmax(lambda z: z[:, 0, 1], bernoulli(p), noise, temperature=tau)[:, 0, 1]
        off.append((weights @ rows**2).item() / (p * (1 - p) / (6 * tau)) - 1)
    assert abs(off[2]) < 2e-3
    for larger, smaller in itertools.pairwise(off):
        assert larger / smaller == pytest.approx(4, rel=0.1)
