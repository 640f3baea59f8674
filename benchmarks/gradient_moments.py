"""What a million gradient samples cost beside the noise, the function and its gradient alone.

    python benchmarks/gradient_moments.py            a minute of one core; writes the result
    python benchmarks/gradient_moments.py --quick    seconds; writes nothing, to see that it runs

`gradient_moments(pathwise, f)` for f(z) = sum_i cos z_i in 64 dimensions and float32, against a
bare loop over blocks of the same size, which draws the noise and evaluates f and its gradient at
it. The two take turns in short rounds, so that whatever else the machine does meets both alike. A
round is a tenth of the million samples. Before the rounds, one run takes them all: its moments are
compared with the exact ones, and its peak memory with what was resident before.

Seconds are given as wall time and as CPU time of the one thread that computes; on a busy machine
the ratio of CPU times is the better measure.
"""

import argparse
import datetime
import inspect
import json
import math
import os
import platform
import resource
import statistics
import time
from pathlib import Path

import torch

from vaelib import gradient_moments, pathwise

RESULT = Path(__file__).parent / "results" / "gradient_moments.json"
DIM = 64
CHUNK = inspect.signature(gradient_moments).parameters["chunk_size"].default
MU, LOG_VAR = torch.full((DIM,), 0.5), torch.zeros(DIM)


def f(z):
    return torch.cos(z).sum(1)


def moments(num_samples: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    return gradient_moments(
        pathwise, f, MU, LOG_VAR, num_samples=num_samples, generator=generator
    )


def bare(num_samples: int, seed: int) -> None:
    """The noise, f and its gradient, in the same blocks; nothing is shifted, kept or summed."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, num_samples, CHUNK):
        count = min(CHUNK, num_samples - start)
        z = torch.randn(count, DIM, generator=generator).requires_grad_()
        torch.autograd.grad(f(z).sum(), z)


def exact() -> dict:
    """Moments of -sin z and of -eps sin(z) / 2 for z = mu + eps."""
    mu, decay = MU[0].item(), math.exp(-0.5)
    g_mu, g_log_var = -decay * math.sin(mu), -decay * math.cos(mu) / 2
    double = math.exp(-2) * math.cos(2 * mu)
    return {
        "mean mu": g_mu,
        "mean log_var": g_log_var,
        "variance mu": (1 - double) / 2 - g_mu**2,
        "variance log_var": (1 + 3 * double) / 8 - g_log_var**2,
    }


def deviations(found) -> dict:
    """Mean over the dimensions of each moment, less the exact one, relative to it."""
    parts = {
        f"{kind} {name}": getattr(getattr(found, kind), name).mean().item()
        for kind in ("mean", "variance")
        for name in ("mu", "log_var")
    }
    return {name: parts[name] / value - 1 for name, value in exact().items()}


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def spread(values: list[float]) -> dict:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 4), "quartiles": [round(low, 4), round(high, 4)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few samples; write nothing")
    quick = parser.parse_args().quick
    num_samples, rounds = (80_000, 4) if quick else (1_000_000, 60)
    torch.set_num_threads(1)

    start = resident_mib()
    found = moments(num_samples, seed=0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - start

    part = num_samples // 10
    seconds = {"moments": [], "bare": []}
    for number in range(rounds):
        order = (("moments", moments), ("bare", bare))
        for name, run in order if number % 2 else reversed(order):
            wall, cpu = time.perf_counter(), time.process_time()
            run(part, seed=number)
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    pairs = list(zip(seconds["moments"], seconds["bare"]))
    result = {
        "what": "gradient_moments(pathwise, sum of cos z_i) against noise, f and its gradient",
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread used",
        "seeds": f"0 for the moments, 0 to {rounds - 1} for the rounds",
        "dimensions": DIM,
        "dtype": "float32",
        "num_samples": num_samples,
        "chunk_size": CHUNK,
        "peak MiB above the start": round(peak, 1),
        "relative deviation from the exact moments": {
            name: float(f"{value:.1e}") for name, value in deviations(found).items()
        },
        "rounds": rounds,
        "samples a round": part,
        "ratio of CPU seconds": spread([m[1] / b[1] for m, b in pairs]),
        "ratio of wall seconds": spread([m[0] / b[0] for m, b in pairs]),
        "CPU seconds a round, moments": spread([m[1] for m, _ in pairs]),
        "CPU seconds a round, bare": spread([b[1] for _, b in pairs]),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if not quick:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(text + "\n")


if __name__ == "__main__":
    main()
