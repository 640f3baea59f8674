"""Exact means and variances of the gradient estimators in one dimension, z ~ N(mu, sigma^2).

Everything here is for the parameters mu and sigma and for a single sample; ``in_log_var`` converts.
Costs: linear z, quadratic (z - k)^2, exponential exp(kz), cosine cos(kz) and bump exp(-k z^2).
``variances[cost][estimator](mu, sigma, k)`` is the pair for mu and sigma.
"""

import math

import numpy as np
import torch
from scipy.special import dawsn, erf

COSTS = {
    "linear": lambda k: lambda z: z[:, 0],
    "quadratic": lambda k: lambda z: (z[:, 0] - k) ** 2,
    "exponential": lambda k: lambda z: torch.exp(k * z[:, 0]),
    "cosine": lambda k: lambda z: torch.cos(k * z[:, 0]),
    "bump": lambda k: lambda z: torch.exp(-k * z[:, 0] ** 2),
}

#: (cost, mu, sigma, k): the panels of Mohamed et al. (2020) among them, mu = sigma = 1.
CASES = [
    (cost, mu, sigma, k)
    for cost, ks in {
        "linear": [0.0],
        "quadratic": [-3.0, 0.4, 3.0],
        "exponential": [-0.6, 0.9],
        "cosine": [0.5, 1.0638, 5.0],
        "bump": [0.1, 0.87, 10.0],
    }.items()
    for mu, sigma in [(1.0, 1.0), (0.3, 0.5), (-0.7, 1.2), (0.0, 0.8)]
    for k in ks
]


def in_log_var(pair: tuple[float, float], sigma: float, power: int = 1) -> tuple[float, float]:
    """Turn (mu, sigma) gradients (power 1) or variances (power 2) into those of (mu, log_var)."""
    return pair[0], pair[1] * (sigma / 2) ** power


def gradient(cost: str, mu: float, sigma: float, k: float) -> tuple[float, float]:
    t = k * sigma
    if cost == "linear":
        return 1.0, 0.0
    if cost == "quadratic":
        return 2 * (mu - k), 2 * sigma
    if cost == "exponential":
        mean = math.exp(k * mu + t**2 / 2)
        return k * mean, k**2 * sigma * mean
    if cost == "cosine":
        decay = math.exp(-(t**2) / 2)
        return -k * decay * math.sin(k * mu), -(k**2) * sigma * decay * math.cos(k * mu)
    a, area = _bump(mu, sigma, k)
    return -2 * k * mu / a * area, 2 * k * sigma * area * (2 * k * mu**2 / a**2 - 1 / a)


def expectation(cost: str, mu: float, sigma: float, k: float) -> float:
    return {
        "linear": lambda: mu,
        "quadratic": lambda: (mu - k) ** 2 + sigma**2,
        "exponential": lambda: math.exp(k * mu + (k * sigma) ** 2 / 2),
        "cosine": lambda: math.exp(-((k * sigma) ** 2) / 2) * math.cos(k * mu),
        "bump": lambda: _bump(mu, sigma, k)[1],
    }[cost]()


def score_function_variance(cost, mu, sigma, k):
    g_mu, g_sigma = gradient(cost, mu, sigma, k)
    t = k * sigma
    if cost == "linear":
        return mu**2 / sigma**2 + 2, 2 * mu**2 / sigma**2 + 10
    if cost == "quadratic":
        d, s = mu - k, sigma
        return (
            d**4 / s**2 + 14 * d**2 + 15 * s**2,
            2 * d**4 / s**2 + 60 * d**2 + 74 * s**2,
        )
    if cost == "exponential":
        e = math.exp(t**2)
        unit = math.exp(2 * k * mu + t**2) / sigma**2
        return (
            unit * (e * (1 + 4 * t**2) - t**2),
            unit * (e * (16 * t**4 + 16 * t**2 + 2) - t**4),
        )
    if cost == "cosine":
        e, c = math.exp(-2 * t**2), math.cos(2 * k * mu)
        return (
            (1 + (1 - 4 * t**2) * e * c) / (2 * sigma**2) - g_mu**2,
            (2 + (16 * t**4 - 16 * t**2 + 2) * e * c) / (2 * sigma**2) - g_sigma**2,
        )
    a, area = _bump(mu, sigma, 2 * k)
    v, d = sigma**2 / a, mu / a - mu
    fourth = d**4 + 6 * d**2 * v + 3 * v**2 - 2 * sigma**2 * (d**2 + v) + sigma**4
    return area * (d**2 + v) / sigma**4 - g_mu**2, area * fourth / sigma**6 - g_sigma**2


