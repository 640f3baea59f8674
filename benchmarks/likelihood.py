"""The table of log p(x), and what the estimate costs beside the decoder alone.

    python benchmarks/likelihood.py            minutes; writes the result
    python benchmarks/likelihood.py --quick    half a minute; writes nothing, to see that it runs

Part one: the shared 20-D model on 1,000 test images, importance sampling with k = 5000; annealed
importance sampling on the first 100 of them; the mean bound for smaller k.

Part two: seconds of `log_likelihood` and of the decoder alone on the same number of codes in the
same blocks, in turns, so that whatever else the machine does meets both alike; and the growth of
the peak memory over what the imports, the data and the model take. Seconds of wall time and of the
process; on a busy machine their ratio is the measure. The chapter likelihood reads the result.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import time
from pathlib import Path

import torch

from vaelib import annealed_importance_sampling, binarize, elbo, load_images, log_likelihood
from vaelib import trained_vae
from vaelib.bounds import importance_log_weights
from vaelib.evaluation import data_log_likelihood, mean_and_error

RESULT = Path(__file__).parent / "results" / "likelihood.json"
CHUNK = 4_000  # the default of log_likelihood


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.no_grad()
def decode_alone(model, images: int, num_samples: int) -> None:
    """As many codes through the decoder, in blocks of the size that log_likelihood uses."""
    z = torch.randn(CHUNK // images, images, model.latent_dim)
    for _ in range(num_samples // len(z)):
        model.decoder(z)


def speed(model, x, num_samples: int, rounds: int) -> dict:
    """Medians over rounds of both, taken in turns."""
    times = {"log_likelihood": [], "decoder alone": []}
    for _ in range(rounds):
        for name, run in (
            ("log_likelihood", lambda: log_likelihood(model, x, num_samples=num_samples)),
            ("decoder alone", lambda: decode_alone(model, len(x), num_samples)),
        ):
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    result = {"images": len(x), "num_samples": num_samples, "chunk_size": CHUNK, "rounds": rounds}
    for name, pairs in times.items():
        wall, cpu = torch.tensor(pairs, dtype=torch.float64).median(0).values.tolist()
        result[name] = {"wall_seconds": round(wall, 3), "cpu_seconds": round(cpu, 3)}
    ratios = [d[1] / e[1] for d, e in zip(times["decoder alone"], times["log_likelihood"])]
    result["relative speed (cpu)"] = round(sorted(ratios)[len(ratios) // 2], 3)
    return result


@torch.no_grad()
def table(model, x, num_samples: int, annealed: int, temperatures: int) -> dict:
    """Means over the images with the error from the choice of images and the one from sampling."""
    generator = torch.Generator().manual_seed(0)
    start = time.perf_counter()
    estimate = data_log_likelihood(model, x, num_samples=num_samples, generator=generator)
    seconds = time.perf_counter() - start
    bound = elbo(model, x, num_samples=10, generator=generator).value
    bounds = {}
    for k in (1, 5, 50, 500):
        parts = [
            importance_log_weights(model, rows, num_samples=k, generator=generator).double()
            for rows in x.split(40)
        ]
        values = torch.cat([torch.logsumexp(p, 0) for p in parts]) - torch.tensor(float(k)).log()
        bounds[k] = dict(zip(("mean", "images_standard_error"), mean_and_error(values)))
    annealing = annealed_importance_sampling(
        model, x[:annealed], num_chains=16, num_steps=temperatures, generator=generator
    )
    both = (annealing.value - estimate.value[:annealed]).tolist()

    def summary(e):
        mean, error = mean_and_error(e.value)
        monte_carlo = (e.standard_error.square().sum().sqrt() / len(e.value)).item()
        return {
            "images": len(e.value),
            "mean": mean,
            "images_standard_error": error,
            "monte_carlo_standard_error": monte_carlo,
            "median_effective_sample_size": e.effective_sample_size.median().item(),
            "smallest_effective_sample_size": e.effective_sample_size.min().item(),
        }

    return {
        "num_samples": num_samples,
        "wall_seconds": round(seconds, 1),
        "importance sampling": summary(estimate),
        "elbo": dict(zip(("mean", "images_standard_error"), mean_and_error(bound))),
        "bounds": bounds,
        "annealing": {
            **summary(annealing),
            "num_chains": 16,
            "num_steps": temperatures,
            "leapfrog_steps": 5,
            "mean_acceptance_rate": annealing.acceptance_rate.mean().item(),
            "mean_difference_on_the_same_images": sum(both) / len(both),
            "largest_difference": max(both),
            "smallest_difference": min(both),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="see that it runs")
    args = parser.parse_args()
    data = load_images("digits" if args.quick else "mnist")
    model, _ = trained_vae(20, data)
    order = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))
    x = binarize(data.test[order[: 20 if args.quick else 1000]])
    before = peak_mib()
    k = 500 if args.quick else 5000
    numbers = table(model, x, k, *((10, 20) if args.quick else (50, 300)))
    after = peak_mib()
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} thread(s)",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "data": str(data),
        "binarization": "threshold",
        "table": numbers,
        "memory": {"before_mib": round(before), "growth_mib": round(after - before)},
        "speed": speed(model, x[:200], k if args.quick else 1000, 3 if args.quick else 5),
    }
    print(json.dumps(result, indent=1))
    if not args.quick:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
