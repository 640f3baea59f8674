"""Bernoulli log-likelihood of binary data, from logits."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from vaelib.checks import check_unit_interval, check_vectors


def bernoulli_log_prob(
    x: Float[Tensor, "*#batch data"],
    logits: Float[Tensor, "*#batch data"],
) -> Float[Tensor, "..."]:
    r"""Log-likelihood of x under independent Bernoullis, in nats, summed over the last axis.

    .. math:: \sum_i \left[x_i \log\tilde x_i + (1-x_i)\log(1-\tilde x_i)\right]
        = \sum_i \left[\log\sigma(a_i) - (1-x_i)\,a_i\right], \qquad \tilde x_i = \sigma(a_i)

    with a the logits. The right-hand side never takes the logarithm of a rounded probability.
    Values of x strictly between 0 and 1 are accepted, but the result is then a cross-entropy and
    no longer the logarithm of a probability (Loaiza-Ganem and Cunningham 2019).

    Raises a TypeError for an argument that is no floating-point tensor, and a ValueError for x
    outside [0, 1], unequal last axes, leading axes that do not broadcast, NaN or infinity.

    >>> import torch
    >>> bernoulli_log_prob(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]))
    tensor(-1.3863)
    """
    check_vectors(x=x, logits=logits)
    check_unit_interval(x=x)
    return torch.addcmul(logsigmoid(logits), x - 1, logits).sum(-1)
