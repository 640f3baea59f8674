"""Held-out measures: log p(x) of a data set, active units, anomaly scores and how well they detect.

Scores of anomaly are larger the more unusual an image is. Values are in nats per example.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vaelib.bounds import LatentVariableModel, LogLikelihood, elbo, log_likelihood
from vaelib.checks import (
    check_data,
    check_finite,
    check_floating,
    check_positive_int,
    check_same_device,
)

BATCH = 100  # images between two updates of the progress bar


def data_log_likelihood(
    model: LatentVariableModel,
    x: Float[Tensor, "n data"],
    *,
    num_samples: int = 5000,
    chunk_size: int = 4_000,
    generator: torch.Generator | None = None,
) -> LogLikelihood:
    """:func:`vaelib.log_likelihood` of each row of a data set, [N], with a bar in a terminal."""
    check_data(x=x)
    bar = tqdm(x.split(BATCH), "log p(x)", leave=False, disable=None)
    parts = [
        log_likelihood(
            model, rows, num_samples=num_samples, chunk_size=chunk_size, generator=generator
        )
        for rows in bar
    ]
    fields = ("value", "standard_error", "effective_sample_size")
    return LogLikelihood(*(torch.cat([getattr(p, name) for p in parts]) for name in fields))


def mean_and_error(values: Float[Tensor, "n"]) -> tuple[float, float]:
    r"""The mean of independent values and its standard error, :math:`s / \sqrt n`.

    For values of images this is the error that comes from the choice of the images. Raises a
    ValueError for fewer than two values.

    >>> mean_and_error(torch.tensor([1.0, 3.0]))
    (2.0, 1.0)
    """
    _check_scores(values=values)
    if len(values) < 2:
        raise ValueError("values must be at least two, found one")
    values = values.double()
    return values.mean().item(), (values.std() / math.sqrt(len(values))).item()


def bits_per_dimension(log_p_x: Float[Tensor, "*batch"], data_dim: int) -> Float[Tensor, "*batch"]:
    r""":math:`-\log p(x) / (D \log 2)`: nats per example to bits per dimension.

    >>> bits_per_dimension(torch.tensor([-784 * math.log(2)]), 784)
    tensor([1.])
    """
    check_positive_int(data_dim=data_dim)
    check_floating(log_p_x=log_p_x)
    check_finite(log_p_x=log_p_x)
    return -log_p_x / (data_dim * math.log(2))


@torch.no_grad()
def latent_activity(
    model: LatentVariableModel, x: Float[Tensor, "n data"]
) -> Float[Tensor, "latent"]:
    r"""Variance over the data of each latent's posterior mean, [L], in float64.

    .. math:: A_i = \operatorname{Var}_x\!\big(\mathbb E_{q(z\mid x)}[z_i]\big)

    Burda, Grosse and Salakhutdinov (2016), section 5.2.
    """
    check_data(x=x)
    means = torch.cat([model.encode(rows)[0] for rows in x.split(1000)])
    if len(means) < 2:
        raise ValueError("x must have at least two rows, found one")
    return means.double().var(0)


def active_units(
    model: LatentVariableModel, x: Float[Tensor, "n data"], threshold: float = 0.01
) -> int:
    """The number of latents whose :func:`latent_activity` exceeds the threshold."""
    return int((latent_activity(model, x) > threshold).sum())


@torch.no_grad()
def anomaly_scores(
    model: LatentVariableModel,
    x: Float[Tensor, "n data"],
    *,
    num_samples: int = 100,
    generator: torch.Generator | None = None,
) -> dict[str, Float[Tensor, "n"]]:
    r"""Four scores of each row, larger for the more unusual, [N].

    "ELBO": minus the bound. "log p(x)": minus the importance-weighted estimate. "reconstruction":
    minus the reconstruction probability :math:`\mathbb E_q[\log p(x\mid z)]` (An and Cho 2015).
    "latent distance": :math:`\lVert\mu(x)\rVert`, from the mean of the prior. Expectations are
    means over ``num_samples`` draws.
    """
    check_data(x=x)
    rows = {"ELBO": [], "log p(x)": [], "reconstruction": [], "latent distance": []}
    for part in tqdm(x.split(BATCH), "scores", leave=False, disable=None):
        bound = elbo(model, part, num_samples=num_samples, generator=generator)
        estimate = log_likelihood(model, part, num_samples=num_samples, generator=generator)
        rows["ELBO"].append(-bound.value)
        rows["log p(x)"].append(-estimate.value)
        rows["reconstruction"].append(-bound.reconstruction)
        rows["latent distance"].append(model.encode(part)[0].norm(dim=-1))
    return {name: torch.cat(parts).double() for name, parts in rows.items()}


def likelihood_regret(
    model: LatentVariableModel,
    x: Float[Tensor, "batch data"],
    *,
    num_steps: int = 100,
    learning_rate: float = 0.03,
    num_samples: int = 16,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch"]:
    r"""How much the ELBO of each row gains when q is fitted to that row alone, [B].

    .. math:: \max_{\mu, \sigma}\, \mathrm{ELBO}\big(x; \mathcal N(\mu, \sigma^2)\big)
        - \mathrm{ELBO}\big(x; q(z\mid x)\big)

    Adam climbs from the encoder's answer for ``num_steps``, with new noise at each; both ends are
    measured on the same ``num_samples`` draws. Xiao, Yan and Amit (2020), equation 6, with the
    parameters of q in place of the encoder's weights.
    """
    check_positive_int(num_steps=num_steps, num_samples=num_samples)
    check_data(x=x)
    start = tuple(value.detach() for value in model.encode(x))
    free = tuple(value.clone().requires_grad_() for value in start)
    optimizer = torch.optim.Adam(free, lr=learning_rate)
    fitted = _FixedPosterior(model, free)
    for _ in tqdm(range(num_steps), "regret", leave=False, disable=None):
        gain = elbo(fitted, x, generator=generator).value.sum()
        for parameter, slope in zip(free, torch.autograd.grad(gain, free)):
            parameter.grad = -slope
        optimizer.step()
    eps = torch.randn((num_samples, *start[0].shape), generator=generator, dtype=x.dtype)
    with torch.no_grad():
        after = elbo(fitted, x, eps=eps).value
        return (after - elbo(_FixedPosterior(model, start), x, eps=eps).value).double()


class _FixedPosterior:
    """A model whose q does not come from its encoder."""

    def __init__(self, model: LatentVariableModel, posterior: tuple[Tensor, Tensor]):
        self.log_prior, self.log_likelihood = model.log_prior, model.log_likelihood
        self.posterior = posterior

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.posterior


@dataclass(frozen=True)
class Detection:
    """How well a score tells anomalous from normal: areas under the ROC and the PR curve."""

    auc: float
    low: float
    high: float
    average_precision: float


def detection(
    normal: Float[Tensor, "n"],
    anomalous: Float[Tensor, "m"],
    *,
    num_replicates: int = 1000,
    level: float = 0.95,
    generator: torch.Generator | None = None,
) -> Detection:
    r"""Area under the ROC curve with a bootstrap interval, and the average precision.

    The areas are scikit-learn's. The interval is the percentile bootstrap (Efron 1982, chapter 10)
    that draws normal and anomalous rows anew, each with replacement; it uses that the area is
    :math:`\Pr(s' > s) + \tfrac12\Pr(s' = s)`, with s' anomalous and s normal. Raises a ValueError
    for scores that are empty, not finite or not [N], and for a level outside (0, 1).
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    _check_scores(normal=normal, anomalous=anomalous)
    check_positive_int(num_replicates=num_replicates)
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, found {level!r}")
    check_same_device(normal=normal, anomalous=anomalous)
    normal, anomalous = normal.detach(), anomalous.detach()
    scores = torch.cat([normal, anomalous])
    labels = torch.cat([torch.zeros_like(normal), torch.ones_like(anomalous)])
    difference = anomalous[:, None] - normal
    wins = ((difference > 0).double() + (difference >= 0).double()) / 2
    rows = _resample(len(anomalous), num_replicates, generator)
    columns = _resample(len(normal), num_replicates, generator)
    areas = ((rows @ wins) * columns).sum(1) / wins.numel()
    tail = (1 - level) / 2
    low, high = areas.quantile(torch.tensor([tail, 1 - tail], dtype=areas.dtype)).tolist()
    auc, precision = roc_auc_score(labels, scores), average_precision_score(labels, scores)
    return Detection(float(auc), low, high, float(precision))


