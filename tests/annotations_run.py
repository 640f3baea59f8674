"""Call every public function of vaelib once, under an import hook that checks each annotation.

test_annotations.py runs this file in a process of its own: the hook must stand before the first
import of vaelib.
"""

import sys

from jaxtyping import TypeCheckError, install_import_hook

with install_import_hook("vaelib", "beartype.beartype"):
    import vaelib
    from vaelib import bounds, checks, data, estimators, plotting, training  # noqa: F401

import torch

K, B, L, D, N = 3, 4, 2, 5, 6
torch.manual_seed(0)
mu, log_var = torch.randn(B, L), torch.randn(B, L)
mean, log_variance = torch.randn(L), torch.randn(L)
eps = torch.randn(K, B, L)
cov = torch.eye(L).expand(B, L, L)
binary = torch.randint(2, (B, D)).float()
images = data.ImageData(
    "digits",
    *(
        part
        for count in (20, 10)
        for part in (
            torch.randint(256, (count, 784), dtype=torch.uint8),
            torch.zeros(count, dtype=torch.int64),
        )
    ),
)
vae = vaelib.VAE(data_dim=D, hidden_dim=3, latent_dim=L)
small = vaelib.VAE(data_dim=784, hidden_dim=3, latent_dim=L)
oracle = vaelib.LinearGaussianModel(torch.randn(D, L), torch.randn(D), 0.5)
oracle_tensor = vaelib.LinearGaussianModel(torch.randn(D, L), torch.randn(D), torch.tensor(0.5))


logits, gumbel = torch.randn(L, 3), torch.randn(N, L, 3)
one_hot = torch.eye(3)[torch.zeros(N, L, dtype=torch.int64)]


def cost(z):
    return z.square().sum(-1)


def relaxed_cost(z):
    return z.square().sum((-2, -1))


def bound_calls(model):
    x = binary
    return [
        *(vaelib.elbo(model, x, num_samples=K, kl=kl).value for kl in ("analytic", "sampled")),
        vaelib.elbo(model, x, eps=eps),
        vaelib.iwae_bound(model, x, num_samples=K, generator=torch.Generator()),
        vaelib.log_likelihood(model, x, num_samples=K, chunk_size=5),
        bounds.importance_log_weights(model, x, num_samples=K),
        model.log_prior(eps),
        model.log_likelihood(x, eps),
        model.encode(x),
        model.encode(x[0]),
    ]


