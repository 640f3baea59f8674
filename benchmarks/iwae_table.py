"""Rows of Burda, Grosse and Salakhutdinov (2016), table 1: one stochastic layer, MNIST.

    python -m benchmarks.iwae_table --passes 820            the row of the VAE with k = 1
    python -m benchmarks.iwae_table --objective iwae --k 5  another row
    python -m benchmarks.iwae_table --quick                 seconds on the digits; writes nothing

Networks 784-200-200-50 with tanh; pixels drawn anew at each step as Bernoulli(grey level), the
test images drawn once; Adam (0.9, 0.999, epsilon 1e-4); 3^i passes over the data at a learning
rate of 1e-3 * 10^(-i/7) for i = 0, ..., 7, which makes 3280. Then log p(x) of the test images by
importance sampling with 5000 draws each. `--passes` shortens every stage alike. The paper's batch
of 20 costs a processor five times what larger ones do: with a batch of B, the learning rates are
multiplied by B / 20, so that a pass moves the weights about as far. As in the authors' program and
not in their paper, a step takes the gradient of the sum over the batch (Adam feels that through
epsilon alone), and the last bias of the decoder starts at the logit of the mean pixel.

With `--checkpoint FILE` a run that was killed goes on at its last finished pass, or its last
finished block of test images, and ends with the same numbers. `--until N` measures the model after
N passes of a schedule of `--passes`; a later run with the same checkpoint goes on from there. The
chapter speed reads the result.
"""

import argparse
import dataclasses
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.resumable import Run, binary_batches, machine, put_row
from vaelib import (
    ImageData,
    bernoulli_log_prob,
    binarize,
    elbo,
    iwae_bound,
    load_images,
    log_likelihood,
)
from vaelib.__main__ import choose_device
from vaelib.gaussian import gaussian_log_prob

RESULT = Path(__file__).parent / "results" / "iwae_table.json"
OBJECTIVES = {
    "vae": lambda model, x, k, g: elbo(model, x, num_samples=k, generator=g).value,
    "iwae": lambda model, x, k, g: iwae_bound(model, x, num_samples=k, generator=g),
}
PAPER_PASSES = 3280
PAPER_BATCH = 20
TEST_BLOCK = 500  # images between two checkpoints of the last measurement
CURVE_RATIO = 1.2  # the learning curve has a point when the passes have grown by this factor


@dataclass(frozen=True)
class Recipe:
    """What, with the data, determines a row."""

    objective: str = "vae"
    k: int = 1
    passes: int = PAPER_PASSES
    batch_size: int = 100
    seed: int = 0
    test_images: int = 10_000
    num_samples: int = 5000
    curve_images: int = 500
    curve_samples: int = 500

    @property
    def rate_factor(self) -> float:
        """By what the paper's learning rates are multiplied for the batch size."""
        return self.batch_size / PAPER_BATCH


def schedule(passes: int) -> list[tuple[int, float]]:
    """(passes, learning rate) of each stage, for the paper's batch; all stages scaled alike.

    >>> [n for n, _ in schedule(3280)]
    [1, 3, 9, 27, 81, 243, 729, 2187]
    """
    ends = [round(passes * (3 ** (i + 1) - 1) / 2 / PAPER_PASSES) for i in range(8)]
    return [
        (end - begin, 1e-3 * 10 ** (-i / 7)) for i, (begin, end) in enumerate(zip([0, *ends], ends))
    ]


def learning_rates(recipe: Recipe) -> list[float]:
    """The learning rate of each pass."""
    return [rate * recipe.rate_factor for n, rate in schedule(recipe.passes) for _ in range(n)]


