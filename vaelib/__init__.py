"""A small package that the book's chapters call. All values are in nats per example."""

import torch

from vaelib.annealing import AnnealedLogLikelihood, annealed_importance_sampling
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
from vaelib.evaluation import (
    Detection,
    active_units,
    alarm_threshold,
    anomaly_scores,
    bits_per_dimension,
    data_log_likelihood,
    detection,
    latent_activity,
    likelihood_regret,
    mean_and_error,
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
from vaelib.shared import trained_vae
from vaelib.training import History, fit

__all__ = [
    "AnnealedLogLikelihood",
    "Detection",
    "ELBO",
    "GradientMoments",
    "GradientSamples",
    "History",
    "ImageData",
    "LinearGaussianModel",
    "MeasureValuedNoise",
    "VAE",
    "active_units",
    "alarm_threshold",
    "annealed_importance_sampling",
    "anomaly_scores",
    "antithetic",
    "bernoulli_log_prob",
    "binarize",
    "bits_per_dimension",
    "categorical_sample",
    "categorical_score_function",
    "data_log_likelihood",
    "detection",
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
    "latent_activity",
    "likelihood_regret",
    "load_images",
    "local_score_function",
    "log_likelihood",
    "mean_and_error",
    "measure_valued",
    "pathwise",
    "reparametrize",
    "score_function",
    "sticking_the_landing",
    "straight_through",
    "trained_vae",
]

# PyTorch takes these functions from Intel's MKL, which chooses the code of each at its first call.
# In the version that PyTorch 2.15 holds, two threads that make that call at once can get different
# code, and a part of the result is then right to 1e-9 only (PyTorch's issue 188792). So the first
# call is made here, on one element and hence by one thread.
_FROM_MKL = "acos asin atan cos erf erfc exp expm1 log log10 log1p log2 sin sqrt tan tanh"
for _value in (torch.ones(1), torch.ones(1, dtype=torch.float64)):
    for _name in _FROM_MKL.split():
        getattr(torch, _name)(_value)
