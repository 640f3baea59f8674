"""The equations of the chapter on the bound, each line evaluated on the oracle to 1e-10.

`rejects` runs the same comparison with a plausible wrong version, which must fail it.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Cauchy, MultivariateNormal, Normal
from torch.testing import assert_close

from vaelib import (
    LinearGaussianModel,
    elbo,
    gaussian_log_prob,
    iwae_bound,
    kl_full,
    kl_standard_normal,
    reparametrize,
)

LINE = {"rtol": 0.0, "atol": 1e-10}


def f64(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


W = f64([[1.0, 0.8], [0.6, 1.1], [-0.2, 0.5]])
B, S2, X = f64([0.3, -0.2, 0.1]), 0.5, f64([1.2, -0.4, 0.8])
MU, LOG_VAR = f64([0.5, -0.3]), f64([-0.5, -1.2])


@pytest.fixture
def model() -> LinearGaussianModel:
    return LinearGaussianModel(W, B, S2)


@pytest.fixture
def line() -> LinearGaussianModel:
    """One latent and one datum: w = 1, s^2 = 0.5, and x = 1.5 below."""
    return LinearGaussianModel(f64([[1.0]]), f64([0.0]), 0.5)


X_LINE = f64([1.5])
V, M = 1 / 3, 1.0  # posterior variance and mean: v = 1 / (1 + w^2 / s^2), m = v w x / s^2
GRID = torch.linspace(-14, 14, 28_001, dtype=torch.float64)


class WithCode:
    """A model whose q is one given Gaussian, or one for each row of x."""

    def __init__(self, model, mu, log_var):
        self.code = mu, log_var
        self.log_prior, self.log_likelihood = model.log_prior, model.log_likelihood

    def encode(self, x):
        return tuple(part.expand(len(x), -1) for part in self.code)


def rejects(found, expected, tolerance=LINE) -> None:
    with pytest.raises(AssertionError):
        assert_close(found, expected, **tolerance)


def hermite(count: int = 8) -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.tensor(nodes), torch.tensor(weights / weights.sum())


def expectation(function, mu=MU, log_var=LOG_VAR) -> Tensor:
    """E_q over the latent plane, exact for polynomials of degree 15."""
    nodes, weights = hermite()
    eps = torch.cartesian_prod(nodes, nodes)
    return torch.cartesian_prod(weights, weights).prod(-1) @ function(
        reparametrize(mu, log_var, eps)
    )


def log_joint(model, z) -> Tensor:
    return model.log_prior(z) + model.log_likelihood(X, z)


def log_q(z) -> Tensor:
    return gaussian_log_prob(z, MU, LOG_VAR)


def posterior_of(model) -> MultivariateNormal:
    return MultivariateNormal(*model.posterior(X))


def log_weights_on_line(line, q: Normal) -> Tensor:
    z = GRID[:, None]
    return line.log_prior(z) + line.log_likelihood(X_LINE, z) - q.log_prob(GRID)


# --- the model ------------------------------------------------------------------------------------


@pytest.mark.equation("eq-elbo-posterior")
def test_posterior_is_the_normalized_joint_density(model):
    precision = torch.eye(2, dtype=torch.float64) + W.mT @ W / S2
    mean = torch.linalg.solve(precision, W.mT @ (X - B) / S2)
    z = 2 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = log_joint(model, z) - model.log_evidence(X)
    formula = MultivariateNormal(mean, precision_matrix=precision)
    assert_close(formula.log_prob(z), expected, **LINE)
    assert_close(posterior_of(model).log_prob(z), expected, **LINE)
    rejects(MultivariateNormal(mean, precision).log_prob(z), expected)
    rejects(MultivariateNormal(S2 * mean, precision_matrix=precision).log_prob(z), expected)


# --- the first route ------------------------------------------------------------------------------


@pytest.mark.equation("eq-elbo-importance")
@pytest.mark.parametrize(
    "q", [Normal(f64(0.2), f64(0.9)), Normal(f64(2.0), f64(0.7)), Cauchy(f64(0.0), f64(1.0))]
)
def test_weights_average_to_the_evidence_for_any_q_that_covers_the_posterior(line, q):
    log_w = log_weights_on_line(line, q)
    average = torch.trapezoid(q.log_prob(GRID).exp() * log_w.exp(), GRID)
    assert_close(average.log(), line.log_evidence(X_LINE), **LINE)
    upside_down = torch.trapezoid(q.log_prob(GRID).exp() * (-log_w).exp(), GRID)
    rejects(upside_down.log(), line.log_evidence(X_LINE))


@pytest.mark.equation("eq-elbo-importance")
def test_weights_average_to_less_where_q_misses_a_part_of_the_posterior(line):
    """q is uniform on an interval; the average is p(x) times the posterior's mass there."""
    low, high = 0.5, 2.5
    z = torch.linspace(low, high, 20_001, dtype=torch.float64)
    joint = (line.log_prior(z[:, None]) + line.log_likelihood(X_LINE, z[:, None])).exp()
    average = torch.trapezoid(joint, z)  # q w = joint on the interval
    posterior = Normal(f64(M), f64(V).sqrt())
    mass = posterior.cdf(f64(high)) - posterior.cdf(f64(low))
    expected = line.log_evidence(X_LINE).exp() * mass
    assert_close(average, expected, rtol=1e-8, atol=0)
    # and the bound still holds
    bound = torch.trapezoid((joint.log() + math.log(high - low)) / (high - low), z)
    assert bound < average.log() < line.log_evidence(X_LINE)