def pathwise_variance(cost, mu, sigma, k):
    g_mu, g_sigma = gradient(cost, mu, sigma, k)
    t = k * sigma
    if cost == "linear":
        return 0.0, 1.0
    if cost == "quadratic":
        return 4 * sigma**2, 4 * (mu - k) ** 2 + 8 * sigma**2
    if cost == "exponential":
        e = math.exp(t**2)
        unit = math.exp(2 * k * mu + t**2) / sigma**2
        return unit * t**2 * (e - 1), unit * (t**2 * e * (1 + 4 * t**2) - t**4)
    if cost == "cosine":
        e, c = math.exp(-2 * t**2), math.cos(2 * k * mu)
        return (
            k**2 / 2 * (1 - e * c) - g_mu**2,
            k**2 / 2 * (1 - (1 - 4 * t**2) * e * c) - g_sigma**2,
        )
    a, area = _bump(mu, sigma, 2 * k)
    m, v, d = mu / a, sigma**2 / a, mu / a - mu
    fourth = m**2 * d**2 + v * (m**2 + d**2 + 4 * m * d) + 3 * v**2
    return (
        4 * k**2 * area * (m**2 + v) - g_mu**2,
        4 * k**2 * area / sigma**2 * fourth - g_sigma**2,
    )


def antithetic_variance(cost, mu, sigma, k):
    """Of the mean over a pair: only the part of f' that is even in eps (mu), or odd, is left."""
    t, g_sigma = k * sigma, gradient(cost, mu, sigma, k)[1]
    if cost == "linear":
        return 0.0, 0.0
    if cost == "quadratic":
        return 0.0, 8 * sigma**2
    if cost == "exponential":
        unit = k**2 * math.exp(2 * k * mu)
        e = math.exp(t**2)
        return (
            unit * ((1 + e**2) / 2 - e),
            unit * ((1 + 4 * t**2) * e**2 - 1) / 2 - g_sigma**2,
        )
    if cost == "cosine":
        e = math.exp(-(t**2))
        return (
            (k * math.sin(k * mu)) ** 2 * ((1 + e**2) / 2 - e),
            (k * math.cos(k * mu)) ** 2 * (1 - (1 - 4 * t**2) * e**2) / 2 - g_sigma**2,
        )
    return _bump_antithetic_variance(mu, sigma, k)


def coupled_measure_valued_variance(cost, mu, sigma, k):
    """With E cosh(sR) = 1 + s sqrt(pi/2) exp(s^2/2) erf(s/sqrt 2) for a Rayleigh R, its cosine
    likewise with Dawson's function, and E exp(sM) = (1 + s^2) exp(s^2/2) for a Maxwell M."""
    g_mu, g_sigma = gradient(cost, mu, sigma, k)
    t = k * sigma
    if cost == "linear":
        return 4 / math.pi - 1, 1.0
    if cost == "quadratic":
        d = mu - k
        return (16 / math.pi - 4) * d**2, 4 * d**2 + 4 * sigma**2
    if cost == "exponential":
        unit = math.exp(2 * k * mu) / sigma**2
        cosh = 2 * t * math.sqrt(math.pi / 2) * math.exp(2 * t**2) * erf(math.sqrt(2) * t)
        second = (4 * t**2 - 2) * math.exp(2 * t**2) + 2 * math.exp(t**2 / 2)
        return unit * cosh / math.pi - g_mu**2, unit * second - g_sigma**2
    if cost == "cosine":
        c, e = math.cos(2 * k * mu), math.exp(-(t**2) / 2)
        one_less_cosine = 2 * math.sqrt(2) * t * dawsn(math.sqrt(2) * t)
        second = 1 - e + c * (e - (1 + 2 * t**2) * e**4)
        return (
            math.sin(k * mu) ** 2 * one_less_cosine / (math.pi * sigma**2) - g_mu**2,
            second / sigma**2 - g_sigma**2,
        )
    return _bump_coupled_variance(mu, sigma, k)


