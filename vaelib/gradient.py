r"""The gradient of the VAE's bound, written out: what a training step computes.

Autograd records some fifty small operations a step, allocates a gradient for each of ten weights,
and Adam visits them one by one. For networks of this size that is an eighth of the step. Here the
chain rule is applied by hand, and the gradient is written into one vector that stays where it is.
With h and k the hidden layers of encoder and decoder and a the logits, the gradients of
reconstruction - KL are

.. math:: \bar a = x - \sigma(a), \quad \bar k = W_5^\top\bar a \odot (1-k^2), \quad
    \bar z = W_4^\top\bar k, \quad \bar\mu = \bar z - \mu, \\
    \overline{\log\sigma^2} = \tfrac12\left[\bar z\odot\epsilon\odot\sigma - (\sigma^2 - 1)\right],
    \quad \bar h = (W_2^\top\bar\mu + W_3^\top\overline{\log\sigma^2}) \odot (1-h^2),

and that of a weight is the outer product of the gradient above it and the values below it.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear, logsigmoid

from vaelib.model import VAE


class BoundGradient:
    """The terms of the bound and their gradient, over one vector that holds all weights of a VAE.

    ``weights`` is that vector, and ``weights.grad`` its gradient. The model's own weights become
    views of it, and so follow each step of an optimizer, until :meth:`release`. ``compiled`` hands the
    arithmetic to torch.compile. Kingma and Welling (2014), appendices B and C.
    """

    def __init__(self, model: VAE, *, compiled: bool = False):
        self.model = model
        own = [weight.detach() for weight in model.parameters()]
        self.weights = nn.Parameter(torch.cat([weight.flatten() for weight in own]))
        self.weights.grad = torch.zeros_like(self.weights)
        sizes, shapes = [weight.numel() for weight in own], [weight.shape for weight in own]
        self._views, self._gradients = (
            [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]
            for flat in (self.weights.detach(), self.weights.grad)
        )
        for weight, view in zip(model.parameters(), self._views, strict=True):
            weight.data = view
        self._step = torch.compile(terms_and_gradient) if compiled else terms_and_gradient

    def __call__(
        self, x: Float[Tensor, "batch data"], eps: Float[Tensor, "batch latent"], scale: float
    ) -> Float[Tensor, "2 batch"]:
        """Reconstruction and KL of each example, [2, B], in nats, for one sample of z.

        ``weights.grad`` becomes the gradient of ``scale`` times the sum of KL - reconstruction.
        Arguments are not checked.
        """
        return self._step(x, eps, scale, self._views, self._gradients)

    def release(self) -> None:
        """Give the model weights of its own again, with the values that they have now."""
        for weight in self.model.parameters():
            weight.data = weight.data.clone()


@torch.no_grad()
def terms_and_gradient(
    x: Tensor, eps: Tensor, scale: float, weights: list[Tensor], gradients: list[Tensor]
) -> Tensor:
    """The function behind :class:`BoundGradient`; ``gradients`` are overwritten.

    Both lists hold weight and bias of: encoder hidden, mu, log_var, decoder hidden, logits.
    """
    w1, b1, w2, b2, w3, b3, w4, b4, w5, b5 = weights
    h = torch.tanh_(linear(x, w1, b1))
    mu, log_var = linear(h, w2, b2), linear(h, w3, b3)
    std, var_minus_1 = torch.exp(log_var / 2), torch.expm1(log_var)
    z = mu + std * eps
    k = torch.tanh_(linear(z, w4, b4))
    logits = linear(k, w5, b5)
    reconstruction = torch.addcmul(logsigmoid(logits), x - 1, logits).sum(-1)
    kl = 0.5 * (mu**2 + var_minus_1 - log_var).sum(-1)

    d_logits = torch.sigmoid_(logits).sub_(x).mul_(scale)
    d_k = (d_logits @ w5).mul_(1 - k * k)
    d_z = d_k @ w4
    d_mu = d_z + scale * mu
    d_log_var = 0.5 * (d_z * eps * std + scale * var_minus_1)
    d_h = torch.addmm(d_mu @ w2, d_log_var, w3).mul_(1 - h * h)
    layers = ((d_h, x), (d_mu, h), (d_log_var, h), (d_k, z), (d_logits, k))
    for (above, below), d_weight, d_bias in zip(layers, gradients[::2], gradients[1::2]):
        torch.mm(above.mT, below, out=d_weight)
        torch.sum(above, 0, out=d_bias)
    return torch.stack([reconstruction, kl])
