"""One training loop: its recipe, its history, its checkpoints, and the model files it leaves."""

import hashlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from vaelib.bounds import elbo
from vaelib.checks import check_choice, check_positive_int
from vaelib.data import ImageData, binarize
from vaelib.files import reading_tensors, remove_unfinished, write_tensors
from vaelib.gradient import BoundGradient
from vaelib.model import VAE

EVALUATION_BATCH = 1000


@dataclass(frozen=True)
class Recipe:
    """What, with the data and the starting weights, determines a training run to the last bit."""

    epochs: int
    batch_size: int = 128
    learning_rate: float = 1e-3
    binarization: str = "threshold"
    seed: int = 0


@dataclass
class History:
    """The recipe of a run and one row an epoch, in nats per image.

    A row is ``{"epoch": 1, "seconds": 1.9, "train": {...}, "test": {...}}`` where either split
    holds ``elbo``, ``reconstruction`` and ``kl``. The train values are means over the epoch, taken
    while the weights move; the test values belong to the weights at its end. The first ``resumed``
    rows come from a checkpoint.
    """

    recipe: Recipe
    rows: list[dict] = field(default_factory=list)
    resumed: int = 0

    def curve(self, split: str, term: str) -> list[float]:
        """One value an epoch, such as ``curve("test", "elbo")``."""
        check_choice("split", split, ("train", "test"))
        check_choice("term", term, ("elbo", "reconstruction", "kl"))
        return [row[split][term] for row in self.rows]


def fit(
    model: VAE,
    data: ImageData,
    *,
    epochs: int,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    binarization: str = "threshold",
    seed: int = 0,
    checkpoint: str | os.PathLike | None = None,
    resume: bool = False,
    compiled: bool = False,
    on_epoch: Callable[[dict], None] | None = None,
) -> History:
    """Maximise the ELBO of ``data.train`` with Adam, one sample of z per image and step.

    The images stay uint8 on the model's device and are binarized a batch at a time:
    ``"threshold"`` (pixel > 127) or ``"stochastic"`` (drawn anew each epoch; the test images are
    drawn once). All randomness comes from ``seed``, so that the same start, data and recipe give
    the same numbers on the same machine and thread count. Nothing in the loop waits for the device
    before an epoch ends. Kingma and Welling (2014), algorithm 1; Kingma and Ba (2015).

    After each epoch ``checkpoint`` is replaced by all that a later call needs to go on, with
    ``resume=True``, to the same last bit; without such a file that call starts afresh. ``on_epoch``
    is called with each row of the history, first with those that a checkpoint holds. ``compiled``
    hands the step to torch.compile. Nothing else is written; a progress bar shows in a terminal.

    In a process group of torch.distributed, each process takes its share of every batch, and the
    gradients are summed: the same numbers as in one process, to rounding. Every process must call
    with the same arguments; the first one writes the checkpoint and calls ``on_epoch``.

    Raises a ValueError that names the argument for a value out of range, for images that do not
    fit the model, for a bound that is no longer finite, and for a checkpoint of another run; a
    FileExistsError for a checkpoint that is there, unless ``resume``.
    """
    recipe = Recipe(epochs, batch_size, learning_rate, binarization, seed)
    _check_recipe(recipe)
    rank, _ = _rank_and_processes()
    device = next(model.parameters()).device
    train, test = data.train.to(device), data.test.to(device)
    _inputs(model, train[:1], "threshold", None)  # images that do not fit are named before the start
    gradient = BoundGradient(model, compiled=compiled)
    run = _Run(
        model=model,
        gradient=gradient,
        adam=torch.optim.Adam([gradient.weights], lr=learning_rate, fused=True),
        generator=torch.Generator(device).manual_seed(seed),
        history=History(recipe),
        data=fingerprint(data),
    )
    try:
        if checkpoint is not None:
            _resume(run, checkpoint, resume)
        for row in run.history.rows if on_epoch is not None and rank == 0 else ():
            on_epoch(row)
        for epoch in range(len(run.history.rows) + 1, epochs + 1):
            start = time.perf_counter()
            row = {"epoch": epoch, "seconds": 0.0, "train": _train_epoch(run, train, epoch)}
            row["test"] = mean_elbo(model, test, binarization=binarization, seed=seed)
            row["seconds"] = round(time.perf_counter() - start, 3)
            run.history.rows.append(row)
            if checkpoint is not None and rank == 0:
                _save_checkpoint(run, checkpoint)
            if on_epoch is not None and rank == 0:
                on_epoch(row)
    finally:
        gradient.release()
    return run.history


