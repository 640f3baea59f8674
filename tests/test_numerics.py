"""Single precision against 50 digits and float64, over the ranges of a training run and far past.

A training run keeps log_var within about [-10, 3], mu within 5 and logits within 30. The tables
below go to log_var of +-60, mu of a million and logits of +-10,000. Arguments are float32 numbers,
taken as exact. The tolerated error is always U times a number that the test states, U = 1.2e-7
being the distance from 1 to the next float32: sums of one sign must keep their relative precision,
sums with cancellation may lose U times the sum of the absolute terms, and a value past 3.4e38 is
to be infinite. Nothing is ever NaN.
"""

import itertools
import math

import mpmath
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

from vaelib import (
    VAE,
    LinearGaussianModel,
    bernoulli_log_prob,
    elbo,
    gaussian_log_prob,
    gaussian_score,
    iwae_bound,
    kl_diagonal,
    kl_full,
    kl_standard_normal,
    log_likelihood,
    reparametrize,
)
from vaelib.bounds import importance_log_weights
from vaelib.training import seeded_vae

U = torch.finfo(torch.float32).eps
LARGEST = torch.finfo(torch.float32).max
LOG_VARS = (-60.0, -30.0, -10.0, -3.0, -0.05, -1e-3, 0.0, 1e-6, 0.0499, 0.7, 3.0, 10.0, 30.0, 60.0)
MUS = (-1e6, -1e3, -5.0, -0.3, 0.0, 1e-6, 0.1, 2.0, 30.0, 1e6)
LOGITS = (0.0, 1e-6, 0.3, 1.0, 5.0, 15.0, 17.5, 30.0, 90.0, 120.0, 1e3, 1e4)
OFF = 1 / 3  # makes the arguments numbers that have no short binary form


@pytest.fixture(autouse=True)
def fifty_digits():
    with mpmath.workdps(50):
        yield


def column(values) -> Tensor:
    """A batch [N, 1] of float32 leaves: each row is one scalar problem."""
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1).requires_grad_()


def exact(tensor: Tensor) -> list[mpmath.mpf]:
    return [mpmath.mpf(value) for value in tensor.detach().flatten().tolist()]


def assert_within(found: Tensor, expected: list, allowed: list, terms: list | None = None):
    """|found - expected| <= allowed; infinite where a term, or the value, is past the largest."""
    found = found.detach().flatten().tolist()
    terms = terms or expected
    for i, (value, truth, error, term) in enumerate(
        zip(found, expected, allowed, terms, strict=True)
    ):
        assert not math.isnan(value), f"row {i}: NaN for {float(truth)}"
        if math.isinf(value):
            overflows = abs(term) * (1 + 200 * U) > LARGEST
            assert overflows and (value > 0) == (truth > 0), f"row {i}: {value} for {float(truth)}"
        else:
            # Below the smallest normal number a float32 has a fixed spacing, not fixed digits.
            difference = abs(value - truth)
            assert difference <= error + 1e-37, (
                f"row {i}: found {value!r}, exact {float(truth)!r}, error {float(difference):.2g}, "
                f"allowed {float(error):.2g}"
            )


def differentiate(value: Tensor, *arguments: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value.sum(), arguments)


# --- Gaussians -----------------------------------------------------------------------------------


def gaussian_arguments():
    """All pairs of log_var and mu, and z at the mean, within three sigma, and far away."""
    rows = [
        (mu + step, mu, log_var + OFF * (abs(log_var) > 1))
        for log_var, mu in itertools.product(LOG_VARS, MUS)
        for step in (0.0, 0.7 * math.exp(log_var / 2), -3 * math.exp(log_var / 2), 1e3)
    ]
    return [column(part) for part in zip(*rows)]


