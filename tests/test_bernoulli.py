"""The Bernoulli log-likelihood from logits: enumeration, torch.distributions, extremes, mutants."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import Bernoulli
from torch.testing import assert_close

from vaelib import bernoulli_log_prob

EXACT = {"rtol": 1e-12, "atol": 0.0}
many = settings(max_examples=100, derandomize=True, deadline=None)


def normals(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def all_binary_vectors(size: int) -> Tensor:
    """[2^size, size]"""
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=size)), dtype=torch.float64)


def check_log_likelihood(log_prob) -> None:
    """Against torch.distributions; and the probabilities of all 2^4 images add up to one."""
    x, logits = all_binary_vectors(4), 2 * normals(4)
    found = log_prob(x, logits)
    assert_close(found, Bernoulli(logits=logits).log_prob(x).sum(-1), **EXACT)
    assert_close(found.exp().sum(), torch.tensor(1.0, dtype=torch.float64), **EXACT)
    mean = found.exp() @ x
    assert_close(mean, torch.sigmoid(logits), **EXACT)


def test_log_likelihood_is_that_of_independent_bernoullis():
    check_log_likelihood(bernoulli_log_prob)


def naive(x: Tensor, logits: Tensor) -> Tensor:
    p = torch.sigmoid(logits)
    return (x * p.log() + (1 - x) * (1 - p).log()).sum(-1)


def test_the_definition_passes_the_same_check():
    check_log_likelihood(naive)


WRONG = {
    "x log(1 - p), as the source writes": lambda x, a: (
        (x * (1 - a.sigmoid()).log() + (1 - x) * (1 - a.sigmoid()).log()).sum(-1)
    ),
    "the source's missing brackets": lambda x, a: (
        (x * a.sigmoid().log()).sum(-1) + (1 - x[..., -1]) * (1 - a[..., -1].sigmoid()).log()
    ),
    "sign": lambda x, a: -naive(x, a),
    "x = 1 only": lambda x, a: (x * a.sigmoid().log()).sum(-1),
    "sign of the logits": lambda x, a: naive(x, -a),
    "probabilities taken for logits": lambda x, a: naive(x, a.sigmoid()),
    "mean over the pixels, a hidden beta": lambda x, a: naive(x, a) / x.shape[-1],
    "squared error": lambda x, a: -(x - a.sigmoid()).square().sum(-1),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_likelihoods_are_rejected(name):
    with pytest.raises(AssertionError):
        check_log_likelihood(WRONG[name])


def test_images_broadcast_against_samples_of_logits():
    x, logits = all_binary_vectors(3), normals(5, 8, 3)
    expected = Bernoulli(logits=logits).log_prob(x.expand(5, 8, 3)).sum(-1)
    assert_close(bernoulli_log_prob(x, logits), expected, **EXACT)
    assert_close(bernoulli_log_prob(x, logits[0, 0]), naive(x, logits[0, 0]), **EXACT)


@pytest.mark.parametrize("logit", [0.0, 1.0, 15.0, 25.0, 40.0, 300.0, 800.0])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("x", [0.0, 1.0])
def test_digits_are_kept_at_extreme_logits(logit, sign, x):
    logits = torch.tensor([sign * logit], dtype=torch.float64, requires_grad=True)
    value = bernoulli_log_prob(torch.tensor([x], dtype=torch.float64), logits)
    (slope,) = torch.autograd.grad(value, logits)
    with mpmath.workdps(400):
        a = mpmath.mpf(sign * logit)
        exact = float(x * a - mpmath.log(1 + mpmath.exp(a)))
        exact_slope = float(x - 1 / (1 + mpmath.exp(-a)))
    # Rounding of a logit of this size: a probability of one pixel is right to eps * |logit|.
    assert abs(value.item() - exact) <= 4e-16 * max(logit, 1)
    assert abs(slope.item() - exact_slope) <= 4e-16


def test_logarithm_of_a_rounded_probability_fails_where_ours_holds():
    x, logits = torch.zeros(1), torch.tensor([40.0])
    assert naive(x, logits) == -math.inf
    assert_close(bernoulli_log_prob(x, logits), torch.tensor(-40.0))


def test_gradient_is_x_minus_the_probability():
    x, logits = all_binary_vectors(3), normals(8, 3).requires_grad_()
    (grad,) = torch.autograd.grad(bernoulli_log_prob(x, logits).sum(), logits)
    assert_close(grad, x - torch.sigmoid(logits.detach()), **EXACT)


def test_gradients_agree_with_finite_differences():
    x, logits = torch.sigmoid(normals(2, 3)).requires_grad_(), normals(2, 3, seed=1).requires_grad_()
    assert gradcheck(bernoulli_log_prob, (x, logits))
    assert gradgradcheck(bernoulli_log_prob, (x, logits))


def test_grey_values_are_accepted_but_their_exp_is_no_density():
    """The integral of exp(log-likelihood) over x in [0, 1] is (2p-1)/log(p/(1-p)), not one."""
    logits = torch.tensor([1.5], dtype=torch.float64)
    x = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    mass = torch.trapezoid(bernoulli_log_prob(x[:, None], logits).exp(), x)
    p = torch.sigmoid(logits[0])
    assert_close(mass, (2 * p - 1) / logits[0], rtol=1e-8, atol=0)
    assert mass < 0.5


@st.composite
def images_and_logits(draw) -> tuple[Tensor, Tensor]:
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    shape = (*draw(st.sampled_from([(), (0,), (3,), (2, 1)])), draw(st.integers(1, 5)))
    width = 8 * np.dtype(dtype).itemsize
    x = draw(hnp.arrays(dtype, shape, elements=st.floats(0, 1, width=width)))
    logits = draw(hnp.arrays(dtype, shape, elements=st.floats(-1e6, 1e6, width=width)))
    return torch.from_numpy(x), torch.from_numpy(logits)


@many
@given(images_and_logits())
def test_log_likelihood_is_finite_and_never_positive(arguments):
    x, logits = arguments
    logits.requires_grad_()
    value = bernoulli_log_prob(x, logits)
    assert value.shape == x.shape[:-1] and value.dtype == x.dtype
    assert value.isfinite().all()
    # Grey x: logsigmoid(a) + (x-1) a rounds at the size of a.
    slack = 4 * torch.finfo(x.dtype).eps * logits.detach().abs().sum(-1)
    assert (value <= slack).all()
    (grad,) = torch.autograd.grad(value.sum(), logits)
    assert grad.isfinite().all() and (grad.abs() <= 1).all()


@pytest.mark.parametrize("value, found", [(-0.1, "-0.1 to 1"), (255.0, "0 to 255")])
def test_x_outside_the_unit_interval_is_refused(value, found):
    x = torch.tensor([[0.0, 1.0, value]])
    with pytest.raises(ValueError, match=rf"^x must lie in \[0, 1\], found values from {found}"):
        bernoulli_log_prob(x, torch.zeros(1, 3))


@pytest.mark.parametrize("name", ["x", "logits"])
def test_bad_arguments_are_refused_by_name(name):
    good = {"x": torch.ones(2, 3), "logits": torch.zeros(2, 3)}
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"^{name} must be finite, found 6 of 6"):
            bernoulli_log_prob(**good | {name: torch.full((2, 3), bad)})
    for bad, found in ((torch.ones(2, 3).byte(), "torch.uint8"), ([1.0], "list")):
        with pytest.raises(TypeError, match=rf"^{name} must be .*found {found}"):
            bernoulli_log_prob(**good | {name: bad})


@pytest.mark.parametrize("shape", [(2, 1), (2,), (), (3, 3)])
def test_shapes_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="logits"):
        bernoulli_log_prob(torch.ones(2, 3), torch.zeros(shape))
