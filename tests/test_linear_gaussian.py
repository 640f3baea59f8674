"""The oracle: evidence, posterior, best diagonal code, ELBO and gradient by independent routes."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from torch.testing import assert_close

from vaelib import LinearGaussianModel, gaussian_log_prob, kl_full, kl_standard_normal, reparametrize

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def normals(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def f64(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def oracle(data: int = 5, latent: int = 2, noise_var: float = 0.4, seed: int = 0):
    return LinearGaussianModel(
        normals(data, latent, seed=seed), normals(data, seed=seed + 1), noise_var
    )


MODELS = {
    "5 data, 2 latents": dict(data=5, latent=2),
    "more latents than data": dict(data=2, latent=4, seed=10),
    "one and one": dict(data=1, latent=1, seed=20),
    "little noise": dict(data=6, latent=3, noise_var=1e-4, seed=30),
}


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def model(request) -> LinearGaussianModel:
    return oracle(**request.param)


def data_of(model: LinearGaussianModel, count: int = 3, seed: int = 7) -> Tensor:
    return 2 * normals(count, model.weight.shape[0], seed=seed)


def codes_of(model: LinearGaussianModel, *leading: int, seed: int = 8) -> Tensor:
    return normals(*leading, model.weight.shape[1], seed=seed)


def plane(model: LinearGaussianModel, x: Tensor, half_width: float = 14) -> tuple[Tensor, float]:
    """A grid over the two-dimensional latent space, about the posterior of x, and its cell."""
    mean, cov = model.posterior(x)
    widths = torch.linalg.eigvalsh(cov).max().sqrt() * half_width
    axes = [m + widths * torch.linspace(-1, 1, 501, dtype=torch.float64) for m in mean]
    return torch.cartesian_prod(*axes), math.prod((axis[1] - axis[0]).item() for axis in axes)


def hermite_plane(count: int = 10) -> tuple[Tensor, Tensor]:
    """Standard normal nodes [count^2, 2] and weights: exact for polynomials of degree 2 count - 1."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    nodes, weights = torch.tensor(nodes), torch.tensor(weights / weights.sum())
    return torch.cartesian_prod(nodes, nodes), torch.cartesian_prod(weights, weights).prod(-1)


# --- evidence and posterior ---------------------------------------------------------------------


def marginal(model: LinearGaussianModel, noise: float | None = None) -> MultivariateNormal:
    noise = model.noise_var if noise is None else noise
    identity = torch.eye(model.weight.shape[0], dtype=torch.float64)
    return MultivariateNormal(model.bias, model.weight @ model.weight.mT + noise * identity)


def test_evidence_is_the_marginal_normal_density(model):
    x = data_of(model)
    assert_close(model.log_evidence(x), marginal(model).log_prob(x), rtol=1e-10, atol=1e-10)


def test_evidence_is_the_integral_of_the_joint_over_the_latent_plane():
    model = oracle()
    for x in data_of(model):
        z, cell = plane(model, x)
        log_joint = model.log_likelihood(x, z) + model.log_prior(z)
        integral = torch.logsumexp(log_joint, 0) + math.log(cell)
        assert_close(integral, model.log_evidence(x), rtol=0, atol=1e-10)


def test_exponential_of_the_evidence_integrates_to_one_over_the_data():
    model = LinearGaussianModel(normals(1, 3), normals(1, seed=1), 0.4)
    x = torch.linspace(-40, 40, 20_001, dtype=torch.float64)
    mass = torch.trapezoid(model.log_evidence(x[:, None]).exp(), x)
    assert_close(mass, torch.tensor(1.0, dtype=torch.float64), rtol=0, atol=1e-12)


def test_bayes_rule_holds_at_every_code(model):
    """log p(x|z) + log p(z) - log p(z|x) is log p(x), whatever z."""
    x, z = data_of(model), codes_of(model, 6, 3)
    mean, cov = model.posterior(x)
    log_posterior = MultivariateNormal(mean, cov).log_prob(z)
    found = model.log_likelihood(x, z) + model.log_prior(z) - log_posterior
    assert_close(found, model.log_evidence(x).expand(6, 3), rtol=1e-10, atol=1e-9)


def test_posterior_has_the_moments_of_the_normalized_joint():
    model = oracle()
    x = data_of(model)[0]
    z, cell = plane(model, x)
    weights = (model.log_likelihood(x, z) + model.log_prior(z) - model.log_evidence(x)).exp() * cell
    mean, cov = model.posterior(x)
    assert_close(weights @ z, mean, rtol=0, atol=1e-10)
    centred = z - mean
    assert_close(centred.mT * weights @ centred, cov, rtol=0, atol=1e-10)