@dataclass
class _Run:
    """All that moves during a training run."""

    model: VAE
    gradient: BoundGradient
    adam: torch.optim.Adam
    generator: torch.Generator
    history: History
    data: str


def _train_epoch(run: _Run, train: Tensor, epoch: int) -> dict[str, float]:
    """One pass over the images, a step a batch; the means of the bound's terms on the way."""
    recipe, generator = run.history.recipe, run.generator
    rank, processes = _rank_and_processes()
    order = torch.randperm(len(train), generator=generator, device=train.device)
    batches = order.split(recipe.batch_size)
    terms = []
    for rows in tqdm(batches, f"epoch {epoch}/{recipe.epochs}", leave=False, disable=None):
        x, eps = _inputs(run.model, train.index_select(0, rows), recipe.binarization, generator)
        share = slice(rank, None, processes)
        terms.append(run.gradient(x[share], eps[share], 1 / len(rows)))
        if processes > 1:
            dist.all_reduce(run.gradient.weights.grad)
        run.adam.step()
    mean = _mean(terms, len(train))
    if not math.isfinite(mean["elbo"]):
        raise ValueError(
            f"the bound must stay finite, found {mean['elbo']} nats in epoch {epoch}: "
            f"learning_rate ({recipe.learning_rate:g}) may be too large"
        )
    return mean


@torch.no_grad()
def mean_elbo(
    model: VAE, images: UInt8[Tensor, "n data"], *, binarization: str = "threshold", seed: int = 0
) -> dict[str, float]:
    """Mean ELBO and its terms over a set of images, in nats per image, one sample of z an image.

    Noise and binarization come from ``seed``, the same at each call: two models, or one at two
    epochs, are compared on the same draws. In a process group the images are shared out.
    """
    generator = torch.Generator(images.device).manual_seed(seed)
    rank, processes = _rank_and_processes()
    share = slice(rank, None, processes)
    terms = [torch.zeros(2, 0, device=images.device)]
    for batch in images.split(EVALUATION_BATCH):
        x, eps = _inputs(model, batch, binarization, generator)
        if len(x[share]):
            bound = elbo(model, x[share], eps=eps[None, share])
            terms.append(torch.stack([bound.reconstruction, bound.kl]))
    return _mean(terms, len(images))


def _inputs(model: VAE, images: Tensor, binarization: str, generator) -> tuple[Tensor, Tensor]:
    """Binary x [B, D] and noise eps [B, L], of the model's dtype and on its device."""
    weight = model.decoder.hidden.weight
    x = binarize(images, binarization, generator).to(weight.dtype)
    if x.shape[-1] != model.data_dim:
        raise ValueError(
            f"data must hold images of {model.data_dim} pixels, which the model takes, "
            f"found {x.shape[-1]}"
        )
    shape = (len(x), model.latent_dim)
    return x, torch.randn(shape, generator=generator, dtype=weight.dtype, device=weight.device)


def _mean(terms: list[Tensor], count: int) -> dict[str, float]:
    """Means over all images of the terms [2, b] of their batches; here the device is waited for."""
    total = torch.cat(terms, 1).cpu().double().sum(1)
    if _rank_and_processes()[1] > 1:
        dist.all_reduce(total)
    reconstruction, kl = (total / count).tolist()
    return {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}


def _rank_and_processes() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _save_checkpoint(run: _Run, path: str | os.PathLike) -> None:
    about = {
        "run": _identity(run),
        "epochs": run.history.recipe.epochs,
        "rows": run.history.rows,
    }
    adam = run.adam.state[run.gradient.weights]
    own = {"weights": run.gradient.weights, "generator": run.generator.get_state()}
    write_tensors(path, "checkpoint", about, {**own, **adam})


