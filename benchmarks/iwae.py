"""Training with the importance-weighted bound against training with the ELBO.

    python benchmarks/iwae.py            some minutes of one core; writes the result
    python benchmarks/iwae.py --quick    half a minute on the offline digits; writes nothing

Two objectives for one architecture (784-200-50) and the same start, at the same cost: the ELBO with
five draws an image, and the importance-weighted bound with K = 5. Stochastic binarization, drawn anew at each step; the test images are drawn once.
Then log p(x) by importance sampling, the bounds for several k, and the active units. Burda, Grosse
and Salakhutdinov (2016) train for 3280 passes; this is a glance at the direction, not at their
numbers. The chapter likelihood reads the result.
"""

import argparse
import datetime
import json
import platform
import time
from pathlib import Path

import torch

from vaelib import active_units, binarize, elbo, iwae_bound, latent_activity, load_images
from vaelib.bounds import importance_log_weights
from vaelib.evaluation import data_log_likelihood
from vaelib.training import seeded_vae

RESULT = Path(__file__).parent / "results" / "iwae.json"
SIZES = {"hidden_dim": 200, "latent_dim": 50}
BATCH = 100
OBJECTIVES = {
    "ELBO, 5 draws": lambda model, x, g: elbo(model, x, num_samples=5, generator=g).value,
    "importance-weighted, K = 5": lambda model, x, g: iwae_bound(
        model, x, num_samples=5, generator=g
    ),
}


def train(objective, images, epochs: int, seed: int):
    """Adam at 1e-3, divided by ten over the last third."""
    model = seeded_vae(seed, **SIZES)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    for epoch in range(epochs):
        if epoch >= 2 * epochs / 3:
            optimizer.param_groups[0]["lr"] = 1e-4
        for rows in torch.randperm(len(images), generator=generator).split(BATCH):
            x = binarize(images[rows], "stochastic", generator)
            optimizer.zero_grad()
            (-objective(model, x, generator).mean()).backward()
            optimizer.step()
    return model


@torch.no_grad()
def measure(model, x, num_samples: int) -> dict:
    """Means over the images x [N, D] of the bounds, and the activity of each unit."""
    generator = torch.Generator().manual_seed(0)
    estimate = data_log_likelihood(model, x, num_samples=num_samples, generator=generator)
    log_w = torch.cat(
        [
            importance_log_weights(model, rows, num_samples=50, generator=generator)
            for rows in x.split(100)
        ],
        1,
    ).double()
    bounds = {
        k: (torch.logsumexp(log_w.reshape(-1, k, len(x)), 1) - torch.tensor(k).log()).mean().item()
        for k in (1, 5, 50)
    }
    return {
        "bounds": bounds,
        "log_p_x": estimate.value.mean().item(),
        "images_standard_error": (estimate.value.std() / len(x) ** 0.5).item(),
        "active_units": active_units(model, x),
        "activity": [round(a, 5) for a in latent_activity(model, x).sort().values.tolist()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="see that it runs")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    data = load_images("digits" if args.quick else "mnist")
    epochs = 3 if args.quick else args.epochs
    number, num_samples = (100, 100) if args.quick else (500, 2000)
    order = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))
    x = binarize(data.test[order[:number]], "stochastic", torch.Generator().manual_seed(1))
    runs = []
    for seed in range(1 if args.quick else args.seeds):
        for name, objective in OBJECTIVES.items():
            start = time.process_time()
            model = train(objective, data.train, epochs, seed)
            run = {"objective": name, "seed": seed, **measure(model, x, num_samples)}
            run["cpu_seconds"] = round(time.process_time() - start, 1)
            runs.append(run)
            print({k: v for k, v in run.items() if k != "activity"}, flush=True)
        if not args.quick:  # a seed is complete: keep what is there
            write(data, epochs, number, num_samples, runs)


def write(data, epochs: int, number: int, num_samples: int, runs: list) -> None:
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s)",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "data": str(data),
        "binarization": "stochastic",
        "sizes": {"data_dim": 784, **SIZES},
        "epochs": epochs,
        "batch_size": BATCH,
        "test_images": number,
        "num_samples": num_samples,
        "runs": runs,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
