"""Annealed importance sampling: log p(x) by a route that does not rest on the encoder's aim.

It stands apart from ``bounds`` because it is another idea (a chain of distributions, with Markov
transitions between them), and only a check on that module's estimates.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vaelib.bounds import LatentVariableModel, LogLikelihood
from vaelib.checks import check_choice, check_data, check_positive_int
from vaelib.gaussian import gaussian_log_prob, reparametrize


@dataclass(frozen=True)
class AnnealedLogLikelihood(LogLikelihood):
    """An estimate of log p(x) by annealing, with the share of accepted moves, [B], in float64."""

    acceptance_rate: Float[Tensor, "batch"]


def annealed_importance_sampling(
    model: LatentVariableModel,
    x: Float[Tensor, "batch data"],
    *,
    num_chains: int = 16,
    num_steps: int = 200,
    leapfrog_steps: int = 5,
    step_size: float = 0.3,
    start: str = "prior",
    chunk_size: int = 20_000,
    generator: torch.Generator | None = None,
) -> AnnealedLogLikelihood:
    r"""Estimate log p(x) by moving samples of a Gaussian p_0 step by step to the posterior.

    .. math:: f_\beta(z) = p_0(z)^{1-\beta}\, p(x, z)^{\beta}, \qquad
        \log w = \sum_{t=1}^T (\beta_t - \beta_{t-1})
        \log\frac{p(x, z_{t-1})}{p_0(z_{t-1})}, \qquad \mathbb E[w] = p(x)

    with :math:`z_0 \sim p_0` and z_t a Hamiltonian move from z_{t-1} that leaves f at beta_t
    invariant. The mean weight is unbiased for every T = ``num_steps``; more steps make it less
    noisy. ``start`` names p_0: ``"prior"`` is N(0, I), ``"posterior"`` is q(z | x). The
    temperatures follow a logistic curve (Wu, Burda, Salakhutdinov and Grosse 2017). The moves take
    ``leapfrog_steps`` of ``step_size``, in units of a width between that of p_0 and that of
    q(z | x); this sets the speed, and no choice makes the estimate wrong. Weights run in float64;
    at most ``chunk_size`` chains move at a time. Neal (2001), equations 3 to 11; Neal (2011).

    Raises a ValueError that names the argument for x that is not [B, D] or empty, a count that is
    no positive integer, a step size that is not positive and an unknown ``start``.
    """
    counts = {"num_chains": num_chains, "num_steps": num_steps}
    check_positive_int(**counts, leapfrog_steps=leapfrog_steps, chunk_size=chunk_size)
    check_choice("start", start, ("prior", "posterior"))
    if not 0 < step_size < math.inf:
        raise ValueError(f"step_size must be a positive number, found {step_size!r}")
    check_data(x=x)
    parts = []
    for rows in x.split(chunk_size):
        per_chunk = max(1, chunk_size // len(rows))
        chunks = []
        for begin in range(0, num_chains, per_chunk):
            count = min(per_chunk, num_chains - begin)
            chunks.append(
                _anneal(model, rows, count, num_steps, leapfrog_steps, step_size, start, generator)
            )
        log_w, accepted = (torch.cat(chunk) for chunk in zip(*chunks))
        sum_w, sum_w2 = torch.logsumexp(log_w, 0), torch.logsumexp(2 * log_w, 0)
        ess = torch.exp(2 * sum_w - sum_w2).clamp(1, num_chains)
        error = torch.sqrt(1 / ess - 1 / num_chains)
        parts.append((sum_w - math.log(num_chains), error, ess, accepted.mean(0)))
    return AnnealedLogLikelihood(*(torch.cat(part) for part in zip(*parts)))


@torch.no_grad()
def _anneal(model, x, chains, num_steps, leapfrog_steps, step_size, start, generator):
    """Log weights and acceptance rates of independent chains, each [chains, B], in float64."""
    mu, log_var = model.encode(x)
    mean, log_var_0 = (mu, log_var) if start == "posterior" else (0 * mu, 0 * mu)

    def noise():
        shape = (chains, *mu.shape)
        return torch.randn(shape, generator=generator, dtype=mu.dtype, device=mu.device)

    def evaluate(z):  # log p_0(z) and log p(x, z), and the gradient of each
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            log_joint = model.log_likelihood(x, z) + model.log_prior(z)
            (slope,) = torch.autograd.grad(log_joint.sum(), z)
        slope_0 = (mean - z) * torch.exp(-log_var_0)
        return gaussian_log_prob(z, mean, log_var_0), log_joint.detach(), slope_0, slope

    z = reparametrize(mean, log_var_0, noise())
    here = evaluate(z)
    log_w = torch.zeros(z.shape[:2], dtype=torch.float64, device=z.device)
    accepted = torch.zeros_like(log_w)
    betas = torch.sigmoid(torch.linspace(-4, 4, num_steps + 1, dtype=torch.float64))
    betas = ((betas - betas[0]) / (betas[-1] - betas[0])).tolist()
    for previous, beta in zip(betas, betas[1:]):
        log_w += (beta - previous) * (here[1] - here[0]).double()
        if beta == betas[-1]:
            break  # a move after the last weight changes nothing
        precision = (1 - beta) * torch.exp(-log_var_0) + beta * torch.exp(-log_var)
        step = step_size / precision.sqrt()  # the metric: precision = 1 / mass, up to step_size^2
        momentum, position, there = noise(), z, here
        energy = _log_f(here, beta) - momentum.square().sum(-1) / 2
        for _ in range(leapfrog_steps):
            momentum = momentum + step / 2 * _mix(there[2:], beta)
            position = position + step * momentum
            there = evaluate(position)
            momentum = momentum + step / 2 * _mix(there[2:], beta)
        log_ratio = _log_f(there, beta) - momentum.square().sum(-1) / 2 - energy
        uniform = torch.rand(
            log_ratio.shape, generator=generator, dtype=z.dtype, device=z.device
        )
        accept = uniform.log() < log_ratio  # never for NaN: a diverged path is refused
        z = torch.where(accept[..., None], position, z)
        here = tuple(
            torch.where(accept[..., None] if a.ndim == 3 else accept, a, b)
            for a, b in zip(there, here)
        )
        accepted += accept
    return log_w, accepted / max(1, num_steps - 1)


def _mix(pair, beta: float) -> Tensor:
    return (1 - beta) * pair[0] + beta * pair[1]


def _log_f(state, beta: float) -> Tensor:
    return _mix(state[:2], beta)