def _resume(run: _Run, path: str | os.PathLike, resume: bool) -> None:
    """Go on where the checkpoint stands, if there is one; refuse that of another run."""
    remove_unfinished(path)
    if not Path(path).exists():
        return
    if not resume:
        raise FileExistsError(f"checkpoint {path} is there already: resume it or remove it")
    weights = run.gradient.weights
    with reading_tensors(path, "checkpoint") as (about, tensors):
        theirs, rows = dict(about["run"]), [_row(*pair) for pair in enumerate(about["rows"], 1)]
        for name in ("weights", "exp_avg", "exp_avg_sq"):
            if tensors[name].shape != weights.shape and theirs == _identity(run):
                raise ValueError(f"{name} of shape {tuple(tensors[name].shape)}")
        torch.Generator(run.generator.device).set_state(tensors["generator"])
        step = tensors["step"].reshape(())
    for name, ours in _identity(run).items():
        if theirs.get(name) != ours:
            raise ValueError(
                f"checkpoint {path} belongs to another run: its {name} is {theirs.get(name)!r}, "
                f"expected {ours!r}"
            )
    if len(rows) > run.history.recipe.epochs:
        raise ValueError(
            f"epochs must be at least {len(rows)}, which checkpoint {path} has behind it, "
            f"found {run.history.recipe.epochs}"
        )
    with torch.no_grad():
        weights.copy_(tensors["weights"])
    run.generator.set_state(tensors["generator"])
    moments = {name: tensors[name].to(weights.device) for name in ("exp_avg", "exp_avg_sq")}
    run.adam.state[weights] = {"step": step.to(weights.device), **moments}
    run.history.rows, run.history.resumed = rows, len(rows)


def _identity(run: _Run) -> dict:
    """What must be equal for one run to be the continuation of another."""
    recipe = asdict(run.history.recipe)
    del recipe["epochs"]
    return {**recipe, **_sizes(run.model), "dtype": str(run.gradient.weights.dtype), "data": run.data}


def _row(epoch: int, row: dict) -> dict:
    """A row of the history, rebuilt; a KeyError or TypeError if it is none."""
    terms = ("elbo", "reconstruction", "kl")
    splits = {s: {term: float(row[s][term]) for term in terms} for s in ("train", "test")}
    return {"epoch": epoch, "seconds": float(row["seconds"]), **splits}


def fingerprint(data: ImageData) -> str:
    """A digest of all images: two data sets that agree in it are the same."""
    digest = hashlib.blake2b(digest_size=10)
    for images in (data.train, data.test):
        digest.update(str(tuple(images.shape)).encode())
        digest.update(images.cpu().contiguous().numpy())
    return digest.hexdigest()


def save_model(path: str | os.PathLike, model: VAE, history: History) -> None:
    """Write weights, sizes and history to one safetensors file, whole or not at all.

    The wall-clock seconds stay out, so that equal runs give equal bytes.
    """
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]
    about = {"sizes": _sizes(model), "recipe": asdict(history.recipe), "rows": rows}
    write_tensors(path, "model", about, model.state_dict())


def load_model(path: str | os.PathLike) -> tuple[VAE, History]:
    """Read what :func:`save_model` wrote; nothing in the file is ever executed.

    Raises a FileNotFoundError where there is no file, and a ValueError that names the file where it
    is truncated, foreign, or does not fit its own description.
    """
    with reading_tensors(path, "model") as (about, weights):
        model = seeded_vae(**about["sizes"])
        model.load_state_dict(weights)
        history = History(Recipe(**about["recipe"]), about["rows"])
    return model.eval(), history


def seeded_vae(seed: int = 0, **sizes: int) -> VAE:
    """A VAE whose starting weights come from ``seed``; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VAE(**sizes)


def _sizes(model: VAE) -> dict[str, int]:
    return {name: getattr(model, name) for name in ("data_dim", "hidden_dim", "latent_dim")}


def _check_recipe(recipe: Recipe) -> None:
    check_positive_int(epochs=recipe.epochs, batch_size=recipe.batch_size)
    if not 0 < recipe.learning_rate < float("inf"):
        raise ValueError(
            f"learning_rate must be a positive number, found {recipe.learning_rate!r}"
        )
    check_choice("binarization", recipe.binarization, ("threshold", "stochastic"))
    if not isinstance(recipe.seed, int) or not 0 <= recipe.seed < 2**63:
        raise ValueError(f"seed must be an integer from 0 to 2^63 - 1, found {recipe.seed!r}")