def test_log_density_and_its_gradient_in_float32_are_within_8_u_of_the_sum_of_their_terms():
    z, mu, log_var = gaussian_arguments()
    value = gaussian_log_prob(z, mu, log_var)
    slopes = differentiate(value, z, mu, log_var)
    squares, expected, allowed = [], [], []
    by_z, by_log_var = [], []
    for a, m, v in zip(*map(exact, (z, mu, log_var))):
        square = (a - m) ** 2 / mpmath.exp(v)
        squares.append(square)
        expected.append(-(mpmath.log(2 * mpmath.pi) + v + square) / 2)
        allowed.append(8 * U * (2 + abs(v) + square))
        by_z.append(-(a - m) / mpmath.exp(v))
        by_log_var.append((square - 1) / 2)
    assert_within(value, expected, allowed, squares)
    # The derivative by z divides twice by sigma: it may overflow where the square does.
    largest = [max(s, abs(d)) for s, d in zip(squares, by_z)]
    assert_within(slopes[0], by_z, [8 * U * abs(d) for d in by_z], largest)
    assert_within(slopes[1], [-d for d in by_z], [8 * U * abs(d) for d in by_z], largest)
    assert_within(slopes[2], by_log_var, [8 * U * (1 + s) for s in squares], squares)
    for found, autograd in zip(gaussian_score(z, mu, log_var), slopes[1:], strict=True):
        torch.testing.assert_close(found, autograd, rtol=4 * U, atol=4 * U)


def test_reparametrized_draws_in_float32_are_rounded_thrice():
    rows = list(itertools.product(MUS, LOG_VARS, (-4.0, -0.1, 0.0, 1.3)))
    mu, log_var, eps = (column(part) for part in zip(*rows))
    z = reparametrize(mu, log_var, eps)
    slopes = differentiate(z, mu, log_var, eps)
    steps = [mpmath.exp(v / 2) * e for v, e in zip(exact(log_var), exact(eps))]
    expected = [m + s for m, s in zip(exact(mu), steps)]
    assert_within(z, expected, [4 * U * (abs(m) + abs(s)) for m, s in zip(exact(mu), steps)])
    stds = [mpmath.exp(v / 2) for v in exact(log_var)]
    assert torch.equal(slopes[0], torch.ones_like(mu))
    assert_within(slopes[1], [s / 2 for s in steps], [4 * U * abs(s) for s in steps])
    assert_within(slopes[2], stds, [4 * U * s for s in stds])


def curve(t: mpmath.mpf) -> mpmath.mpf:
    """exp(t) - 1 - t, at 50 digits: the smallest |t| below is 1e-6."""
    return mpmath.expm1(t) - t


def test_kl_to_standard_normal_in_float32_keeps_its_relative_precision_within_64_u():
    """At |log_var| = 0.05, where a series takes over, expm1(t) - t has lost a factor of 40."""
    rows = list(itertools.product(MUS, LOG_VARS))
    mu, log_var = (column(part) for part in zip(*rows))
    value = kl_standard_normal(mu, log_var)
    slopes = differentiate(value, mu, log_var)
    expected = [(m**2 + curve(v)) / 2 for m, v in zip(exact(mu), exact(log_var))]
    assert_within(value, expected, [64 * U * e for e in expected])
    assert torch.equal(slopes[0], mu.detach())
    by_log_var = [mpmath.expm1(v) / 2 for v in exact(log_var)]
    assert_within(slopes[1], by_log_var, [4 * U * abs(d) for d in by_log_var])


def test_kl_of_diagonal_gaussians_in_float32_keeps_its_relative_precision():
    """t = log_var_q - log_var_p is rounded, and exp(t) answers with t times that: (64 + t) U."""
    some = LOG_VARS[::2]
    rows = list(itertools.product(MUS[::2], some, MUS[1::2], some))
    arguments = [column(part) for part in zip(*rows)]
    value = kl_diagonal(*arguments)
    slopes = differentiate(value, *arguments)
    expected, twice, factor, by_mu, by_q, by_p, size_p = ([] for _ in range(7))
    for m, v, n, w in zip(*map(exact, arguments)):
        shift = (m - n) ** 2 / mpmath.exp(w)
        twice.append(shift + mpmath.exp(v - w))
        expected.append((shift + curve(v - w)) / 2)
        factor.append((64 + abs(v - w)) * U)
        by_mu.append((m - n) / mpmath.exp(w))
        by_q.append(mpmath.expm1(v - w) / 2)
        by_p.append(-(shift + mpmath.expm1(v - w)) / 2)
        size_p.append((shift + abs(mpmath.expm1(v - w))) / 2)
    assert_within(value, expected, [f * e for f, e in zip(factor, expected)], twice)
    largest = [max(t, abs(d)) for t, d in zip(twice, by_mu)]
    assert_within(slopes[0], by_mu, [8 * U * abs(d) for d in by_mu], largest)
    assert_within(slopes[2], [-d for d in by_mu], [8 * U * abs(d) for d in by_mu], largest)
    assert_within(slopes[1], by_q, [f * abs(d) for f, d in zip(factor, by_q)], twice)
    assert_within(slopes[3], by_p, [f * s for f, s in zip(factor, size_p)], twice)


