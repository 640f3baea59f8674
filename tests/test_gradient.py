"""The gradient written out by hand, against autograd through the bound itself."""

import pytest
import torch
from torch.testing import assert_close

from vaelib import VAE, elbo
from vaelib.gradient import BoundGradient
from vaelib.training import seeded_vae


@pytest.fixture
def model() -> VAE:
    return seeded_vae(0, data_dim=9, hidden_dim=6, latent_dim=3).double()


def draw(size: int, generator) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(size, 9, generator=generator, dtype=torch.float64).round()
    return x, torch.randn(size, 3, generator=generator, dtype=torch.float64)


def by_autograd(model, x, eps, scale) -> tuple[torch.Tensor, torch.Tensor]:
    bound = elbo(model, x, eps=eps[None])
    parts = torch.autograd.grad(-scale * bound.value.sum(), list(model.parameters()))
    gradient = torch.cat([part.flatten() for part in parts])
    return torch.stack([bound.reconstruction, bound.kl]).detach(), gradient


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("spread", [1.0, 8.0])  # weights far from their start, saturated layers
def test_terms_and_gradient_are_those_of_autograd(model, generator, size, spread):
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(spread)
    x, eps = draw(size, generator)
    expected_terms, expected = by_autograd(model, x, eps, 0.25)
    gradient = BoundGradient(model)
    terms = gradient(x, eps, 0.25)
    assert_close(terms, expected_terms, rtol=1e-12, atol=1e-12)
    assert_close(gradient.weights.grad, expected, rtol=1e-11, atol=1e-13)


def test_the_gradient_is_that_of_finite_differences(model, generator):
    """An independent route: no autograd, every weight moved by itself."""
    x, eps = draw(4, generator)
    gradient = BoundGradient(model)
    gradient(x, eps, 1.0)
    found, step = gradient.weights.grad.clone(), 1e-6

    def loss() -> float:
        return -elbo(model, x, eps=eps[None]).value.sum().item()

    weights = gradient.weights.detach()
    for i in range(len(weights)):
        at = weights[i].item()
        values = []
        for move in (step, -step):
            weights[i] = at + move
            values.append(loss())
        weights[i] = at
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(found[i].item(), abs=1e-7)


def test_a_second_call_overwrites_the_gradient(model, generator):
    gradient = BoundGradient(model)
    x, eps = draw(5, generator)
    gradient(x, eps, 1.0)
    first = gradient.weights.grad.clone()
    gradient(*draw(5, generator), 1.0)
    assert not torch.equal(gradient.weights.grad, first)
    gradient(x, eps, 1.0)
    assert torch.equal(gradient.weights.grad, first)


def test_no_examples_give_a_gradient_of_zero(model, generator):
    """The share of a process when the last batch is smaller than the number of processes."""
    gradient = BoundGradient(model)
    gradient(*draw(5, generator), 1.0)
    terms = gradient(*draw(0, generator), 1.0)
    assert terms.shape == (2, 0) and not gradient.weights.grad.any()


def test_the_model_follows_its_vector_until_released(model):
    before = [weight.detach().clone() for weight in model.parameters()]
    gradient = BoundGradient(model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    with torch.no_grad():
        gradient.weights.add_(1.0)
    after = [weight.detach().clone() for weight in model.parameters()]
    assert all(torch.equal(a, b + 1) for a, b in zip(after, before, strict=True))
    gradient.release()
    with torch.no_grad():
        gradient.weights.zero_()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), after, strict=True))


def test_compile_hands_the_arithmetic_to_torch_compile(model, generator, monkeypatch):
    calls = []

    def compile(function):
        return lambda *arguments: (calls.append(len(arguments[0])), function(*arguments))[1]

    monkeypatch.setattr(torch, "compile", compile)
    gradient = BoundGradient(model, compiled=True)
    gradient(*draw(5, generator), 1.0)
    assert calls == [5] and gradient.weights.grad.any()