class Networks(nn.Module):
    """The paper's one-layer model: two tanh layers of 200 units a side, 50 latents.

    What `vaelib.bounds` asks of a model, and no more. ``mean_pixel`` [784] sets the last bias.
    Weights are Glorot's (uniform), from torch's global generator; the other biases are zero.
    """

    def __init__(self, mean_pixel: Tensor, hidden: int = 200, latent: int = 50):
        super().__init__()
        data = len(mean_pixel)
        self.encoder = nn.Sequential(*two_layers(data, hidden))
        self.mu = glorot(hidden, latent)
        self.log_var = glorot(hidden, latent)
        self.decoder = nn.Sequential(*two_layers(latent, hidden), glorot(hidden, data))
        with torch.no_grad():
            self.decoder[-1].bias.copy_(mean_pixel.clamp(0.001, 0.999).logit())

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, 784] -> mu and log_var, each [B, 50]."""
        h = self.encoder(x)
        return self.mu(h), self.log_var(h)

    def log_prior(self, z: Tensor) -> Tensor:
        """log N(z; 0, I), z [*, 50] -> [*]."""
        zeros = z.new_zeros(z.shape[-1])
        return gaussian_log_prob(z, zeros, zeros)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """x [B, 784], z [K, B, 50] -> [K, B]."""
        return bernoulli_log_prob(x, self.decoder(z))


def glorot(inputs: int, outputs: int) -> nn.Linear:
    """Weights uniform within sqrt(6 / (inputs + outputs)), biases zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def two_layers(inputs: int, hidden: int) -> list[nn.Module]:
    return [glorot(inputs, hidden), nn.Tanh(), glorot(hidden, hidden), nn.Tanh()]