def test_likelihood_and_prior_agree_with_torch_distributions(model):
    x, z = data_of(model), codes_of(model, 6, 3)
    decoded = z @ model.weight.mT + model.bias
    expected = Normal(decoded, model.noise_var.sqrt()).log_prob(x).sum(-1)
    assert_close(model.log_likelihood(x, z), expected, **EXACT)
    assert_close(model.log_prior(z), Normal(0, 1).log_prob(z).sum(-1), **EXACT)


# --- the best diagonal code ---------------------------------------------------------------------


def divergence_to_posterior(model, x, mu, log_var) -> Tensor:
    mean, cov = model.posterior(x)
    return kl_full(mu, log_var.exp().diag_embed(), mean, cov)


def test_encode_minimizes_the_divergence_over_all_diagonal_gaussians(model):
    """Newton's method from elsewhere ends at encode(x): the divergence is convex in (mu, log_var)."""
    x = data_of(model, 1)
    size = model.weight.shape[1]
    point = torch.cat([model.posterior(x)[0][0] + 0.1, torch.full((size,), -1.0, dtype=torch.float64)])
    scale = model.precision.diagonal().rsqrt()

    def objective(point):  # in units in which the noise level does not matter
        mu, log_var = point[:size] * scale, point[size:] + 2 * scale.log()
        precision = model.precision
        centred = mu - model.posterior(x)[0][0]
        quadratic = centred @ precision @ centred + precision.diagonal() @ log_var.exp()
        return 0.5 * (quadratic - log_var.sum())

    point[:size] /= scale
    for _ in range(30):
        hessian = torch.autograd.functional.hessian(objective, point)
        gradient = torch.autograd.functional.jacobian(objective, point)
        step = torch.linalg.solve(hessian, gradient)
        point = point - step / max(1.0, step.abs().max().item())
    mu, log_var = model.encode(x)
    assert_close(point[:size] * scale, mu[0], rtol=1e-9, atol=1e-9)
    assert_close(point[size:] + 2 * scale.log(), log_var[0], rtol=1e-9, atol=1e-9)


def test_encode_is_better_than_every_diagonal_neighbour(model):
    x = data_of(model)
    mu, log_var = model.encode(x)
    best = divergence_to_posterior(model, x, mu, log_var)
    for seed in range(20):
        step = 0.1 * model.precision.diagonal().rsqrt() * codes_of(model, 3, seed=seed)
        stretch = 0.1 * codes_of(model, 3, seed=seed + 50)
        assert (divergence_to_posterior(model, x, mu + step, log_var + stretch) > best).all()


def test_marginal_variances_of_the_posterior_are_a_worse_code_than_encode():
    """The diagonal of the covariance answers the other divergence, KL(p || q)."""
    model = LinearGaussianModel(f64([[1.0, 0.8], [0.3, 0.5]]), f64([0.2, -0.1]), 0.4)
    x = data_of(model)
    mu, log_var = model.encode(x)
    marginals = model.posterior_cov.diagonal().log().expand_as(mu)
    assert (marginals > log_var + 0.01).all()
    best = divergence_to_posterior(model, x, mu, log_var)
    assert (divergence_to_posterior(model, x, mu, marginals) > best + 1e-3).all()


def test_encode_is_the_posterior_where_the_columns_of_the_weight_are_orthogonal():
    orthogonal, _ = torch.linalg.qr(normals(6, 3))
    model = LinearGaussianModel(orthogonal * f64([3.0, 1.0, 0.2]), normals(6), 0.3)
    x = data_of(model)
    mu, log_var = model.encode(x)
    mean, cov = model.posterior(x)
    assert_close(mu, mean, **EXACT)
    assert_close(log_var.exp().diag_embed(), cov.expand(3, 3, 3), **EXACT)


# --- the ELBO and its gradient ------------------------------------------------------------------


def quadrature_elbo(model, x, mu, log_var) -> Tensor:
    """E_q[log p(x, z) - log q(z)]: a quadratic, which Gauss-Hermite nodes integrate exactly."""
    eps, weights = hermite_plane()
    z = reparametrize(mu, log_var, eps[:, None])
    log_weight = model.log_likelihood(x, z) + model.log_prior(z) - gaussian_log_prob(z, mu, log_var)
    return weights @ log_weight


def check_elbo(elbo) -> None:
    model = oracle()
    x, mu, log_var = data_of(model), codes_of(model, 3), codes_of(model, 3, seed=9)
    found = elbo(model, x, mu, log_var)
    assert_close(found, quadrature_elbo(model, x, mu, log_var), **EXACT)
    gap = divergence_to_posterior(model, x, mu, log_var)
    assert_close(found + gap, model.log_evidence(x), **EXACT)


