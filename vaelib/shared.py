"""The trained models that the chapters share: trained once, then read from a cache."""

import ast
import contextlib
import hashlib
import warnings
from dataclasses import asdict
from pathlib import Path

import filelock
import platformdirs
import torch

from vaelib.data import ImageData, load_images
from vaelib.files import remove_unfinished
from vaelib.model import VAE
from vaelib.training import (
    History,
    Recipe,
    fingerprint,
    fit,
    load_model,
    save_model,
    seeded_vae,
)

#: The modules that training runs through.
_CODE = ("gaussian", "bernoulli", "model", "bounds", "data", "gradient", "training")


def trained_vae(latent_dim: int = 20, data: ImageData | None = None) -> tuple[VAE, History]:
    """The model that the chapters share: 784-500-``latent_dim``, trained once and then cached.

    ``data`` defaults to ``load_images()``. The file in the user's cache folder is keyed on recipe,
    data, torch's version and the code that training runs through, and is read again by whoever
    asks for the same; two processes that ask at once train once. A damaged file is trained anew.
    Where the folder cannot be written, what it holds is read, and what it lacks is trained for this
    call alone, with a UserWarning.
    """
    data = load_images() if data is None else data
    recipe = Recipe(epochs=shared_epochs(data, latent_dim))
    key = _cache_key(recipe, data, latent_dim)
    path = Path(platformdirs.user_cache_dir("vaelib")) / "models" / f"{key}.safetensors"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # where nothing can be written, there may be a file
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(filelock.FileLock(path.with_suffix(".lock")))
            remove_unfinished(path)
        with contextlib.suppress(OSError, ValueError):
            return load_model(path)
        model = seeded_vae(recipe.seed, data_dim=data.train.shape[1], latent_dim=latent_dim)
        history = fit(model, data, **asdict(recipe))
        try:
            save_model(path, model, history)
            return load_model(path)
        except OSError as error:
            warnings.warn(
                f"the trained model is not kept, and each call trains it anew ({error})",
                stacklevel=2,
            )
            return model.eval(), history


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
        for name in _CODE
    ]
    parts = [repr(recipe), str(latent_dim), torch.__version__, fingerprint(data), *code]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=10).hexdigest()


def _without_docstrings(source: str) -> ast.Module:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            node.body = node.body[1:]
    return tree
