r"""Monte Carlo estimators of the gradient of E_q[f(z)], as pure functions of injected noise.

q = N(mu, diag(exp(log_var))) with mu and log_var [L]; ``eps`` [N, L] is standard normal and
z = mu + std * eps. Every estimator returns one gradient a row of noise, detached, so that the
caller takes the mean, the variance, or a weighted sum over quadrature nodes. The mean over rows of
every estimator is unbiased unless its docstring says otherwise.

A cost ``f`` maps [N, L] to [N] and treats each row on its own. Every function raises a TypeError
for an argument that is no floating-point tensor, and a ValueError that names the argument for
shapes that do not fit and for NaN or infinity. Scores are written out, not differentiated; the
gradient of f is one call of ``torch.autograd.grad`` (Mohamed, Rosca, Figurnov and Mnih 2020).
"""

import inspect
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vaelib.checks import (
    check_choice,
    check_finite,
    check_floating,
    check_positive_int,
    check_same_device,
)

Cost = Callable[[Tensor], Tensor]
Baseline = str | float | None


class GradientSamples(NamedTuple):
    """One gradient a row, with respect to mu and to log_var, each [N, L]."""

    mu: Float[Tensor, "*samples latent"]
    log_var: Float[Tensor, "*samples latent"]


Estimator = Callable[..., GradientSamples]


class GradientMoments(NamedTuple):
    """Mean and variance over the rows, for each parameter: .mu and .log_var, [L], in float64."""

    mean: GradientSamples
    variance: GradientSamples
    num_samples: int

    @property
    def standard_error(self) -> GradientSamples:
        """Standard error of the mean, for independent rows."""
        return GradientSamples(*((v / self.num_samples).sqrt() for v in self.variance))


class MeasureValuedNoise(NamedTuple):
    """The draws that :func:`measure_valued` consumes, each [N, L].

    ``plus`` and ``minus`` are Rayleigh, ``maxwell`` is double-sided Maxwell, ``normal`` and ``eps``
    are standard normal; ``eps`` places the coordinates that a pair leaves alone. In the coupled
    form minus = plus and normal = maxwell * U with U uniform on (0, 1).
    """

    eps: Float[Tensor, "samples latent"]
    plus: Float[Tensor, "samples latent"]
    minus: Float[Tensor, "samples latent"]
    maxwell: Float[Tensor, "samples latent"]
    normal: Float[Tensor, "samples latent"]


@torch.no_grad()
def score_function(
    f: Cost,
    mu: Float[Tensor, "latent"],
    log_var: Float[Tensor, "latent"],
    eps: Float[Tensor, "samples latent"],
    baseline: Baseline = None,
) -> GradientSamples:
    r"""Score-function estimator (REINFORCE), which needs no gradient of f.

    .. math:: (f(z) - b)\,\nabla\log q(z), \qquad \nabla_\mu\log q = \epsilon/\sigma, \quad
        \nabla_{\log\sigma^2}\log q = \tfrac12(\epsilon^2 - 1)

    ``baseline`` is b: None for zero, a number that does not depend on the draws,
    ``"leave-one-out"`` for the mean of f over the other rows (at least two rows; the rows are then
    dependent, their mean is unbiased), or ``"mean"`` for the mean over all rows, which is biased
    by the factor (N - 1)/N and is here to be shown. Williams (1992), section 4; for leave-one-out
    Kool, van Hoof and Welling (2019).

    >>> import torch
    >>> one = torch.ones(1)
    >>> score_function(lambda z: z[:, 0] ** 2, one, 0 * one, torch.tensor([[2.0]])).mu
    tensor([[18.]])
    """
    z, std = _draw(mu, log_var, eps)
    costs = _less_baseline(_evaluate(f, z), baseline)[:, None]
    return GradientSamples(*(costs * score for score in _scores(std, eps)))


