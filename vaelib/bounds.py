"""Bounds on log p(x) and its estimate, per example, in nats.

A model here is anything with ``encode(x) -> (mu, log_var)`` (each [B, L]), ``log_prior(z)`` and
``log_likelihood(x, z)``: the VAE and the linear-Gaussian oracle alike. x [B, D] broadcasts against
z [K, B, L].
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from vaelib.checks import (
    check_choice,
    check_data,
    check_finite,
    check_floating,
    check_positive_int,
)
from vaelib.gaussian import gaussian_log_prob, kl_standard_normal, reparametrize


@runtime_checkable
class LatentVariableModel(Protocol):
    """What the bounds ask of a model."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]: ...
    def log_prior(self, z: Tensor) -> Tensor: ...
    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class ELBO:
    """The evidence lower bound of each example and its two terms, in nats, [B]."""

    reconstruction: Float[Tensor, "batch"]
    kl: Float[Tensor, "batch"]

    @property
    def value(self) -> Float[Tensor, "batch"]:
        """reconstruction - kl, [B]."""
        return self.reconstruction - self.kl


@dataclass(frozen=True)
class LogLikelihood:
    """An importance-sampling estimate of log p(x), per example, [B], in float64."""

    value: Float[Tensor, "batch"]
    standard_error: Float[Tensor, "batch"]
    effective_sample_size: Float[Tensor, "batch"]


def elbo(
    model: LatentVariableModel,
    x: Float[Tensor, "batch data"],
    *,
    num_samples: int = 1,
    eps: Float[Tensor, "samples batch latent"] | None = None,
    generator: torch.Generator | None = None,
    kl: str = "analytic",
) -> ELBO:
    r"""Reparametrized estimate of the evidence lower bound.

    .. math:: \mathrm{ELBO}(x) = \mathbb E_{q(z\mid x)}[\log p(x\mid z)] - \mathrm{KL}(q(z\mid x)
        \,\|\, p(z))

    The expectation is a mean over ``num_samples`` draws, or over ``eps`` [K, B, L], standard
    normal, where given. ``kl="analytic"`` is the closed form for a prior N(0, I); ``"sampled"`` is
    the mean of log q(z | x) - log p(z) over the same draws. Kingma and Welling (2014), equation 10
    and equation 6.

    Raises a ValueError that names the argument for x that is not [B, D] or empty, for eps of
    another shape, and for an unknown ``kl``.
    """
    check_choice("kl", kl, ("analytic", "sampled"))
    mu, log_var, z = _encode_and_sample(model, x, num_samples, eps, generator)
    reconstruction = model.log_likelihood(x, z).mean(0)
    if kl == "analytic":
        return ELBO(reconstruction, kl_standard_normal(mu, log_var))
    sampled = _log_ratio(gaussian_log_prob(z, mu, log_var), model.log_prior(z))
    return ELBO(reconstruction, sampled.mean(0))


