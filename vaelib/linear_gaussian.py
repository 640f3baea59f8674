"""The oracle of the book: a latent-variable model whose evidence is known exactly."""

import torch
from jaxtyping import Float
from torch import Tensor

from vaelib.checks import (
    check_broadcast,
    check_finite,
    check_floating,
    check_same_device,
    check_square,
)
from vaelib.gaussian import LOG_2PI, checked_cholesky, gaussian_log_prob, kl_standard_normal


class LinearGaussianModel:
    r"""Probabilistic PCA: z ~ N(0, I), x | z ~ N(W z + b, s^2 I).

    Everything that a variational auto-encoder approximates has a closed form here (Tipping and
    Bishop 1999, equations 4 to 8; Bishop 2006, section 12.2). With the posterior precision
    :math:`P = I + W^\top W / s^2`:

    .. math:: p(x) = \mathcal N(b,\; WW^\top + s^2 I), \qquad
        p(z\mid x) = \mathcal N(P^{-1}W^\top(x-b)/s^2,\; P^{-1})

    Parameters: ``weight`` [D, L], ``bias`` [D], ``noise_var`` a positive number, the s^2 above.
    The constructor and the methods raise a ValueError for shapes that do not fit and for NaN or
    infinity, and a TypeError for a dtype that is not the model's; each names the argument.

    >>> import torch
    >>> model = LinearGaussianModel(torch.ones(1, 1), torch.zeros(1), 1.0)
    >>> model.log_evidence(torch.zeros(1))  # x ~ N(0, 2)
    tensor(-1.2655)
    """

    def __init__(
        self,
        weight: Float[Tensor, "data latent"],
        bias: Float[Tensor, "data"],
        noise_var: float | Float[Tensor, ""],
    ):
        check_floating(weight=weight, bias=bias)
        if weight.ndim != 2 or 0 in weight.shape:
            raise ValueError(f"weight must have shape [D, L], found {tuple(weight.shape)}")
        if bias.shape != weight.shape[:1]:
            raise ValueError(
                f"bias must have shape [{weight.shape[0]}] to fit weight, "
                f"found {tuple(bias.shape)}"
            )
        check_same_device(weight=weight, bias=bias)
        if bias.dtype != weight.dtype:
            raise TypeError(f"bias must be of weight's dtype {weight.dtype}, found {bias.dtype}")
        if not isinstance(noise_var, (int, float, Tensor)):
            raise TypeError(f"noise_var must be a number, found {type(noise_var).__name__}")
        noise_var = torch.as_tensor(noise_var, dtype=weight.dtype, device=weight.device)
        if noise_var.ndim != 0 or not (0 < noise_var < float("inf")):
            raise ValueError(f"noise_var must be one positive finite number, found {noise_var}")
        check_finite(weight=weight, bias=bias)
        self.weight, self.bias, self.noise_var = weight, bias, noise_var
        data_dim, latent_dim = weight.shape
        identity = torch.eye(latent_dim, dtype=weight.dtype, device=weight.device)
        self.precision = identity + weight.mT @ weight / noise_var
        name = "I + weight^T weight / noise_var"
        check_square(latent_dim, **{name: self.precision})
        self._factor = checked_cholesky(name, self.precision)
        self.posterior_cov = torch.cholesky_inverse(self._factor)
        self._log_det_evidence_cov = (
            data_dim * noise_var.log() + 2 * self._factor.diagonal().log().sum()
        )

    def log_evidence(self, x: Float[Tensor, "*batch data"]) -> Float[Tensor, "*batch"]:
        """Exact log p(x) in nats, [*]."""
        self._check(x=x)
        centred, mean = x - self.bias, self._posterior_mean(x)
        residual = centred - mean @ self.weight.mT
        quadratic = residual.square().sum(-1) / self.noise_var + mean.square().sum(-1)
        return -0.5 * (x.shape[-1] * LOG_2PI + self._log_det_evidence_cov + quadratic)

    def posterior(
        self, x: Float[Tensor, "*batch data"]
    ) -> tuple[Float[Tensor, "*batch latent"], Float[Tensor, "latent latent"]]:
        """Exact p(z | x): mean [*, L] and covariance [L, L], which is the same for all x."""
        self._check(x=x)
        return self._posterior_mean(x), self.posterior_cov

    def encode(
        self, x: Float[Tensor, "*batch data"]
    ) -> tuple[Float[Tensor, "*batch latent"], Float[Tensor, "*batch latent"]]:
        """The diagonal Gaussian closest to the posterior in KL(q || p): mu and log_var, [*, L].

        Its variances are 1 / diag(P); it is the posterior where the columns of the weight are
        orthogonal (Bishop 2006, equation 10.11 and after).
        """
        mean, _ = self.posterior(x)
        return mean, -self.precision.diagonal().log().expand_as(mean)

    def log_prior(self, z: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch"]:
        """log N(z; 0, I) in nats, [*]."""
        self._check(z=z)
        zeros = z.new_zeros(self.weight.shape[1])
        return gaussian_log_prob(z, zeros, zeros)

    def log_likelihood(
        self, x: Float[Tensor, "*#batch data"], z: Float[Tensor, "*#batch latent"]
    ) -> Float[Tensor, "..."]:
        """log p(x | z) in nats: x [B, D] broadcasts against z [K, B, L] to [K, B]."""
        self._check(x=x, z=z)
        mean = z @ self.weight.mT + self.bias
        check_finite(**{"weight @ z + bias, or weight @ mu + bias,": mean})
        return gaussian_log_prob(x, mean, self.noise_var.log().expand_as(self.bias))

    def elbo(
        self,
        x: Float[Tensor, "*#batch data"],
        mu: Float[Tensor, "*#batch latent"],
        log_var: Float[Tensor, "*#batch latent"],
    ) -> Float[Tensor, "..."]:
        r"""Exact ELBO of q = N(mu, diag(exp(log_var))) in nats, without sampling.

        .. math:: \mathbb E_q[\log p(x\mid z)] = \log p(x\mid\mu)
            - \tfrac{1}{2s^2}\sum_i \lVert w_i\rVert^2\sigma_i^2

        minus KL(q || N(0, I)); w_i are the columns of the weight.
        """
        self._check(x=x, mu=mu, log_var=log_var)
        column_norms = self.weight.square().sum(0) / self.noise_var
        spread = 0.5 * (column_norms * log_var.exp()).sum(-1)
        return self.log_likelihood(x, mu) - spread - kl_standard_normal(mu, log_var)

    def elbo_gradient(
        self,
        x: Float[Tensor, "*#batch data"],
        mu: Float[Tensor, "*#batch latent"],
        log_var: Float[Tensor, "*#batch latent"],
    ) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
        r"""Exact gradient of :meth:`elbo` with respect to mu and log_var, each [*, L].

        .. math:: \nabla_\mu = -P(\mu - m), \qquad
            \nabla_{\log\sigma_i^2} = \tfrac12\left(1 - P_{ii}\sigma_i^2\right)

        with m the posterior mean and P the posterior precision.
        """
        self._check(x=x, mu=mu, log_var=log_var)
        grad_mu = -(mu - self._posterior_mean(x)) @ self.precision
        grad_log_var = 0.5 * (1 - self.precision.diagonal() * log_var.exp())
        return tuple(torch.broadcast_tensors(grad_mu, grad_log_var))

    def _posterior_mean(self, x: Tensor) -> Tensor:
        mean = (x - self.bias) @ self.weight @ self.posterior_cov / self.noise_var
        check_finite(**{"the posterior mean, of x and bias,": mean})
        return mean

    def _check(self, **vectors: Tensor) -> None:
        """Check vectors of this model by name: x [*, D], any other [*, L]; leading axes broadcast."""
        check_floating(**vectors)
        for name, value in vectors.items():
            size = self.weight.shape[0 if name == "x" else 1]
            if value.shape[-1:] != (size,):
                raise ValueError(
                    f"{name} must have a last axis of {size} to fit weight of shape "
                    f"{tuple(self.weight.shape)}, found shape {tuple(value.shape)}"
                )
            if value.dtype != self.weight.dtype:
                raise TypeError(
                    f"{name} must be of the model's dtype {self.weight.dtype}, found {value.dtype}"
                )
        check_same_device(weight=self.weight, **vectors)
        check_broadcast({name: value.shape[:-1] for name, value in vectors.items()})
        check_finite(**vectors)
