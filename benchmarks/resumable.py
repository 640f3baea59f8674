"""What the rerun papers share: runs that survive a kill, and rows of a result file."""

import datetime
import io
import json
import os
import pickle
import platform
import time
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.vae_gradients import cpu_name
from vaelib import binarize
from vaelib.files import remove_unfinished, write_atomically


@dataclass
class Run:
    """A training run between two passes over the data, and what has been measured so far.

    ``recipe`` is a dataclass. ``seconds`` are those of the process, all its threads together.
    """

    recipe: Any
    model: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    passes: int = 0
    seconds: float = 0.0
    curve: list[dict] = field(default_factory=list)
    measured: list[dict] = field(default_factory=list)

    def resume(self, checkpoint: Path | None) -> None:
        """Go to where the checkpoint stands; stay where there is none. The clock goes on."""
        state = checkpoint and load_checkpoint(checkpoint, asdict(self.recipe))
        if state:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.generator.set_state(state["generator"])
            for name in ("passes", "seconds", "curve", "measured"):
                setattr(self, name, state[name])
        self._clock = time.process_time() - self.seconds

    def keep(self, checkpoint: Path | None) -> None:
        """Write the checkpoint, if one is asked for."""
        self.seconds = time.process_time() - self._clock
        if checkpoint:
            state = {
                "recipe": asdict(self.recipe),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "generator": self.generator.get_state(),
            }
            for name in ("passes", "seconds", "curve", "measured"):
                state[name] = getattr(self, name)
            save_checkpoint(checkpoint, state)


def binary_batches(images: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """One pass over the images, uint8 [N, 784], in random order: binary float32 [B, 784]."""
    order = torch.randperm(len(images), generator=generator, device=images.device)
    for rows in order.split(batch_size):
        yield binarize(images.index_select(0, rows), "stochastic", generator)


def save_checkpoint(path: str | os.PathLike, state: dict) -> None:
    """Write tensors, numbers, strings and containers of them: the file is old or new, never torn."""
    content = io.BytesIO()
    torch.save(state, content)
    write_atomically(path, content.getvalue())


def load_checkpoint(path: str | os.PathLike, recipe: dict) -> dict | None:
    """The state of a run with this recipe, or None where there is no file; nothing is executed.

    Raises a ValueError that names the file where it is no checkpoint, or one of another recipe.
    """
    remove_unfinished(path)
    if not Path(path).exists():
        return None
    if not zipfile.is_zipfile(path):  # as all that torch.save writes are
        raise ValueError(f"{path} is no checkpoint: it is foreign, or cut off")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["recipe"]
    except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no checkpoint: {str(error).splitlines()[0]}") from error
    if found != recipe:
        raise ValueError(f"{path} is a checkpoint of {found}, expected {recipe}")
    return state


def machine(device: torch.device) -> dict:
    """Date, versions and machine, as each row of a result file holds them."""
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} thread(s)"
    if device.type == "cuda":
        threads = torch.cuda.get_device_name(device)
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{cpu_name()}, {threads}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def put_row(path: Path, row: dict, keys: tuple[str, ...]) -> None:
    """Add a row to a result file, in place of the one that has the same values under ``keys``."""
    remove_unfinished(path)
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [old for old in rows if any(old["recipe"][k] != row["recipe"][k] for k in keys)]
    rows = sorted([*rows, row], key=lambda r: [r["recipe"][k] for k in keys])
    write_atomically(path, (json.dumps({"rows": rows}, indent=1) + "\n").encode())
