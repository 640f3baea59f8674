"""The equations of the chapter score_vs_reparam: closed forms against the shipped estimators.

Noise is a fine grid or product Gauss-Hermite nodes, so that variances are exact; the one Monte
Carlo test states its false-alarm rate.
"""

import importlib.util
import json
import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch.nn.functional import softplus
from torch.testing import assert_close

from vaelib import VAE, LinearGaussianModel, gaussian_log_prob, reparametrize
from vaelib.estimators import gradient_moments, pathwise, score_function, sticking_the_landing
from vaelib.plotting import COLORS

F64 = torch.float64
ROOT = Path(__file__).resolve().parents[2]

EPS = torch.linspace(-14, 14, 20_001, dtype=F64)[:, None]
WEIGHT = torch.exp(-EPS[:, 0] ** 2 / 2) / math.sqrt(2 * math.pi) * (28 / 20_000)
SETTINGS = [(1.0, 1.0, 0.9), (-0.3, 0.7, 1.6), (0.8, 1.4, 0.3)]  # mu, std, k


def tensor(values):
    return torch.tensor(values, dtype=F64)


def expect(values):
    return (WEIGHT @ values).item()


def shipped(estimator, f, mu, std, **options):
    """Mean and variance for mu and for sigma of one sample of the package's estimator."""
    rows = estimator(f, tensor([mu]), 2 * tensor([std]).log(), EPS, **options)
    pair = rows.mu[:, 0], rows.log_var[:, 0] * 2 / std
    means = [expect(g) for g in pair]
    return means, [expect((g - mean) ** 2) for g, mean in zip(pair, means)]


def variances(f, mu, std):
    """Score function for mu and sigma, then pathwise for mu and sigma."""
    return shipped(score_function, f, mu, std)[1] + shipped(pathwise, f, mu, std)[1]


def assert_variances(f, mu, std, expected):
    assert variances(f, mu, std) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.equation("eq-var-definition")
@pytest.mark.parametrize("mu, std, k", SETTINGS)
def test_variances_are_second_moments_less_one_square(mu, std, k):
    """f = z^3 - k z: f' written by hand, the gradients from E f = mu^3 + 3 mu std^2 - k mu."""
    e = EPS[:, 0]
    z = mu + std * e
    f, slope = z**3 - k * z, 3 * z**2 - k
    g_mu, g_sigma = 3 * mu**2 + 3 * std**2 - k, 6 * mu * std
    expected = [
        expect(f**2 * e**2) / std**2 - g_mu**2,
        expect(f**2 * (e**2 - 1) ** 2) / std**2 - g_sigma**2,
        expect(slope**2) - g_mu**2,
        expect(slope**2 * e**2) - g_sigma**2,
    ]
    assert_variances(lambda z: z[:, 0] ** 3 - k * z[:, 0], mu, std, expected)


@pytest.mark.equation("eq-var-quadratic")
@pytest.mark.parametrize("mu, std, k", SETTINGS)
def test_variances_of_the_quadratic(mu, std, k):
    d = mu - k
    expected = [
        d**4 / std**2 + 14 * d**2 + 15 * std**2,
        2 * d**4 / std**2 + 60 * d**2 + 74 * std**2,
        4 * std**2,
        4 * d**2 + 8 * std**2,
    ]
    assert_variances(lambda z: (z[:, 0] - k) ** 2, mu, std, expected)