def correlated(size: int, log_scale: float, seed: int) -> Tensor:
    """A covariance of condition about 1e4 and of scale exp(log_scale), rounded to float32."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(size, size, generator=generator, dtype=torch.float64)
    turn, _ = torch.linalg.qr(draw)
    matrix = turn * torch.logspace(-2, 2, size, dtype=torch.float64) @ turn.mT
    lower = (matrix * math.exp(log_scale)).float().tril()
    return lower + lower.tril(-1).mT


@pytest.mark.parametrize("shift", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("log_scales", [(0, 0), (-60, -59), (60, 58), (-30, 10), (30, -10)])
def test_kl_full_in_float32_is_the_rounded_value_and_so_are_its_gradients(log_scales, shift):
    """Its arithmetic is in float64: only the result is rounded, to 2 U."""
    mu_q = torch.tensor([0.3, -1.0, 0.7]) * math.exp(log_scales[1] / 2)
    mu_p = mu_q + shift * torch.tensor([1.0, 0.5, -2.0]) * math.exp(log_scales[1] / 2)
    cov_q, cov_p = (correlated(3, scale, seed) for seed, scale in enumerate(log_scales))
    arguments = [part.clone().requires_grad_() for part in (mu_q, cov_q, mu_p, cov_p)]
    value = kl_full(*arguments)
    slopes = differentiate(value, *arguments)
    q, p = mpmath.matrix(cov_q.tolist()), mpmath.matrix(cov_p.tolist())
    gap = mpmath.matrix(mu_q.tolist()) - mpmath.matrix(mu_p.tolist())
    p_inverse, q_inverse = mpmath.inverse(p), mpmath.inverse(q)
    trace = sum((p_inverse * q)[i, i] for i in range(3))
    distance = (gap.T * p_inverse * gap)[0]
    log_ratio = mpmath.log(mpmath.det(p)) - mpmath.log(mpmath.det(q))
    expected = (trace - 3 + distance + log_ratio) / 2
    assert_within(value, [expected], [2 * U * expected])
    by_mu = p_inverse * gap
    by_cov_q = (p_inverse - q_inverse) / 2
    by_cov_p = (p_inverse - p_inverse * (q + gap * gap.T) * p_inverse) / 2
    largest = max(abs(entry) for entry in by_mu)
    assert_within(slopes[0], list(by_mu), [2 * U * largest] * 3)
    assert_within(slopes[2], [-entry for entry in by_mu], [2 * U * largest] * 3)
    for found, matrix in ((slopes[1], by_cov_q), (slopes[3], by_cov_p)):
        symmetric = (found.double() + found.double().mT) / 2
        largest = max(abs(entry) for entry in matrix)
        assert_within(symmetric, list(matrix), [4 * U * largest] * 9)


def test_a_thousandfold_tighter_bound_fails_so_that_the_bounds_above_mean_something():
    z, mu, log_var = gaussian_arguments()
    value = gaussian_log_prob(z, mu, log_var)
    expected = exact(gaussian_log_prob(z.double(), mu.double(), log_var.double()))
    with pytest.raises(AssertionError, match="allowed"):
        assert_within(value, expected, [8e-3 * U * (1 + abs(e)) for e in expected])


# --- Bernoullis ----------------------------------------------------------------------------------


def test_bernoulli_log_likelihood_in_float32_is_within_2_u_of_the_logit():
    """log sigmoid(a) - (1 - x) a cancels where x and a agree: the error is U |a|, not U |value|."""
    logits = sorted({sign * a for a in LOGITS for sign in (-1, 1)})
    rows = list(itertools.product((0.0, 0.25, 1.0), logits))
    x, a = (column(part) for part in zip(*rows))
    value = bernoulli_log_prob(x, a)
    slopes = differentiate(value, x, a)
    expected = [p * b - mpmath.log1p(mpmath.exp(b)) for p, b in zip(exact(x), exact(a))]
    assert_within(value, expected, [2 * U * (1 + abs(b)) for b in exact(a)])
    assert (value <= 0).all()
    by_logit = [p - 1 / (1 + mpmath.exp(-b)) for p, b in zip(exact(x), exact(a))]
    assert_within(slopes[1], by_logit, [2 * U] * len(rows))
    assert torch.equal(slopes[0], a.detach())


# --- bounds --------------------------------------------------------------------------------------

D, H, L, B, K = 20, 10, 3, 4, 5


def scaled_vae(mu: float, log_var: float, logit: float) -> VAE:
    """A VAE whose largest mu, log_var and logit are about these."""
    model = seeded_vae(0, data_dim=D, hidden_dim=H, latent_dim=L)
    layers = {model.encoder.mu: mu, model.encoder.log_var: log_var, model.decoder.logits: logit}
    with torch.no_grad():
        for layer, largest in layers.items():
            rows = layer.weight.abs().sum(1, keepdim=True)  # |tanh| is at most 1
            layer.weight.mul_(0.8 * largest / rows)
            layer.bias.fill_(0.2 * largest)
    return model


RANGES = {  # largest |mu|, |log_var| and |logit|
    "at the start": (0.5, 0.5, 0.5),
    "while training": (5.0, 8.0, 30.0),
    "past it": (100.0, 30.0, 1e3),
    "far past it": (1e6, 60.0, 1e4),
    "wide posteriors": (1e-3, 60.0, 10.0),
    "narrow posteriors": (5.0, -60.0, 30.0),
    "far codes": (1e6, 3.0, 10.0),
}
each_range = pytest.mark.parametrize("sizes", RANGES.values(), ids=RANGES)


@pytest.fixture
def x(generator) -> Tensor:
    return torch.rand(B, D, generator=generator).round()


@pytest.fixture
def eps(generator) -> Tensor:
    return torch.randn(K, B, L, generator=generator)


def in_double(model: VAE) -> VAE:
    """The same function: every float32 is a float64."""
    twin = VAE(D, H, L)
    twin.load_state_dict(model.state_dict())
    return twin.double()


def size_of_terms(model: VAE, x: Tensor, eps: Tensor) -> Tensor:
    """Sum of the absolute terms of an example's bounds at its largest draw, in nats, [B]."""
    mu, log_var = model.encode(x)
    z = reparametrize(mu, log_var, eps)
    kl = (1 + mu.square() + log_var.exp() + log_var.abs() + z.square() + eps.square()).sum(-1)
    return (kl + model.decode(z).abs().sum(-1)).amax(0).detach()