def test_elbo_is_the_quadrature_and_the_evidence_less_the_divergence_to_the_posterior():
    check_elbo(LinearGaussianModel.elbo)


def spread(model, log_var) -> Tensor:
    return 0.5 * (model.weight.square().sum(0) / model.noise_var * log_var.exp()).sum(-1)


WRONG_ELBOS = {
    "negative": lambda model, x, m, v: -model.elbo(x, m, v),
    "divergence added": lambda model, x, m, v: model.elbo(x, m, v) + 2 * kl_standard_normal(m, v),
    "no divergence": lambda model, x, m, v: model.elbo(x, m, v) + kl_standard_normal(m, v),
    "likelihood at the mean": lambda model, x, m, v: model.elbo(x, m, v) + spread(model, v),
    "half of the spread is missing": lambda model, x, m, v: model.elbo(x, m, v) - spread(model, v),
    "log_var taken for log sigma": lambda model, x, m, v: model.elbo(x, m, 2 * v),
    "divergence swapped": lambda model, x, m, v: (
        model.elbo(x, m, v)
        + kl_standard_normal(m, v)
        - kl_divergence(Normal(m * 0, 1), Normal(m, (v / 2).exp())).sum(-1)
    ),
    "evidence itself": lambda model, x, m, v: model.log_evidence(x),
}


@pytest.mark.parametrize("name", WRONG_ELBOS)
def test_wrong_elbos_are_rejected(name):
    with pytest.raises(AssertionError):
        check_elbo(WRONG_ELBOS[name])


def test_elbo_never_exceeds_the_evidence_and_touches_it_only_at_the_posterior(model):
    x = data_of(model)
    for seed in range(20):
        mu, log_var = codes_of(model, 3, seed=seed), codes_of(model, 3, seed=seed + 30)
        assert (model.elbo(x, mu, log_var) < model.log_evidence(x)).all()


def test_elbo_at_the_best_code_lies_below_the_evidence_by_the_lost_correlation(model):
    """The gap is (sum log P_ii - log det P) / 2, the same for all x."""
    x = data_of(model)
    gap = 0.5 * (model.precision.diagonal().log().sum() - torch.logdet(model.precision))
    found = model.log_evidence(x) - model.elbo(x, *model.encode(x))
    assert_close(found, gap.expand(3), rtol=1e-8, atol=1e-8)


def check_gradient(gradient) -> None:
    model = oracle()
    x, mu, log_var = data_of(model), codes_of(model, 3), codes_of(model, 3, seed=9)
    mu.requires_grad_(), log_var.requires_grad_()
    by_elbo = torch.autograd.grad(model.elbo(x, mu, log_var).sum(), (mu, log_var))
    by_quadrature = torch.autograd.grad(
        quadrature_elbo(model, x, mu, log_var).sum(), (mu, log_var)
    )
    found = gradient(model, x, mu.detach(), log_var.detach())
    for part, first, second in zip(found, by_elbo, by_quadrature):
        assert_close(part, first, **EXACT)
        assert_close(part, second, rtol=1e-11, atol=1e-11)


def test_elbo_gradient_is_that_of_autograd_and_of_quadrature():
    check_gradient(LinearGaussianModel.elbo_gradient)


def altered(mu_part, log_var_part):
    def gradient(model, x, mu, log_var):
        grad_mu, grad_log_var = model.elbo_gradient(x, mu, log_var)
        return mu_part(grad_mu), log_var_part(grad_log_var)

    return gradient


WRONG_GRADIENTS = {
    "sign": altered(torch.neg, torch.neg),
    "with respect to log sigma": altered(torch.clone, lambda g: 2 * g),
    "one half forgotten": altered(lambda g: g / 2, torch.clone),
    "only the diagonal of the precision": lambda model, x, m, v: (
        -(m - model.posterior(x)[0]) * model.precision.diagonal(),
        model.elbo_gradient(x, m, v)[1],
    ),
    "marginal variances": lambda model, x, m, v: (
        model.elbo_gradient(x, m, v)[0],
        0.5 * (1 - v.exp() / model.posterior_cov.diagonal()),
    ),
}


@pytest.mark.parametrize("name", WRONG_GRADIENTS)
def test_wrong_gradients_are_rejected(name):
    with pytest.raises(AssertionError):
        check_gradient(WRONG_GRADIENTS[name])