@pytest.mark.equation("eq-var-baseline")
@pytest.mark.parametrize("mu, std, k", SETTINGS)
def test_best_baseline_is_the_lowest_point_of_a_parabola(mu, std, k):
    d, e = mu - k, EPS[:, 0]

    def f(z):
        return (z[:, 0] - k) ** 2

    cost = f(mu + std * EPS)
    scores = e / std, (e**2 - 1) / std
    closed = [
        (d**2 + 3 * std**2, 8 * d**2 + 6 * std**2),
        (d**2 + 5 * std**2, 40 * d**2 + 24 * std**2),
    ]
    for i, (score, (best, lowest)) in enumerate(zip(scores, closed)):
        numerator, denominator = expect(cost * score**2), expect(score**2)
        assert numerator / denominator == pytest.approx(best, rel=1e-10)

        def variance_with(b):
            return shipped(score_function, f, mu, std, baseline=b)[1][i]

        assert variance_with(best) == pytest.approx(lowest, rel=1e-9)
        gain = variance_with(0.0) - variance_with(best)
        assert gain == pytest.approx(numerator**2 / denominator, rel=1e-9)
        for b in (best - 0.1, best + 0.1):
            assert variance_with(b) - lowest == pytest.approx(0.01 * denominator, rel=1e-6)


@pytest.mark.equation("eq-var-tilt")
@pytest.mark.parametrize("c", [0.7, -1.2, 0.9j, 0.4 - 1.1j])
def test_exponential_factor_shifts_the_normal_density(c):
    """The polynomials of the chapter and an odd one, with E[p(eps + c)] expanded by hand."""
    polynomials = [
        (lambda e: 1, 1),
        (lambda e: e**2, 1 + c**2),
        (lambda e: (e**2 - 1) ** 2, c**4 + 4 * c**2 + 2),
        (lambda e: e**3, c**3 + 3 * c),
    ]
    e = EPS[:, 0].numpy()
    for p, shifted in polynomials:
        mean = WEIGHT.numpy() @ (np.exp(c * e) * p(e))
        assert mean == pytest.approx(np.exp(c**2 / 2) * shifted, rel=1e-11)


@pytest.mark.equation("eq-var-exponential")
@pytest.mark.parametrize("mu, std, k", SETTINGS)
def test_variances_of_the_exponential(mu, std, k):
    t2 = (k * std) ** 2
    unit, e = math.exp(2 * k * mu + t2) / std**2, math.exp(t2)
    expected = [
        e * (1 + 4 * t2) - t2,
        e * (16 * t2**2 + 16 * t2 + 2) - t2**2,
        t2 * (e - 1),
        t2 * e * (1 + 4 * t2) - t2**2,
    ]
    assert_variances(lambda z: torch.exp(k * z[:, 0]), mu, std, [unit * v for v in expected])


def cosine(k, mu=1.0, std=1.0):
    t2 = (k * std) ** 2
    C = math.exp(-2 * t2) * math.cos(2 * k * mu)
    g_mu = -k * math.exp(-t2 / 2) * math.sin(k * mu)
    g_sigma = -(k**2) * std * math.exp(-t2 / 2) * math.cos(k * mu)
    return [
        (1 + (1 - 4 * t2) * C) / (2 * std**2) - g_mu**2,
        (2 + (16 * t2**2 - 16 * t2 + 2) * C) / (2 * std**2) - g_sigma**2,
        k**2 / 2 * (1 - C) - g_mu**2,
        k**2 / 2 * (1 - (1 - 4 * t2) * C) - g_sigma**2,
    ]


@pytest.mark.equation("eq-var-cosine")
@pytest.mark.parametrize("mu, std, k", SETTINGS)
def test_variances_of_the_cosine(mu, std, k):
    assert_variances(lambda z: torch.cos(k * z[:, 0]), mu, std, cosine(k, mu, std))


def test_cosine_at_the_edge_of_the_survey():
    assert cosine(5.0) == pytest.approx([0.5, 1.0, 12.5, 12.5], rel=1e-3)


def bump(k, mu=1.0, std=1.0):
    a, b = 1 + 2 * k * std**2, 1 + 4 * k * std**2
    A, B = math.exp(-k * mu**2 / a) / math.sqrt(a), math.exp(-2 * k * mu**2 / b) / math.sqrt(b)
    m, v = mu / b, std**2 / b
    d = m - mu
    g_mu = -2 * k * mu / a * A
    g_sigma = 2 * k * std * A * (2 * k * mu**2 / a**2 - 1 / a)
    fourth = d**4 + 6 * d**2 * v + 3 * v**2
    mixed = m**2 * d**2 + v * (m**2 + d**2 + 4 * m * d) + 3 * v**2
    return [
        B / std**4 * (d**2 + v) - g_mu**2,
        B / std**6 * (fourth - 2 * std**2 * (d**2 + v) + std**4) - g_sigma**2,
        4 * k**2 * B * (m**2 + v) - g_mu**2,
        4 * k**2 * B / std**2 * mixed - g_sigma**2,
    ]


