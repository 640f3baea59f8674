"""The images: MNIST, the offline digits, and binarization. Nothing is downloaded on import.

MNIST lies where torchvision keeps it, in ``root/MNIST/raw``, so that one copy serves both. It is
read here all the same: torchvision's reader costs a second to import and 200 MiB, and takes any
file of the right format, while every load here ends in a SHA-256 comparison (0.05 s).
"""

import hashlib
import http.client
import os
import shutil
import tempfile
import threading
import time
import urllib.error
import urllib.request
import warnings
import zlib
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from vaelib.checks import check_choice

#: Name of each file, without its ending .gz at the mirrors: shape and SHA-256 once unpacked.
_FILES = {
    "train-images-idx3-ubyte": (
        (60_000, 28, 28),
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train-labels-idx1-ubyte": (
        (60_000,),
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "t10k-images-idx3-ubyte": (
        (10_000, 28, 28),
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "t10k-labels-idx1-ubyte": (
        (10_000,),
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}
_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
_CONNECT_SECONDS = 5.0  # for all mirrors together, until one begins to answer
_STALL_SECONDS = 10.0  # without a byte, or behind the lowest rate
_LOWEST_RATE = 10_000.0  # bytes a second
_REMEMBER_SECONDS = 3600.0  # how long "auto" does not ask the mirrors again


@dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """Grey images in rows of 784 pixels, 0 (background) to 255 (ink), and their classes 0 to 9.

    ``name`` is "mnist" or "digits"; ``str()`` is the line by which a page says what it was built
    with. Raises a TypeError or a ValueError that names the field for another dtype or shape.
    """

    name: str
    train: UInt8[Tensor, "train 784"]
    train_labels: Int64[Tensor, "train"]
    test: UInt8[Tensor, "test 784"]
    test_labels: Int64[Tensor, "test"]

    def __post_init__(self):
        for name in ("train", "test"):
            images, labels = getattr(self, name), getattr(self, f"{name}_labels")
            _check_images(name, images)
            if images.ndim != 2 or len(images) == 0:
                raise ValueError(
                    f"{name} must have shape [N, 784] and not be empty, "
                    f"found {tuple(images.shape)}"
                )
            if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
                raise TypeError(f"{name}_labels must be a torch.int64 tensor, found {_kind(labels)}")
            if labels.shape != images.shape[:1]:
                raise ValueError(
                    f"{name}_labels must have shape [{len(images)}], found {tuple(labels.shape)}"
                )

    def __str__(self) -> str:
        title = {"mnist": "MNIST", "digits": "scikit-learn's digits"}.get(self.name, self.name)
        return (
            f"{title}: {len(self.train):,} training and {len(self.test):,} test images "
            "of 28 x 28 pixels"
        )

    __repr__ = __str__


def load_images(name: str = "auto", root: str | os.PathLike | None = None) -> ImageData:
    """Load "mnist", "digits", or with "auto" MNIST where it can be had and the digits elsewhere.

    MNIST (LeCun, Bottou, Bengio and Haffner 1998) is read from ``root/MNIST/raw``, torchvision's
    layout; ``root`` is the argument, else ``$VAELIB_DATA``, else the user's cache folder. Files
    that are missing there are downloaded into it: verified, moved into place whole, one process at
    a time. Files that are there are only read.

    "digits" are the 1,797 images of 8 x 8 pixels that ship inside scikit-learn, enlarged to
    28 x 28, with a fixed split in which every class has its share. "auto" turns to them, with one
    UserWarning, when MNIST is missing and cannot be downloaded or stored. It waits at most five
    seconds for the mirrors to answer, and then does not ask them for an hour; "mnist" always asks.

    Raises a ValueError for an unknown name and for a file that is not the MNIST file of its name
    (also with "auto": a damaged file is to be removed, not replaced in silence), and with "mnist"
    an OSError when MNIST is missing and cannot be downloaded or stored.

    >>> print(load_images("digits"))
    scikit-learn's digits: 1,500 training and 297 test images of 28 x 28 pixels
    """
    check_choice("name", name, ("auto", "mnist", "digits"))
    if root is not None and not isinstance(root, (str, os.PathLike)):
        raise TypeError(f"root must be a path, found {_kind(root)}")
    if name == "digits":
        return _load_digits()
    if root is None:
        root = os.environ.get("VAELIB_DATA") or _cache_folder()
    folder = Path(root).expanduser().absolute() / "MNIST" / "raw"
    try:
        _download_missing(folder, ask_again=name == "mnist")
    except OSError as error:
        if name == "mnist":
            raise
        warnings.warn(f"{error}. Using scikit-learn's 1,797 digits instead.", stacklevel=2)
        return _load_digits()
    train, train_labels, test, test_labels = (_read(folder / file) for file in _FILES)
    return ImageData("mnist", train, train_labels.long(), test, test_labels.long())


def binarize(
    images: UInt8[Tensor, "*batch 784"],
    how: str = "threshold",
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch 784"]:
    r"""Turn grey levels 0 to 255 into float32 zeros and ones.

    .. math:: x_i = \mathbb 1[g_i > 127] \quad\text{("threshold")}, \qquad
        x_i \sim \mathrm{Bernoulli}(g_i / 255) \quad\text{("stochastic")}

    The draw is exact: :math:`x_i = \mathbb 1[r_i < g_i]` with r uniform on the integers 0 to 254,
    from ``generator`` (on the images' device), else from torch's global one. It is made anew at
    each call (Salakhutdinov and Murray 2008); the threshold draws nothing.

    Raises a TypeError for images that are no uint8 tensor, a ValueError for a last axis other than
    784, an unknown ``how`` and a generator on another device.

    >>> binarize(torch.full((2, 784), 128, dtype=torch.uint8)).sum(-1)
    tensor([784., 784.])
    """
    check_choice("how", how, ("threshold", "stochastic"))
    _check_images("images", images)
    if generator is not None and generator.device.type != images.device.type:
        raise ValueError(
            f"generator must be on the device of images: found {generator.device} "
            f"and {images.device}"
        )
    binary = torch.empty(images.shape, dtype=torch.float32, device=images.device)
    if how == "threshold":
        return torch.gt(images, 127, out=binary)
    draw = torch.randint(
        255, images.shape, generator=generator, dtype=torch.uint8, device=images.device
    )
    return torch.lt(draw, images, out=binary)


def _check_images(name: str, images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        raise TypeError(
            f"{name} must be a torch.uint8 tensor of grey levels 0 to 255, found {_kind(images)}"
        )
    if images.ndim == 0 or images.shape[-1] != 784:
        raise ValueError(f"{name} must have a last axis of 784, found shape {tuple(images.shape)}")


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def _cache_folder() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("vaelib")


def _load_digits() -> ImageData:
    from sklearn.datasets import load_digits

    small, labels = map(torch.from_numpy, load_digits(return_X_y=True))
    large = torch.nn.functional.interpolate(
        small.reshape(-1, 1, 8, 8) * (255 / 16), size=(28, 28), mode="bilinear"
    )
    # Half a grey level is met exactly: the offset rounds it up whatever the last bit says.
    images = (large + 1e-6).round().to(torch.uint8).reshape(-1, 784)
    # Every sixth image or so of the list sorted by class: 297 of 1,797, each class its share.
    by_class = labels.argsort(stable=True)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[by_class[(torch.arange(297) * 2 + 1) * len(labels) // (2 * 297)]] = True
    return ImageData("digits", images[~chosen], labels[~chosen], images[chosen], labels[chosen])


def _header(shape: tuple[int, ...]) -> bytes:
    """The head of an idx file of unsigned bytes: 0, 0, type 8, number of axes, their lengths."""
    return b"".join(n.to_bytes(4, "big") for n in (0x800 + len(shape), *shape))


def _read(path: Path) -> Tensor:
    """One idx file, compared with what it must be: its size, its head, its SHA-256."""
    shape, digest = _FILES[path.name]
    head = _header(shape)
    expected = len(head) + int(np.prod(shape))
    content = np.fromfile(path, dtype=np.uint8)
    if content.size != expected:
        _reject(path, f"{content.size:,} bytes", f"{expected:,}")
    if content[: len(head)].tobytes() != head:
        found = content[: len(head)].tobytes().hex(" ", 4)
        _reject(path, f"a file that begins with {found}", f"{head.hex(' ', 4)} (hexadecimal)")
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        _reject(path, f"SHA-256 {found}", digest)
    return torch.from_numpy(content[len(head) :]).reshape(shape[0], -1).squeeze(-1)


def _reject(path: Path, found: str, expected: str) -> None:
    raise ValueError(
        f"{path} is not MNIST's {path.name}: found {found}, expected {expected}. Remove it, "
        "and it is downloaded again"
    )


def _missing(folder: Path) -> list[str]:
    return [file for file in _FILES if not (folder / file).exists()]


def _download_missing(folder: Path, ask_again: bool) -> None:
    """Fill the folder; an OSError says why that is impossible. One process at a time does it."""
    if not _missing(folder):
        return
    from filelock import FileLock

    try:
        if not ask_again:
            _recall_failure(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / ".download.lock"):
            if not ask_again:
                _recall_failure(folder)  # another process may have found out meanwhile
            for left_by_killed in folder.parent.glob(".download-*"):
                shutil.rmtree(left_by_killed, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=".download-", dir=folder.parent) as temporary:
                for file in _missing(folder):
                    part = Path(temporary) / file
                    part.write_bytes(_download(file))
                    os.replace(part, folder / file)
        _failure_note().unlink(missing_ok=True)
    except _Unreachable as error:
        raise OSError(
            f"MNIST is not in {folder} and cannot be downloaded ({error}). Put its four files "
            "there, or name another root or VAELIB_DATA"
        ) from None
    except OSError as error:
        raise OSError(
            f"MNIST is not in {folder} and cannot be stored there ({error})"
        ) from None


class _Unreachable(OSError):
    """No mirror delivered a file."""


def _failure_note() -> Path:
    return _cache_folder() / "mnist-unreachable"


def _remember_failure(reason: str) -> None:
    try:
        _failure_note().parent.mkdir(parents=True, exist_ok=True)
        _failure_note().write_text(f"{time.time()}\n{reason}")
    except OSError:
        pass  # the next call asks again


def _recall_failure(folder: Path) -> None:
    try:
        moment, reason = _failure_note().read_text().split("\n", 1)
        age = time.time() - float(moment)
    except (OSError, ValueError):
        return
    if 0 <= age < _REMEMBER_SECONDS and _missing(folder):
        raise _Unreachable(f"tried {age / 60:.0f} minutes ago: {reason}")


def _download(file: str) -> bytes:
    """The verified content of a file from the first mirror that has it."""
    shape, digest = _FILES[file]
    size = len(_header(shape)) + int(np.prod(shape))
    reasons = []
    for mirror in _MIRRORS:
        try:
            packed = _fetch(f"{mirror}{file}.gz", limit=size + 1000)
            content = zlib.decompressobj(wbits=31).decompress(packed, size + 1)
            found = hashlib.sha256(content).hexdigest()
            if found != digest:
                raise ValueError(f"found SHA-256 {found} once unpacked, expected {digest}")
            return content
        except (OSError, http.client.HTTPException, zlib.error, ValueError) as error:
            reasons.append(f"{mirror}: {error or type(error).__name__}")
    reason = f"{file}.gz from " + "; from ".join(reasons)
    _remember_failure(reason)
    raise _Unreachable(reason)


def _fetch(url: str, limit: int) -> bytes:
    """What a URL answers. Raises when it stalls, is cut off, or exceeds the limit."""
    from tqdm import tqdm

    content = bytearray()
    begin = time.monotonic()
    with (
        _open(url, _CONNECT_SECONDS / len(_MIRRORS)) as response,
        tqdm(
            desc=url.rsplit("/", 1)[-1],
            total=response.length,
            unit="B",
            unit_scale=True,
            disable=None,
            leave=False,
        ) as progress,
    ):
        length = response.length
        while chunk := response.read1(1 << 16):
            content += chunk
            progress.update(len(chunk))
            if time.monotonic() - begin > _STALL_SECONDS + len(content) / _LOWEST_RATE:
                raise TimeoutError(f"stalled after {len(content):,} bytes")
            if len(content) > limit:
                raise ValueError(f"more than {limit:,} bytes, which is too long")
    if length is not None and len(content) < length:
        raise ValueError(f"cut off after {len(content):,} of {length:,} bytes")
    return bytes(content)


def _open(url: str, seconds: float) -> http.client.HTTPResponse:
    """Open a URL within a time that holds for all of it: a look-up of names has no time-out."""
    answer = Future()

    def ask():
        try:
            answer.set_result(urllib.request.urlopen(url, timeout=_STALL_SECONDS))
        except Exception as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    if not wait([answer], seconds).done:
        answer.add_done_callback(lambda late: late.exception() or late.result().close())
        raise TimeoutError(f"no answer within {seconds:g} s")
    return answer.result()