@torch.no_grad()
def local_score_function(
    local_costs: Cost,
    mu: Float[Tensor, "latent"],
    log_var: Float[Tensor, "latent"],
    eps: Float[Tensor, "samples latent"],
) -> GradientSamples:
    r"""Rao-Blackwellised score function: each coordinate is paired with its own terms of f only.

    .. math:: f_i(z)\,\nabla_i \log q(z_i), \qquad f = f_i + (\text{terms without } z_i)

    ``local_costs`` maps [N, L] to [N, L]; column i holds every term of f that depends on z_i, and
    may hold terms of other coordinates too. Unbiased, since terms without z_i have no covariance
    with the score of z_i. Ranganath, Gerrish and Blei (2014), section 3.1.

    >>> import torch
    >>> local_score_function(torch.square, torch.ones(2), torch.zeros(2), torch.ones(1, 2)).mu
    tensor([[4., 4.]])
    """
    z, std = _draw(mu, log_var, eps)
    costs = _evaluate(local_costs, z, shape=z.shape, name="local_costs")
    return GradientSamples(*(costs * score for score in _scores(std, eps)))


@torch.no_grad()
def pathwise(
    f: Cost,
    mu: Float[Tensor, "latent"],
    log_var: Float[Tensor, "latent"],
    eps: Float[Tensor, "samples latent"],
) -> GradientSamples:
    r"""Pathwise (reparametrization) estimator.

    .. math:: \nabla_\mu = \nabla_z f(z), \qquad
        \nabla_{\log\sigma^2} = \tfrac12\,\sigma\epsilon \odot \nabla_z f(z)

    Unbiased for f without jumps (locally Lipschitz, of at most exponential growth). The derivative
    that autograd sees is used as it is: for f = 1[z > 0], or an f that detaches z, it is zero, and
    so is the estimate. Kingma and Welling (2014), section 2.4; Rezende, Mohamed, Wierstra (2014).

    >>> import torch
    >>> one = torch.ones(1)
    >>> pathwise(lambda z: z[:, 0] ** 2, one, 0 * one, torch.tensor([[2.0]]))
    GradientSamples(mu=tensor([[6.]]), log_var=tensor([[6.]]))
    """
    z, std = _draw(mu, log_var, eps)
    _, gradient = _evaluate_with_gradient(f, z)
    return _along_path(gradient, std, eps)


def antithetic(estimator: Estimator) -> Estimator:
    r"""Turn an estimator of (f, mu, log_var, eps) into its average over the pair eps and -eps.

    .. math:: \tfrac12\left[g(\epsilon) + g(-\epsilon)\right]

    A row costs two evaluations of f; compare its variance with half the plain one. Glasserman
    (2004), section 4.2.

    >>> import torch
    >>> one = torch.ones(1)
    >>> antithetic(pathwise)(lambda z: z[:, 0] ** 2, one, 0 * one, torch.tensor([[2.0]]))
    GradientSamples(mu=tensor([[2.]]), log_var=tensor([[4.]]))
    """

    def antithetic_estimator(f, mu, log_var, eps, **options) -> GradientSamples:
        pair = estimator(f, mu, log_var, eps, **options), estimator(f, mu, log_var, -eps, **options)
        return GradientSamples(*((one + two) / 2 for one, two in zip(*pair)))

    return antithetic_estimator


@torch.no_grad()
def measure_valued(
    f: Cost,
    mu: Float[Tensor, "latent"],
    log_var: Float[Tensor, "latent"],
    *,
    num_samples: int,
    coupled: bool = True,
    generator: torch.Generator | None = None,
    noise: MeasureValuedNoise | None = None,
) -> GradientSamples:
    r"""Measure-valued (weak) derivative: differences of f, for each coordinate on its own.

    .. math:: \nabla_\mu = \frac{f(\mu+\sigma R) - f(\mu-\sigma R')}{\sigma\sqrt{2\pi}}, \qquad
        \nabla_{\log\sigma^2} = \frac{f(\mu+\sigma M) - f(\mu+\sigma Z)}{2}

    with R, R' Rayleigh, M double-sided Maxwell and Z standard normal. They are independent, or,
    when ``coupled``, R' = R and Z = M U with U uniform: less variance where f takes like values at
    the two points, more for mu where f is steep across them. The pair of coordinate i moves z_i
    alone: both of its points share the other coordinates. f may be discontinuous; a row costs 4 L
    evaluations. ``noise``, where given, is used in place of ``num_samples`` draws from
    ``generator`` and carries its own coupling. Mohamed, Rosca, Figurnov and Mnih (2020), section 6
    and table 1.

    >>> import torch
    >>> noise = MeasureValuedNoise(*torch.tensor([0.0, 1.0, 1.0, 2.0, 1.0]).reshape(5, 1, 1))
    >>> measure_valued(lambda z: z[:, 0], noise.eps[0], noise.eps[0], num_samples=1, noise=noise)
    GradientSamples(mu=tensor([[0.7979]]), log_var=tensor([[0.5000]]))
    """
    check_positive_int(num_samples=num_samples)
    _check_parameters(mu, log_var)
    if noise is None:
        noise = draw_measure_valued_noise(mu, num_samples, coupled=coupled, generator=generator)
    for name, draws in noise._asdict().items():
        if draws.shape != (num_samples, len(mu)):
            raise ValueError(
                f"noise.{name} must have shape [{num_samples}, {len(mu)}], "
                f"found {tuple(draws.shape)}"
            )
    z, std = _draw(mu, log_var, noise.eps)
    signed = (noise.plus, -noise.minus, noise.maxwell, noise.normal)
    points = [_draw(mu, log_var, draws)[0] for draws in signed]
    differences = []
    for i in range(len(mu)):
        moved = z.repeat(4, 1, 1)
        moved[:, :, i] = torch.stack([point[:, i] for point in points])
        values = _evaluate(f, moved.flatten(0, 1)).reshape(4, -1)
        differences.append(torch.stack([values[0] - values[1], values[2] - values[3]]))
    for_mu, for_log_var = torch.stack(differences, -1)
    return GradientSamples(for_mu / (std * math.sqrt(2 * math.pi)), for_log_var / 2)