@pytest.mark.equation("eq-var-bump-product")
@pytest.mark.parametrize("mu, std, k", SETTINGS)
def test_bump_times_normal_density_is_a_lower_normal_density(mu, std, k):
    a = 1 + 2 * k * std**2
    A = math.exp(-k * mu**2 / a) / math.sqrt(a)
    for z in (-1.3, 0.0, 0.4, 2.1):
        left = math.exp(-k * z**2) * float(mpmath.npdf(z, mu, std))
        right = A * float(mpmath.npdf(z, mu / a, std / math.sqrt(a)))
        assert left == pytest.approx(right, rel=1e-13)


@pytest.mark.equation("eq-var-bump")
@pytest.mark.parametrize("mu, std, k", SETTINGS)
def test_variances_of_the_bump(mu, std, k):
    assert_variances(lambda z: torch.exp(-k * z[:, 0] ** 2), mu, std, bump(k, mu, std))


@pytest.mark.equation("eq-var-parts")
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_hermite_polynomials_move_derivatives(order):
    """F = sin: its derivatives are shifted sines, their means known without quadrature."""
    mu, std = 0.4, 1.3
    basis = np.zeros(order + 1)
    basis[order] = 1
    hermite = tensor(np.polynomial.hermite_e.hermeval(EPS[:, 0].numpy(), basis))
    left = expect(torch.sin(mu + std * EPS[:, 0]) * hermite)
    right = std**order * math.exp(-(std**2) / 2) * math.sin(mu + order * math.pi / 2)
    assert left == pytest.approx(right, rel=1e-10)


def derivatives(F, z, order):
    z = z.clone().requires_grad_()
    found = [F(z)]
    for _ in range(order):
        found.append(torch.autograd.grad(found[-1].sum(), z, create_graph=True)[0])
    return [value.detach() for value in found]


COSTS = {
    "wave": lambda z: torch.cos(1.3 * z) + 0.2 * z,
    "bump": lambda z: torch.exp(-0.9 * z**2),
    "cubic": lambda z: z**3 - z,
}


@pytest.mark.equation("eq-var-criterion")
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("mu, std", [(1.0, 1.0), (-0.3, 0.7)])
def test_criterion_is_the_difference_of_variances_for_mu(cost, mu, std):
    f = COSTS[cost]
    value, slope, bend = derivatives(f, mu + std * EPS[:, 0], 2)
    criterion = expect(value**2) / std**2 + expect(slope**2) + 2 * expect(value * bend)
    score, _, path, _ = variances(lambda z: f(z[:, 0]), mu, std)
    assert criterion == pytest.approx(score - path, rel=1e-8, abs=1e-10)


@pytest.mark.equation("eq-var-criterion-sigma")
@pytest.mark.parametrize("mu, std", [(1.0, 1.0), (-0.3, 0.7)])
def test_criterion_for_sigma_with_derivatives_by_hand(mu, std):
    """f = z^2: f^2 = z^4 and f'^2 = 4 z^2, whose derivatives are known; then a wave by autograd."""
    second, fourth = mu**2 + std**2, mu**4 + 6 * mu**2 * std**2 + 3 * std**4
    criterion = 2 * fourth / std**2 + 4 * 12 * second + std**2 * 24 - 4 * second - std**2 * 8
    _, score, _, path = variances(lambda z: z[:, 0] ** 2, mu, std)
    assert criterion == pytest.approx(score - path, rel=1e-9)

    z, k = mu + std * EPS[:, 0], 1.3
    square = derivatives(lambda z: torch.cos(k * z) ** 2, z, 4)
    steepness = derivatives(lambda z: k**2 * torch.sin(k * z) ** 2, z, 2)
    criterion = (
        2 * expect(square[0]) / std**2
        + 4 * expect(square[2])
        + std**2 * expect(square[4])
        - expect(steepness[0])
        - std**2 * expect(steepness[2])
    )
    values = cosine(k, mu, std)
    assert criterion == pytest.approx(values[1] - values[3], rel=1e-8)