def iwae_bound(
    model: LatentVariableModel,
    x: Float[Tensor, "batch data"],
    *,
    num_samples: int,
    eps: Float[Tensor, "samples batch latent"] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch"]:
    r"""Importance-weighted bound, [B], with K = ``num_samples``.

    .. math:: \mathcal L_K(x) = \log \frac1K \sum_{k=1}^K w_k, \qquad
        w_k = \frac{p(x, z_k)}{q(z_k\mid x)}, \quad z_k \sim q(z\mid x)

    Its expectation lies between the ELBO (K = 1) and log p(x), and does not fall with K. Burda,
    Grosse and Salakhutdinov (2016), equation 8. Raises as :func:`elbo` does.
    """
    log_weights = importance_log_weights(
        model, x, num_samples=num_samples, eps=eps, generator=generator
    )
    return torch.logsumexp(log_weights, 0) - math.log(log_weights.shape[0])


def importance_log_weights(
    model: LatentVariableModel,
    x: Float[Tensor, "batch data"],
    *,
    num_samples: int = 1,
    eps: Float[Tensor, "samples batch latent"] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "samples batch"]:
    """log w = log p(x, z) - log q(z | x) for each draw of z from q, [K, B]. Raises as elbo does."""
    return _log_weights(model, x, *_encode_and_sample(model, x, num_samples, eps, generator))


@torch.no_grad()
def log_likelihood(
    model: LatentVariableModel,
    x: Float[Tensor, "batch data"],
    *,
    num_samples: int = 5000,
    chunk_size: int = 4_000,
    generator: torch.Generator | None = None,
) -> LogLikelihood:
    r"""Estimate log p(x) by importance sampling from q(z | x).

    .. math:: \log p(x) \approx \log \frac1K \sum_k w_k, \qquad
        \mathrm{ESS} = \frac{(\sum_k w_k)^2}{\sum_k w_k^2}, \qquad
        \mathrm{SE} = \sqrt{\frac1{\mathrm{ESS}} - \frac1K}

    The standard error is the infinitesimal jackknife of the logarithm of a mean (Efron 1982,
    chapter 6). It means little where the effective sample size is small: then q misses a part of
    the posterior, and the value is only a lower bound in expectation. Sums run in float64; at most
    ``chunk_size`` codes are decoded at a time, so that memory does not grow with ``num_samples``
    (and blocks that fit the processor's cache are faster than larger ones).
    No gradient. Burda, Grosse and Salakhutdinov (2016), section 5. Raises as :func:`elbo` does.
    """
    check_positive_int(num_samples=num_samples, chunk_size=chunk_size)
    check_data(x=x)
    _keep_freed_memory()
    parts = []
    for rows in x.split(chunk_size):
        per_chunk = max(1, chunk_size // len(rows))
        mu, log_var = model.encode(rows)
        sum_w = sum_w2 = torch.full((len(rows),), -math.inf, dtype=torch.float64, device=x.device)
        for start in range(0, num_samples, per_chunk):
            shape = (min(per_chunk, num_samples - start), *mu.shape)
            eps = torch.randn(shape, generator=generator, dtype=mu.dtype, device=mu.device)
            z = reparametrize(mu, log_var, eps)
            log_w = _log_weights(model, rows, mu, log_var, z).double()
            sum_w = torch.logaddexp(sum_w, torch.logsumexp(log_w, 0))
            sum_w2 = torch.logaddexp(sum_w2, torch.logsumexp(2 * log_w, 0))
        ess = torch.exp(2 * sum_w - sum_w2).clamp(max=num_samples)
        error = torch.sqrt(1 / ess - 1 / num_samples)
        parts.append((sum_w - math.log(num_samples), error, ess))
    return LogLikelihood(*(torch.cat(part) for part in zip(*parts)))


def _keep_freed_memory() -> None:
    """Free one block of nearly 32 MiB, untouched: the C library then keeps smaller ones.

    glibc adapts to the largest block freed so far. Before that it hands the memory of every chunk
    back to the system, and has it mapped and faulted in anew, a third of the time of a run.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


def _log_weights(model, x: Tensor, mu: Tensor, log_var: Tensor, z: Tensor) -> Tensor:
    log_joint = model.log_likelihood(x, z) + model.log_prior(z)
    return _log_ratio(log_joint, gaussian_log_prob(z, mu, log_var))


def _log_ratio(log_p: Tensor, log_q: Tensor) -> Tensor:
    ratio = log_p - log_q
    if ratio.isnan().any():
        raise ValueError(
            f"mu, log_var and eps must keep the log densities within {ratio.dtype}, "
            "found both infinite"
        )
    return ratio


def _encode_and_sample(model, x, num_samples, eps, generator) -> tuple[Tensor, Tensor, Tensor]:
    check_positive_int(num_samples=num_samples)
    check_data(x=x)
    mu, log_var = model.encode(x)
    if eps is None:
        shape = (num_samples, *mu.shape)
        eps = torch.randn(shape, generator=generator, dtype=mu.dtype, device=mu.device)
    check_floating(eps=eps)
    if eps.ndim != 3 or eps.shape[0] == 0 or eps.shape[1:] != mu.shape:
        raise ValueError(
            f"eps must have shape [K, {mu.shape[0]}, {mu.shape[1]}], found {tuple(eps.shape)}"
        )
    z = reparametrize(mu, log_var, eps)
    check_finite(**{"mu + exp(log_var / 2) * eps": z})
    return mu, log_var, z
