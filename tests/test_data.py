"""Images: what is loaded, what every fault of disk, network or file ends in, and binarization."""

import gc
import gzip
import hashlib
import http.server
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
import urllib.request
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import sklearn.datasets
import torch

import vaelib
from vaelib import ImageData, binarize, data, load_images

SHAPES = {
    "train-images-idx3-ubyte": (6, 28, 28),
    "train-labels-idx1-ubyte": (6,),
    "t10k-images-idx3-ubyte": (4, 28, 28),
    "t10k-labels-idx1-ubyte": (4,),
}
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


# A miniature of MNIST, a cache folder of its own, and mirrors on this machine.


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder; no VAELIB_DATA."""
    monkeypatch.delenv("VAELIB_DATA", raising=False)
    monkeypatch.setattr(data, "_cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def miniature(monkeypatch) -> dict[str, bytes]:
    """The content of four small idx files that stand in for MNIST's; vaelib expects them."""
    draw = np.random.default_rng(0)
    files, expected = {}, {}
    for name, shape in SHAPES.items():
        top = 256 if len(shape) == 3 else 10
        head = np.array([0x800 + len(shape), *shape], dtype=">u4").tobytes()
        files[name] = head + draw.integers(0, top, shape, dtype=np.uint8).tobytes()
        expected[name] = (shape, hashlib.sha256(files[name]).hexdigest())
    monkeypatch.setattr(data, "_FILES", expected)
    return files


def raw(root: Path) -> Path:
    return root / "MNIST" / "raw"


def put(root: Path, files: dict[str, bytes]) -> Path:
    raw(root).mkdir(parents=True)
    for name, content in files.items():
        (raw(root) / name).write_bytes(content)
    return root


class Mirror:
    """A web server whose answer a test chooses: a function of the request's handler and file."""

    def __init__(self, files: dict[str, bytes]):
        self.packed = {f"/{name}.gz": gzip.compress(content) for name, content in files.items()}
        self.answer, self.asked, self.release = good, [], threading.Event()
        mirror = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                mirror.asked.append(self.path)
                mirror.answer(self, mirror.packed.get(self.path, b""), mirror.release)

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads, block_on_close = True, False

            def handle_error(self, *_):
                pass  # the client has left

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self):
        self.release.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def mirrors(miniature, cache, monkeypatch):
    """Two mirrors, both good; nothing but them is asked."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    both = Mirror(miniature), Mirror(miniature)
    monkeypatch.setattr(data, "_MIRRORS", tuple(mirror.url for mirror in both))
    yield both
    for mirror in both:
        mirror.close()


def send(handler, content: bytes, length: int | None = None, status: int = 200):
    handler.send_response(status)
    if length is not None:
        handler.send_header("Content-Length", str(length))
    handler.end_headers()
    handler.wfile.write(content)


def good(handler, content, release):
    send(handler, content, len(content))


def without_length(handler, content, release):
    send(handler, content)


def error_page(handler, content, release):
    send(handler, b"<html>Please log in to this network</html>", 42)


def not_found(handler, content, release):
    send(handler, b"gone", 4, status=404)


def overloaded(handler, content, release):
    send(handler, b"", 0, status=503)


ZEROS = gzip.compress(bytes(1_000_000))


def empty(handler, content, release):
    send(handler, b"", 0)


def cut_off(handler, content, release):
    send(handler, content[: len(content) // 2], len(content))


def cut_off_without_length(handler, content, release):
    send(handler, content[: len(content) // 2])


def cut_off_chunk(handler, content, release):
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"%x\r\n" % len(content) + content[: len(content) // 2])


def other_content(handler, content, release):
    unpacked = bytearray(gzip.decompress(content))
    unpacked[-1] ^= 1
    changed = gzip.compress(bytes(unpacked))
    send(handler, changed, len(changed))


def followed_by_more(handler, content, release):
    longer = gzip.compress(gzip.decompress(content) + b"\0")
    send(handler, longer, len(longer))


def bomb(handler, content, release):
    """A thousand bytes that unpack to a million."""
    send(handler, ZEROS, len(ZEROS))


def endless(handler, content, release):
    send(handler, b"")
    for _ in range(100):  # enough for a reader without a limit to be noticed
        handler.wfile.write(bytes(65536))


def silent(handler, content, release):
    release.wait(30)


def stalled(handler, content, release):
    send(handler, content[:10], len(content))
    release.wait(30)


def drip(handler, content, release):
    send(handler, b"", 10**6)
    while not release.wait(0.01):
        handler.wfile.write(b"\x1f")


def not_http(handler, content, release):
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")


#: Each fault, and what the error says of it.
FAULTS = {
    error_page: "incorrect header check",
    not_found: "404",
    overloaded: "503",
    empty: "found SHA-256 e3b0c44298fc",
    cut_off: r"cut off after [\d,]+ of [\d,]+ bytes",
    cut_off_without_length: "found SHA-256 .* once unpacked, expected",
    cut_off_chunk: "IncompleteRead",
    other_content: "found SHA-256 .* once unpacked, expected",
    followed_by_more: "found SHA-256 .* once unpacked, expected",
    bomb: "found SHA-256 .* once unpacked, expected",
    endless: r"more than [\d,]+ bytes",
    silent: "no answer within 0.2 s",
    stalled: "timed out",
    drip: r"stalled after [\d,]+ bytes",
    not_http: "SSH-2.0",
}


def impatient(monkeypatch, fault):
    """Shorten the wait that the fault is about, and no other: this machine may be busy."""
    monkeypatch.setattr(data, "_CONNECT_SECONDS", 0.4 if fault is silent else 60.0)
    if fault is stalled:
        monkeypatch.setattr(data, "_STALL_SECONDS", 0.3)
    if fault is drip:
        fast = types.SimpleNamespace(time=time.time, monotonic=lambda: 100 * time.monotonic())
        monkeypatch.setattr(data, "time", fast)


def files_below(folder: Path) -> set[str]:
    """Every file except locks."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)) for path in found}


