"""A small package that the book's chapters call. All values are in nats per example."""

from vaelib.bernoulli import bernoulli_log_prob
from vaelib.bounds import ELBO, elbo, iwae_bound, log_likelihood
from vaelib.data import ImageData, binarize, load_images
from vaelib.gaussian import (
    gaussian_log_prob,
    gaussian_score,
    kl_diagonal,
    kl_full,
    kl_standard_normal,
    reparametrize,
)
from vaelib.linear_gaussian import LinearGaussianModel
from vaelib.model import VAE

__all__ = [
    "ELBO",
    "ImageData",
    "LinearGaussianModel",
    "VAE",
    "bernoulli_log_prob",
    "binarize",
    "elbo",
    "gaussian_log_prob",
    "gaussian_score",
    "iwae_bound",
    "kl_diagonal",
    "kl_full",
    "kl_standard_normal",
    "load_images",
    "log_likelihood",
    "reparametrize",
]
