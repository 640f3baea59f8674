r"""Gaussians: log density, score, reparametrization and the three Kullback-Leibler divergences.

Shapes are written with ``*`` for any leading axes and ``L`` for the latent axis, which comes last.
``log_var`` is always :math:`\log\sigma^2`. Values are in nats and summed over the last axis. Last
axes must be equal, leading axes broadcast. Every function raises a TypeError for an argument that
is no floating-point tensor, and a ValueError for shapes that do not fit and for NaN or infinity.
"""

import functools
import math

import torch
from jaxtyping import Float
from torch import Tensor

from vaelib.checks import check_broadcast, check_same_device, check_square, check_vectors
from vaelib.compensated import congruence, difference_of, product

LOG_2PI = math.log(2 * math.pi)


def reparametrize(
    mu: Float[Tensor, "*#batch latent"],
    log_var: Float[Tensor, "*#batch latent"],
    eps: Float[Tensor, "*#batch latent"],
) -> Float[Tensor, "..."]:
    r"""Turn standard normal noise into a draw from N(mu, diag(exp(log_var))).

    .. math:: z = \mu + \sigma \odot \epsilon, \qquad \sigma = e^{\log\sigma^2 / 2}

    The factor is the standard deviation, not the variance. Kingma and Welling (2014), section 2.4.

    >>> import torch
    >>> reparametrize(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([2.0]))
    tensor([3.])
    """
    check_vectors(mu=mu, log_var=log_var, eps=eps)
    return mu + torch.exp(log_var / 2) * eps


def gaussian_log_prob(
    z: Float[Tensor, "*#batch latent"],
    mu: Float[Tensor, "*#batch latent"],
    log_var: Float[Tensor, "*#batch latent"],
) -> Float[Tensor, "..."]:
    r"""Log density of a diagonal Gaussian at z, in nats, summed over the last axis.

    .. math:: \log\mathcal N(z; \mu, \mathrm{diag}\,\sigma^2) = -\tfrac12 \sum_i
        \left[\log 2\pi + \log\sigma_i^2 + (z_i - \mu_i)^2 / \sigma_i^2\right]

    Where the quadratic term overflows the dtype, the result is ``-inf``, the rounded value.
    Bishop (2006), equation 2.43.

    >>> import torch
    >>> gaussian_log_prob(torch.zeros(2), torch.zeros(2), torch.zeros(2))
    tensor(-1.8379)
    """
    check_vectors(z=z, mu=mu, log_var=log_var)
    standardized = (z - mu) * _inverse_std(log_var)
    return -0.5 * (LOG_2PI + log_var + standardized**2).sum(-1)