@pytest.mark.parametrize(
    "closed_form, i, expected",
    [(cosine, 0, 1.0638), (cosine, 1, 1.2973), (bump, 0, 0.8700), (bump, 1, 1.0028)],
)
def test_crossings_to_four_digits(closed_form, i, expected):
    def difference(k):
        values = closed_form(k)
        return values[i] - values[2 + i]

    assert difference(0.5) > 0 > difference(2.0)
    assert round(brentq(difference, 0.5, 2.0, xtol=1e-10), 4) == expected


def test_convex_and_positive_costs_never_cross():
    for mu, std, k in SETTINGS:
        for f in (lambda z: softplus(k * z[:, 0]), lambda z: (z[:, 0] - k) ** 4):
            score, _, path, _ = variances(f, mu, std)
            assert score > path


@pytest.mark.equation("eq-var-hermite")
@pytest.mark.parametrize("cost", COSTS)
def test_hermite_series_gives_the_variances_for_mu(cost):
    mu, std, count = 0.3, 0.6, 60
    f = COSTS[cost](mu + std * EPS[:, 0])
    c = []
    for n in range(count):
        basis = np.zeros(n + 1)
        basis[n] = 1
        h = np.polynomial.hermite_e.hermeval(EPS[:, 0].numpy(), basis)
        c.append(expect(f * tensor(h)) / math.exp(math.lgamma(n + 1) / 2))
    path = sum(n * c[n] ** 2 for n in range(2, count)) / std**2
    score = (
        sum(
            (math.sqrt(m) * c[m - 1] + math.sqrt(m + 1) * c[m + 1]) ** 2
            for m in range(1, count - 1)
        )
        / std**2
    )
    exact = variances(lambda z: COSTS[cost](z[:, 0]), mu, std)
    assert [score, path] == pytest.approx([exact[0], exact[2]], rel=1e-9)


def product_nodes(count, dimensions):
    points, weights = np.polynomial.hermite_e.hermegauss(count)
    points, weights = tensor(points), tensor(weights / weights.sum())
    if dimensions == 1:
        return points[:, None], weights
    return (
        torch.cartesian_prod(*[points] * dimensions),
        torch.cartesian_prod(*[weights] * dimensions).prod(1),
    )


@pytest.mark.equation("eq-var-dimension")
@pytest.mark.parametrize("L", [1, 2, 3, 5])
def test_growth_with_the_dimension(L):
    std = 0.8
    eps, weight = product_nodes(5, L)
    here = torch.zeros(L, dtype=F64), torch.full((L,), 2 * math.log(std), dtype=F64)

    def f(z):
        return z.square().sum(1)

    for rows, exact in (
        (score_function(f, *here, eps), (L + 2) * (L + 4) * std**2),
        (score_function(f, *here, eps, baseline=L * std**2), 2 * (L + 4) * std**2),
        (pathwise(f, *here, eps), 4 * std**2),
    ):
        assert_close(weight @ rows.mu, torch.zeros(L, dtype=F64), atol=1e-12, rtol=0)
        assert_close(weight @ rows.mu**2, torch.full((L,), exact, dtype=F64), rtol=1e-10, atol=0)


W, NOISE_VAR, X = 1.3, 0.4, 0.9
V = 1 / (1 + W**2 / NOISE_VAR)
M_STAR = V * W * X / NOISE_VAR
PLACES = [(-1.0, 0.9), (M_STAR + 0.1, V**0.5), (M_STAR, 0.5 * V**0.5), (M_STAR, V**0.5)]


