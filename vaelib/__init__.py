"""A small package that the book's chapters call. All values are in nats per example."""

from vaelib.bernoulli import bernoulli_log_prob
from vaelib.bounds import ELBO, elbo, iwae_bound, log_likelihood
from vaelib.data import ImageData, binarize, load_images
from vaelib.estimators import (
    GradientMoments,
    GradientSamples,
    MeasureValuedNoise,
    antithetic,
    categorical_sample,
    categorical_score_function,
    doubly_reparametrized,
    gradient_moments,
    gumbel_softmax,
    importance_weighted_pathwise,
    local_score_function,
    measure_valued,
    pathwise,
    score_function,
    sticking_the_landing,
    straight_through,
)
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
from vaelib.training import History, fit, trained_vae

__all__ = [
    "ELBO",
    "GradientMoments",
    "GradientSamples",
    "History",
    "ImageData",
    "LinearGaussianModel",
    "MeasureValuedNoise",
    "VAE",
    "antithetic",
    "bernoulli_log_prob",
    "binarize",
    "categorical_sample",
    "categorical_score_function",
    "doubly_reparametrized",
    "elbo",
    "fit",
    "gaussian_log_prob",
    "gaussian_score",
    "gradient_moments",
    "gumbel_softmax",
    "importance_weighted_pathwise",
    "iwae_bound",
    "kl_diagonal",
    "kl_full",
    "kl_standard_normal",
    "load_images",
    "local_score_function",
    "log_likelihood",
    "measure_valued",
    "pathwise",
    "reparametrize",
    "score_function",
    "sticking_the_landing",
    "straight_through",
    "trained_vae",
]