def assert_is(loaded: ImageData, files: dict[str, bytes]):
    assert loaded.name == "mnist"
    assert loaded.train.numpy().tobytes() == files["train-images-idx3-ubyte"][16:]
    assert loaded.test.numpy().tobytes() == files["t10k-images-idx3-ubyte"][16:]
    assert bytes(loaded.train_labels.tolist()) == files["train-labels-idx1-ubyte"][8:]
    assert bytes(loaded.test_labels.tolist()) == files["t10k-labels-idx1-ubyte"][8:]


# What is loaded.


def test_mnist_is_what_torchvision_reads(miniature, tmp_path):
    from torchvision.datasets import MNIST

    put(tmp_path, miniature)
    loaded = load_images("mnist", root=tmp_path)
    assert_is(loaded, miniature)
    for train, images, labels in (
        (True, loaded.train, loaded.train_labels),
        (False, loaded.test, loaded.test_labels),
    ):
        theirs = MNIST(tmp_path, train=train, download=False)
        assert torch.equal(theirs.data.flatten(1), images) and images.dtype == torch.uint8
        assert torch.equal(theirs.targets, labels) and labels.dtype == torch.int64


def test_images_at_hand_are_the_published_ones(monkeypatch):
    """The real files, where they are, against the counts and the mean that are known of MNIST."""
    monkeypatch.setattr(data, "_MIRRORS", ())
    monkeypatch.setattr(data, "_remember_failure", lambda reason: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load_images()
    if loaded.name == "mnist":
        assert str(loaded) == "MNIST: 60,000 training and 10,000 test images of 28 x 28 pixels"
        assert loaded.train_labels.bincount().tolist() == [
            5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
        ]  # fmt: skip
        assert loaded.test_labels.bincount().tolist() == [
            980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
        ]  # fmt: skip
        assert loaded.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
        # torchvision's and Keras's usual normalisation: mean 0.1307, standard deviation 0.3081
        assert round(loaded.train.double().mean().item() / 255, 4) == 0.1307
        assert round(loaded.train.double().std().item() / 255, 4) == 0.3081
    else:
        assert len(loaded.train) == 1500


def test_the_shapes_are_those_of_the_source_post():
    shapes = [shape for shape, _ in data._FILES.values()]
    assert shapes == [(60_000, 28, 28), (60_000,), (10_000, 28, 28), (10_000,)]
    assert list(data._FILES) == list(SHAPES)


def test_digits_are_scikit_learns_enlarged_by_bilinear_interpolation():
    """Against the definition, in integers: pixel i lies at (i + 1/2) 8/28 - 1/2 = (4i - 5) / 14."""
    position = (4 * np.arange(28) - 5).clip(0, 7 * 14)
    weight = (14 - np.abs(position[:, None] - 14 * np.arange(8))).clip(0)
    small, labels = sklearn.datasets.load_digits(return_X_y=True)
    large = weight @ small.reshape(-1, 8, 8).astype(int) @ weight.T * 255  # over 16 * 14 * 14
    rounded = (2 * large + 3136) // (2 * 3136)
    loaded = load_images("digits")
    rows = {}
    for image, label in zip(rounded.astype(np.uint8).reshape(-1, 784), labels):
        rows.setdefault(image.tobytes(), []).append(int(label))
    for images, classes in (
        (loaded.train, loaded.train_labels),
        (loaded.test, loaded.test_labels),
    ):
        for image, label in zip(images, classes):
            rows[image.numpy().tobytes()].remove(label.item())
    assert not any(rows.values())  # each of the 1,797 images is used once
    assert loaded.train.min() == 0 and loaded.train.max() == 255


def test_the_digits_split_gives_each_class_its_share():
    loaded = load_images("digits")
    assert loaded.train.shape == (1500, 784) and loaded.test.shape == (297, 784)
    assert loaded.train.dtype == torch.uint8 and loaded.train_labels.dtype == torch.int64
    _, labels = sklearn.datasets.load_digits(return_X_y=True)
    share = torch.from_numpy(labels).bincount() * 297 / 1797
    assert (loaded.test_labels.bincount() - share).abs().max() < 1
    # order is kept, so that neither part is sorted by class
    assert loaded.train_labels[:20].unique().numel() == 10


def test_the_digits_split_never_changes():
    first, second = load_images("digits"), load_images("digits")
    assert torch.equal(first.train, second.train) and torch.equal(first.test, second.test)
    digest = hashlib.sha256(first.train.numpy().tobytes() + first.test.numpy().tobytes())
    assert digest.hexdigest()[:16] == "14c6120d713d2b1d"


def test_digits_need_neither_root_nor_network(cache, monkeypatch):
    monkeypatch.setattr(data, "_MIRRORS", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_images("digits", root="/nowhere").name == "digits"
    assert not cache.exists()


def test_argument_then_environment_then_cache_folder_name_the_root(
    miniature, cache, tmp_path, monkeypatch
):
    """The fuller root wins only where it stands first: the others lack a file."""
    monkeypatch.setattr(data, "_MIRRORS", ())
    roots = {"argument": tmp_path / "a", "environment": tmp_path / "b", "cache": cache}
    for first in roots:
        for name, root in roots.items():
            shutil.rmtree(root, ignore_errors=True)
            put(root, miniature if name == first else {})
        monkeypatch.delenv("VAELIB_DATA", raising=False)
        if first != "cache":
            monkeypatch.setenv("VAELIB_DATA", str(roots["environment"]))
        argument = str(roots["argument"]) if first == "argument" else None
        assert_is(load_images("mnist", root=argument), miniature)


def test_an_empty_environment_variable_counts_as_unset(miniature, cache, monkeypatch):
    put(cache, miniature)
    monkeypatch.setenv("VAELIB_DATA", "")
    assert_is(load_images("mnist"), miniature)


def test_a_root_may_begin_with_a_tilde(miniature, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path / "images", miniature)
    assert_is(load_images("mnist", root="~/images"), miniature)


def test_errors_name_a_relative_root_in_full(cache, tmp_path, monkeypatch):
    """A notebook's working folder is another than the shell's: the reader must see which."""
    monkeypatch.setattr(data, "_MIRRORS", ())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VAELIB_DATA", "images")
    with pytest.raises(OSError, match=str(tmp_path / "images" / "MNIST" / "raw")):
        load_images("mnist")


def test_the_cache_folder_is_the_users(monkeypatch, tmp_path):
    import platformdirs

    assert data._cache_folder() == platformdirs.user_cache_path("vaelib")
    assert data._cache_folder().name == "vaelib"


def test_importing_vaelib_is_light():
    code = (
        "import sys, vaelib\n"
        "print([m for m in ('torchvision', 'sklearn', 'matplotlib', 'scipy') if m in sys.modules])"
    )
    assert run(code).stdout.strip() == "[]"


# ImageData.


def test_image_data_says_what_it_is():
    images, labels = torch.zeros(1200, 784, dtype=torch.uint8), torch.zeros(1200).long()
    for name, title in (("mnist", "MNIST"), ("digits", "scikit-learn's digits"), ("own", "own")):
        made = ImageData(name, images, labels, images[:3], labels[:3])
        assert str(made) == f"{title}: 1,200 training and 3 test images of 28 x 28 pixels"
        assert repr(made) == str(made)
    with pytest.raises(AttributeError):
        made.train = images


@pytest.mark.parametrize(
    "field, value, error, message",
    [
        ("train", torch.zeros(5, 784), TypeError, "train must be a torch.uint8 .* torch.float32"),
        ("test", np.zeros((5, 784), "u1"), TypeError, "test must be a torch.uint8 .* ndarray"),
        ("train", torch.zeros(5, 783).byte(), ValueError, r"train .*784.*\(5, 783\)"),
        ("train", torch.zeros(784).byte(), ValueError, r"train must have shape \[N, 784\].*\(784"),
        ("test", torch.zeros(0, 784).byte(), ValueError, r"test .* not be empty, found \(0, 784"),
        ("train", torch.zeros(5, 28, 28).byte(), ValueError, r"train .*\(5, 28, 28\)"),
        ("train_labels", torch.zeros(5), TypeError, "train_labels must be .*int64.*float32"),
        ("test_labels", [0] * 5, TypeError, "test_labels must be .*int64.*list"),
        ("train_labels", torch.zeros(4).long(), ValueError, r"train_labels .*\[5\].*\(4,\)"),
        ("test_labels", torch.zeros(5, 1).long(), ValueError, r"test_labels .*\[5\].*\(5, 1\)"),
    ],
)
def test_image_data_names_a_bad_field(field, value, error, message):
    images, labels = torch.zeros(5, 784, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64)
    fields = dict(train=images, train_labels=labels, test=images, test_labels=labels)
    with pytest.raises(error, match=message):
        ImageData("mine", **{**fields, field: value})


# Bad arguments and damaged files.


@pytest.mark.parametrize("name", ["MNIST", "", "fashion", None, 3, ["mnist"]])
def test_an_unknown_name_is_an_error(name, cache):
    with pytest.raises(ValueError, match="name must be 'auto' or 'mnist' or 'digits', found"):
        load_images(name)


@pytest.mark.parametrize("root", [3, b"/tmp", ["x"], True])
@pytest.mark.parametrize("name", ["auto", "mnist", "digits"])
def test_a_root_that_is_no_path_is_an_error(name, root):
    with pytest.raises(TypeError, match="root must be a path, found"):
        load_images(name, root=root)


DAMAGE = {
    "empty": (lambda c: b"", r"found 0 bytes, expected [\d,]+"),
    "truncated": (lambda c: c[:-1], r"found [\d,]+ bytes, expected [\d,]+"),
    "too long": (lambda c: c + b"\0", r"found [\d,]+ bytes, expected [\d,]+"),
    "web page": (lambda c: b"<html>".ljust(len(c)), "begins with 3c68746d 6c3e.*expected 0000080"),
    "other type": (lambda c: c[:2] + b"\x0d" + c[3:], "begins with 00000d0.*expected 0000080"),
    "other axes": (lambda c: c[:4] + b"\0\0\0\1" + c[8:], "begins with 0000080. 00000001.*expected"),
    "bit flipped": (lambda c: c[:-1] + bytes([c[-1] ^ 1]), "found SHA-256 [0-9a-f]{64}, expected"),
}


@pytest.mark.parametrize("name", ["auto", "mnist"])
@pytest.mark.parametrize("file", SHAPES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_and_left_alone(damage, file, name, miniature, tmp_path, mirrors):
    """With "auto", too: the digits never stand in for a damaged file in silence."""
    spoil, message = DAMAGE[damage]
    put(tmp_path, miniature | {file: spoil(miniature[file])})
    path = raw(tmp_path) / file
    with pytest.raises(ValueError, match=message) as caught:
        load_images(name, root=tmp_path)
    assert str(path) in str(caught.value) and "Remove it" in str(caught.value)
    assert path.read_bytes() == spoil(miniature[file])
    assert not mirrors[0].asked
    path.unlink()  # what the message says
    assert_is(load_images(name, root=tmp_path), miniature)


def test_a_folder_in_a_files_place_is_an_error_that_names_it(miniature, tmp_path, cache):
    put(tmp_path, miniature)
    (raw(tmp_path) / LABELS).unlink()
    (raw(tmp_path) / LABELS).mkdir()
    with pytest.raises(OSError, match=LABELS):
        load_images("auto", root=tmp_path)


# Downloads.


@pytest.mark.parametrize("name", ["auto", "mnist"])
@pytest.mark.parametrize("answer", [good, without_length])
def test_a_missing_set_is_downloaded_once_and_kept(answer, name, mirrors, miniature, cache):
    mirrors[0].answer = answer
    assert_is(load_images(name), miniature)
    assert files_below(cache) == {f"MNIST/raw/{file}" for file in SHAPES}
    assert {path.name for path in (cache / "MNIST").iterdir()} <= {"raw", ".download.lock"}
    assert mirrors[0].asked == [f"/{file}.gz" for file in SHAPES] and not mirrors[1].asked
    assert_is(load_images(name), miniature)
    assert len(mirrors[0].asked) == 4


def test_only_missing_files_are_downloaded(mirrors, miniature, tmp_path):
    put(tmp_path, miniature)
    (raw(tmp_path) / LABELS).unlink()
    before = (raw(tmp_path) / IMAGES).stat()
    assert_is(load_images("auto", root=tmp_path), miniature)
    assert mirrors[0].asked == [f"/{LABELS}.gz"]
    assert (raw(tmp_path) / IMAGES).stat() == before


def test_vaelib_data_without_mnist_is_filled(mirrors, miniature, tmp_path, cache, monkeypatch):
    monkeypatch.setenv("VAELIB_DATA", str(tmp_path / "mine"))
    assert_is(load_images(), miniature)
    assert len(files_below(tmp_path / "mine")) == 4 and not files_below(cache)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_second_mirror_makes_up_for_the_first(fault, mirrors, miniature, cache, monkeypatch):
    mirrors[0].answer = fault
    impatient(monkeypatch, fault)
    patient, impatient_clock = data._open, data.time

    def open_url(url, seconds):
        """Impatience is for the faulty mirror: a busy machine may keep the other one waiting."""
        faulty = url.startswith(mirrors[0].url)
        monkeypatch.setattr(data, "time", impatient_clock if faulty else time)
        return patient(url, seconds if faulty else 60)

    monkeypatch.setattr(data, "_open", open_url)
    assert_is(load_images("mnist"), miniature)
    assert files_below(cache) == {f"MNIST/raw/{file}" for file in SHAPES}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_ends_in_one_clear_error_and_the_next_run_works(
    fault, mirrors, miniature, cache, monkeypatch
):
    for mirror in mirrors:
        mirror.answer = fault
    with monkeypatch.context() as patch:
        impatient(patch, fault)
        with pytest.raises(OSError, match=FAULTS[fault]) as caught:
            load_images("mnist")
        message = str(caught.value)
        assert str(raw(cache)) in message and "VAELIB_DATA" in message
        assert all(mirror.url in message for mirror in mirrors)
        assert files_below(cache) == {"mnist-unreachable"}
        with pytest.warns(UserWarning, match=r"Using scikit-learn's 1,797 digits") as warned:
            assert load_images("auto").name == "digits"
        assert len(warned) == 1
    for mirror in mirrors:
        mirror.answer = good
    assert_is(load_images("mnist"), miniature)
    assert files_below(cache) == {f"MNIST/raw/{file}" for file in SHAPES}


def test_a_bomb_is_unpacked_no_further_than_one_byte_too_far(mirrors, miniature):
    for mirror in mirrors:
        mirror.answer = bomb
    found = hashlib.sha256(bytes(len(miniature[IMAGES]) + 1)).hexdigest()
    with pytest.raises(OSError, match=f"found SHA-256 {found}"):
        load_images("mnist")


def test_a_fault_halfway_keeps_what_is_whole(mirrors, miniature, cache, monkeypatch):
    def labels_cut_off(handler, content, release):
        (cut_off if handler.path == f"/{LABELS}.gz" else good)(handler, content, release)

    for mirror in mirrors:
        mirror.answer = labels_cut_off
    with pytest.raises(OSError, match=f"{LABELS}.gz from .*cut off"):
        load_images("mnist")
    assert files_below(raw(cache)) == {IMAGES}
    mirrors[0].answer = good
    mirrors[0].asked.clear()
    assert_is(load_images("mnist"), miniature)
    assert f"/{IMAGES}.gz" not in mirrors[0].asked


def test_an_interrupt_before_the_move_leaves_nothing(mirrors, miniature, cache, monkeypatch):
    """Files come into place by one atomic move, from a folder on the same disk."""

    def interrupted(part, target):
        assert Path(part).read_bytes() == miniature[target.name] and not target.exists()
        assert Path(part).parent.parent == target.parent.parent
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_images("mnist")
    assert not files_below(cache)
    assert not list((cache / "MNIST").glob(".download-*"))
    assert_is(load_images("mnist"), miniature)


def test_a_refused_connection_is_named(miniature, cache, monkeypatch):
    closed = Mirror(miniature)
    closed.close()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(data, "_MIRRORS", (closed.url,))
    with pytest.raises(OSError, match="(?i)refused"):
        load_images("mnist")


def test_a_look_up_of_names_that_hangs_does_not_hang_the_reader(miniature, cache, monkeypatch):
    """A socket's time-out does not cover it: only the thread does."""
    release = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: release.wait(60))
    monkeypatch.setattr(data, "_CONNECT_SECONDS", 0.2)
    with pytest.raises(OSError, match="no answer within 0.1 s"):
        load_images("mnist")
    assert not release.is_set()
    release.set()


def test_all_mirrors_together_may_take_five_seconds(miniature, cache, monkeypatch):
    waits = []

    def unreachable(url, seconds):
        waits.append(seconds)
        raise TimeoutError("no answer")

    monkeypatch.setattr(data, "_open", unreachable)
    with pytest.warns(UserWarning):
        load_images("auto")
    assert len(waits) == len(data._MIRRORS) >= 2 and sum(waits) <= 5
    with pytest.warns(UserWarning):
        load_images("auto")
    assert sum(waits) <= 5  # once, not once a chapter


def test_a_late_answer_is_closed(mirrors, monkeypatch):
    """Else its socket would be left to the garbage collector, which warns: an error here."""
    mirrors[0].answer = lambda handler, content, release: (
        release.wait(30),
        good(handler, content, release),
    )
    closed = threading.Event()
    original = urllib.request.urlopen

    def watched(*arguments, **options):
        response = original(*arguments, **options)
        close = response.close
        response.close = lambda: (close(), closed.set())
        return response

    monkeypatch.setattr("urllib.request.urlopen", watched)
    with pytest.raises(TimeoutError, match="no answer within 0.1 s"):
        data._open(f"{mirrors[0].url}{IMAGES}.gz", 0.1)
    mirrors[0].release.set()
    assert closed.wait(30)
    gc.collect()


def test_every_mirror_is_asked_over_tls():
    assert all(mirror.startswith("https://") and mirror.endswith("/") for mirror in data._MIRRORS)


def test_progress_shows_in_a_terminal_only(mirrors, cache, capfd, monkeypatch):
    load_images("mnist")
    assert capfd.readouterr() == ("", "")
    shutil.rmtree(cache)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    load_images("mnist")
    assert f"{IMAGES}.gz" in capfd.readouterr().err


# The note of a failure.


def fail_once(mirrors):
    for mirror in mirrors:
        mirror.answer = not_found
    with pytest.warns(UserWarning):
        load_images("auto")
    for mirror in mirrors:
        mirror.answer = good
        mirror.asked.clear()


def test_auto_does_not_ask_again_for_an_hour_and_says_so(mirrors, cache):
    fail_once(mirrors)
    with pytest.warns(UserWarning, match="tried 0 minutes ago: .*404.*digits") as warned:
        assert load_images("auto").name == "digits"
    assert len(warned) == 1 and warned[0].filename == __file__
    assert not mirrors[0].asked
    assert data._REMEMBER_SECONDS == 3600


def test_mnist_always_asks_again_and_forgets_the_failure(mirrors, miniature, cache):
    fail_once(mirrors)
    assert_is(load_images("mnist"), miniature)
    assert not (cache / "mnist-unreachable").exists()


@pytest.mark.parametrize(
    "note",
    [
        lambda: f"{time.time() - 3700}\nlong ago",
        lambda: f"{time.time() + 1000}\na clock that was set back",
        lambda: "nan\nno time",
        lambda: "garbage",
        lambda: "",
        lambda: "\udcff",
    ],
)
def test_an_old_or_broken_note_is_ignored(note, mirrors, miniature, cache):
    fail_once(mirrors)
    (cache / "mnist-unreachable").write_text(note(), errors="surrogateescape")
    assert_is(load_images("auto"), miniature)


def test_the_note_does_not_hide_a_copy(mirrors, miniature, cache, tmp_path):
    fail_once(mirrors)
    put(tmp_path / "elsewhere", miniature)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_is(load_images("auto", root=tmp_path / "elsewhere"), miniature)


# Disks.


@contextmanager
def read_only(folder: Path):
    """The folder as seen by a user who may not write to it (root may write anywhere)."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)


@pytest.fixture
def open_folder():
    """A folder in which other users may look, unlike pytest's."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_read_only_root_is_read(miniature, open_folder, cache):
    put(open_folder, miniature)
    with read_only(open_folder):
        with pytest.raises(PermissionError):
            (open_folder / "x").touch()
        assert_is(load_images("auto", root=open_folder), miniature)


def test_a_read_only_root_without_mnist_is_one_clear_error(mirrors, miniature, open_folder, cache):
    load_images("digits")
    with read_only(open_folder):
        with pytest.raises(OSError, match="cannot be stored there .*Permission denied") as caught:
            load_images("mnist", root=open_folder)
        assert str(raw(open_folder)) in str(caught.value)
        with pytest.warns(UserWarning, match="Permission denied.*digits") as warned:
            assert load_images("auto", root=open_folder).name == "digits"
        assert len(warned) == 1
    assert not mirrors[0].asked  # nothing is fetched that cannot be kept
    assert_is(load_images("mnist", root=open_folder), miniature)


def test_a_read_only_cache_costs_no_more_than_the_note(mirrors, open_folder, monkeypatch, tmp_path):
    for mirror in mirrors:
        mirror.answer = not_found
    monkeypatch.setattr(data, "_failure_note", lambda: open_folder / "note" / "file")
    load_images("digits")
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="404"):
        (open_folder / "note").touch()  # a file in the folder's place: nothing can be written
        assert load_images("auto", root=tmp_path).name == "digits"


def test_a_root_below_a_file_is_one_clear_error(mirrors, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot be stored there .*file"):
        load_images("mnist", root=tmp_path / "file")


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(mirrors, miniature, cache):
    """A limit on the size of files stands in for the full disk: a write fails after its start."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="cannot be stored there .*File too large") as caught:
            load_images("mnist")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(raw(cache)) in str(caught.value)
    assert not files_below(cache)
    assert {path.name for path in (cache / "MNIST").iterdir()} <= {"raw", ".download.lock"}
    assert_is(load_images("mnist"), miniature)


# Processes.


def run(code: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, **options
    )


def start(mirrors, root: Path) -> subprocess.Popen:
    """A process that loads the miniature into the root, and says so when it is about to."""
    code = (
        "import json, pathlib, sys\n"
        "from vaelib import data\n"
        "files, mirrors, root = json.loads(sys.argv[1])\n"
        "data._FILES = {name: (tuple(shape), digest) for name, (shape, digest) in files.items()}\n"
        "data._MIRRORS, data._CONNECT_SECONDS, data._STALL_SECONDS = mirrors, 60, 60\n"
        "data._cache_folder = lambda: pathlib.Path(root)\n"
        "print('ready', flush=True)\n"
        "print(data.load_images('mnist'), flush=True)\n"
    )
    arguments = json.dumps([data._FILES, [mirror.url for mirror in mirrors], str(root)])
    environment = {k: v for k, v in os.environ.items() if k != "VAELIB_DATA"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    return process


def test_two_processes_fill_one_cache_with_one_download(mirrors, miniature, cache):
    """The first answer waits until both have begun; without the lock the second asks as well."""
    both_begun = threading.Event()

    def when_both_have_begun(handler, content, release):
        both_begun.wait(60)
        release.wait(0.3)  # the second process is on its way to the lock
        good(handler, content, release)

    mirrors[0].answer = when_both_have_begun
    processes = [start(mirrors, cache) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    both_begun.set()
    for process in processes:
        said, _ = process.communicate()
        assert said == "MNIST: 6 training and 4 test images of 28 x 28 pixels\n"
        assert process.returncode == 0
    assert mirrors[0].asked == [f"/{file}.gz" for file in SHAPES]
    assert files_below(cache) == {f"MNIST/raw/{file}" for file in SHAPES}


def test_a_killed_download_leaves_no_trace_after_the_next(mirrors, miniature, cache):
    asked = threading.Event()

    def second_file_never_ends(handler, content, release):
        if handler.path == f"/{IMAGES}.gz":
            return good(handler, content, release)
        send(handler, content[:10], len(content))
        asked.set()
        release.wait(60)

    mirrors[0].answer = second_file_never_ends
    process = start(mirrors, cache)
    assert asked.wait(60)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list((cache / "MNIST").glob(".download-*"))  # the killed one could not tidy up
    assert files_below(raw(cache)) == {IMAGES}
    mirrors[0].answer = good
    assert_is(load_images("auto"), miniature)
    assert not list((cache / "MNIST").glob(".download-*"))


# Binarization.


def test_threshold_is_pixel_above_127_for_every_grey_level():
    levels = (torch.arange(784) % 256).to(torch.uint8)
    expected = [0.0] * 128 + [1.0] * 128
    assert binarize(levels)[:256].tolist() == expected
    assert binarize(levels, "threshold").tolist() == (expected * 4)[:784]


def test_stochastic_draw_has_probability_exactly_g_over_255(monkeypatch):
    """Enumerate every outcome of the integer draw, for every grey level at once."""
    levels = (torch.arange(784) % 256).to(torch.uint8)

    def every_outcome(high, shape, **options):
        assert high == 255 and tuple(shape) == (255, 784) and options["dtype"] == torch.uint8
        return torch.arange(255, dtype=torch.uint8)[:, None].expand(shape)

    monkeypatch.setattr(torch, "randint", every_outcome)
    ones = binarize(levels.expand(255, 784), "stochastic").double().sum(0)
    assert ones.tolist() == levels.tolist()


@pytest.mark.false_alarm(1e-8)
def test_stochastic_draw_follows_the_binomial_law(generator):
    """n = 1,960,000 draws at each of eight grey levels g: the count of ones is Binomial(n, g/255).

    Exact tails give each level a false-alarm rate of at most 1e-9, all of them together 1e-8. The
    off-by-one laws g/256, (g+1)/256 and (g+1)/255 would expect counts that lie outside.
    """
    n, alpha = 784 * 2500, 1e-9
    outside = {"g/256": [], "(g+1)/256": [], "(g+1)/255": []}
    for g in (1, 2, 64, 127, 128, 191, 253, 254):
        image = torch.full((2500, 784), g, dtype=torch.uint8)
        ones = binarize(image, "stochastic", generator).sum(dtype=torch.float64).item()
        low, high = scipy.stats.binom.ppf([alpha / 2, 1 - alpha / 2], n, g / 255)
        assert low <= ones <= high
        for law, p in zip(outside, (g / 256, (g + 1) / 256, (g + 1) / 255)):
            if not low <= n * p <= high:
                outside[law].append(g)
    assert {253, 254} <= set(outside["g/256"])
    assert {1, 2} <= set(outside["(g+1)/256"])
    assert len(outside["(g+1)/255"]) == 8


def test_black_stays_zero_and_white_is_always_one(generator):
    for level, value in ((0, 0), (255, 1)):
        image = torch.full((200, 784), level, dtype=torch.uint8)
        assert (binarize(image, "stochastic", generator) == value).all()


@pytest.mark.false_alarm(8e-8)
def test_draws_are_independent_between_pixels_and_rows(generator):
    """n = 784,000 products of neighbours: E = p^2, standard error sqrt(p^2 (1 - p^2) / n).

    Each product shares a pixel with two others; these covariances, p^3 - p^4 each, are below the
    variance, so that its triple bounds it. Beyond 5.5 of these standard errors lies a false-alarm
    rate below 4e-8 for each of the two.
    """
    p = 102 / 255
    drawn = binarize(torch.full((1000, 784), 102, dtype=torch.uint8), "stochastic", generator)
    for a, b in ((drawn[:, 1:], drawn[:, :-1]), (drawn[1:], drawn[:-1])):
        product = (a * b).double()
        standard_error = (3 * p**2 * (1 - p**2) / product.numel()) ** 0.5
        assert abs(product.mean().item() - p**2) < 5.5 * standard_error
        assert p - p**2 > 5.5 * standard_error  # what one draw for all would give


def test_draw_is_made_anew_at_each_call_and_seeds_reproduce_it():
    grey = torch.full((2, 784), 100, dtype=torch.uint8)

    def draw(seed):
        source = torch.Generator().manual_seed(seed)
        return binarize(grey, "stochastic", source), binarize(grey, "stochastic", source)

    first, second = draw(3)
    assert not torch.equal(first, second)
    assert torch.equal(first, draw(3)[0]) and torch.equal(second, draw(3)[1])
    assert not torch.equal(first, draw(4)[0])


def test_without_a_generator_torchs_global_one_is_used():
    grey = torch.full((784,), 100, dtype=torch.uint8)
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        drawn.append(binarize(grey, "stochastic"))
    assert torch.equal(*drawn)
    before = torch.get_rng_state()
    binarize(grey, "stochastic", torch.Generator().manual_seed(0))
    binarize(grey, "threshold")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("how", ["threshold", "stochastic"])
@pytest.mark.parametrize("shape", [(784,), (0, 784), (1, 784), (2, 3, 784)])
def test_binary_images_keep_their_shape_and_are_float32(shape, how, generator):
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    before = images.clone()
    binary = binarize(images, how, generator)
    assert binary.shape == shape and binary.dtype == torch.float32
    assert ((binary == 0) | (binary == 1)).all()
    assert torch.equal(images, before)


@pytest.mark.parametrize("how", ["threshold", "stochastic"])
def test_binary_images_are_float32_whatever_the_default_dtype(how):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert binarize(torch.zeros(784, dtype=torch.uint8), how).dtype == torch.float32
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("how", ["threshold", "stochastic"])
def test_memory_layout_does_not_matter(how, generator):
    images = torch.randint(256, (784, 6), generator=generator, dtype=torch.uint8).T
    seeds = [torch.Generator().manual_seed(1) for _ in range(2)]
    strided, packed = binarize(images, how, seeds[0]), binarize(images.contiguous(), how, seeds[1])
    assert torch.equal(strided, packed)


@pytest.mark.parametrize(
    "images, how, error, message",
    [
        (torch.zeros(2, 784), "threshold", TypeError, "images must be .*uint8.*torch.float32"),
        (torch.zeros(2, 784).long(), "stochastic", TypeError, "images must .*torch.int64"),
        (torch.zeros(2, 784).bool(), "threshold", TypeError, "images must .*torch.bool"),
        (np.zeros((2, 784), "u1"), "threshold", TypeError, "images must .*found ndarray"),
        (None, "threshold", TypeError, "images must .*found NoneType"),
        (torch.zeros(2, 28, 28).byte(), "threshold", ValueError, r"images .*784.*\(2, 28, 28\)"),
        (torch.zeros(2, 785).byte(), "stochastic", ValueError, r"images .*784.*\(2, 785\)"),
        (torch.zeros(784, 1).byte(), "stochastic", ValueError, r"images .*784.*\(784, 1\)"),
        (torch.tensor(3).byte(), "threshold", ValueError, r"images .*784.*\(\)"),
        (torch.zeros(2, 784).byte(), "grey", ValueError, "how must be .*found 'grey'"),
        (torch.zeros(2, 784).byte(), None, ValueError, "how must be .*found None"),
    ],
)
def test_binarize_names_a_bad_argument(images, how, error, message):
    with pytest.raises(error, match=message):
        binarize(images, how)


def test_a_generator_on_another_device_is_an_error():
    images = torch.zeros(2, 784, dtype=torch.uint8, device="meta")
    with pytest.raises(ValueError, match="generator must be on the device of images: found cpu"):
        binarize(images, "stochastic", torch.Generator())


def test_names_are_public():
    assert {"ImageData", "binarize", "load_images"} <= set(vaelib.__all__)
