"""Gradient noise and training of one VAE under different gradients of the encoder.

    python benchmarks/vae_gradients.py            ten minutes of one core; writes the result
    python benchmarks/vae_gradients.py noise      part one alone, into the stored result
    python benchmarks/vae_gradients.py --quick    half a minute; writes nothing, to see that it runs

Part one takes the VAE of the book (784-500-20) at initialisation, after one epoch, and after the
training that the chapters share, and measures the mean and the variance of the gradient of one
minibatch's ELBO for every encoder weight. The minibatch is fixed: the noise is that of z alone.

Part two trains the same start with three of them, for the same number of steps, over several seeds
and learning rates. The runs take turns in blocks of steps, so that whatever else the machine does
meets all of them alike. The decoder always has its plain gradient.

Seconds are CPU seconds of the one thread that computes: on a machine with nothing else to do they
are seconds of wall time, on a busy one they are the better measure. Everything but the seconds
follows from the seeds. The chapter score_vs_reparam reads the result.
"""

import argparse
import datetime
import json
import platform
import time
from pathlib import Path

import torch

from vaelib import VAE, binarize, elbo, fit, gaussian_log_prob, load_images, reparametrize
from vaelib.shared import trained_vae
from vaelib.training import mean_elbo, seeded_vae

RESULT = Path(__file__).parent / "results" / "vae_gradients.json"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
#: Name of a gradient of the encoder: samples of z an image.
GRADIENTS = {
    "score function": 1,
    "leave-one-out, K = 8": 8,
    "pathwise": 1,
    "pathwise, sampled KL": 1,
    "sticking the landing": 1,
}
TRAINED = ("score function", "leave-one-out, K = 8", "pathwise")
LEARNING_RATES = (1e-3, 3e-4, 1e-4)
BATCH = 128
EVALUATED = 2000  # images for each point of a curve


def objective(model: VAE, x, name: str, generator) -> torch.Tensor:
    """A scalar whose gradient is the named one of the mean ELBO of the batch x [B, D]."""
    count = GRADIENTS[name]
    if name.startswith("pathwise"):
        kl = "analytic" if name == "pathwise" else "sampled"
        return elbo(model, x, num_samples=count, generator=generator, kl=kl).value.mean()
    mu, log_var = model.encode(x)
    eps = torch.randn((count, *mu.shape), generator=generator)
    z = reparametrize(mu, log_var, eps)
    if name == "sticking the landing":
        log_p = model.log_likelihood(x, z) + model.log_prior(z)
        return (log_p - gaussian_log_prob(z, mu.detach(), log_var.detach())).mean()
    z = z.detach()
    log_q = gaussian_log_prob(z, mu, log_var)
    log_p = model.log_likelihood(x, z) + model.log_prior(z)  # attached: the decoder's gradient
    cost = (log_p - log_q).detach()
    if count > 1:
        cost = (cost - cost.mean(0)) * (count / (count - 1))
    return (log_p + cost * log_q).mean()


def gradient_noise(model: VAE, x, draws: int) -> dict[str, dict]:
    """Mean and variance over draws of z of each gradient, for every encoder weight, [weights].

    The gradients take turns, so that their seconds were spent under the same conditions.
    """
    weights = list(model.encoder.parameters())
    size = sum(weight.numel() for weight in weights)
    generators = {name: torch.Generator().manual_seed(seed) for seed, name in enumerate(GRADIENTS)}
    mean, squares = ({name: torch.zeros(size).double() for name in GRADIENTS} for _ in range(2))
    seconds = dict.fromkeys(GRADIENTS, 0.0)
    for n in range(1, draws + 1):
        for name, generator in generators.items():
            start = time.process_time()
            rows = torch.autograd.grad(objective(model, x, name, generator), weights)
            seconds[name] += time.process_time() - start
            row = torch.cat([row.flatten() for row in rows]).double()
            shift = row - mean[name]
            mean[name] += shift / n
            squares[name] += shift * (row - mean[name])
    return {
        name: {
            "mean": mean[name],
            "variance": squares[name] / (draws - 1),
            "seconds": seconds[name] / draws,
        }
        for name in GRADIENTS
    }


def measure_noise(model: VAE, x, draws: int) -> list[dict]:
    """One row a gradient: signal-to-noise ratios over the weights, with one common signal.

    All gradients have the same mean. The one with the least noise serves as the signal of each:
    a gradient's own mean over a few hundred draws is mostly its own noise.
    """
    found = gradient_noise(model, x, draws)
    best = min(found.values(), key=lambda moments: moments["variance"].sum())
    # |mean|^2 exceeds |gradient|^2 by the variance of the mean
    signal = (best["mean"].square().sum() - best["variance"].sum() / draws).item()
    live = best["variance"] > 0  # weights of pixels that are never on have no gradient
    rows = []
    for name, moments in found.items():
        ratios = (best["mean"].abs() / moments["variance"].sqrt())[live]
        difference = (moments["mean"] - best["mean"]).square().sum()
        expected = (moments["variance"] + best["variance"]).sum() / draws
        rows.append(
            {
                "gradient": name,
                "samples": GRADIENTS[name],
                "variance": moments["variance"].sum().item(),
                "noise_to_signal": moments["variance"].sum().item() / signal,
                "snr_quantiles": torch.quantile(ratios, torch.tensor(QUANTILES).double()).tolist(),
                "difference_of_means": (difference / expected).item() if moments is not best else 0,
                "seconds": round(moments["seconds"], 5),
            }
        )
    return rows