def lost_noise(model: VAE, x: Tensor, eps: Tensor) -> Tensor:
    """What the rounding of z may cost log q(z | x), in nats, [B].

    It moves z by U |z|, which is U |z| / sigma in the units of eps. Where that is more than eps
    itself, z equals mu or a neighbour of it: eps is lost, and with it up to 2 eps^2.
    """
    mu, log_var = model.encode(x)
    moved = U * reparametrize(mu, log_var, eps).abs() / torch.exp(log_var / 2)
    return torch.minimum(moved * (eps.abs() + moved), 2 * eps.square()).sum(-1).amax(0).detach()


def factor(sizes: tuple) -> int:
    """exp turns an error of log_var of 60 U into a relative one; in training log_var is small."""
    return 8 if sizes in (RANGES["at the start"], RANGES["while training"]) else 64


@each_range
def test_bounds_in_float32_follow_float64(sizes, x, eps):
    """Within 8 U of the sum of the absolute terms while training, and 64 U past it."""
    model = scaled_vae(*sizes)
    twin, x64, eps64 = in_double(model), x.double(), eps.double()
    allowed = factor(sizes) * U * size_of_terms(twin, x64, eps64)
    lost = lost_noise(twin, x64, eps64)
    for kl, error in (("analytic", allowed), ("sampled", allowed + lost)):
        found = elbo(model, x, eps=eps, kl=kl).value
        expected = elbo(twin, x64, eps=eps64, kl=kl).value
        assert found.dtype == torch.float32
        assert ((found - expected).abs() <= error).all(), (found, expected, error)
    found = iwae_bound(model, x, num_samples=K, eps=eps)
    expected = iwae_bound(twin, x64, num_samples=K, eps=eps64)
    assert ((found - expected).abs() <= allowed + lost).all(), (found, expected)


