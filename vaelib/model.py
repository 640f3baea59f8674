"""The Gaussian VAE for binary data: networks only. They output distribution parameters."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vaelib.bernoulli import bernoulli_log_prob
from vaelib.checks import (
    check_floating,
    check_positive_int,
    check_same_device,
    check_unit_interval,
    check_vectors,
)
from vaelib.gaussian import gaussian_log_prob


class Encoder(nn.Module):
    r"""The inference network: parameters of q(z | x) = N(mu, diag(exp(log_var))).

    .. math:: h = \tanh(W_1 x + b_1), \quad \mu = W_2 h + b_2, \quad \log\sigma^2 = W_3 h + b_3

    Kingma and Welling (2014), appendix C.2.
    """

    def __init__(self, data_dim: int, hidden_dim: int, latent_dim: int):
        super().__init__()
        self.hidden = nn.Linear(data_dim, hidden_dim)
        self.mu = nn.Linear(hidden_dim, latent_dim)
        self.log_var = nn.Linear(hidden_dim, latent_dim)

    def forward(
        self, x: Float[Tensor, "*batch data"]
    ) -> tuple[Float[Tensor, "*batch latent"], Float[Tensor, "*batch latent"]]:
        """x [*, D] -> mu and log_var, each [*, L]."""
        h = torch.tanh(self.hidden(x))
        return self.mu(h), self.log_var(h)


class Decoder(nn.Module):
    r"""The generative network: logits of the Bernoulli p(x | z).

    .. math:: h' = \tanh(W_4 z + b_4), \quad a = W_5 h' + b_5, \quad \tilde x = \sigma(a)

    Kingma and Welling (2014), appendix C.1.
    """

    def __init__(self, latent_dim: int, hidden_dim: int, data_dim: int):
        super().__init__()
        self.hidden = nn.Linear(latent_dim, hidden_dim)
        self.logits = nn.Linear(hidden_dim, data_dim)

    def forward(self, z: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch data"]:
        """z [*, L] -> logits [*, D]."""
        return self.logits(torch.tanh(self.hidden(z)))


class VAE(nn.Module):
    """Prior N(0, I), Bernoulli likelihood, Gaussian q(z | x); one hidden layer on either side.

    ``VAE(data_dim=784, hidden_dim=500, latent_dim=20)``; a ValueError names a size that is no
    positive integer. Weights are drawn from torch's global generator: seed it for a fixed start.

    >>> import torch
    >>> model = VAE(data_dim=4, hidden_dim=3, latent_dim=2)
    >>> mu, log_var = model.encode(torch.zeros(5, 4))
    >>> mu.shape, model.decode(mu).shape
    (torch.Size([5, 2]), torch.Size([5, 4]))
    """

    def __init__(self, data_dim: int = 784, hidden_dim: int = 500, latent_dim: int = 20):
        super().__init__()
        check_positive_int(data_dim=data_dim, hidden_dim=hidden_dim, latent_dim=latent_dim)
        self.data_dim, self.hidden_dim, self.latent_dim = data_dim, hidden_dim, latent_dim
        self.encoder = Encoder(data_dim, hidden_dim, latent_dim)
        self.decoder = Decoder(latent_dim, hidden_dim, data_dim)

    def encode(
        self, x: Float[Tensor, "*batch data"]
    ) -> tuple[Float[Tensor, "*batch latent"], Float[Tensor, "*batch latent"]]:
        """Parameters mu and log_var of q(z | x), each [*, L], for x [*, D] in [0, 1]."""
        _check_input("x", x, self.encoder.hidden)
        check_unit_interval(x=x)
        return self.encoder(x)

    def decode(self, z: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch data"]:
        """Logits of p(x | z), [*, D], for z [*, L]."""
        _check_input("z", z, self.decoder.hidden)
        return self.decoder(z)

    def log_prior(self, z: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch"]:
        """log N(z; 0, I) in nats, [*]."""
        _check_input("z", z, self.decoder.hidden)
        zeros = z.new_zeros(z.shape[-1])
        return gaussian_log_prob(z, zeros, zeros)

    def log_likelihood(
        self, x: Float[Tensor, "*#batch data"], z: Float[Tensor, "*#batch latent"]
    ) -> Float[Tensor, "..."]:
        """log p(x | z) in nats: x [B, D] broadcasts against z [K, B, L] to [K, B]."""
        return bernoulli_log_prob(x, self.decode(z))


def _check_input(name: str, value: Tensor, layer: nn.Linear) -> None:
    check_floating(**{name: value})
    if value.ndim == 0 or value.shape[-1] != layer.in_features:
        raise ValueError(
            f"{name} must have a last axis of {layer.in_features}, "
            f"found shape {tuple(value.shape)}"
        )
    if value.dtype != layer.weight.dtype:
        raise TypeError(
            f"{name} must be of the model's dtype {layer.weight.dtype}, found {value.dtype}"
        )
    check_same_device(**{name: value, "the model": layer.weight})
    check_vectors(**{name: value})
