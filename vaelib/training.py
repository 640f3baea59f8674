"""One training loop, its history, model files, and the trained models that the chapters share."""

import ast
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import filelock
import platformdirs
import safetensors.torch
import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from vaelib.bounds import elbo
from vaelib.checks import check_choice, check_positive_int
from vaelib.data import ImageData, binarize, load_images
from vaelib.model import VAE

EVALUATION_BATCH = 1000
FILE_FORMAT = "vaelib model 1"


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
    while the weights move; the test values belong to the weights at its end.
    """

    recipe: Recipe
    rows: list[dict] = field(default_factory=list)

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
    on_epoch: Callable[[dict], None] | None = None,
) -> History:
    """Maximise the ELBO of ``data.train`` with Adam, one sample of z per image and step.

    The images stay uint8 in memory and are binarized a batch at a time: ``"threshold"`` (pixel >
    127) or ``"stochastic"`` (drawn anew each epoch; the test images are drawn once). All
    randomness comes from ``seed``, so that the same start, data and recipe give the same numbers
    on the same machine and thread count. ``on_epoch`` is called with each row of the history.
    Nothing is written; a progress bar shows in a terminal. Kingma and Welling (2014), algorithm 1;
    Kingma and Ba (2015).

    Raises a ValueError that names the argument for a value out of range, and for images that do
    not fit the model.
    """
    recipe = Recipe(epochs, batch_size, learning_rate, binarization, seed)
    _check_recipe(recipe)
    device = next(model.parameters()).device
    train, test = data.train.to(device), data.test.to(device)
    generator = torch.Generator(device).manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
    history = History(recipe)
    for epoch in range(1, epochs + 1):
        start, total = time.perf_counter(), torch.zeros(2, dtype=torch.float64, device=device)
        order = torch.randperm(len(train), generator=generator, device=device)
        batches = order.split(batch_size)
        for rows in tqdm(batches, f"epoch {epoch}/{epochs}", leave=False, disable=None):
            x = binarize(train.index_select(0, rows), binarization, generator)
            bound = elbo(model, x, generator=generator)
            optimizer.zero_grad()
            (-bound.value.mean()).backward()
            optimizer.step()
            total += torch.stack([bound.reconstruction.detach().sum(), bound.kl.detach().sum()])
        row = {"epoch": epoch, "seconds": 0.0, "train": _terms(total / len(train))}
        row["test"] = mean_elbo(model, test, binarization=binarization, seed=seed)
        row["seconds"] = round(time.perf_counter() - start, 3)
        history.rows.append(row)
        if on_epoch is not None:
            on_epoch(row)
    return history


@torch.no_grad()
def mean_elbo(
    model: VAE, images: UInt8[Tensor, "n data"], *, binarization: str = "threshold", seed: int = 0
) -> dict[str, float]:
    """Mean ELBO and its terms over a set of images, in nats per image, one sample of z an image.

    Noise and binarization come from ``seed``, the same at each call: two models, or one at two
    epochs, are compared on the same draws.
    """
    generator = torch.Generator(images.device).manual_seed(seed)
    total = torch.zeros(2, dtype=torch.float64, device=images.device)
    for batch in images.split(EVALUATION_BATCH):
        bound = elbo(model, binarize(batch, binarization, generator), generator=generator)
        total += torch.stack([bound.reconstruction.sum(), bound.kl.sum()])
    return _terms(total / len(images))


def save_model(path: str | os.PathLike, model: VAE, history: History) -> None:
    """Write weights, sizes and history to one safetensors file, whole or not at all.

    The wall-clock seconds stay out, so that equal runs give equal bytes.
    """
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]
    sizes = {name: getattr(model, name) for name in ("data_dim", "hidden_dim", "latent_dim")}
    about = {"format": FILE_FORMAT, "sizes": sizes, "recipe": asdict(history.recipe), "rows": rows}
    weights = {name: w.detach().cpu().contiguous() for name, w in model.state_dict().items()}
    write_atomically(path, safetensors.torch.save(weights, {"vaelib": json.dumps(about)}))


def load_model(path: str | os.PathLike) -> tuple[VAE, History]:
    """Read what :func:`save_model` wrote; nothing in the file is ever executed.

    Raises a FileNotFoundError where there is no file, and a ValueError that names the file where it
    is truncated, foreign, or does not fit its own description.
    """
    path = Path(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["vaelib"])
            weights = {name: file.get_tensor(name) for name in file.keys()}
        if about["format"] != FILE_FORMAT:
            raise ValueError(f"format {about['format']!r}, expected {FILE_FORMAT!r}")
        with torch.random.fork_rng(devices=[]):
            model = VAE(**about["sizes"])
        model.load_state_dict(weights)
        history = History(Recipe(**about["recipe"]), about["rows"])
    except FileNotFoundError:
        raise FileNotFoundError(f"no model file at {path}") from None
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not a model file of vaelib: {reason}") from error
    return model.eval(), history


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """Write a file whole or not at all: into a temporary neighbour, then moved into place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def seeded_vae(seed: int = 0, **sizes: int) -> VAE:
    """A VAE whose starting weights come from ``seed``; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VAE(**sizes)


def trained_vae(latent_dim: int = 20, data: ImageData | None = None) -> tuple[VAE, History]:
    """The model that the chapters share: 784-500-``latent_dim``, trained once and then cached.

    ``data`` defaults to ``load_images()``. The file in the user's cache folder is keyed on recipe,
    data, torch's version and the code that training runs through, and is read again by whoever
    asks for the same; two processes that ask at once train once. A damaged file is trained anew.
    """
    data = load_images() if data is None else data
    recipe = Recipe(epochs=shared_epochs(data, latent_dim))
    key = _cache_key(recipe, data, latent_dim)
    path = Path(platformdirs.user_cache_dir("vaelib")) / "models" / f"{key}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_suffix(".lock")):
        try:
            return load_model(path)
        except (FileNotFoundError, ValueError):
            model = seeded_vae(recipe.seed, data_dim=data.train.shape[1], latent_dim=latent_dim)
            save_model(path, model, fit(model, data, **asdict(recipe)))
            return load_model(path)


def shared_epochs(data: ImageData, latent_dim: int) -> int:
    """Passes over the data: 20, or 10 for two latent dimensions, which have less to learn.

    On few images more passes, but fewer steps.
    """
    if len(data.train) <= 10_000:
        return 60
    return 20 if latent_dim > 2 else 10


def _cache_key(recipe: Recipe, data: ImageData, latent_dim: int) -> str:
    code = [
        ast.dump(_without_docstrings((Path(__file__).parent / f"{name}.py").read_text()))
        for name in ("gaussian", "bernoulli", "model", "bounds", "data", "training")
    ]
    parts = [repr(recipe), str(latent_dim), torch.__version__, *code]
    digest = hashlib.blake2b("\n".join(parts).encode(), digest_size=10)
    for images in (data.train, data.test):
        digest.update(images.numpy())
    return digest.hexdigest()


def _without_docstrings(source: str) -> ast.Module:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            node.body = node.body[1:]
    return tree


def _terms(mean: Tensor) -> dict[str, float]:
    reconstruction, kl = mean.tolist()
    return {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}


def _check_recipe(recipe: Recipe) -> None:
    check_positive_int(epochs=recipe.epochs, batch_size=recipe.batch_size)
    if not 0 < recipe.learning_rate < float("inf"):
        raise ValueError(
            f"learning_rate must be a positive number, found {recipe.learning_rate!r}"
        )
    check_choice("binarization", recipe.binarization, ("threshold", "stochastic"))
    if not isinstance(recipe.seed, int) or recipe.seed < 0:
        raise ValueError(f"seed must be an integer of at least 0, found {recipe.seed!r}")