def quadrature(length: float = 14.0, nodes: int = 20_001) -> tuple[torch.Tensor, torch.Tensor]:
    """Trapezoid nodes as eps [N, 1] and their normal weights [N], exact to rounding here."""
    eps = torch.linspace(-length, length, nodes, dtype=torch.float64)
    weights = torch.exp(-(eps**2) / 2) * (2 * length / (nodes - 1) / math.sqrt(2 * math.pi))
    return eps[:, None], weights


def half_line(length: float = 14.0, panels: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Gauss-Legendre panels on [0, length], nodes [N, 1] and weights [N]."""
    x, w = np.polynomial.legendre.leggauss(20)
    edges = np.linspace(0, length, panels + 1)[:-1, None]
    width = length / panels
    nodes = torch.from_numpy((edges + width * (x + 1) / 2).ravel())
    return nodes[:, None], torch.from_numpy(np.tile(w * width / 2, panels))


def rayleigh_quadrature() -> tuple[torch.Tensor, torch.Tensor]:
    r, weights = half_line()
    return r, weights * r[:, 0] * torch.exp(-(r[:, 0] ** 2) / 2)


def maxwell_uniform_quadrature() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Double-sided Maxwell M [N, 1], M U [N, 1] and the weights [N] of the product rule."""
    m, weights = quadrature(12.0, 1201)
    u, u_weights = half_line(1.0, 4)
    weights = (weights * m[:, 0] ** 2)[:, None] * u_weights
    return m.repeat(1, len(u)).reshape(-1, 1), (m * u[:, 0]).reshape(-1, 1), weights.ravel()


def moments(rows: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted mean and variance over the rows of a [N, L] block."""
    mean = weights @ rows
    return mean, weights @ (rows - mean) ** 2


def _bump(mu, sigma, j):
    a = 1 + 2 * j * sigma**2
    return a, math.exp(-j * mu**2 / a) / math.sqrt(a)


def _bump_antithetic_variance(mu, sigma, k):
    # E of g(eps) g(-eps) is a Gaussian integral: the exponents add up to -2k (mu^2 + sigma^2 eps^2)
    g_mu, g_sigma = gradient("bump", mu, sigma, k)
    a = 1 + 4 * k * sigma**2
    mass = math.exp(-2 * k * mu**2) / math.sqrt(a)
    cross_mu = 4 * k**2 * mass * (mu**2 - sigma**2 / a)
    cross_sigma = -4 * k**2 * mass * (mu**2 / a - 3 * sigma**2 / a**2)
    plain_mu, plain_sigma = pathwise_variance("bump", mu, sigma, k)
    return (
        (plain_mu + cross_mu - g_mu**2) / 2,
        (plain_sigma + cross_sigma - g_sigma**2) / 2,
    )


def _bump_coupled_variance(mu, sigma, k):
    # Products of bumps are Gaussian in R and in M; what has no closed form is summed here in numpy
    g_mu, g_sigma = gradient("bump", mu, sigma, k)
    r, w = (part.numpy() for part in rayleigh_quadrature())
    far = np.exp(-k * (mu + sigma * r[:, 0]) ** 2) - np.exp(-k * (mu - sigma * r[:, 0]) ** 2)
    # f(A)^2, f(B)^2 and the cross term f(A) f(B) = exp(-k [(mu + sigma M)^2 + (mu + sigma M U)^2])
    a, area = _bump(mu, sigma, 2 * k)
    m, v = mu / a - mu, sigma**2 / a
    squares = area * (m**2 + v) / sigma**2 + area
    u, u_weights = np.polynomial.legendre.leggauss(80)
    u, u_weights = (u + 1) / 2, u_weights / 2
    precision = 1 + 2 * k * sigma**2 * (1 + u**2)
    shift = -2 * k * mu * sigma * (1 + u) / precision
    mass = np.exp(-2 * k * mu**2 + precision * shift**2 / 2) / np.sqrt(precision)
    cross = u_weights @ (mass * (shift**2 + 1 / precision))
    return (
        w @ far**2 / (2 * math.pi * sigma**2) - g_mu**2,
        (squares - 2 * cross) / sigma**2 - g_sigma**2,
    )