@each_range
def test_log_likelihood_in_float32_follows_float64(sizes, x):
    model = scaled_vae(*sizes)
    twin = in_double(model)
    found = log_likelihood(model, x, num_samples=K, generator=torch.Generator().manual_seed(5))
    eps = torch.randn(K, B, L, generator=torch.Generator().manual_seed(5)).double()
    weights = importance_log_weights(twin, x.double(), num_samples=K, eps=eps)
    expected = torch.logsumexp(weights, 0) - math.log(K)
    allowed = factor(sizes) * U * size_of_terms(twin, x.double(), eps)
    allowed = allowed + lost_noise(twin, x.double(), eps)
    assert ((found.value - expected).abs() <= allowed).all(), (found.value, expected, allowed)
    assert found.effective_sample_size.isfinite().all()
    assert found.standard_error.isfinite().all()


@each_range
@pytest.mark.parametrize("kl", ["analytic", "sampled"])
def test_gradients_of_the_elbo_in_float32_are_finite_and_follow_float64(sizes, kl, x, eps):
    """Of each layer, relative to its norm: 1e-4 while training, 1e-2 far past it."""
    gradients = []
    model = scaled_vae(*sizes)
    for network, dtype in ((model, torch.float32), (in_double(model), torch.float64)):
        value = elbo(network, x.to(dtype), eps=eps.to(dtype), kl=kl).value.sum()
        gradients.append(torch.autograd.grad(value, list(network.parameters())))
    tolerance = 1e-4 if factor(sizes) == 8 else 1e-2
    for (name, _), found, expected in zip(model.named_parameters(), *gradients, strict=True):
        assert found.isfinite().all(), name
        error = torch.linalg.vector_norm(found - expected)
        size = torch.linalg.vector_norm(expected)
        assert error <= tolerance * size + 1e-4, f"{name}: {error:g} of {size:g}"


def by_hand(model: VAE, x: Tensor, eps: Tensor) -> list[dict[str, mpmath.mpf]]:
    """ELBO and importance-weighted bound of each example at 50 digits, from the definitions."""
    w = {name: mpmath.matrix(p.detach().tolist()) for name, p in model.named_parameters()}

    def layer(name, h):
        return w[f"{name}.weight"] * h + w[f"{name}.bias"]

    results = []
    for b in range(len(x)):
        h = layer("encoder.hidden", mpmath.matrix(x[b].tolist())).apply(mpmath.tanh)
        mu, log_var = layer("encoder.mu", h), layer("encoder.log_var", h)
        log_joint, log_q = [], []
        reconstructions = []
        for k in range(len(eps)):
            e = exact(eps[k, b])
            z = mpmath.matrix([m + mpmath.exp(v / 2) * n for m, v, n in zip(mu, log_var, e)])
            logits = layer("decoder.logits", layer("decoder.hidden", z).apply(mpmath.tanh))
            pixels = zip(exact(x[b]), logits)
            reconstructions.append(sum(p * a - mpmath.log1p(mpmath.exp(a)) for p, a in pixels))
            constant = L * mpmath.log(2 * mpmath.pi)
            log_joint.append(reconstructions[-1] - (constant + sum(c**2 for c in z)) / 2)
            log_q.append(-(constant + sum(log_var) + sum(n**2 for n in e)) / 2)
        kl = sum(m**2 + curve(v) for m, v in zip(mu, log_var)) / 2
        weights = [mpmath.exp(p - q) for p, q in zip(log_joint, log_q)]
        results.append(
            {
                "analytic": sum(reconstructions) / len(eps) - kl,
                "sampled": (sum(log_joint) - sum(log_q)) / len(eps),
                "iwae": mpmath.log(sum(weights) / len(eps)),
            }
        )
    return results