calls = {
    "reparametrize": lambda: [
        vaelib.reparametrize(mu, log_var, eps),
        vaelib.reparametrize(mean, log_variance, eps),
    ],
    "gaussian_log_prob": lambda: vaelib.gaussian_log_prob(eps, mu, log_variance),
    "gaussian_score": lambda: vaelib.gaussian_score(eps, mu, log_var),
    "kl_standard_normal": lambda: vaelib.kl_standard_normal(mu.double(), log_var.double()),
    "kl_diagonal": lambda: vaelib.kl_diagonal(mu, log_var, mean, log_variance),
    "kl_full": lambda: [
        vaelib.kl_full(mu, cov, mean, 2 * torch.eye(L)),
        vaelib.kl_full(mean, torch.eye(L), mean, 2 * torch.eye(L)),
    ],
    "bernoulli_log_prob": lambda: vaelib.bernoulli_log_prob(binary, torch.randn(K, B, D)),
    "LinearGaussianModel": lambda: [
        bound_calls(oracle),
        oracle_tensor.log_evidence(binary),
        oracle.log_evidence(binary[0]),
        oracle.posterior(binary),
        oracle.elbo(binary, mu, log_var),
        oracle.elbo_gradient(binary, mu, log_var),
        oracle.elbo_gradient(binary[0], mu, log_variance),
    ],
    "VAE": lambda: [bound_calls(vae), vae.decode(eps), vae.decode(mean)],
    "elbo": lambda: vaelib.elbo(vae, binary),
    "ELBO": lambda: vaelib.ELBO(torch.zeros(B), torch.ones(B)).value,
    "iwae_bound": lambda: vaelib.iwae_bound(vae, binary, num_samples=1),
    "log_likelihood": lambda: vaelib.log_likelihood(oracle, binary, num_samples=2),
    "ImageData": lambda: str(images),
    "load_images": lambda: vaelib.load_images("digits"),
    "binarize": lambda: [
        vaelib.binarize(images.train),
        vaelib.binarize(images.train[0], "stochastic", torch.Generator()),
    ],
    "fit": lambda: vaelib.fit(small, images, epochs=1, batch_size=7, binarization="stochastic"),
    "History": lambda: vaelib.fit(small, images, epochs=1).curve("test", "elbo"),
    "trained_vae": None,  # trains for a minute; its parts are fit, save_model and load_model
    "score_function": lambda: [
        vaelib.score_function(cost, mean, log_variance, torch.randn(N, L), baseline)
        for baseline in (None, 1.5, "mean", "leave-one-out")
    ],
    "pathwise": lambda: vaelib.pathwise(cost, mean, log_variance, torch.randn(N, L)),
    "measure_valued": lambda: [
        vaelib.measure_valued(cost, mean, log_variance, num_samples=N, coupled=coupled)
        for coupled in (True, False)
    ],
    "sticking_the_landing": lambda: vaelib.sticking_the_landing(
        cost, mean, log_variance, torch.randn(N, L)
    ),
    "gradient_moments": lambda: [
        vaelib.gradient_moments(
            estimator, cost, mean, log_variance, num_samples=N, chunk_size=4
        ).standard_error
        for estimator in (estimators.pathwise, estimators.measure_valued)
    ],
}
gradient_calls = {
    "local_score_function": lambda: vaelib.local_score_function(
        torch.square, mean, log_variance, torch.randn(N, L)
    ),
    "antithetic": lambda: vaelib.antithetic(vaelib.pathwise)(
        cost, mean, log_variance, torch.randn(N, L)
    ),
    "importance_weighted_pathwise": lambda: vaelib.importance_weighted_pathwise(
        cost, mean, log_variance, torch.randn(N, K, L)
    ),
    "doubly_reparametrized": lambda: vaelib.doubly_reparametrized(
        cost, mean, log_variance, torch.randn(N, K, L)
    ),
    "categorical_sample": lambda: vaelib.categorical_sample(logits, gumbel),
    "categorical_score_function": lambda: vaelib.categorical_score_function(
        relaxed_cost, logits, one_hot, "mean"
    ),
    "gumbel_softmax": lambda: vaelib.gumbel_softmax(
        relaxed_cost, logits, gumbel, temperature=0.5
    ),
    "straight_through": lambda: vaelib.straight_through(relaxed_cost, logits, one_hot),
    "GradientSamples": calls["pathwise"],
    "GradientMoments": calls["gradient_moments"],
    "MeasureValuedNoise": calls["measure_valued"],
}
internal_calls = {
    "mean_elbo": lambda: training.mean_elbo(small, images.test),
    "seeded_vae": lambda: training.seeded_vae(1, data_dim=D, latent_dim=L),
    "table": lambda: plotting.table(["a"], [["1"]]),
}

scores = torch.randn(N)
evaluation_calls = {
    "annealed_importance_sampling": lambda: [
        vaelib.annealed_importance_sampling(model, binary, num_chains=K, num_steps=3, start=start)
        for model in (vae, oracle)
        for start in ("prior", "posterior")
    ],
    "data_log_likelihood": lambda: vaelib.data_log_likelihood(vae, binary, num_samples=K),
    "mean_and_error": lambda: vaelib.mean_and_error(scores),
    "bits_per_dimension": lambda: vaelib.bits_per_dimension(scores, D),
    "latent_activity": lambda: vaelib.latent_activity(vae, binary),
    "active_units": lambda: vaelib.active_units(oracle, binary),
    "anomaly_scores": lambda: vaelib.anomaly_scores(vae, binary, num_samples=K),
    "likelihood_regret": lambda: vaelib.likelihood_regret(vae, binary, num_steps=2),
    "detection": lambda: vaelib.detection(scores, scores + 1, num_replicates=9),
    "alarm_threshold": lambda: vaelib.alarm_threshold(scores, 0.5),
}
evaluation_calls |= {
    "AnnealedLogLikelihood": evaluation_calls["annealed_importance_sampling"],
    "Detection": evaluation_calls["detection"],
}

calls |= gradient_calls | evaluation_calls
if missing := set(vaelib.__all__) - set(calls):
    sys.exit(f"not called here: {', '.join(sorted(missing))}")
failed = 0
for name, call in {**calls, **internal_calls}.items():
    try:
        call and call()
    except Exception as error:
        failed += 1
        print(f"{name}: {' '.join(str(error).split())[:600]}")

try:
    vaelib.kl_standard_normal(mu, torch.zeros(L, dtype=torch.int64))
except TypeCheckError:
    pass  # the hook is on: it stands before the function's own check
else:
    sys.exit("the import hook checks nothing")
sys.exit(failed)
