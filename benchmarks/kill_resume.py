"""Kill training runs at random moments, resume them, and compare with the undisturbed run.

    python -m benchmarks.kill_resume --kills 20    two minutes on a machine with nothing else to do

The trials are added to the stored ones as long as the undisturbed run gives the same bytes, and
replace them once it does not: a hundred kills may be had in five calls.

Each trial starts `python -m vaelib train` on the digits with a checkpoint, waits until a random
number of epochs is in the metrics, then for a random part of the time that the undisturbed run took
from there to the next epoch (or to its end), and sends SIGKILL. The same command runs again to its
end. Then the file of `--save` must equal the undisturbed run's byte for byte, and `--metrics` must
hold every epoch once, with the same values. A run that ends before its signal is repeated.
"""

import argparse
import datetime
import hashlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import torch

from benchmarks.vae_gradients import cpu_name

RESULT = Path(__file__).parent / "results" / "kill_resume.json"
EPOCHS = 20


def start(folder: Path) -> subprocess.Popen:
    """The training run whose files lie in ``folder``, once it has its data.

    It goes on where the files stand.
    """
    command = [
        *(sys.executable, "-m", "vaelib", "train", "--data", "digits"),
        *("--epochs", str(EPOCHS), "--hidden", "32", "--latent", "4"),
        *("--checkpoint", folder / "checkpoint", "--resume"),
        *("--save", folder / "model.safetensors", "--metrics", folder / "metrics.jsonl"),
    ]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=one_thread, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    process.stderr.readline()
    return process


def finish(process: subprocess.Popen) -> None:
    """Wait for the end of a run that must succeed."""
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"training ended with status {process.returncode}: {errors}")


def rows(folder: Path) -> list[dict]:
    """The metrics without their wall-clock seconds."""
    text = (folder / "metrics.jsonl").read_text()
    return [
        {key: value for key, value in json.loads(line).items() if key != "seconds"}
        for line in text.splitlines()
    ]


def epochs_written(folder: Path) -> int:
    """Complete lines in the metrics of a run that may have been killed."""
    file = folder / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def wait_for(epochs: int, process: subprocess.Popen, folder: Path) -> None:
    """Until so many epochs are in the metrics, or the run has ended."""
    while process.poll() is None and epochs_written(folder) < epochs:
        time.sleep(0.002)


def undisturbed_run(folder: Path) -> list[float]:
    """Train to the end; seconds to the first epoch's line, between two lines, and to the end."""
    process, moments = start(folder), [time.perf_counter()]
    for epochs in range(1, EPOCHS + 1):
        wait_for(epochs, process, folder)
        moments.append(time.perf_counter())
    finish(process)
    if [row["epoch"] for row in rows(folder)] != list(range(1, EPOCHS + 1)):
        raise RuntimeError("the undisturbed run did not write each epoch once")
    return [end - begin for begin, end in pairwise([*moments, time.perf_counter()])]


def kill(process: subprocess.Popen) -> bool:
    """Send SIGKILL; False if the run ended first."""
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


def trial(number: int, gaps: list[float], undisturbed: Path) -> dict:
    """One kill at a random moment of a fresh run, its resumption, and the comparison."""
    moments = random.Random(number)
    while True:
        with tempfile.TemporaryDirectory() as name:
            folder, epochs = Path(name), moments.randrange(len(gaps))
            process = start(folder)
            wait_for(epochs, process, folder)
            time.sleep(moments.uniform(0, gaps[epochs]))
            if not kill(process):
                continue
            written = epochs_written(folder)
            finish(start(folder))
            model = (folder / "model.safetensors").read_bytes()
            return {
                "epochs_written": written,
                "same_model": model == (undisturbed / "model.safetensors").read_bytes(),
                "same_metrics": rows(folder) == rows(undisturbed),
            }


def stored_trials(digest: str) -> list[dict]:
    """The trials of earlier calls, if they compared with the same model."""
    stored = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    return stored["trials"] if stored.get("undisturbed_model") == digest else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="trials to add")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        undisturbed = Path(name)
        gaps = undisturbed_run(undisturbed)
        model = (undisturbed / "model.safetensors").read_bytes()
        digest = hashlib.sha256(model).hexdigest()
        trials = stored_trials(digest)
        numbers = range(len(trials), len(trials) + options.kills)
        with ThreadPoolExecutor(2) as pool:  # each trial keeps one core busy
            trials += pool.map(lambda number: trial(number, gaps, undisturbed), numbers)
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{cpu_name()}, one thread",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "epochs": EPOCHS,
        "undisturbed_model": digest,
        "kills": len(trials),
        "same_model": sum(t["same_model"] for t in trials),
        "same_metrics": sum(t["same_metrics"] for t in trials),
        "killed_in_first_epoch": sum(t["epochs_written"] == 0 for t in trials),
        "killed_after_last_epoch": sum(t["epochs_written"] == EPOCHS for t in trials),
        "trials": trials,
    }
    print(json.dumps({k: v for k, v in result.items() if k != "trials"}, indent=1))
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    if result["same_model"] < len(trials) or result["same_metrics"] < len(trials):
        sys.exit("a resumed run differs from the undisturbed one")


if __name__ == "__main__":
    main()