def alarm_threshold(validation: Float[Tensor, "n"], false_alarm_rate: float) -> float:
    r"""The score above which to raise an alarm, from scores of normal validation rows alone.

    .. math:: t = s_{(k)}, \qquad k = \lceil (1 - \alpha)(n + 1) \rceil

    in increasing order. A new normal row, exchangeable with these, exceeds t with a probability of
    at most alpha (Vovk, Gammerman and Shafer 2005). With too few rows for that t is infinite.

    >>> alarm_threshold(torch.arange(99.0), 0.05)
    94.0
    """
    _check_scores(validation=validation)
    if not 0 < false_alarm_rate < 1:
        raise ValueError(f"false_alarm_rate must lie between 0 and 1, found {false_alarm_rate!r}")
    n = len(validation)
    k = math.ceil((1 - false_alarm_rate) * (n + 1) - 1e-9)  # 0.95 * 100 is a little above 95
    return validation.double().sort().values[k - 1].item() if k <= n else math.inf


def _resample(size: int, replicates: int, generator: torch.Generator | None) -> Tensor:
    """How often each row is drawn, for each bootstrap sample, [replicates, size]."""
    drawn = torch.randint(size, (replicates, size), generator=generator)
    counts = torch.zeros(replicates, size, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(counts))


def _check_scores(**scores: Tensor) -> None:
    check_floating(**scores)
    for name, value in scores.items():
        if value.ndim != 1 or len(value) == 0:
            raise ValueError(
                f"{name} must have shape [N] and not be empty, found {tuple(value.shape)}"
            )
    check_finite(**scores)