@pytest.mark.equation("eq-elbo-jensen")
def test_average_log_weight_lies_below_the_evidence_unless_q_is_the_posterior(model):
    bound = expectation(lambda z: log_joint(model, z) - log_q(z))
    assert_close(model.elbo(X, MU, LOG_VAR), bound, **LINE)
    assert bound < model.log_evidence(X) - 0.5
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        mu, log_var = torch.randn(2, 2, generator=generator, dtype=torch.float64)
        assert model.elbo(X, mu, log_var) < model.log_evidence(X)
    # equality: a model with orthogonal columns has a diagonal posterior
    orthogonal = LinearGaussianModel(torch.eye(3, 2).double() * f64([2.0, 0.5]), B, S2)
    at_posterior = orthogonal.elbo(X, *orthogonal.encode(X))
    assert_close(at_posterior, orthogonal.log_evidence(X), **LINE)


@pytest.mark.equation("eq-elbo-jensen")
def test_negative_of_the_bound_is_no_bound(model):
    """What the source calls the ELBO."""
    assert -model.elbo(X, MU, LOG_VAR) > model.log_evidence(X) + 1


# --- the second route -----------------------------------------------------------------------------


@pytest.mark.equation("eq-elbo-pointwise")
def test_log_weight_and_log_ratio_add_up_to_the_evidence_at_every_code(model):
    z = 3 * torch.randn(100, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    log_w = log_joint(model, z) - log_q(z)
    log_ratio = log_q(z) - posterior_of(model).log_prob(z)
    assert log_w.std() > 1
    assert_close(log_w + log_ratio, model.log_evidence(X).expand(100), **LINE)
    rejects(log_w - log_ratio, model.log_evidence(X).expand(100))


@pytest.mark.equation("eq-elbo-identity")
def test_bound_and_divergence_from_the_posterior_add_up_to_the_evidence(model):
    mean, cov = model.posterior(X)
    bound = expectation(lambda z: log_joint(model, z) - log_q(z))
    by_quadrature = expectation(lambda z: log_q(z) - posterior_of(model).log_prob(z))
    gap = kl_full(MU, LOG_VAR.exp().diag(), mean, cov)
    assert_close(gap, by_quadrature, **LINE)
    assert_close(bound + gap, model.log_evidence(X), **LINE)
    assert_close(model.elbo(X, MU, LOG_VAR) + gap, model.log_evidence(X), **LINE)
    rejects(bound + kl_full(mean, cov, MU, LOG_VAR.exp().diag()), model.log_evidence(X))
    rejects(bound + kl_standard_normal(MU, LOG_VAR), model.log_evidence(X))


@pytest.mark.equation("eq-elbo-gap")
def test_gap_on_the_line_is_the_closed_form_over_both_parameters(line):
    mu, sigma = torch.linspace(-1, 3, 9).double(), torch.linspace(0.1, 2, 7).double()[:, None]
    codes = torch.broadcast_tensors(mu, sigma)
    bound = line.elbo(X_LINE, codes[0][..., None], 2 * codes[1].log()[..., None])
    r = sigma**2 / V
    formula = (mu - M) ** 2 / (2 * V) + 0.5 * (r - 1 - r.log())
    assert_close(line.log_evidence(X_LINE) - bound, formula, **LINE)
    swapped = (mu - M) ** 2 / (2 * sigma**2) + 0.5 * (1 / r - 1 + r.log())
    rejects(line.log_evidence(X_LINE) - bound, swapped)
    density = Normal(mu[3], sigma[2])
    log_w = log_weights_on_line(line, density)
    integral = torch.trapezoid(density.log_prob(GRID).exp() * log_w, GRID)
    assert_close(line.log_evidence(X_LINE) - integral, formula[2, 3], **LINE)


# --- the third route ------------------------------------------------------------------------------


def log_mean_weights(line, count: int) -> Tensor:
    """L_K for q = N(0.2, 0.9^2) by the trapezoidal rule over K draws."""
    z = torch.linspace(-7.3, 7.7, 151, dtype=torch.float64)
    q = Normal(f64(0.2), f64(0.9))
    mass = q.log_prob(z).exp() * (z[1] - z[0])
    log_w = line.log_prior(z[:, None]) + line.log_likelihood(X_LINE, z[:, None]) - q.log_prob(z)
    total, weight = log_w, mass
    for _ in range(count - 1):
        total = torch.logaddexp(total[..., None], log_w)
        weight = weight[..., None] * mass
    return (weight * (total - math.log(count))).sum()


@pytest.mark.equation("eq-elbo-many-weights")
def test_bound_rises_with_the_number_of_weights_and_starts_at_the_elbo(line):
    code = f64([0.2]), f64([2 * math.log(0.9)])
    bounds = [log_mean_weights(line, count) for count in (1, 2, 3)]
    assert_close(bounds[0], line.elbo(X_LINE, *code), rtol=0, atol=1e-9)
    assert bounds[0] + 0.3 < bounds[1] < bounds[2] - 0.1
    assert bounds[2] < line.log_evidence(X_LINE)


@pytest.mark.false_alarm(2e-9)
@pytest.mark.equation("eq-elbo-many-weights")
@pytest.mark.parametrize("count", [1, 2, 3])
def test_library_draws_the_bound_without_bias(line, generator, count):
    """n = 40,000; 6.2 standard errors, estimated from the draws: a false alarm of 6e-10."""
    fixed = WithCode(line, f64([[0.2]]), f64([[2 * math.log(0.9)]]))
    found = iwae_bound(
        fixed, X_LINE.expand(40_000, 1), num_samples=count, generator=generator
    )
    error = found.std() / math.sqrt(len(found))
    assert (found.mean() - log_mean_weights(line, count)).abs() < 6.2 * error
    # logarithm of the sum, and mean of the logarithms
    if count > 1:
        wrong = log_mean_weights(line, count) + math.log(count)
        assert (found.mean() - wrong).abs() > 20 * error
        assert (found.mean() - log_mean_weights(line, 1)).abs() > 20 * error


@pytest.mark.equation("eq-elbo-weight-moment")
@pytest.mark.parametrize("mu, sigma", [(0.2, 0.9), (0.0, 1.0), (1.0, 0.5), (1.4, 0.45)])
def test_second_moment_of_the_weights_is_the_integral(line, mu, sigma):
    q = Normal(f64(mu), f64(sigma))
    width = 2 * sigma**2 - V
    formula = sigma**2 / math.sqrt(V * width) * math.exp((mu - M) ** 2 / width)
    relative = log_weights_on_line(line, q) - line.log_evidence(X_LINE)
    moment = torch.trapezoid(q.log_prob(GRID).exp() * (2 * relative).exp(), GRID)
    assert_close(f64(formula), moment, rtol=1e-9, atol=0)
    if mu != M:
        halved = sigma**2 / math.sqrt(V * width) * math.exp((mu - M) ** 2 / (2 * width))
        rejects(f64(halved), moment, {"rtol": 1e-3, "atol": 0})
    posterior = Normal(f64(M), f64(V).sqrt())
    chi_squared = torch.trapezoid((2 * posterior.log_prob(GRID) - q.log_prob(GRID)).exp(), GRID)
    assert_close(chi_squared, moment, rtol=1e-9, atol=0)


@pytest.mark.equation("eq-elbo-weight-moment")
def test_second_moment_is_infinite_for_a_narrow_q(line):
    """2 sigma^2 < v: the integrand grows without limit away from the centre."""
    q = Normal(f64(M), f64(0.9 * math.sqrt(V / 2)))
    log_integrand = q.log_prob(GRID) + 2 * log_weights_on_line(line, q)
    far = log_integrand[GRID > 2]
    assert (far.diff() > 0).all()


# --- two ways to write it -------------------------------------------------------------------------


@pytest.mark.equation("eq-elbo-reconstruction")
def test_reconstruction_less_divergence_is_the_bound(model):
    bound = expectation(lambda z: log_joint(model, z) - log_q(z))
    reconstruction = expectation(lambda z: model.log_likelihood(X, z))
    kl = expectation(lambda z: log_q(z) - model.log_prior(z))
    assert_close(kl, kl_standard_normal(MU, LOG_VAR), **LINE)
    assert_close(reconstruction - kl, bound, **LINE)
    rejects(reconstruction + kl, bound)
    # the library, with quadrature nodes as noise
    nodes, weights = hermite()
    eps = torch.cartesian_prod(nodes, nodes)
    weights = torch.cartesian_prod(weights, weights).prod(-1)
    for kind in ("analytic", "sampled"):
        parts = elbo(WithCode(model, MU, LOG_VAR), X.expand(64, 3), eps=eps[None], kl=kind)
        assert_close(weights @ parts.reconstruction, reconstruction, **LINE)
        assert_close(weights @ parts.kl, kl, **LINE)
        assert_close(weights @ parts.value, bound, **LINE)


@pytest.mark.equation("eq-elbo-energy")
def test_energy_plus_entropy_is_the_bound(model):
    bound = expectation(lambda z: log_joint(model, z) - log_q(z))
    entropy = math.log(2 * math.pi * math.e) + 0.5 * LOG_VAR.sum()
    covariance = LOG_VAR.exp().diag()
    assert_close(entropy, MultivariateNormal(MU, covariance).entropy(), **LINE)
    assert_close(entropy, -expectation(log_q), **LINE)
    energy = expectation(lambda z: log_joint(model, z))
    assert_close(energy + entropy, bound, **LINE)
    rejects(energy - entropy, bound)
    rejects(energy + 0.5 * math.log(2 * math.pi * math.e) + 0.5 * LOG_VAR.sum(), bound)


@pytest.mark.equation("eq-elbo-oracle")
def test_expected_log_likelihood_of_the_oracle_is_its_closed_form(model):
    formula = model.log_likelihood(X, MU) - (W.square().sum(0) / (2 * S2)) @ LOG_VAR.exp()
    expected = expectation(lambda z: model.log_likelihood(X, z))
    assert_close(formula, expected, **LINE)
    assert_close(model.elbo(X, MU, LOG_VAR) + kl_standard_normal(MU, LOG_VAR), expected, **LINE)
    rejects(model.log_likelihood(X, MU), expected)
    rows = model.log_likelihood(X, MU) - W.square().sum(0).mean() / (2 * S2) * LOG_VAR.exp().sum()
    rejects(rows, expected)


# --- why maximise ---------------------------------------------------------------------------------


@pytest.mark.equation("eq-elbo-fisher-identity")
def test_gradient_of_the_evidence_is_the_average_gradient_of_the_joint_under_the_posterior():
    """Also with a posterior that no diagonal q reaches: nodes are drawn through its Cholesky factor."""

    def build(parameters):
        weight, bias, log_noise = parameters
        return LinearGaussianModel(weight, bias, log_noise.exp())

    parameters = [p.clone().requires_grad_() for p in (W, B, f64(S2).log())]
    evidence = build(parameters).log_evidence(X)
    expected = torch.autograd.grad(evidence, parameters)

    mean, cov = (part.detach() for part in build(parameters).posterior(X))
    nodes, weights = hermite()
    weights = torch.cartesian_prod(weights, weights).prod(-1)
    z = mean + torch.cartesian_prod(nodes, nodes) @ torch.linalg.cholesky(cov).mT
    average = weights @ log_joint(build(parameters), z)
    for found, value in zip(torch.autograd.grad(average, parameters), expected):
        assert_close(found, value, **LINE)

    # under another q it is another gradient
    elsewhere = expectation(lambda z: log_joint(build(parameters), z))
    for found, value in zip(torch.autograd.grad(elsewhere, parameters), expected):
        rejects(found, value, {"rtol": 0.0, "atol": 1e-3})


@pytest.mark.equation("eq-elbo-fisher-identity")
def test_gradient_of_the_bound_at_the_posterior_is_that_of_the_evidence(line):
    def gradient(objective):
        weight = f64([[1.0]]).requires_grad_()
        value = objective(LinearGaussianModel(weight, f64([0.0]), 0.5))
        return torch.autograd.grad(value, weight)[0]

    truth = gradient(lambda model: model.log_evidence(X_LINE))
    at_posterior = gradient(lambda model: model.elbo(X_LINE, f64([M]), f64([math.log(V)])))
    off = gradient(lambda model: model.elbo(X_LINE, f64([0.2]), f64([-0.2])))
    assert_close(at_posterior, truth, **LINE)
    rejects(off, truth, {"rtol": 0.0, "atol": 0.1})


# --- two gaps -------------------------------------------------------------------------------------


@pytest.mark.equation("eq-elbo-gaps")
def test_gap_of_an_encoder_is_approximation_gap_plus_amortisation_gap(model):
    """The best member of the family is found here by optimisation, not by the closed form."""
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    encoder_mu, encoder_log_var = torch.tanh(x[:, :2]), -0.5 * torch.ones(6, 2).double()
    mu, log_var = (torch.zeros(6, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    tolerances = {"tolerance_grad": 1e-12, "tolerance_change": 1e-16}
    optimizer = torch.optim.LBFGS(
        [mu, log_var], max_iter=300, line_search_fn="strong_wolfe", **tolerances
    )

    def loss():
        optimizer.zero_grad()
        value = -model.elbo(x, mu, log_var).sum()
        value.backward()
        return value

    optimizer.step(loss)
    best = model.elbo(x, mu, log_var).detach()
    assert_close(best, model.elbo(x, *model.encode(x)), **LINE)
    reached = model.elbo(x, encoder_mu, encoder_log_var)
    approximation, amortisation = model.log_evidence(x) - best, best - reached
    mean, cov = model.posterior(x)
    total = kl_full(encoder_mu, encoder_log_var.exp().diag_embed(), mean, cov)
    assert_close(approximation + amortisation, total, **LINE)
    assert (approximation > 0.1).all() and (amortisation > 0).all()
    assert amortisation.std() > 0.05 and approximation.std() < 1e-9


@pytest.mark.equation("eq-elbo-approximation-gap")
def test_approximation_gap_is_the_closed_form_for_every_x(model):
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    precision = torch.eye(2, dtype=torch.float64) + W.mT @ W / S2
    formula = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
    found = model.log_evidence(x) - model.elbo(x, *model.encode(x))
    assert_close(found, formula.expand(6), **LINE)
    std = precision.diagonal().sqrt()
    rescaled = -0.5 * torch.logdet(precision / std / std[:, None])
    assert_close(rescaled, formula, **LINE)
    mean, cov = model.posterior(x)
    marginal = kl_full(mean, cov.diagonal().diag().expand(6, 2, 2), mean, cov)
    rejects(marginal, found)
    assert (marginal > formula + 0.05).all()
    orthogonal = LinearGaussianModel(torch.eye(3, 2).double(), B, S2)
    assert_close(orthogonal.elbo(x, *orthogonal.encode(x)), orthogonal.log_evidence(x), **LINE)


# --- noise ----------------------------------------------------------------------------------------


@pytest.mark.equation("eq-elbo-zero-variance")
def test_every_single_draw_gives_the_evidence_at_the_posterior(generator):
    orthogonal = LinearGaussianModel(torch.eye(3, 2).double() * f64([2.0, 0.5]), B, S2)
    x = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    sampled = elbo(orthogonal, x, generator=generator, kl="sampled").value
    assert_close(sampled, orthogonal.log_evidence(x), **LINE)
    bound = iwae_bound(orthogonal, x, num_samples=7, generator=generator)
    assert_close(bound, orthogonal.log_evidence(x), **LINE)
    analytic = elbo(orthogonal, x, generator=generator, kl="analytic").value
    assert (analytic - orthogonal.log_evidence(x)).std() > 0.1


@pytest.mark.equation("eq-elbo-zero-variance")
def test_draws_differ_where_q_is_not_the_posterior(model, generator):
    values = elbo(model, X.expand(200, 3), generator=generator, kl="sampled").value
    assert values.std() > 0.1


@pytest.mark.equation("eq-elbo-variances")
@pytest.mark.parametrize("mu, sigma", [(0.2, 0.9), (1.0, 0.3), (-0.5, 1.4), (1.0, 1 / 3**0.5)])
def test_variances_of_both_estimates_are_those_of_quadrature(line, mu, sigma):
    w, x, s2 = 1.0, 1.5, 0.5
    formulas = {
        "sampled": (mu - M) ** 2 * sigma**2 / V**2 + 0.5 * (1 - sigma**2 / V) ** 2,
        "analytic": (x - w * mu) ** 2 * w**2 * sigma**2 / s2**2 + w**4 * sigma**4 / (2 * s2**2),
    }
    nodes, weights = hermite()
    code = WithCode(line, f64([[mu]]), f64([[2 * math.log(sigma)]]))
    for kind, formula in formulas.items():
        found = elbo(code, X_LINE.expand(8, 1), eps=nodes[None, :, None], kl=kind).value
        variance = weights @ (found - weights @ found) ** 2
        assert_close(f64(formula), variance, **LINE)
    assert abs(formulas["sampled"] - formulas["analytic"]) > 1e-3  # so neither passes for the other


# --- exercises ------------------------------------------------------------------------------------


@pytest.mark.equation("eq-elbo-support")
@pytest.mark.parametrize("low, high", [(0.4, 1.6), (1.0, 3.0)])
def test_best_q_on_a_set_loses_the_logarithm_of_the_mass_outside(line, low, high):
    z = torch.linspace(low, high, 20_001, dtype=torch.float64)
    log_p = line.log_prior(z[:, None]) + line.log_likelihood(X_LINE, z[:, None])
    posterior = Normal(f64(M), f64(V).sqrt())
    mass = posterior.cdf(f64(high)) - posterior.cdf(f64(low))
    expected = line.log_evidence(X_LINE) + mass.log()

    def bound(log_density):
        log_density = log_density - torch.trapezoid(log_density.exp(), z).log()
        return torch.trapezoid(log_density.exp() * (log_p - log_density), z)

    assert_close(bound(log_p), expected, rtol=0, atol=1e-7)
    for tilt in (-1.0, -0.2, 0.3, 1.0):
        assert bound(log_p + tilt * z) < expected - 1e-4


@pytest.mark.equation("eq-elbo-upper")
def test_average_log_weight_under_the_posterior_is_an_upper_bound(model):
    mean, cov = model.posterior(X)
    nodes, weights = hermite()
    weights = torch.cartesian_prod(weights, weights).prod(-1)
    z = mean + torch.cartesian_prod(nodes, nodes) @ torch.linalg.cholesky(cov).mT
    upper = weights @ (log_joint(model, z) - log_q(z))
    divergence = kl_full(mean, cov, MU, LOG_VAR.exp().diag())
    assert_close(upper, model.log_evidence(X) + divergence, **LINE)
    assert model.elbo(X, MU, LOG_VAR) < model.log_evidence(X) < upper
    rejects(model.log_evidence(X) + kl_full(MU, LOG_VAR.exp().diag(), mean, cov), upper)


@pytest.mark.equation("eq-elbo-oracle-gradient")
def test_gradient_of_the_bound_is_that_of_autograd(model):
    mu, log_var = MU.clone().requires_grad_(), LOG_VAR.clone().requires_grad_()
    integral = expectation(
        lambda z: log_joint(model, z) - gaussian_log_prob(z, mu, log_var), mu, log_var
    )
    expected = torch.autograd.grad(integral, (mu, log_var))
    precision = torch.eye(2, dtype=torch.float64) + W.mT @ W / S2
    mean, _ = model.posterior(X)
    formula = -precision @ (MU - mean), 0.5 * (1 - precision.diagonal() * LOG_VAR.exp())
    for found, library, value in zip(formula, model.elbo_gradient(X, MU, LOG_VAR), expected):
        assert_close(found, value, **LINE)
        assert_close(library, value, **LINE)
    rejects(-(MU - mean) * precision.diagonal(), expected[0])
    rejects(2 * formula[1], expected[1])