def draw_measure_valued_noise(
    mu: Float[Tensor, "latent"],
    num_samples: int,
    *,
    coupled: bool = True,
    generator: torch.Generator | None = None,
) -> MeasureValuedNoise:
    """Draw the noise of :func:`measure_valued` in the dtype and on the device of mu.

    A Rayleigh variable is the length of two standard normals, a Maxwell one that of three.
    """
    check_positive_int(num_samples=num_samples)
    _check_parameters(mu, mu)

    def normals(*leading: int) -> Tensor:
        shape = (*leading, num_samples, len(mu))
        return torch.randn(shape, generator=generator, dtype=mu.dtype, device=mu.device)

    def uniform() -> Tensor:
        shape = (num_samples, len(mu))
        return torch.rand(shape, generator=generator, dtype=mu.dtype, device=mu.device)

    plus = normals(2).norm(dim=0)
    maxwell = normals(3).norm(dim=0) * torch.where(uniform() < 0.5, -1, 1)
    minus, normal = (plus, maxwell * uniform()) if coupled else (normals(2).norm(dim=0), normals())
    return MeasureValuedNoise(normals(), plus, minus, maxwell, normal)


@torch.no_grad()
def sticking_the_landing(
    log_joint: Cost,
    mu: Float[Tensor, "latent"],
    log_var: Float[Tensor, "latent"],
    eps: Float[Tensor, "samples latent"],
) -> GradientSamples:
    r"""Path derivative of the ELBO E_q[log p(x, z) - log q(z)]: the score of q is left out.

    .. math:: \nabla_z\left[\log p(x, z) - \log q(z)\right] = \nabla_z \log p(x, z)
        + \epsilon/\sigma

    carried along the path as in :func:`pathwise`. ``log_joint`` maps z [N, L] to log p(x, z) [N].
    Every row is zero where q is the posterior. Roeder, Wu and Duvenaud (2017).

    >>> import torch
    >>> def log_joint(z):
    ...     return -z.square().sum(1) / 2
    >>> sticking_the_landing(log_joint, torch.zeros(1), torch.zeros(1), torch.tensor([[2.0]])).mu
    tensor([[0.]])
    """
    z, std = _draw(mu, log_var, eps)
    _, gradient = _evaluate_with_gradient(log_joint, z, name="log_joint")
    return _along_path(gradient + eps / std, std, eps)


@torch.no_grad()
def importance_weighted_pathwise(
    log_joint: Cost,
    mu: Float[Tensor, "latent"],
    log_var: Float[Tensor, "latent"],
    eps: Float[Tensor, "samples importance latent"],
) -> GradientSamples:
    r"""Reparametrized gradient of the importance-weighted bound with K draws a row, eps [N, K, L].

    .. math:: \sum_k \tilde w_k \nabla \log w_k, \qquad w_k = \frac{p(x, z_k)}{q(z_k)}, \quad
        \tilde w_k = \frac{w_k}{\sum_j w_j}

    with the total derivative of log w. Its signal-to-noise ratio falls with K. Burda, Grosse and
    Salakhutdinov (2016), section 3; Rainforth et al. (2018).
    """
    weights, gradient, std = _importance_weights(log_joint, mu, log_var, eps)
    path = _along_path(gradient, std, eps)
    return GradientSamples((weights * path.mu).sum(1), (weights * path.log_var).sum(1) + 0.5)


