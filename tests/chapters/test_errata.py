"""Wrong versions of central equations are rejected, and the errata's own equations hold.

Each row of MUTATIONS holds an equation as vaelib computes it, the truth by a second route, and
wrong versions that a reader has met in print or in code. One tolerance decides for all of them: the
equation must pass it and every wrong version must fail it, at a generic point with L > 1.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal, kl_divergence

from vaelib import (
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
    pathwise,
    reparametrize,
    score_function,
)
from vaelib.bounds import importance_log_weights


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# A generic point: nothing is zero or one, and no two entries agree.
MU, LOG_VAR = draw(0, 3), draw(1, 3)
MU_P, LOG_VAR_P = draw(2, 3), draw(3, 3)
Z, EPS = draw(4, 3), draw(5, 3)
VAR, STD = LOG_VAR.exp(), (LOG_VAR / 2).exp()
VAR_P = LOG_VAR_P.exp()
ROOT_Q, ROOT_P = draw(6, 3, 3), draw(7, 3, 3)
COV_Q = ROOT_Q @ ROOT_Q.mT + torch.eye(3)
COV_P = ROOT_P @ ROOT_P.mT + torch.eye(3)
PRECISION_P = torch.linalg.inv(COV_P)
PIXELS, LOGITS = (draw(8, 6) > 0).double(), draw(9, 6)
PROBS = torch.sigmoid(LOGITS)

ORACLE = LinearGaussianModel(draw(10, 4, 2), draw(11, 4), 0.6)
W, B, S2 = ORACLE.weight, ORACLE.bias, ORACLE.noise_var
C = W @ W.mT + S2 * torch.eye(4)
X = draw(12, 4)
MU_2, LOG_VAR_2 = draw(13, 2), draw(14, 2)
NOISE = draw(15, 5, 1, 2)  # [K, B, L]


def standard_kl(mu: Tensor, var: Tensor) -> Tensor:
    return 0.5 * (mu**2 + var - var.log() - 1).sum()


def log_normal(z: Tensor, mu: Tensor, var: Tensor) -> Tensor:
    return -0.5 * (math.log(2 * math.pi) + var.log() + (z - mu) ** 2 / var).sum(-1)


def hermite(dims: int, nodes: int = 40) -> tuple[Tensor, Tensor]:
    """Nodes [N, dims] and weights [N] for the expectation over a standard normal."""
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    x, w = torch.from_numpy(x), torch.from_numpy(w / math.sqrt(2 * math.pi))
    grid = torch.cartesian_prod(*[x] * dims).reshape(-1, dims)
    mass = torch.cartesian_prod(*[w] * dims).reshape(-1, dims).prod(1)
    return grid, mass


GRID, MASS = hermite(2)
CODES = MU_2 + (LOG_VAR_2 / 2).exp() * GRID
LOG_Q = log_normal(CODES, MU_2, LOG_VAR_2.exp())
LOG_LIK = log_normal(X, CODES @ W.mT + B, S2.expand(4))
LOG_PRIOR = log_normal(CODES, torch.zeros(2), torch.ones(2))
WEIGHTS = LOG_LIK + LOG_PRIOR - LOG_Q  # log w at the nodes
SCORE_MU = (CODES - MU_2) / LOG_VAR_2.exp()


def expect(values: Tensor) -> Tensor:
    """Expectation over q(z | x) of values at the nodes, [N] or [N, L]."""
    return MASS @ values


class Encoded:
    """The oracle with the q of this file, so that its bound is not tight."""

    log_prior, log_likelihood = ORACLE.log_prior, ORACLE.log_likelihood

    def encode(self, x):
        return MU_2.expand(len(x), 2), LOG_VAR_2.expand(len(x), 2)


MODEL = Encoded()
LOG_W = importance_log_weights(MODEL, X[None], eps=NOISE)[:, 0]


def central_difference(f: Callable[[Tensor], Tensor], at: Tensor, h: float = 1e-5) -> Tensor:
    gradient = torch.zeros_like(at)
    for i in range(at.numel()):
        step = torch.zeros_like(at).view(-1)
        step[i] = h
        step = step.view_as(at)
        gradient.view(-1)[i] = (f(at + step) - f(at - step)) / (2 * h)
    return gradient


def exact_elbo(weight: Tensor) -> Tensor:
    return LinearGaussianModel(weight, B, S2).elbo(X, MU_2, LOG_VAR_2)


def residuals(codes: Tensor) -> Tensor:
    return (X - B - codes @ W.mT) / S2


class Mutation(NamedTuple):
    equation: Callable[[], Tensor]
    truth: Callable[[], Tensor]
    wrong: dict[str, Callable[[], Tensor]]


MUTATIONS = {
    "kl_standard_normal": Mutation(
        lambda: kl_standard_normal(MU, LOG_VAR),
        lambda: kl_divergence(Normal(MU, STD), Normal(0.0, 1.0)).sum(),
        {
            "opposite sign": lambda: -standard_kl(MU, VAR),
            "without the half": lambda: 2 * standard_kl(MU, VAR),
            "standard deviation for variance": lambda: standard_kl(MU, STD),
            "without the constant": lambda: standard_kl(MU, VAR) + 1.5,
            "mean over latents": lambda: standard_kl(MU, VAR) / 3,
            "log sigma for log sigma^2": lambda: (
                0.5 * (MU**2 + VAR - LOG_VAR / 2 - 1).sum()
            ),
        },
    ),
    "kl_diagonal": Mutation(
        lambda: kl_diagonal(MU, LOG_VAR, MU_P, LOG_VAR_P),
        lambda: kl_divergence(Normal(MU, STD), Normal(MU_P, VAR_P.sqrt())).sum(),
        {
            "arguments swapped": lambda: kl_diagonal(MU_P, LOG_VAR_P, MU, LOG_VAR),
            "distance over the variance of q": lambda: (
                0.5 * ((MU - MU_P) ** 2 / VAR + VAR / VAR_P - (VAR / VAR_P).log() - 1).sum()
            ),
            "logarithm of the inverse ratio": lambda: (
                0.5 * ((MU - MU_P) ** 2 / VAR_P + VAR / VAR_P + (VAR / VAR_P).log() - 1).sum()
            ),
        },
    ),
    "kl_full": Mutation(
        lambda: kl_full(MU, COV_Q, MU_P, COV_P),
        lambda: kl_divergence(MultivariateNormal(MU, COV_Q), MultivariateNormal(MU_P, COV_P)),
        {
            "diagonals only": lambda: kl_diagonal(
                MU, COV_Q.diagonal().log(), MU_P, COV_P.diagonal().log()
            ),
            "arguments swapped": lambda: kl_full(MU_P, COV_P, MU, COV_Q),
            "determinants inverted": lambda: 0.5 * (
                (PRECISION_P @ COV_Q).trace() - 3 + (MU_P - MU) @ PRECISION_P @ (MU_P - MU)
                + COV_Q.logdet() - COV_P.logdet()
            ),
            "without minus L": lambda: kl_full(MU, COV_Q, MU_P, COV_P) + 1.5,
        },
    ),
    "gaussian_log_prob": Mutation(
        lambda: gaussian_log_prob(Z, MU, LOG_VAR),
        lambda: torch.tensor(
            multivariate_normal(MU.numpy(), np.diag(VAR.numpy())).logpdf(Z.numpy())
        ),
        {
            "2 pi once": lambda: log_normal(Z, MU, VAR) + math.log(2 * math.pi),
            "2 pi once too often for each latent": lambda: (
                log_normal(Z, MU, VAR) - 3 * math.log(2 * math.pi)
            ),
            "isotropic": lambda: log_normal(Z, MU, VAR.mean().expand(3)),
            "variance for standard deviation": lambda: log_normal(Z, MU, VAR**2),
            "z and mu of different examples": lambda: log_normal(Z.flip(0), MU, VAR),
        },
    ),
    "gaussian_score": Mutation(
        lambda: torch.stack(gaussian_score(Z, MU, LOG_VAR)),
        lambda: torch.stack(
            [
                central_difference(lambda m: log_normal(Z, m, VAR), MU),
                central_difference(lambda v: log_normal(Z, MU, v.exp()), LOG_VAR),
            ]
        ),
        {
            "gradient in z": lambda: torch.stack(
                [(MU - Z) / VAR, ((Z - MU) ** 2 / VAR - 1) / 2]
            ),
            "gradient in log sigma": lambda: torch.stack(
                [(Z - MU) / VAR, (Z - MU) ** 2 / VAR - 1]
            ),
            "without minus one": lambda: torch.stack(
                [(Z - MU) / VAR, (Z - MU) ** 2 / VAR / 2]
            ),
            "over the standard deviation": lambda: torch.stack(
                [(Z - MU) / STD, ((Z - MU) ** 2 / VAR - 1) / 2]
            ),
        },
    ),
    "reparametrize": Mutation(
        lambda: reparametrize(MU, LOG_VAR, EPS),
        lambda: MU + torch.distributions.Normal(0.0, STD).icdf(Normal(0.0, 1.0).cdf(EPS)),
        {
            "sigma^2 for sigma": lambda: MU + VAR * EPS,
            "log sigma^2 for log sigma": lambda: MU + LOG_VAR * EPS,
            "one draw for all latents": lambda: MU + STD * EPS[0],
            "noise alone": lambda: STD * EPS,
        },
    ),
    "bernoulli_log_prob": Mutation(
        lambda: bernoulli_log_prob(PIXELS, LOGITS),
        lambda: Independent(Bernoulli(probs=PROBS), 1).log_prob(PIXELS),
        {
            "log(1 - x~) in both terms": lambda: (
                PIXELS * (1 - PROBS).log() + (1 - PIXELS) * (1 - PROBS).log()
            ).sum(),
            "brackets missing": lambda: (
                (PIXELS * PROBS.log()).sum() - ((1 - PIXELS) * (1 - PROBS).log()).sum()
            ),
            "a loss": lambda: -bernoulli_log_prob(PIXELS, LOGITS),
            "mean over pixels": lambda: bernoulli_log_prob(PIXELS, LOGITS) / 6,
            "roles of x and 1 - x": lambda: bernoulli_log_prob(1 - PIXELS, LOGITS),
            "logits for probabilities": lambda: bernoulli_log_prob(PIXELS, PROBS),
        },
    ),
    "log_evidence": Mutation(
        lambda: ORACLE.log_evidence(X),
        lambda: MultivariateNormal(B, C).log_prob(X),
        {
            "noise as standard deviation": lambda: MultivariateNormal(
                B, W @ W.mT + S2**2 * torch.eye(4)
            ).log_prob(X),
            "without the noise of the prior": lambda: log_normal(X, B, S2.expand(4)),
            "at the best code": lambda: ORACLE.log_likelihood(X, ORACLE.posterior(X)[0]),
            "the ELBO for it": lambda: ORACLE.elbo(X, MU_2, LOG_VAR_2),
        },
    ),
    "posterior": Mutation(
        lambda: torch.cat([ORACLE.posterior(X)[0][None], ORACLE.posterior(X)[1]]),
        # conditioning of the joint Gaussian of z and x, another route than the precision
        lambda: torch.cat(
            [
                (W.mT @ torch.linalg.solve(C, X - B))[None],
                torch.eye(2) - W.mT @ torch.linalg.solve(C, W),
            ]
        ),
        {
            "pseudo-inverse": lambda: torch.cat(
                [(torch.linalg.pinv(W) @ (X - B))[None], ORACLE.posterior(X)[1]]
            ),
            "data not centred": lambda: torch.cat(
                [ORACLE.posterior(X + B)[0][None], ORACLE.posterior(X)[1]]
            ),
            "precision for covariance": lambda: torch.cat(
                [ORACLE.posterior(X)[0][None], ORACLE.precision]
            ),
            "prior left out": lambda: torch.cat(
                [
                    ORACLE.posterior(X)[0][None],
                    torch.linalg.inv(W.mT @ W / S2),
                ]
            ),
        },
    ),
    "elbo": Mutation(
        lambda: ORACLE.elbo(X, MU_2, LOG_VAR_2),
        lambda: expect(WEIGHTS),
        {
            "opposite sign": lambda: -expect(WEIGHTS),
            "prior forgotten": lambda: expect(LOG_LIK - LOG_Q),
            "KL added": lambda: expect(LOG_LIK) + standard_kl(MU_2, LOG_VAR_2.exp()),
            "KL left out": lambda: expect(LOG_LIK),
            "reconstruction at the mean code": lambda: (
                ORACLE.log_likelihood(X, MU_2) - standard_kl(MU_2, LOG_VAR_2.exp())
            ),
            "weighted KL": lambda: expect(LOG_LIK) - 2 * standard_kl(MU_2, LOG_VAR_2.exp()),
        },
    ),
    "elbo from draws": Mutation(
        lambda: elbo(MODEL, X[None], eps=NOISE, kl="sampled").value[0],
        lambda: LOG_W.mean(),
        {
            "analytic KL of another prior": lambda: (
                elbo(MODEL, X[None], eps=NOISE).reconstruction[0]
                - kl_standard_normal(MU_2 - 1, LOG_VAR_2)
            ),
            "sum over draws": lambda: LOG_W.sum(),
            "best draw": lambda: LOG_W.max(),
        },
    ),
    "iwae_bound": Mutation(
        lambda: iwae_bound(MODEL, X[None], num_samples=5, eps=NOISE)[0],
        lambda: LOG_W.exp().mean().log(),
        {
            "mean of the logarithms": lambda: LOG_W.mean(),
            "without 1 / K": lambda: torch.logsumexp(LOG_W, 0),
            "softmax of the loss": lambda: (torch.softmax(-LOG_W, 0) * LOG_W).sum(),
            "q left out of the weight": lambda: (
                LOG_W + log_normal(MU_2 + (LOG_VAR_2 / 2).exp() * NOISE[:, 0], MU_2,
                                   LOG_VAR_2.exp())
            ).exp().mean().log(),
        },
    ),
    "gradient in phi (score function)": Mutation(
        lambda: expect(
            score_function(
                lambda z: log_normal(X, z @ W.mT + B, S2.expand(4))
                + log_normal(z, torch.zeros(2), torch.ones(2))
                - log_normal(z, MU_2, LOG_VAR_2.exp()),
                MU_2, LOG_VAR_2, GRID,
            ).mu
        ),
        lambda: central_difference(lambda mu: ORACLE.elbo(X, mu, LOG_VAR_2), MU_2),
        {
            "opposite sign": lambda: -expect(WEIGHTS[:, None] * SCORE_MU),
            "divergence dropped": lambda: expect(LOG_LIK[:, None] * SCORE_MU),
            "prior dropped": lambda: expect((LOG_LIK - LOG_Q)[:, None] * SCORE_MU),
            "score of z": lambda: expect(WEIGHTS[:, None] * -SCORE_MU),
        },
    ),
    "gradient in phi (pathwise)": Mutation(
        lambda: expect(
            pathwise(
                lambda z: log_normal(X, z @ W.mT + B, S2.expand(4))
                + log_normal(z, torch.zeros(2), torch.ones(2))
                - log_normal(z, MU_2, LOG_VAR_2.exp()),
                MU_2, LOG_VAR_2, GRID,
            ).mu
        ),
        lambda: ORACLE.elbo_gradient(X, MU_2, LOG_VAR_2)[0],
        {
            "prior dropped": lambda: expect(residuals(CODES) @ W),
            "opposite sign": lambda: -expect(residuals(CODES) @ W - CODES),
            "path through the mean code": lambda: residuals(MU_2) @ W - 2 * MU_2,
        },
    ),
    "gradient in theta": Mutation(
        lambda: torch.autograd.functional.jacobian(exact_elbo, W),
        # E_q of the gradient of log p(x | z) in the weight, at the nodes
        lambda: (residuals(CODES) * MASS[:, None]).mT @ CODES,
        {
            "opposite sign": lambda: -(residuals(CODES) * MASS[:, None]).mT @ CODES,
            "at the mean code": lambda: torch.outer(residuals(MU_2), MU_2),
            "over the prior": lambda: (residuals(GRID) * MASS[:, None]).mT @ GRID,
            "noise variance left out": lambda: (
                S2 * (residuals(CODES) * MASS[:, None]).mT @ CODES
            ),
        },
    ),
    "log_likelihood": Mutation(
        lambda: log_likelihood(
            ORACLE_EXACT, X[None], num_samples=8, generator=torch.Generator().manual_seed(0)
        ).value[0],
        lambda: ORACLE_EXACT.log_evidence(X),  # q is the posterior: every weight is p(x)
        {
            "negative": lambda: -ORACLE_EXACT.log_evidence(X),
            "K counted twice": lambda: ORACLE_EXACT.log_evidence(X) - math.log(8),
        },
    ),
}
# Orthogonal columns: the posterior is diagonal and the oracle's encode is exact.
ORACLE_EXACT = LinearGaussianModel(torch.linalg.qr(draw(16, 4, 2)).Q * 1.3, B, 0.6)


def agree(value: Tensor, truth: Tensor) -> bool:
    return value.shape == truth.shape and torch.allclose(value, truth, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", MUTATIONS)
def test_equation_agrees_with_a_second_route(name):
    equation, truth, _ = MUTATIONS[name]
    assert agree(equation(), truth())


@pytest.mark.parametrize(
    ("name", "mutant"), [(n, m) for n, entry in MUTATIONS.items() for m in entry.wrong]
)
def test_plausible_wrong_version_is_rejected(name, mutant):
    _, truth, wrong = MUTATIONS[name]
    value = wrong[mutant]()
    assert value.shape == truth().shape  # else the shape alone would reject it
    assert not agree(value, truth())
    assert (value - truth()).abs().max() > 1e-2  # far from the tolerance


def test_at_least_ten_equations_are_mutated():
    assert len(MUTATIONS) >= 10
    assert all(len(entry.wrong) >= 2 for entry in MUTATIONS.values())


@pytest.mark.equation("eq-err-moving-support")
@pytest.mark.parametrize("power", [1, 2, 5])
def test_moving_support_adds_a_boundary_term(power):
    theta = 1.7
    nodes, weights = np.polynomial.legendre.leggauss(20)
    z = theta * (nodes + 1) / 2
    mean = (weights / 2 * z**power).sum()  # E[z^n] = theta^n / (n + 1)
    assert mean == pytest.approx(theta**power / (power + 1), rel=1e-12)
    truth = power * theta ** (power - 1) / (power + 1)
    score_term = (weights / 2 * z**power * (-1 / theta)).sum()
    assert score_term + theta**power / theta == pytest.approx(truth, rel=1e-12)
    assert score_term < 0 < truth


@pytest.mark.false_alarm(2e-9)
@pytest.mark.equation("eq-err-typical")
@pytest.mark.parametrize("dims", [2, 30])
def test_mean_image_beats_the_average_sample_by_half_the_dimension(dims):
    model = LinearGaussianModel(draw(20, dims, 2), draw(21, dims), 0.4)
    n = 20_000
    samples = draw(22, n, 2) @ model.weight.mT + model.bias + 0.4**0.5 * draw(23, n, dims)
    gap = model.log_evidence(model.bias) - model.log_evidence(samples)
    # gap is half of a chi-squared variable: mean D/2, variance D/2; a false alarm of 6e-10 each
    assert abs(gap.mean() - dims / 2) < 6.2 * math.sqrt(dims / 2 / n)
    covariance = model.weight @ model.weight.mT + 0.4 * torch.eye(dims)
    exact = -0.5 * torch.logdet(covariance) - dims / 2 * math.log(2 * math.pi)
    entropy = MultivariateNormal(model.bias, covariance).entropy()
    torch.testing.assert_close(exact + entropy, torch.tensor(dims / 2).double())


@pytest.mark.equation("eq-err-grey-normaliser")
@pytest.mark.parametrize("p", [1e-3, 0.2, 0.5, 0.8, 1 - 1e-4])
def test_bernoulli_formula_is_no_density_on_grey_levels(p):
    nodes, weights = np.polynomial.legendre.leggauss(60)
    x = torch.from_numpy((nodes + 1) / 2)[:, None]
    logit = torch.tensor([math.log(p) - math.log1p(-p)], dtype=torch.float64)
    integral = torch.from_numpy(weights / 2) @ bernoulli_log_prob(x, logit).exp()
    formula = 0.5 if p == 0.5 else (2 * p - 1) / (math.log(p) - math.log1p(-p))
    assert integral.item() == pytest.approx(formula, rel=1e-9)
    assert integral <= 0.5 + 1e-12
    continuous = torch.distributions.ContinuousBernoulli(probs=torch.tensor(p).double())
    corrected = bernoulli_log_prob(x, logit) - math.log(formula)
    torch.testing.assert_close(corrected, continuous.log_prob(x[:, 0]), rtol=1e-4, atol=1e-4)


@pytest.mark.equation("eq-err-hidden-beta")
@pytest.mark.parametrize("beta", [0.3, 1.0, 39.2])
def test_weight_on_the_divergence_sets_the_posterior_variance(beta):
    model = LinearGaussianModel(draw(24, 5, 1), draw(25, 5), 0.7)
    x, log_var = draw(26, 1, 5), torch.zeros(1, 1, dtype=torch.float64)
    mu = torch.zeros_like(log_var)
    for _ in range(60):  # Newton's method on the weighted bound, a function of log sigma^2 alone
        log_var.requires_grad_()
        likelihood = model.elbo(x, mu, log_var) + kl_standard_normal(mu, log_var)
        loss = beta * kl_standard_normal(mu, log_var) - likelihood
        (slope,) = torch.autograd.grad(loss.sum(), log_var, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), log_var)
        log_var = (log_var - (slope / curvature).clamp(-1, 1)).detach()
    ratio = model.weight.square().sum() / model.noise_var
    torch.testing.assert_close(log_var.exp()[0, 0], beta / (beta + ratio))
    if beta == 1:
        torch.testing.assert_close(log_var.exp(), model.posterior_cov)
