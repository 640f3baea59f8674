"""Kingma and Welling (2014), figure 2, MNIST: the bound over the training samples seen, by Nz.

    python -m benchmarks.kingma_figure2                      Nz = 3, 5, 10, 20, 200; 20 minutes
    python -m benchmarks.kingma_figure2 --latent-dims 3 5    some of them
    python -m benchmarks.kingma_figure2 --quick              seconds on the digits; writes nothing

The network of the paper, which is vaelib's: 784-500-Nz with tanh. Minibatches of 100, one draw of
z, Adagrad, to 3 * 10^6 training samples, which is 50 passes over 60,000 images. All parameters
start from N(0, 0.01), read as a variance like the N(0, I) beside it. The prior N(0, I) on the
parameters of the decoder is a weight decay of 1 / N there, for a loss that is a mean over images.
The step size is the one of 0.01, 0.02 and 0.1 that has the best bound on training images after
the first pass. The paper does not say how the pixels become binary; here they are drawn anew at
each step as Bernoulli(grey level), and the images of the measured bounds once.

With `--checkpoint FOLDER` a run that was killed goes on at its last finished pass and ends with
the same numbers. The chapter speed reads the result.
"""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.resumable import Run, binary_batches, machine, put_row
from vaelib import VAE, ImageData, binarize, elbo, load_images
from vaelib.__main__ import choose_device

RESULT = Path(__file__).parent / "results" / "kingma_figure2.json"
STEP_SIZES = (0.01, 0.02, 0.1)
INITIAL_VARIANCE = 0.01
CURVE_PASSES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 32, 40, 50)


@dataclass(frozen=True)
class Recipe:
    """What, with the data and the step size, determines a curve."""

    latent_dim: int
    passes: int = 50
    batch_size: int = 100
    seed: int = 0
    hidden_dim: int = 500
    train_images: int = 10_000  # of which the training bound is measured


def start(recipe: Recipe, data: ImageData, device: torch.device, step_size: float) -> Run:
    """The run before its first step; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = VAE(data.train.shape[1], recipe.hidden_dim, recipe.latent_dim)
        for weights in model.parameters():
            torch.nn.init.normal_(weights, std=INITIAL_VARIANCE**0.5)
    model.to(device)
    groups = [
        {"params": model.encoder.parameters()},
        {"params": model.decoder.parameters(), "weight_decay": 1 / len(data.train)},
    ]
    optimizer = torch.optim.Adagrad(groups, lr=step_size)
    return Run(recipe, model, optimizer, torch.Generator(device).manual_seed(recipe.seed))


def train_one_pass(run: Run, images: Tensor) -> None:
    """One pass over the images, uint8 [N, 784]."""
    for x in binary_batches(images, run.recipe.batch_size, run.generator):
        bound = elbo(run.model, x, generator=run.generator).value.mean()
        run.optimizer.zero_grad()
        (-bound).backward()
        run.optimizer.step()
    run.passes += 1


@torch.no_grad()
def mean_bound(model: VAE, x: Tensor) -> float:
    """Mean ELBO of binary images [N, 784], one draw each, the same noise at each call."""
    noise = torch.Generator(x.device).manual_seed(1)
    parts = [elbo(model, rows, generator=noise).value for rows in x.split(1000)]
    return round(torch.cat(parts).double().mean().item(), 3)


def measured_images(recipe: Recipe, data: ImageData) -> dict[str, Tensor]:
    """The images of the two curves, drawn once: some of the training images, all test images."""
    draw = torch.Generator().manual_seed(0)
    some = torch.randperm(len(data.train), generator=draw)[: recipe.train_images]
    return {
        "train": binarize(data.train[some], "stochastic", draw),
        "test": binarize(data.test, "stochastic", draw),
    }


def first_passes(recipe: Recipe, data: ImageData, device: torch.device) -> list[dict]:
    """The training bound after one pass with each step size."""
    x, trials = measured_images(recipe, data)["train"].to(device), []
    for step_size in STEP_SIZES:
        run = start(recipe, data, device, step_size)
        train_one_pass(run, data.train.to(device))
        trials.append({"step_size": step_size, "train": mean_bound(run.model, x)})
    return trials


def run_to_end(
    recipe: Recipe,
    data: ImageData,
    device: torch.device,
    checkpoint: Path | None = None,
) -> dict:
    """Choose the step size and train, from where the checkpoint stands; the row of the result."""
    run = start(recipe, data, device, STEP_SIZES[0])
    run.resume(checkpoint)
    if not run.measured:
        run.measured = first_passes(recipe, data, device)
        run.keep(checkpoint)
    step_size = max(run.measured, key=lambda trial: trial["train"])["step_size"]
    for group in run.optimizer.param_groups:
        group["lr"] = step_size
    train = data.train.to(device)
    images = {split: x.to(device) for split, x in measured_images(recipe, data).items()}
    while run.passes < recipe.passes:
        train_one_pass(run, train)
        if run.passes in CURVE_PASSES or run.passes == recipe.passes:
            bounds = {split: mean_bound(run.model, x) for split, x in images.items()}
            run.curve.append({"samples": run.passes * len(train), **bounds})
            print(recipe.latent_dim, run.curve[-1], flush=True)
        run.keep(checkpoint)
    return {
        **machine(device),
        "data": str(data),
        "recipe": asdict(recipe),
        "first_passes": run.measured,
        "step_size": step_size,
        "cpu_seconds": round(run.seconds),
        "curve": run.curve,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latent-dims", type=int, nargs="+", default=[3, 5, 10, 20, 200])
    parser.add_argument("--passes", type=int, default=50, help="over the images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="go on where it stands")
    parser.add_argument("--quick", action="store_true", help="on the digits; writes no result")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    data = load_images("digits" if arguments.quick else "mnist")
    passes = 3 if arguments.quick else arguments.passes
    for latent_dim in arguments.latent_dims:
        recipe = Recipe(latent_dim, passes, seed=arguments.seed)
        folder = arguments.checkpoint
        checkpoint = folder and folder / f"latent_dim_{latent_dim}_seed_{recipe.seed}.pt"
        row = run_to_end(recipe, data, device, checkpoint)
        if not arguments.quick:
            put_row(RESULT, row, keys=("latent_dim", "seed"))


if __name__ == "__main__":
    main()