def oracle():
    return LinearGaussianModel(tensor([[W]]), tensor([0.0]), NOISE_VAR)


def elbo_terms(mu, std):
    """delta, A, B, C of the integrand A + B eps + C eps^2, with log p(x) of x ~ N(0, w^2 + s^2)."""
    delta = mu - M_STAR
    log_p_x = -0.5 * (math.log(2 * math.pi * (W**2 + NOISE_VAR)) + X**2 / (W**2 + NOISE_VAR))
    A = log_p_x - math.log(V) / 2 + math.log(std) - delta**2 / (2 * V)
    return delta, A, -delta * std / V, 0.5 - std**2 / (2 * V)


def log_joint(z):
    return oracle().log_prior(z) + oracle().log_likelihood(tensor([X]), z)


def log_w_at(mu, std):
    here = tensor([mu]), 2 * tensor([std]).log()
    return lambda z: log_joint(z) - gaussian_log_prob(z, *here)


@pytest.mark.equation("eq-var-elbo-cost")
@pytest.mark.parametrize("mu, std", PLACES)
def test_elbo_integrand_is_a_parabola_in_the_noise(mu, std):
    _, A, B, C = elbo_terms(mu, std)
    eps = EPS[::500]
    z = reparametrize(tensor([mu]), 2 * tensor([std]).log(), eps)
    assert_close(log_w_at(mu, std)(z), A + B * eps[:, 0] + C * eps[:, 0] ** 2)


@pytest.mark.equation("eq-var-elbo-score")
@pytest.mark.equation("eq-var-elbo-sigma")
@pytest.mark.parametrize("mu, std", PLACES)
def test_score_function_on_the_elbo(mu, std):
    _, A, B, C = elbo_terms(mu, std)
    means, found = shipped(score_function, log_w_at(mu, std), mu, std)
    assert means == pytest.approx([B / std, 2 * C / std], rel=1e-9, abs=1e-12)
    assert found == pytest.approx(
        [
            (A**2 + 6 * A * C + 15 * C**2 + 2 * B**2) / std**2,
            (2 * A**2 + 20 * A * C + 10 * B**2 + 74 * C**2) / std**2,
        ],
        rel=1e-9,
    )
    best = [
        shipped(score_function, log_w_at(mu, std), mu, std, baseline=b)[1][i]
        for i, b in enumerate((A + 3 * C, A + 5 * C))
    ]
    expected = [(2 * B**2 + 6 * C**2) / std**2, (10 * B**2 + 24 * C**2) / std**2]
    assert best == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.equation("eq-var-elbo-path")