def gaussian_score(
    z: Float[Tensor, "*#batch latent"],
    mu: Float[Tensor, "*#batch latent"],
    log_var: Float[Tensor, "*#batch latent"],
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    r"""Gradients of :func:`gaussian_log_prob` with respect to mu and to log_var, each [*, L].

    .. math:: \frac{\partial \log q}{\partial\mu_i} = \frac{z_i-\mu_i}{\sigma_i^2}, \qquad
        \frac{\partial \log q}{\partial\log\sigma_i^2} =
        \frac12\left[\frac{(z_i-\mu_i)^2}{\sigma_i^2} - 1\right]

    Mohamed, Rosca, Figurnov and Mnih (2020), section 4.

    >>> import torch
    >>> gaussian_score(torch.tensor([2.0]), torch.tensor([0.0]), torch.tensor([0.0]))
    (tensor([2.]), tensor([1.5000]))
    """
    check_vectors(z=z, mu=mu, log_var=log_var)
    inverse_std = _inverse_std(log_var)
    standardized = (z - mu) * inverse_std
    return standardized * inverse_std, (standardized**2 - 1) / 2


def kl_standard_normal(
    mu: Float[Tensor, "*#batch latent"],
    log_var: Float[Tensor, "*#batch latent"],
) -> Float[Tensor, "..."]:
    r"""KL(N(mu, diag(exp(log_var))) || N(0, I)) in nats, summed over the last axis.

    .. math:: \tfrac12 \sum_i \left[\mu_i^2 + \sigma_i^2 - \log\sigma_i^2 - 1\right]

    Kingma and Welling (2014), appendix B (its negative). Divergences of any size keep their
    relative precision: the terms are non-negative and computed without cancellation.

    >>> import torch
    >>> kl_standard_normal(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]))
    tensor(0.5000)
    """
    check_vectors(mu=mu, log_var=log_var)
    return 0.5 * (mu**2 + _exp_minus_tangent(log_var)).sum(-1)


def kl_diagonal(
    mu_q: Float[Tensor, "*#batch latent"],
    log_var_q: Float[Tensor, "*#batch latent"],
    mu_p: Float[Tensor, "*#batch latent"],
    log_var_p: Float[Tensor, "*#batch latent"],
) -> Float[Tensor, "..."]:
    r"""KL between two diagonal Gaussians, q against p, in nats, summed over the last axis.

    .. math:: \tfrac12 \sum_i \left[\frac{(\mu_{q,i}-\mu_{p,i})^2}{\sigma_{p,i}^2}
        + e^{t_i} - 1 - t_i\right], \qquad t_i = \log\sigma_{q,i}^2 - \log\sigma_{p,i}^2

    Where a ratio overflows the dtype, the result is ``inf``, the rounded value.

    >>> import torch
    >>> one, zero = torch.ones(1), torch.zeros(1)
    >>> kl_diagonal(one, zero, zero, zero)
    tensor(0.5000)
    """
    check_vectors(mu_q=mu_q, log_var_q=log_var_q, mu_p=mu_p, log_var_p=log_var_p)
    shift = (mu_q - mu_p) * _inverse_std(log_var_p)
    return 0.5 * (shift**2 + _exp_minus_tangent(log_var_q - log_var_p)).sum(-1)


def kl_full(
    mu_q: Float[Tensor, "*#batch latent"],
    cov_q: Float[Tensor, "*#batch latent latent"],
    mu_p: Float[Tensor, "*#batch latent"],
    cov_p: Float[Tensor, "*#batch latent latent"],
) -> Float[Tensor, "..."]:
    r"""KL between two Gaussians with full covariance matrices, q against p, in nats.

    .. math:: \tfrac12\left[\mathrm{tr}(\Sigma_p^{-1}\Sigma_q) - L
        + (\mu_p-\mu_q)^\top\Sigma_p^{-1}(\mu_p-\mu_q)
        + \log\frac{\det\Sigma_p}{\det\Sigma_q}\right]

    The divergence does not change when both Gaussians are mapped by z -> W z. With W the inverse of
    the Cholesky factor of cov_p, p becomes N(., I) up to rounding; the products that do this carry
    spare digits, and what is left is well conditioned. So values keep 14 digits up to condition
    numbers of 1e10. Covariances that nearly agree are compared through the eigenvalues of their
    difference, so that tiny divergences keep their digits too. The arithmetic is in float64 for every
    dtype. Rasmussen and Williams (2006), equation A.23.

    Raises a ValueError, too, where a covariance is not symmetric positive definite.

    >>> import torch
    >>> mu, cov = torch.zeros(2), torch.eye(2)
    >>> kl_full(mu, cov, mu, 2 * cov)
    tensor(0.1931)
    """
    check_vectors(mu_q=mu_q, mu_p=mu_p)
    check_square(mu_q.shape[-1], cov_q=cov_q, cov_p=cov_p)
    arguments = {"mu_q": mu_q[..., None], "cov_q": cov_q, "mu_p": mu_p[..., None], "cov_p": cov_p}
    check_same_device(**arguments)
    check_broadcast({name: value.shape[:-2] for name, value in arguments.items()})
    dtype = functools.reduce(torch.promote_types, (value.dtype for value in arguments.values()))
    mu_q, cov_q, mu_p, cov_p = (value.double() for value in arguments.values())
    whiten_q, whiten_p = _whitening("cov_q", cov_q), _whitening("cov_p", cov_p)

    shift = sum(product(whiten_p, *difference_of(mu_q, mu_p)))
    difference = congruence(whiten_p, *difference_of(cov_q, cov_p))
    # Each of these factors is the identity up to rounding: here the rounding is put right.
    factor_q = torch.linalg.cholesky(congruence(whiten_q, cov_q))
    factor_p = torch.linalg.cholesky(congruence(whiten_p, cov_p))
    shift = _solve_lower(factor_p, shift)
    difference = _solve_lower(factor_p, _solve_lower(factor_p, difference).mT)

    scale = _diagonal(factor_q) / _diagonal(factor_p) * _diagonal(whiten_p) / _diagonal(whiten_q)
    far = (_diagonal(difference) - 2 * scale.log()).sum(-1)
    close = difference.square().sum((-2, -1)) < 0.25
    difference = torch.where(close[..., None, None], difference, torch.zeros_like(difference))
    near = _exp_minus_tangent(torch.linalg.eigvalsh(difference).log1p()).sum(-1)
    return 0.5 * (shift.square().sum((-2, -1)) + torch.where(close, near, far)).to(dtype)


def _inverse_std(log_var: Tensor) -> Tensor:
    """1 / sigma, and the largest number where that overflows: times a distance of 0 it is 0."""
    return torch.exp(-log_var / 2).clamp(max=torch.finfo(log_var.dtype).max)


def checked_cholesky(name: str, matrix: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """Lower Cholesky factor; a ValueError names a matrix that is not positive definite."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    singular = (info != 0).any()
    if not singular:  # the factor of a singular matrix may exist by the luck of rounding
        inverse_std = _diagonal(matrix.detach()).rsqrt()
        correlation = inverse_std[..., None] * matrix.detach() * inverse_std[..., None, :]
        rounding = 4 * matrix.shape[-1] * torch.finfo(matrix.dtype).eps
        singular = (torch.linalg.eigvalsh(correlation) <= rounding).any()
    if singular:
        smallest = torch.linalg.eigvalsh(matrix.detach()).amin()
        raise ValueError(
            f"{name} must be positive definite, found a smallest eigenvalue of {smallest:g}"
        )
    return factor


def _whitening(name: str, cov: Tensor) -> Tensor:
    """A triangular W with W cov W^T = I up to rounding; a constant, as any W gives the same KL."""
    factor = checked_cholesky(name, cov.detach())
    return _solve_lower(factor, torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device))


def _diagonal(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1)


def _solve_lower(factor: Tensor, right: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(factor, right, upper=False)


class _ExpMinusTangent(torch.autograd.Function):
    """``exp(t) - 1 - t`` to full relative precision, also near zero; its derivative is expm1(t)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(t: Tensor) -> Tensor:
        one = t.new_ones(())
        series = one  # of (exp(t) - 1 - t) / (t^2 / 2), used where |t| < 0.05
        for n in range(9, 2, -1):
            series = torch.addcmul(one, series, t, value=1 / n)
        return torch.where(t.abs() < 0.05, series * t * t / 2, torch.expm1(t) - t)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        (t,) = ctx.saved_tensors
        return gradient * torch.expm1(t)


_exp_minus_tangent = _ExpMinusTangent.apply
