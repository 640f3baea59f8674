"""Files of tensors with a description: written whole or not at all, read without executing any."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
from torch import Tensor


def write_tensors(
    path: str | os.PathLike, kind: str, about: dict, tensors: dict[str, Tensor]
) -> None:
    """Write one safetensors file of this ``kind``; equal contents give equal bytes."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = json.dumps({"format": f"vaelib {kind} 1", **about})
    write_atomically(path, safetensors.torch.save(tensors, {"vaelib": text}))


@contextlib.contextmanager
def reading_tensors(
    path: str | os.PathLike, kind: str
) -> Iterator[tuple[dict, dict[str, Tensor]]]:
    """What :func:`write_tensors` wrote: ``with reading_tensors(path, kind) as (about, tensors)``.

    Raises a FileNotFoundError where there is no file, and a ValueError that names it where it is
    truncated, of another kind, or where the body of the with statement cannot use what it holds.
    """
    path = Path(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["vaelib"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if about["format"] != f"vaelib {kind} 1":
            raise ValueError(f"format {about['format']!r}, expected 'vaelib {kind} 1'")
        yield about, tensors
    except FileNotFoundError:
        raise FileNotFoundError(f"no {kind} file at {path}") from None
    except OSError as error:
        raise OSError(f"{path} cannot be read: {error}") from error
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not a {kind} file of vaelib: {reason}") from error


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """Write a file whole or not at all: into a temporary neighbour, then moved into place.

    Raises an OSError that names the file, which a full disk's own does not.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Raise an OSError of the body as one that names the path."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def remove_unfinished(path: str | os.PathLike) -> None:
    """Remove what a killed :func:`write_atomically` of this path may have left beside it."""
    path = Path(path)
    for left in path.parent.glob(f".{path.name}.*"):
        if left.suffix[1:].isdigit():
            left.unlink(missing_ok=True)
