"""The networks: sizes, the equations they compute, and what they refuse."""

import pytest
import torch
from torch.distributions import Bernoulli, Independent, MultivariateNormal
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits
from torch.testing import assert_close

from vaelib import VAE

SIZES = {"data_dim": 7, "hidden_dim": 5, "latent_dim": 3}


@pytest.fixture
def model() -> VAE:
    return VAE(**SIZES).double()


@pytest.fixture
def x(generator) -> torch.Tensor:
    return torch.rand(4, 7, generator=generator, dtype=torch.float64).round()


def test_default_sizes_are_those_of_the_source_784_500_20():
    shapes = {name: tuple(p.shape) for name, p in VAE().named_parameters()}
    assert shapes == {
        "encoder.hidden.weight": (500, 784),
        "encoder.hidden.bias": (500,),
        "encoder.mu.weight": (20, 500),
        "encoder.mu.bias": (20,),
        "encoder.log_var.weight": (20, 500),
        "encoder.log_var.bias": (20,),
        "decoder.hidden.weight": (500, 20),
        "decoder.hidden.bias": (500,),
        "decoder.logits.weight": (784, 500),
        "decoder.logits.bias": (784,),
    }


@pytest.mark.parametrize("d, h, n", [(784, 500, 20), (784, 500, 2), (7, 5, 3), (3, 9, 4), (1, 1, 1)])
def test_parameter_count_follows_from_the_sizes(d, h, n):
    model = VAE(data_dim=d, hidden_dim=h, latent_dim=n)
    encoder = (d + 1) * h + 2 * (h + 1) * n
    decoder = (n + 1) * h + (h + 1) * d
    assert sum(p.numel() for p in model.encoder.parameters()) == encoder
    assert sum(p.numel() for p in model.decoder.parameters()) == decoder
    assert (model.data_dim, model.hidden_dim, model.latent_dim) == (d, h, n)


def test_encoder_computes_the_affine_tanh_affine_map(model, x):
    weights = {k: v.detach() for k, v in model.state_dict().items()}
    mu, log_var = model.encode(x)
    for b in range(4):  # one row at a time, with matrix-vector products
        h = (weights["encoder.hidden.weight"] @ x[b] + weights["encoder.hidden.bias"]).tanh()
        expected_mu = weights["encoder.mu.weight"] @ h + weights["encoder.mu.bias"]
        expected_log_var = weights["encoder.log_var.weight"] @ h + weights["encoder.log_var.bias"]
        assert_close(mu[b], expected_mu, rtol=1e-13, atol=1e-14)
        assert_close(log_var[b], expected_log_var, rtol=1e-13, atol=1e-14)


def test_decoder_computes_the_logits_of_the_pixel_probabilities(model, generator):
    weights = {k: v.detach() for k, v in model.state_dict().items()}
    z = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    for b in range(4):
        h = (weights["decoder.hidden.weight"] @ z[b] + weights["decoder.hidden.bias"]).tanh()
        a = weights["decoder.logits.weight"] @ h + weights["decoder.logits.bias"]
        probabilities = 1 / (1 + torch.exp(-a))
        assert_close(model.decode(z)[b].sigmoid(), probabilities, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("leading", [(), (4,), (2, 4), (3, 2, 4)])
def test_any_leading_axes_are_kept(model, leading, generator):
    x = torch.rand(*leading, 7, generator=generator, dtype=torch.float64)
    z = torch.randn(*leading, 3, generator=generator, dtype=torch.float64)
    mu, log_var = model.encode(x)
    assert mu.shape == log_var.shape == (*leading, 3)
    assert model.decode(z).shape == (*leading, 7)
    assert model.log_prior(z).shape == model.log_likelihood(x, z).shape == leading


def test_log_prior_is_the_standard_normal_density(model, generator):
    z = 3 * torch.randn(6, 4, 3, generator=generator, dtype=torch.float64)
    standard = MultivariateNormal(z.new_zeros(3), torch.eye(3, dtype=z.dtype))
    assert_close(model.log_prior(z), standard.log_prob(z), rtol=1e-13, atol=0)


def test_log_likelihood_broadcasts_data_against_samples_and_sums_pixels(model, x, generator):
    z = torch.randn(6, 4, 3, generator=generator, dtype=torch.float64)  # [K, B, L]
    value = model.log_likelihood(x, z)
    assert value.shape == (6, 4)
    logits = model.decode(z)
    bernoulli = Independent(Bernoulli(logits=logits), 1)
    assert_close(value, bernoulli.log_prob(x.expand(6, 4, 7)), rtol=1e-13, atol=0)
    for k in range(6):
        for b in range(4):
            entropy = binary_cross_entropy_with_logits(logits[k, b], x[b], reduction="sum")
            assert_close(value[k, b], -entropy, rtol=1e-13, atol=0)
            naive = binary_cross_entropy(logits[k, b].sigmoid(), x[b], reduction="sum")
            assert_close(value[k, b], -naive, rtol=1e-12, atol=0)


def test_log_likelihood_takes_one_code_for_many_images_and_one_image_for_many_codes(model, x):
    z = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)
    one_code = model.log_likelihood(x, z[0])
    one_image = model.log_likelihood(x[0], z)
    assert one_code.shape == (4,) and one_image.shape == (5,)
    assert_close(one_code[0], one_image[0], rtol=1e-13, atol=0)