def start(recipe: Recipe, data: ImageData, device: torch.device) -> Run:
    """The run before its first step; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = Networks(data.train.double().mean(0) / 255).to(device)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.999), eps=1e-4, fused=True)
    return Run(recipe, model, optimizer, torch.Generator(device).manual_seed(recipe.seed))


def train_one_pass(run: Run, images: Tensor, rate: float) -> float:
    """One pass over the images, uint8 [N, 784]; the mean of the objective, in nats per image."""
    recipe, total = run.recipe, torch.zeros((), dtype=torch.float64, device=images.device)
    run.optimizer.param_groups[0]["lr"] = rate
    objective = OBJECTIVES[recipe.objective]
    for x in binary_batches(images, recipe.batch_size, run.generator):
        bound = objective(run.model, x, recipe.k, run.generator).sum()
        run.optimizer.zero_grad()
        (-bound).backward()
        run.optimizer.step()
        total += bound.detach()
    return total.item() / len(images)


def curve_passes(passes: int) -> set[int]:
    """After which passes the learning curve has a point: the first, the last, ever fewer between."""
    steps = math.ceil(math.log(passes) / math.log(CURVE_RATIO))
    return {math.floor(CURVE_RATIO**i) for i in range(steps)} | {passes}


@torch.no_grad()
def curve_point(run: Run, test: Tensor) -> dict:
    """The ELBO of all test images, one draw each, and -log p(x) of the first few with few draws.

    Both with the same noise at each call. Few draws give a value that is a little too large.
    """
    recipe = run.recipe
    noise = torch.Generator(test.device).manual_seed(1)
    bound = [elbo(run.model, x, generator=noise).value for x in test.split(1000)]
    estimate = log_likelihood(
        run.model, test[: recipe.curve_images], num_samples=recipe.curve_samples, generator=noise
    )
    return {
        "elbo": round(torch.cat(bound).double().mean().item(), 3),
        "minus_log_p": round(-estimate.value.mean().item(), 3),
    }


def measure_block(run: Run, x: Tensor, number: int) -> dict:
    """Sums over a block of test images [N, 784], from which means and errors follow."""
    noise = torch.Generator(x.device).manual_seed(1000 + number)
    estimate = log_likelihood(run.model, x, num_samples=run.recipe.num_samples, generator=noise)
    return {
        "images": len(x),
        "sum": -estimate.value.sum().item(),
        "sum_of_squares": estimate.value.square().sum().item(),
        "sampling_variance": estimate.standard_error.square().sum().item(),
        "smallest_effective_sample_size": estimate.effective_sample_size.min().item(),
        "sum_of_effective_sample_sizes": estimate.effective_sample_size.sum().item(),
    }


def summary(blocks: list[dict]) -> dict:
    """-log p(x) over all blocks. The standard error is that of the mean over images, and the
    noise of the sampling is in it; the sampling error is that noise alone."""
    total = {name: sum(block[name] for block in blocks) for name in blocks[0]}
    n, mean = total["images"], total["sum"] / total["images"]
    variance = (total["sum_of_squares"] - n * mean**2) / (n - 1)
    return {
        "minus_log_p": round(mean, 3),
        "standard_error": round(math.sqrt(variance / n), 3),
        "sampling_error": round(math.sqrt(total["sampling_variance"]) / n, 4),
        "images": n,
        "mean_effective_sample_size": round(total["sum_of_effective_sample_sizes"] / n),
        "smallest_effective_sample_size": round(
            min(block["smallest_effective_sample_size"] for block in blocks), 1
        ),
    }


def run_to_end(
    recipe: Recipe,
    data: ImageData,
    device: torch.device,
    checkpoint: Path | None = None,
    until: int | None = None,
) -> dict:
    """Train and measure, from where the checkpoint stands; the row of the result file.

    ``until`` is the number of passes after which the schedule is cut off; by default it is not.
    """
    run = start(recipe, data, device)
    run.resume(checkpoint)
    until = recipe.passes if until is None else until
    if not run.passes <= until <= recipe.passes:
        raise ValueError(f"until must be from {run.passes} to {recipe.passes}, found {until}")
    if run.passes < until:
        run.measured = []  # of a model that is now trained further
    chosen = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))
    test = binarize(data.test[chosen], "stochastic", torch.Generator().manual_seed(1)).to(device)
    train, points = data.train.to(device), curve_passes(recipe.passes)
    for rate in learning_rates(recipe)[run.passes : until]:
        objective = train_one_pass(run, train, rate)
        run.passes += 1
        if run.passes in points or run.passes == until:
            point = {"passes": run.passes, "objective": round(objective, 3)}
            run.curve.append(point | curve_point(run, test))
            print(run.curve[-1], flush=True)
        run.keep(checkpoint)
    blocks = test[: recipe.test_images].split(TEST_BLOCK)
    for number, block in list(enumerate(blocks))[len(run.measured) :]:
        run.measured.append(measure_block(run, block, number))
        run.keep(checkpoint)
    return {
        **machine(device),
        "data": str(data),
        "recipe": asdict(recipe),
        "rate_factor": recipe.rate_factor,
        "passes": run.passes,
        "cpu_seconds": round(run.seconds),
        "test": summary(run.measured),
        "curve": run.curve,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objective", choices=OBJECTIVES, default="vae")
    parser.add_argument("--k", type=int, default=1, help="draws of z an image and step")
    parser.add_argument("--passes", type=int, default=PAPER_PASSES, help="over the images")
    parser.add_argument("--until", type=int, metavar="PASSES", help="cut the schedule off there")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="go on where it stands")
    parser.add_argument("--quick", action="store_true", help="on the digits; writes no result")
    arguments = vars(parser.parse_args())
    device = choose_device(arguments.pop("device"))
    checkpoint, quick, until = (arguments.pop(name) for name in ("checkpoint", "quick", "until"))
    recipe = Recipe(**arguments)
    if quick:
        recipe = dataclasses.replace(recipe, passes=3, test_images=50, num_samples=100)
    row = run_to_end(recipe, load_images("digits" if quick else "mnist"), device, checkpoint, until)
    print(json.dumps(row["test"]))
    if not quick:
        put_row(RESULT, row, keys=("objective", "k", "seed"))


if __name__ == "__main__":
    main()