@pytest.mark.equation("eq-var-elbo-sigma")
@pytest.mark.parametrize("mu, std", PLACES)
def test_three_paths_on_the_elbo(mu, std):
    delta, *_ = elbo_terms(mu, std)
    r, gap = W**2 / NOISE_VAR, 1 / std - std / V
    assert r == pytest.approx(1 / V - 1)

    def log_likelihood(z):
        return oracle().log_likelihood(tensor([X]), z)

    total = shipped(pathwise, log_joint, mu, std)[1]  # the entropy's gradient has no noise
    closed_kl = shipped(pathwise, log_likelihood, mu, std)[1]
    landing = shipped(sticking_the_landing, log_joint, mu, std)[1]
    assert total == pytest.approx([std**2 / V**2, (delta**2 + 2 * std**2) / V**2], rel=1e-9)
    assert closed_kl == pytest.approx(
        [r**2 * std**2, (r * mu - M_STAR / V) ** 2 + 2 * r**2 * std**2], rel=1e-9
    )
    assert landing == pytest.approx([gap**2, delta**2 / V**2 + 2 * gap**2], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("side, score_wins", [(0.99, True), (1.01, False)])
def test_baselined_score_function_beats_the_path_near_the_optimum(side, score_wins):
    mu, std = M_STAR + side * (V / 2) ** 0.5, V**0.5
    _, A, _, C = elbo_terms(mu, std)
    score = shipped(score_function, log_w_at(mu, std), mu, std, baseline=A + 3 * C)[1][0]
    path = shipped(pathwise, log_joint, mu, std)[1][0]
    assert (score < path) == score_wins


@pytest.mark.parametrize("side, landing_wins", [(0.99, False), (1.01, True)])
def test_sticking_the_landing_loses_where_q_is_narrow(side, landing_wins):
    mu, std = M_STAR + 0.4, side * (V / 2) ** 0.5
    landing = shipped(sticking_the_landing, log_joint, mu, std)[1]
    path = shipped(pathwise, log_joint, mu, std)[1]
    assert [a < b for a, b in zip(landing, path)] == [landing_wins, landing_wins]


@pytest.mark.equation("eq-var-snr")
def test_signal_to_noise_ratio_grows_with_the_root_of_n():
    """The total path derivative has SNR |delta| / sigma for mu; pairs of nodes are N = 2."""
    mu, std = M_STAR + 0.6, 0.7
    means, found = shipped(pathwise, log_joint, mu, std)
    one = abs(means[0]) / math.sqrt(found[0])
    assert one == pytest.approx(0.6 / std, rel=1e-9)

    eps, weight = product_nodes(6, 2)
    rows = pathwise(log_joint, tensor([mu]), 2 * tensor([std]).log(), eps.reshape(-1, 1)).mu
    pairs = rows.reshape(-1, 2).mean(1)
    mean = weight @ pairs
    two = mean.abs() / (weight @ (pairs - mean) ** 2).sqrt()
    assert two.item() == pytest.approx(math.sqrt(2) * one, rel=1e-9)


@pytest.mark.equation("eq-var-work")
def test_budget_for_an_error_is_cost_times_variance():
    """Two pathwise samples (cost 2 each) or one of cost 4: the error is c Var / budget."""
    mu, std, cost_of_one, budget = 0.4, 0.7, 2, 4
    _, found = shipped(pathwise, lambda z: z[:, 0] ** 3, mu, std)
    eps, weight = product_nodes(8, budget // cost_of_one)
    here = tensor([mu]), 2 * tensor([std]).log()
    rows = pathwise(lambda z: z[:, 0] ** 3, *here, eps.reshape(-1, 1)).mu.reshape(len(eps), -1)
    truth = 3 * (mu**2 + std**2)
    squared_error = (weight @ (rows.mean(1) - truth) ** 2).item()
    assert budget == pytest.approx(cost_of_one * found[0] / squared_error, rel=1e-9)


@pytest.mark.false_alarm(2e-9)
@pytest.mark.parametrize("estimator, index", [(score_function, 0), (pathwise, 2)])
def test_measured_variance_falls_on_the_closed_form(estimator, index, generator):
    """n = 200,000 draws of a bounded cost; 6.2 standard errors: a false alarm of 6e-10."""
    mu, std, k, n = 1.0, 0.7, 2.0, 200_000
    exact = cosine(k, mu, std)[index]
    rows = estimator(lambda z: torch.cos(k * z[:, 0]), tensor([mu]), 2 * tensor([std]).log(), EPS)
    centred = rows.mu[:, 0] - expect(rows.mu[:, 0])
    error = math.sqrt((expect(centred**4) - exact**2) / n)
    moments = gradient_moments(
        estimator,
        lambda z: torch.cos(k * z[:, 0]),
        tensor([mu]),
        2 * tensor([std]).log(),
        num_samples=n,
        generator=generator,
    )
    measured = moments.variance.mu.item()
    assert abs(measured - exact) < 6.2 * error
    as_variance = cosine(k, mu, std**2)[index]  # sigma^2 taken for sigma
    assert abs(measured - as_variance) > 20 * error


@pytest.fixture(scope="module")
def benchmark():
    path = ROOT / "benchmarks" / "vae_gradients.py"
    spec = importlib.util.spec_from_file_location("vae_gradients", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.false_alarm(2e-8)
def test_all_gradients_of_the_benchmark_have_one_mean(benchmark):
    """59 weights, 4 comparisons, |z| < 8 each: 1.3e-8 false alarms in all, by
    the law of t with 59 degrees of freedom."""
    model = VAE(data_dim=6, hidden_dim=5, latent_dim=2)
    x = torch.tensor([[1.0, 0, 1, 1, 0, 0], [0.0, 1, 1, 0, 1, 1]]).repeat(200, 1)
    draws = 60
    found = benchmark.gradient_noise(model, x, draws)
    reference = found.pop("pathwise")
    assert (reference["mean"].abs() / (reference["variance"] / draws).sqrt()).max() > 50
    for name, moments in found.items():
        error = ((moments["variance"] + reference["variance"]) / draws).sqrt()
        assert ((moments["mean"] - reference["mean"]).abs() < 8 * error).all(), name


def test_benchmarks_objective_gives_the_decoder_its_plain_gradient(benchmark):
    """The encoder's surrogate adds nothing to the decoder: same noise, same gradient."""
    model = VAE(data_dim=6, hidden_dim=5, latent_dim=2).double()
    x = tensor([[1.0, 0, 1, 1, 0, 0]])
    weights = list(model.decoder.parameters())
    torch.set_default_dtype(F64)
    try:
        by_name = {
            name: torch.autograd.grad(
                benchmark.objective(model, x, name, torch.Generator().manual_seed(1)), weights
            )
            for name in ("score function", "pathwise")
        }
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(*by_name.values()):
        assert_close(one, other)


def test_benchmarks_landing_leaves_out_the_score(benchmark):
    """From the same noise, sampled KL minus sticking the landing is minus the mean score."""
    model = VAE(data_dim=6, hidden_dim=5, latent_dim=2)
    x = torch.tensor([[1.0, 0, 1, 1, 0, 0], [0.0, 1, 1, 0, 1, 1]])
    weights = list(model.encoder.parameters())

    def gradient(name):
        value = benchmark.objective(model, x, name, torch.Generator().manual_seed(1))
        return torch.autograd.grad(value, weights)

    mu, log_var = model.encode(x)
    eps = torch.randn((1, *mu.shape), generator=torch.Generator().manual_seed(1))
    z = reparametrize(mu, log_var, eps).detach()
    score = torch.autograd.grad(gaussian_log_prob(z, mu, log_var).mean(), weights)
    for total, landing, part in zip(
        gradient("pathwise, sampled KL"), gradient("sticking the landing"), score
    ):
        assert_close(total - landing, -part, atol=1e-5, rtol=1e-4)
        assert part.abs().max() > 1e-3


def test_stored_result_is_what_the_chapter_reads(benchmark):
    stored = json.loads(benchmark.RESULT.read_text())
    assert stored["data"] == "mnist"
    assert [s["stage"] for s in stored["noise"]] == [
        "at initialisation",
        "after one epoch",
        "after training",
    ]
    for stage in stored["noise"]:
        assert [row["gradient"] for row in stage["gradients"]] == list(benchmark.GRADIENTS)
        for row in stage["gradients"]:
            assert row["snr_quantiles"] == sorted(row["snr_quantiles"])
            # summed over correlated weights, the squared z-score stays near 1
            assert row["difference_of_means"] < 3
    for name in benchmark.TRAINED:
        seeds = {run["seed"] for run in stored["training"] if run["gradient"] == name}
        assert seeds == set(range(stored["settings"]["seeds"]))


def test_explorer_has_the_colours_of_the_book_and_needs_no_network():
    page = (ROOT / "chapters" / "estimator_explorer.html").read_text(encoding="utf-8")
    assert f"--score: {COLORS['score function']};" in page
    assert f"--path: {COLORS['pathwise']};" in page
    for word in ("http", "//cdn", "src=", "import ", "fetch", "Math.random"):
        assert word not in page, word