@each_range
def test_bounds_in_float64_agree_with_fifty_digits(sizes, x, eps):
    """The reference of the tests above, within the same multiples of float64's own U."""
    model = in_double(scaled_vae(*sizes))
    x, eps = x.double(), eps.double()
    found = {
        "analytic": elbo(model, x, eps=eps).value,
        "sampled": elbo(model, x, eps=eps, kl="sampled").value,
        "iwae": iwae_bound(model, x, num_samples=K, eps=eps),
    }
    u = torch.finfo(torch.float64).eps
    allowed = factor(sizes) * u * size_of_terms(model, x, eps) + lost_noise(model, x, eps) * u / U
    truth = by_hand(model, x, eps)
    for kind, values in found.items():
        assert_within(values, [row[kind] for row in truth], allowed.tolist())


# --- gradients by finite differences -------------------------------------------------------------


def bound_of_parameters(bound):
    """The bound as a function of x and of a small VAE's parameters, and those parameters."""
    model = seeded_vae(1, data_dim=4, hidden_dim=3, latent_dim=2).double()
    names = [name for name, _ in model.named_parameters()]

    class Call(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return bound(self.model, x)

    call = Call()

    def function(x, *parameters):
        given = dict(zip((f"model.{name}" for name in names), parameters, strict=True))
        return functional_call(call, given, (x,))

    parameters = [p.detach().clone().requires_grad_() for p in model.parameters()]
    return function, parameters


NOISE = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
BOUNDS = {
    "elbo": lambda model, x: elbo(model, x, eps=NOISE).value,
    "elbo with sampled KL": lambda model, x: elbo(model, x, eps=NOISE, kl="sampled").value,
    "iwae_bound": lambda model, x: iwae_bound(model, x, num_samples=3, eps=NOISE),
}


@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
def test_derivatives_of_bounds_by_data_and_parameters_agree_with_finite_differences(bound):
    function, parameters = bound_of_parameters(bound)
    x = torch.tensor([[0.2, 0.7, 0.4, 0.9], [0.6, 0.1, 0.8, 0.3]], dtype=torch.float64)
    arguments = (x.requires_grad_(), *parameters)
    assert gradcheck(function, arguments)
    assert gradgradcheck(function, arguments, fast_mode=True)


def symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


def test_second_derivatives_of_kl_full_agree_with_finite_differences(generator):
    mu_q, mu_p = torch.randn(2, 2, generator=generator, dtype=torch.float64)
    cov_q, cov_p = (correlated(2, 0.0, seed).double() for seed in (0, 1))
    arguments = [part.clone().requires_grad_() for part in (mu_q, cov_q, mu_p, cov_p)]

    def function(mu_q, cov_q, mu_p, cov_p):
        return kl_full(mu_q, symmetric(cov_q), mu_p, symmetric(cov_p))

    assert gradgradcheck(function, arguments, rtol=1e-2, atol=1e-3)


ORACLE = {
    "log_evidence": lambda model, x, z, mu, log_var: model.log_evidence(x),
    "posterior": lambda model, x, z, mu, log_var: model.posterior(x),
    "encode": lambda model, x, z, mu, log_var: model.encode(x),
    "log_prior": lambda model, x, z, mu, log_var: model.log_prior(z),
    "log_likelihood": lambda model, x, z, mu, log_var: model.log_likelihood(x, z),
    "elbo": lambda model, x, z, mu, log_var: model.elbo(x, mu, log_var),
}


@pytest.mark.parametrize("method", ORACLE.values(), ids=ORACLE)
def test_derivatives_of_the_oracle_agree_with_finite_differences(method, generator):
    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    def function(weight, bias, noise_var, *others):
        return method(LinearGaussianModel(weight, bias, noise_var), *others)

    noise_var = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    model = (draw(3, 2), draw(3), noise_var)
    others = (draw(2, 3), draw(2, 2), draw(2, 2), draw(2, 2))
    assert gradcheck(function, (*model, *others))
    assert gradgradcheck(function, (*model, *others), fast_mode=True)