@torch.no_grad()
def doubly_reparametrized(
    log_joint: Cost,
    mu: Float[Tensor, "latent"],
    log_var: Float[Tensor, "latent"],
    eps: Float[Tensor, "samples importance latent"],
) -> GradientSamples:
    r"""Doubly reparametrized gradient (DReG) of the importance-weighted bound, eps [N, K, L].

    .. math:: \sum_k \tilde w_k^2\, \nabla_z \log w_k \; \frac{\partial z_k}{\partial(\mu,
        \log\sigma^2)}

    Its signal-to-noise ratio grows with K; at K = 1 it is :func:`sticking_the_landing`. Tucker,
    Lawson, Gu and Maddison (2019).
    """
    weights, gradient, std = _importance_weights(log_joint, mu, log_var, eps)
    path = _along_path(gradient + eps / std, std, eps)
    return GradientSamples(*((weights**2 * part).sum(1) for part in path))


def gradient_moments(
    estimator: Estimator,
    f: Cost,
    mu: Float[Tensor, "latent"],
    log_var: Float[Tensor, "latent"],
    *,
    num_samples: int,
    chunk_size: int = 4000,
    generator: torch.Generator | None = None,
) -> GradientMoments:
    """Mean and variance (over N - 1) of an estimator's rows, for each parameter, in float64.

    ``estimator`` is called as ``estimator(f, mu, log_var, eps)``, or, where it has a parameter
    ``num_samples``, as :func:`measure_valued` is. Blocks of at most ``chunk_size`` rows, whose
    sizes differ by one at most, are summed in the rows' dtype and the blocks in float64; rows whose
    mean is large beside their spread are shifted by the mean of the first block, so that no digits
    cancel. Memory does not grow with ``num_samples`` (at least two). An estimator whose rows depend
    on each other sees one block at a time. Chan, Golub and LeVeque (1983).

    >>> import torch
    >>> zero = torch.zeros(1)
    >>> gradient_moments(pathwise, lambda z: 3 * z[:, 0], zero, zero, num_samples=9).mean.mu
    tensor([3.], dtype=torch.float64)
    """
    check_positive_int(num_samples=num_samples, chunk_size=chunk_size)
    if num_samples < 2:
        raise ValueError(f"num_samples must be at least 2 for a variance, found {num_samples}")
    _check_parameters(mu, log_var)
    draws_own_noise = "num_samples" in inspect.signature(estimator).parameters
    num_chunks = -(-num_samples // chunk_size)
    totals = torch.zeros(4, len(mu), dtype=torch.float64, device=mu.device)
    shifts = None
    for chunk in range(num_chunks):
        count = num_samples // num_chunks + (chunk < num_samples % num_chunks)
        if draws_own_noise:
            rows = estimator(f, mu, log_var, num_samples=count, generator=generator)
        else:
            shape = (count, len(mu))
            eps = torch.randn(shape, generator=generator, dtype=mu.dtype, device=mu.device)
            rows = estimator(f, mu, log_var, eps)
        rows = [part.detach() for part in rows]
        if rows[0].shape != (count, len(mu)):
            raise ValueError(
                f"estimator must return rows of shape [{count}, {len(mu)}], "
                f"found {tuple(rows[0].shape)}"
            )
        if shifts is None:  # the first block is the largest
            shifts = [_shift(part) for part in rows]
        block = []
        for part, shift in zip(rows, shifts):
            centred = part if shift is None else part - shift
            block += [centred.sum(0), torch.linalg.vecdot(centred, centred, dim=0)]
        totals += torch.stack(block)
    sums, squares = totals[0::2], totals[1::2]
    mean, variance = sums / num_samples, (squares - sums**2 / num_samples) / (num_samples - 1)
    for row, shift in zip(mean, shifts):
        if shift is not None:
            row += shift
    return GradientMoments(GradientSamples(*mean), GradientSamples(*variance), num_samples)


@torch.no_grad()
def categorical_sample(
    logits: Float[Tensor, "latent categories"],
    gumbel: Float[Tensor, "samples latent categories"],
) -> Float[Tensor, "samples latent categories"]:
    r"""One-hot draws z from independent categoricals by the Gumbel-max trick, [N, L, C].

    .. math:: z = \operatorname{onehot}\arg\max_c\,(a_c + G_c), \qquad G_c = -\log E_c, \quad
        E_c \sim \mathrm{Exp}(1)

    with a the logits. A Bernoulli latent with logit a is the case C = 2 with logits (0, a): the
    gradient with respect to a is then the second column. Jang, Gu and Poole (2017), equation 1.
    """
    _check_categorical(logits, gumbel=gumbel)
    winner = (logits + gumbel).argmax(-1)
    return torch.nn.functional.one_hot(winner, logits.shape[-1]).to(logits.dtype)


@torch.no_grad()
def categorical_score_function(
    f: Cost,
    logits: Float[Tensor, "latent categories"],
    z: Float[Tensor, "samples latent categories"],
    baseline: Baseline = None,
) -> Float[Tensor, "samples latent categories"]:
    r"""Score-function estimator for one-hot z from independent categoricals, [N, L, C].

    .. math:: (f(z) - b)\,(z - \operatorname{softmax}(a))

    f maps [N, L, C] to [N]; z are the draws (or all states, for an exact sum). ``baseline`` is as
    in :func:`score_function`. Williams (1992), section 4.
    """
    _check_categorical(logits, z=z)
    costs = _less_baseline(_evaluate(f, z), baseline)
    return costs[:, None, None] * (z - logits.softmax(-1))


@torch.no_grad()
def gumbel_softmax(
    f: Cost,
    logits: Float[Tensor, "latent categories"],
    gumbel: Float[Tensor, "samples latent categories"],
    *,
    temperature: float,
) -> Float[Tensor, "samples latent categories"]:
    r"""Pathwise gradient through the relaxed draw, [N, L, C]. Biased for the discrete z.

    .. math:: \nabla_a f(y), \qquad y = \operatorname{softmax}\left((a + G)/\tau\right)

    The bias vanishes as the temperature tau goes to zero, and the variance then grows without
    bound. f is evaluated between its corners, where it must be defined. Jang, Gu and Poole (2017),
    equation 2; Maddison, Mnih and Teh (2017).
    """
    _check_categorical(logits, gumbel=gumbel)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a positive finite number, found {temperature}")
    scaled = (logits + gumbel) / temperature
    check_finite(**{"(logits + gumbel) / temperature": scaled})
    relaxed = scaled.softmax(-1)
    _, gradient = _evaluate_with_gradient(f, relaxed)
    return _through_softmax(gradient, relaxed) / temperature


@torch.no_grad()
def straight_through(
    f: Cost,
    logits: Float[Tensor, "latent categories"],
    z: Float[Tensor, "samples latent categories"],
) -> Float[Tensor, "samples latent categories"]:
    r"""Gradient of f at the discrete z, carried to the logits as if z were softmax(a). Biased.

    .. math:: \left(\frac{\partial\,\mathrm{softmax}(a)}{\partial a}\right)^{\!\top} \nabla_z f(z)

    Exact for linear f. z are one-hot draws [N, L, C]. Bengio, Leonard and Courville (2013).
    """
    _check_categorical(logits, z=z)
    _, gradient = _evaluate_with_gradient(f, z)
    return _through_softmax(gradient, logits.softmax(-1))


def _shift(rows: Tensor) -> Tensor | None:
    """The column means, where without them a sum of squares would lose digits; else None."""
    mean = rows.mean(0)
    spread = (rows - mean).square().mean(0).sqrt()
    return mean if (mean.abs() > 10 * spread).any() else None


def _draw(mu: Tensor, log_var: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """z [N, L] and the standard deviation [L], from checked arguments."""
    _check_parameters(mu, log_var)
    check_floating(eps=eps)
    if eps.ndim != 2 or eps.shape[0] == 0 or eps.shape[1] != len(mu):
        raise ValueError(f"eps must have shape [N, {len(mu)}], found {tuple(eps.shape)}")
    check_same_device(mu=mu, eps=eps)
    std = torch.exp(log_var / 2)
    z = torch.addcmul(mu, std, eps)
    total = z.sum() + log_var.sum()
    if not math.isfinite(total.item()):  # one cheap pass; now look for the culprit
        check_finite(mu=mu, log_var=log_var, eps=eps)
        check_finite(**{"mu + exp(log_var / 2) * eps": z})
    check_finite(**{"exp(-log_var / 2)": 1 / std})
    return z, std


def _check_parameters(mu: Tensor, log_var: Tensor) -> None:
    check_floating(mu=mu, log_var=log_var)
    if mu.ndim != 1 or len(mu) == 0:
        raise ValueError(f"mu must have shape [L], found {tuple(mu.shape)}")
    if log_var.shape != mu.shape:
        raise ValueError(
            f"log_var must have the shape of mu, {tuple(mu.shape)}, found {tuple(log_var.shape)}"
        )
    check_same_device(mu=mu, log_var=log_var)


def _check_categorical(logits: Tensor, **draws: Tensor) -> None:
    check_floating(logits=logits, **draws)
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"logits must have shape [L, C], found {tuple(logits.shape)}")
    for name, value in draws.items():
        if value.ndim != 3 or len(value) == 0 or value.shape[1:] != logits.shape:
            expected = ", ".join(str(size) for size in logits.shape)
            raise ValueError(f"{name} must have shape [N, {expected}], found {tuple(value.shape)}")
    check_same_device(logits=logits, **draws)
    check_finite(logits=logits, **draws)


def _evaluate(f: Cost, z: Tensor, shape: tuple | None = None, name: str = "f") -> Tensor:
    """f(z), checked to have one value a row: [N, 1] or a scalar would broadcast silently."""
    values = f(z)
    expected = tuple(shape or z.shape[:1])
    found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
    if found != expected:
        raise ValueError(f"{name} must return a tensor of shape {expected}, found {found}")
    check_floating(**{f"{name}(z)": values})
    check_finite(**{f"{name}(z)": values})
    return values


def _evaluate_with_gradient(f: Cost, z: Tensor, name: str = "f") -> tuple[Tensor, Tensor]:
    """f(z) [N] and its gradient with respect to z; zero where f does not depend on z smoothly."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        values = _evaluate(f, z, name=name)
        if not values.requires_grad:
            return values, torch.zeros_like(z)
        (gradient,) = torch.autograd.grad(values.sum(), z, materialize_grads=True)
    return values.detach(), gradient


def _along_path(gradient: Tensor, std: Tensor, eps: Tensor) -> GradientSamples:
    """Chain rule of z = mu + exp(log_var / 2) * eps."""
    return GradientSamples(gradient, (gradient * eps).mul_(std / 2))


def _scores(std: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    return eps / std, (eps**2 - 1) / 2


def _less_baseline(costs: Tensor, baseline: Baseline) -> Tensor:
    count = len(costs)
    if baseline is None:
        return costs
    if isinstance(baseline, str):
        check_choice("baseline", baseline, ("mean", "leave-one-out"))
        if baseline == "mean":
            return costs - costs.mean()
        if count < 2:
            raise ValueError("baseline 'leave-one-out' needs at least 2 rows of noise, found 1")
        return (costs - costs.mean()) * (count / (count - 1))
    try:
        number = float(baseline)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            "baseline must be None, one number, 'mean' or 'leave-one-out', "
            f"found {type(baseline).__name__}"
        ) from None
    if not math.isfinite(number):
        raise ValueError(f"baseline must be finite, found {number}")
    return costs - number


def _importance_weights(log_joint, mu, log_var, eps) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised weights [N, K, 1], the gradient of log p(x, z) in z [N, K, L], and std [L]."""
    check_floating(eps=eps)
    if eps.ndim != 3:
        raise ValueError(f"eps must have shape [N, K, L], found {tuple(eps.shape)}")
    z, std = _draw(mu, log_var, eps.flatten(0, 1))
    values, gradient = _evaluate_with_gradient(log_joint, z, name="log_joint")
    # log q(z) is -eps^2 / 2 up to a constant, which cancels in the normalised weights
    log_weights = values.reshape(eps.shape[:2]) + eps.square().sum(-1) / 2
    return log_weights.softmax(1)[..., None], gradient.reshape(eps.shape), std


def _through_softmax(gradient: Tensor, y: Tensor) -> Tensor:
    """Product of a gradient with the Jacobian of softmax, diag(y) - y y^T."""
    return y * (gradient - (y * gradient).sum(-1, keepdim=True))