def test_gradient_vanishes_at_the_best_code(model):
    x = data_of(model)
    scale = model.precision.diagonal()
    for part in model.elbo_gradient(x, *model.encode(x)):
        assert (part.abs() / scale < 1e-12).all()


@pytest.mark.parametrize("mu, sigma", [(0.3, 0.8), (-1.1, 0.5), (2.0, 1.7)])
def test_one_dimensional_integrand_is_the_quadratic_derived_by_hand(mu, sigma):
    """A + B eps + C eps^2, with gradients -delta/v (mu) and 1/sigma - sigma/v (sigma)."""
    w, s2, x = 1.3, 0.6, 0.9
    model = LinearGaussianModel(f64([[w]]), f64([0.0]), s2)
    v = 1 / (1 + w**2 / s2)
    m_star = v * w * x / s2
    delta = mu - m_star
    data = f64([x])
    mean, cov = model.posterior(data)
    assert_close(mean, f64([m_star]), **EXACT)
    assert_close(cov, f64([[v]]), **EXACT)
    a = model.log_evidence(data) - math.log(v) / 2 + math.log(sigma) - delta**2 / (2 * v)
    b, c = -delta * sigma / v, 0.5 - sigma**2 / (2 * v)
    eps = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    code = f64([mu]), f64([2 * math.log(sigma)])
    z = reparametrize(*code, eps)
    log_weight = model.log_likelihood(data, z) + model.log_prior(z) - gaussian_log_prob(z, *code)
    assert_close(log_weight, a + b * eps[:, 0] + c * eps[:, 0] ** 2, **EXACT)
    assert_close(model.elbo(data, *code), a + c, **EXACT)
    grad_mu, grad_log_var = model.elbo_gradient(data, *code)
    assert_close(grad_mu, f64([-delta / v]), **EXACT)
    expected = f64([(1 / sigma - sigma / v) * sigma / 2])
    assert_close(grad_log_var, expected, **EXACT)


# --- wrong models -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, wrong",
    [
        ("noise_var taken for the standard deviation", lambda m: marginal(m, m.noise_var**2)),
        ("no noise in the marginal but the smallest", lambda m: marginal(m, 1e-3)),
        (
            "bias forgotten",
            lambda m: MultivariateNormal(0 * m.bias, marginal(m).covariance_matrix),
        ),
    ],
)
def test_wrong_marginals_are_rejected(name, wrong):
    model = oracle()
    x = data_of(model)
    with pytest.raises(AssertionError):
        assert_close(model.log_evidence(x), wrong(model).log_prob(x), rtol=1e-10, atol=1e-10)


# --- shapes, gradients, refusals ----------------------------------------------------------------


def test_leading_axes_broadcast_in_every_method():
    model = oracle()
    x, mu, log_var = data_of(model), codes_of(model, 4, 1), codes_of(model, 4, 3, seed=9)
    assert model.log_likelihood(x, codes_of(model, 6, 3)).shape == (6, 3)
    assert model.log_evidence(x.reshape(3, 1, 5)).shape == (3, 1)
    assert model.posterior(x[0])[0].shape == (2,)
    elbo = model.elbo(x, mu, log_var)
    parts = model.elbo_gradient(x, mu, log_var)
    swapped = model.elbo_gradient(x, log_var, mu)
    assert elbo.shape == (4, 3)
    assert all(part.shape == (4, 3, 2) for part in (*parts, *swapped))
    assert all(g.shape == (4, 2) for g in model.elbo_gradient(x[0], mu[0, 0], log_var[:, 0]))
    assert_close(elbo[2, 1], model.elbo(x[1], mu[2, 0], log_var[2, 1]), **EXACT)
    for part, row in zip(parts, model.elbo_gradient(x[1], mu[2, 0], log_var[2, 1])):
        assert_close(part[2, 1], row, **EXACT)


def test_float32_follows_float64():
    model = oracle()
    low = LinearGaussianModel(model.weight.float(), model.bias.float(), model.noise_var.item())
    x = data_of(model)
    for found, expected in [
        (low.log_evidence(x.float()), model.log_evidence(x)),
        (low.posterior(x.float())[0], model.posterior(x)[0]),
        (low.elbo(x.float(), *low.encode(x.float())), model.elbo(x, *model.encode(x))),
    ]:
        assert found.dtype == torch.float32
        assert_close(found.double(), expected, rtol=2e-5, atol=2e-5)


def test_evidence_is_differentiable_with_respect_to_the_parameters():
    weight, bias = normals(4, 2).requires_grad_(), normals(4, seed=1).requires_grad_()
    noise_var = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x = normals(3, 4, seed=2)
    assert gradcheck(lambda *p: LinearGaussianModel(*p).log_evidence(x), (weight, bias, noise_var))