def noise_along_training(data, settings: dict) -> list[dict]:
    """The rows of measure_noise at three stages of the shared training."""
    x = binarize(data.train[:BATCH], "threshold")
    early = seeded_vae(0)
    models = {"at initialisation": seeded_vae(0)}
    fit(early, data, epochs=1)
    models["after one epoch"] = early
    models["after training"], _ = trained_vae(data=data)
    stages = []
    for stage, model in models.items():
        stages.append(
            {
                "stage": stage,
                "test_elbo": mean_elbo(model, data.test)["elbo"],
                "gradients": measure_noise(model, x, settings["draws"]),
            }
        )
        print(json.dumps(stages[-1]), flush=True)
    return stages


class Run:
    """One training run that advances a block of steps at a time and keeps its own time."""

    def __init__(self, name: str, learning_rate: float, seed: int, data):
        self.name, self.learning_rate, self.seed, self.data = name, learning_rate, seed, data
        self.model = seeded_vae(seed)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=learning_rate, fused=True)
        self.generator = torch.Generator().manual_seed(seed)
        self.steps, self.seconds, self.curve = 0, 0.0, []
        self.record()

    def advance(self, steps: int) -> None:
        start = time.process_time()
        for _ in range(steps):
            rows = torch.randint(len(self.data.train), (BATCH,), generator=self.generator)
            x = binarize(self.data.train[rows], "threshold")
            self.optimizer.zero_grad()
            (-objective(self.model, x, self.name, self.generator)).backward()
            self.optimizer.step()
        self.seconds += time.process_time() - start
        self.steps += steps
        self.record()

    def record(self) -> None:
        """Test ELBO, by the same draws for every run; outside the clock."""
        value = mean_elbo(self.model, self.data.test[:EVALUATED])["elbo"]
        self.curve.append([self.steps, round(self.seconds, 2), round(value, 3)])


def train_each(data, settings: dict) -> list[dict]:
    """Train with each gradient: all learning rates with one seed, then the best with the others.

    The best is chosen on training images; the test images are there to be reported.
    """
    steps, block = settings["steps"], settings["block"]
    runs = [Run(name, rate, 0, data) for name in TRAINED for rate in LEARNING_RATES]
    advance_in_turn(runs, steps, block)
    for name in TRAINED:
        same = [run for run in runs if run.name == name]
        best = max(same, key=lambda run: mean_elbo(run.model, data.train[:EVALUATED])["elbo"])
        runs += [Run(name, best.learning_rate, s, data) for s in range(1, settings["seeds"])]
    advance_in_turn([run for run in runs if run.steps == 0], steps, block)
    return [
        {
            "gradient": run.name,
            "learning_rate": run.learning_rate,
            "seed": run.seed,
            "curve": run.curve,
        }
        for run in runs
    ]


def advance_in_turn(runs: list[Run], steps: int, block: int) -> None:
    for _ in range(steps // block):
        for run in runs:
            run.advance(block)
    for run in runs:
        print(run.name, run.learning_rate, run.seed, run.curve[-1], flush=True)


def cpu_name() -> str:
    """The processor, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


PARTS = {"noise": noise_along_training, "training": train_each}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help="noise, training; both if none is named")
    parser.add_argument("--quick", action="store_true", help="a short run that writes nothing")
    arguments = parser.parse_args()
    for part in arguments.parts:
        if part not in PARTS:
            parser.error(f"no part {part!r}: choose from {', '.join(PARTS)}")
    settings = {"draws": 300, "steps": 1500, "block": 100, "batch": BATCH, "seeds": 3}
    if arguments.quick:
        settings |= {"draws": 20, "steps": 40, "block": 20, "seeds": 1}
    torch.set_num_threads(1)
    data = load_images()
    result = json.loads(RESULT.read_text()) if RESULT.exists() and arguments.parts else {}
    result |= {
        "date": datetime.date.today().isoformat(),
        "data": data.name,
        "machine": f"{cpu_name()}, one thread",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "settings": settings,
        "quantiles": QUANTILES,
    }
    for part in arguments.parts or PARTS:
        start = time.process_time()
        result[part] = PARTS[part](data, settings)
        result[f"{part}_cpu_seconds"] = round(time.process_time() - start)
    if not arguments.quick:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