def test_probabilities_of_all_binary_images_sum_to_one_at_every_code(generator):
    model = VAE(data_dim=6, hidden_dim=4, latent_dim=2).double()
    z = 2 * torch.randn(5, 1, 2, generator=generator, dtype=torch.float64)
    images = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 6)
    total = torch.logsumexp(model.log_likelihood(images, z), -1)
    assert_close(total, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-13)


def test_every_parameter_receives_a_gradient_from_the_right_term(model, x, generator):
    z = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    model.log_likelihood(x, z).sum().backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.decoder.parameters())
    mu, log_var = model.encode(x)
    (mu.sum() + log_var.sum()).backward()
    assert all(p.grad.abs().sum() > 0 for p in model.encoder.parameters())


def test_same_seed_gives_the_same_weights():
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(VAE(**SIZES).encoder.hidden.weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3", None])
def test_a_size_that_is_no_positive_integer_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, found"):
        VAE(**{**SIZES, name: value})


@pytest.mark.parametrize("bad, message", [(-0.01, "-0.01"), (1.5, "1.5"), (255.0, "255")])
def test_data_outside_the_unit_interval_are_refused(model, x, bad, message):
    x[2, 3] = bad
    for call in (model.encode, lambda x: model.log_likelihood(x, x.new_zeros(4, 3))):
        with pytest.raises(ValueError, match=rf"x must lie in \[0, 1\], found values from .*{message}"):
            call(x)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_data_and_codes_are_refused(model, x, bad):
    z = x.new_zeros(4, 3)
    z[1, 1] = bad
    for call in (model.decode, model.log_prior, lambda z: model.log_likelihood(x, z)):
        with pytest.raises(ValueError, match="z must be finite"):
            call(z)
    x[1, 1] = bad
    for call in (model.encode, lambda x: model.log_likelihood(x, x.new_zeros(4, 3))):
        with pytest.raises(ValueError, match="x must be finite"):
            call(x)


@pytest.mark.parametrize("width", [1, 6, 8])
def test_wrong_widths_are_refused_and_never_broadcast(model, x, width):
    with pytest.raises(ValueError, match=rf"x must have a last axis of 7, found shape \(4, {width}\)"):
        model.encode(x.new_zeros(4, width))
    with pytest.raises(ValueError, match=rf"z must have a last axis of 3, found shape \(4, {width}\)"):
        model.decode(x.new_zeros(4, width))
    with pytest.raises(ValueError, match="last axis"):
        model.log_likelihood(x.new_zeros(4, width), x.new_zeros(4, 3))


def test_leading_axes_that_do_not_fit_are_refused(model, x):
    with pytest.raises(ValueError, match="leading axes must broadcast"):
        model.log_likelihood(x, x.new_zeros(6, 5, 3))


def test_wrong_dtypes_and_types_are_refused(model, x):
    with pytest.raises(TypeError, match="x must be of a floating-point dtype, found torch.uint8"):
        model.encode(x.to(torch.uint8))
    with pytest.raises(TypeError, match="x must be of the model's dtype torch.float64"):
        model.encode(x.float())
    with pytest.raises(TypeError, match="z must be a torch.Tensor, found list"):
        model.decode([0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="x must have a last axis of 7"):
        model.encode(torch.tensor(0.5, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_likelihood_stays_right_where_the_probability_rounds_to_0_or_1(dtype):
    model = VAE(data_dim=784, hidden_dim=3, latent_dim=2).to(dtype)
    sign = torch.where(torch.arange(784) % 2 == 0, 1.0, -1.0).to(dtype)
    with torch.no_grad():
        model.decoder.logits.weight.zero_()
        model.decoder.logits.bias.copy_(50 * sign)
    z = torch.zeros(1, 2, dtype=dtype)
    right, wrong = (sign[None] + 1) / 2, (1 - sign[None]) / 2
    assert -1e-12 <= model.log_likelihood(right, z).item() <= 0
    assert model.log_likelihood(wrong, z).item() == pytest.approx(-50 * 784, rel=1e-6)