def test_extreme_codes_and_data_give_finite_values_or_minus_infinity():
    for dtype in (torch.float32, torch.float64):
        model = LinearGaussianModel(normals(5, 2).to(dtype), normals(5).to(dtype), 1e-6)
        x = 1e6 * normals(3, 5).to(dtype)
        for size in (-60.0, 60.0):
            mu = torch.full((3, 2), 1e6, dtype=dtype, requires_grad=True)
            log_var = torch.full((3, 2), size, dtype=dtype, requires_grad=True)
            value = model.elbo(x, mu, log_var)
            assert (value < 0).all()
            for part in (
                *torch.autograd.grad(value.sum(), (mu, log_var)),
                *model.elbo_gradient(x, mu, log_var),
                model.log_evidence(x),
            ):
                assert not part.isnan().any()


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (dict(weight=torch.ones(3)), ValueError, r"weight must have shape \[D, L\], found \(3,\)"),
        (dict(weight=torch.ones(3, 0)), ValueError, r"weight must have shape .*found \(3, 0\)"),
        (dict(bias=torch.ones(2)), ValueError, r"bias must have shape \[3\].* found \(2,\)"),
        (dict(bias=torch.ones(3, 1)), ValueError, r"bias must have shape \[3\].* found \(3, 1\)"),
        (dict(noise_var=0.0), ValueError, "noise_var must be one positive finite number, found 0"),
        (dict(noise_var=-1), ValueError, "noise_var must be one positive finite number, found -1"),
        (dict(noise_var=math.nan), ValueError, "noise_var must be .* found nan"),
        (dict(noise_var=math.inf), ValueError, "noise_var must be .* found inf"),
        (dict(noise_var=torch.ones(3)), ValueError, "noise_var must be one positive"),
        (dict(weight=torch.full((3, 2), math.nan)), ValueError, "weight must be finite, found 6"),
        (dict(bias=torch.full((3,), math.inf)), ValueError, "bias must be finite, found 3 of 3"),
        (dict(weight=torch.full((3, 2), 1e30)), ValueError, r"I \+ weight.*must be finite"),
        (dict(weight=[[1.0]]), TypeError, "weight must be a torch.Tensor, found list"),
        (dict(weight=torch.ones(3, 2).long()), TypeError, "weight must be of a floating-point"),
        (dict(bias=torch.ones(3).double()), TypeError, "bias must be of weight's dtype"),
        (dict(noise_var="0.5"), TypeError, "noise_var must be a number, found str"),
        (dict(noise_var=None), TypeError, "noise_var must be a number, found NoneType"),
    ],
)
def test_bad_parameters_are_refused_by_name(arguments, error, message):
    good = dict(weight=torch.ones(3, 2).tril(), bias=torch.zeros(3), noise_var=0.5)
    LinearGaussianModel(**good)
    with pytest.raises(error, match="^" + message):
        LinearGaussianModel(**good | arguments)


METHODS = {
    "log_evidence": ["x"],
    "posterior": ["x"],
    "encode": ["x"],
    "log_prior": ["z"],
    "log_likelihood": ["x", "z"],
    "elbo": ["x", "mu", "log_var"],
    "elbo_gradient": ["x", "mu", "log_var"],
}


@pytest.mark.parametrize("method", METHODS)
def test_bad_data_and_codes_are_refused_by_name(method):
    model = oracle()
    good = {name: torch.ones(4, 5 if name == "x" else 2).double() for name in METHODS[method]}
    call = getattr(model, method)
    call(**good)
    for name, value in good.items():
        size = value.shape[-1]
        for bad in (value[:, :1], value[..., None], value.new_ones(()), value.new_ones(4, size + 1)):
            with pytest.raises(ValueError, match=rf"^{name} must have a last axis of {size} "):
                call(**good | {name: bad})
        with pytest.raises(ValueError, match=rf"^{name} must be finite, found {4 * size} of"):
            call(**good | {name: value * math.nan})
        with pytest.raises(TypeError, match=rf"^{name} must be of the model's dtype torch.float64"):
            call(**good | {name: value.float()})
        with pytest.raises(TypeError, match=rf"^{name} must be .*floating-point.*torch.int64"):
            call(**good | {name: value.long()})
        with pytest.raises(TypeError, match=rf"^{name} must be a torch.Tensor, found list"):
            call(**good | {name: value.tolist()})
        if len(good) > 1:
            with pytest.raises(ValueError, match=rf"^the leading axes must broadcast.*{name} \(7,\)"):
                call(**good | {name: value.new_ones(7, size)})
