"""Full disks, files that no one may write, killed processes, files that someone has tampered with.

Each ends in success or in one clear error that names the thing, and the next run works. Faults of
the download stand in test_data.py, those of checkpoints in test_training.py. What needs a minute
or a mount of its own is marked slow: ``make test-slow``.
"""

import contextlib
import errno
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import torch

from vaelib import VAE, ImageData, trained_vae
from vaelib.__main__ import main
from vaelib.training import History, Recipe, load_model, save_model, seeded_vae

ROOT = Path(__file__).resolve().parents[1]
TRAIN = "train --data digits --epochs 2 --hidden 16 --latent 2 --batch-size 500".split()


@contextlib.contextmanager
def full_disk(room: int = 1000):
    """A limit on the size of files stands in for the full disk: a write fails after its start."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def files_below(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The user's cache folder, here and in child processes; no other place holds data."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.delenv("VAELIB_DATA", raising=False)
    return folder


@pytest.fixture
def few(tiny_data) -> ImageData:
    """So few images that the shared model of 60 epochs is trained in a second."""
    name, *parts = vars(tiny_data).values()
    return ImageData(name, *(part[:40] for part in parts))


@pytest.fixture
def model() -> VAE:
    return seeded_vae(0, hidden_dim=16, latent_dim=2)


def same_weights(a: VAE, b: VAE) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# Disks.


def test_saving_on_a_full_disk_names_the_file_and_keeps_the_old_one(tmp_path, model):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    with full_disk(), pytest.raises(OSError, match=r"File too large.*model\.safetensors"):
        save_model(path, model, History(Recipe(epochs=1)))
    assert path.read_bytes() == b"old" and files_below(tmp_path) == [path.name]
    save_model(path, model, History(Recipe(epochs=1)))
    assert same_weights(load_model(path)[0], model)


def error_line(capsys) -> str:
    """The one line that a failed command says."""
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("python -m vaelib "), line
    return line


def test_train_on_a_full_disk_ends_with_one_line_that_names_the_model(tmp_path, capsys, cache):
    path = tmp_path / "model.safetensors"
    with full_disk():
        assert main([*TRAIN, "--save", str(path)]) == 2
    assert str(path) in error_line(capsys)
    assert files_below(tmp_path) == []
    assert main([*TRAIN, "--save", str(path)]) == 0
    load_model(path)


def test_metrics_on_a_full_disk_end_the_run_with_one_line_that_names_them(tmp_path, capsys, cache):
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")  # takes no byte: ENOSPC at every write
    assert main([*TRAIN, "--metrics", str(path)]) == 2
    line = error_line(capsys)
    assert str(path) in line and os.strerror(errno.ENOSPC) in line


def test_a_picture_on_a_full_disk_is_one_line_that_names_it(tmp_path, capsys, model):
    saved, picture = tmp_path / "model", tmp_path / "picture.png"
    save_model(saved, model, History(Recipe(epochs=1)))
    picture.write_bytes(b"old")
    call = ["sample", "--model", str(saved), "--output", str(picture)]
    with full_disk():
        assert main(call) == 2
    line = error_line(capsys)
    assert str(picture) in line and os.strerror(errno.EFBIG) in line
    assert picture.read_bytes() == b"old" and files_below(tmp_path) == ["model", "picture.png"]
    assert main(call) == 0 and picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("place", ["below a file", "a folder"])
def test_a_place_where_no_model_can_be_saved_is_refused_before_the_training(
    place, tmp_path, capsys, cache
):
    (tmp_path / "file").touch()
    path = {"below a file": tmp_path / "file" / "model", "a folder": tmp_path}[place]
    assert main([*TRAIN, "--save", str(path)]) == 2
    said = capsys.readouterr()
    line = said.err.splitlines()[-1]
    assert "--save" in line and str(tmp_path) in line and "epoch" not in said.out


def test_a_cache_that_cannot_be_written_costs_a_warning_and_gives_the_model(cache, few, tmp_path):
    cache.write_text("a file in the folder's place: not even root can write below it")
    with pytest.warns(UserWarning, match=re.escape(str(cache))) as warned:
        model, history = trained_vae(2, few)
    assert len(warned) == 1 and len(history.rows) == history.recipe.epochs
    cache.unlink()
    again, _ = trained_vae(2, few)
    assert same_weights(model, again) and files_below(cache)


def test_a_cache_on_a_full_disk_costs_a_warning_and_gives_the_model(cache, few):
    with full_disk(), pytest.warns(UserWarning, match="not kept.*File too large") as warned:
        model, _ = trained_vae(2, few)
    assert len(warned) == 1
    assert not [name for name in files_below(cache) if not name.endswith(".lock")]
    again, _ = trained_vae(2, few)
    assert same_weights(model, again)


def in_mounts_of_its_own(mount: str, code: str, *arguments) -> subprocess.CompletedProcess:
    """Run Python where one more file system is mounted, for this process alone."""
    shell = f'{mount} && exec "$@"'
    call = ["unshare", "--map-root-user", "--mount", "sh", "-ec", shell, "sh"]
    python = [sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*call, *python], capture_output=True, text=True, timeout=300, env=environment
    )


SHARED = """
import sys, torch
from vaelib import ImageData, trained_vae
images, labels = torch.zeros(40, 784, dtype=torch.uint8), torch.zeros(40, dtype=torch.int64)
model, _ = trained_vae(2, ImageData("black", images, labels, images, labels))
print(sum(p.double().sum().item() for p in model.parameters()))
"""


@pytest.mark.slow
def test_a_read_only_cache_is_read_and_never_needed(cache):
    """A read-only mount stops root as well."""
    (cache / "vaelib").mkdir(parents=True)
    mount = f'mount --bind "{cache}" "{cache}" && mount -o remount,bind,ro "{cache}"'
    empty = in_mounts_of_its_own(mount, SHARED)
    assert empty.returncode == 0 and "Read-only file system" in empty.stderr
    assert files_below(cache) == []
    filled = in_mounts_of_its_own("true", SHARED)
    assert filled.returncode == 0 and not filled.stderr and files_below(cache)
    read = in_mounts_of_its_own(mount, SHARED)
    assert read.returncode == 0 and not read.stderr, "what is there is read, without a warning"
    assert empty.stdout == filled.stdout == read.stdout


@pytest.mark.slow
def test_a_disk_of_one_mebibyte_takes_no_shared_model_and_holds_no_part_of_one(cache):
    """The cache on a real file system that fills up, with ENOSPC."""
    cache.mkdir()
    mount = f'mount -t tmpfs -o size=1m tmpfs "{cache}"'
    after = "import os; print([f for _, _, files in os.walk(sys.argv[1]) for f in files])"
    result = in_mounts_of_its_own(mount, SHARED + after, cache)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("No space left on device") == 1
    kept = result.stdout.splitlines()[-1]
    assert ".safetensors" not in kept.replace(".lock", "")


# Processes.


@pytest.fixture
def start():
    """start(*arguments) -> Python in a process of its own, which ends with the test."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with contextlib.ExitStack() as stack:

        def start(*call, **options) -> subprocess.Popen:
            process = subprocess.Popen(
                [sys.executable, *map(str, call)], env=environment, text=True, **options
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def wait_for(happened, process: subprocess.Popen, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, f"ended with {process.returncode} before its time"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_a_killed_training_leaves_whole_lines_and_no_model_and_the_next_run_works(
    tmp_path, cache, start
):
    saved, metrics = tmp_path / "model", tmp_path / "metrics.jsonl"
    call = [*TRAIN, "--save", str(saved), "--metrics", str(metrics)]
    forever = [*call, "--epochs", "100000"]
    process = start("-m", "vaelib", *forever, stdout=subprocess.DEVNULL)
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    text = metrics.read_text()
    assert text.endswith("\n")
    epochs = [json.loads(line)["epoch"] for line in text.splitlines()]
    assert epochs == list(range(1, len(epochs) + 1))
    assert files_below(tmp_path) == ["metrics.jsonl"]
    assert main(call) == 0
    assert len(metrics.read_text().splitlines()) == len(load_model(saved)[1].rows) == 2


KILLED_WHILE_WRITING = """
import os, sys
from vaelib.training import History, Recipe, save_model, seeded_vae
os.replace = lambda *_: os.kill(os.getpid(), 9)
model = seeded_vae(1, hidden_dim=16, latent_dim=2)
save_model(sys.argv[1], model, History(Recipe(epochs=1)))
"""


def test_a_process_killed_while_it_saves_leaves_the_old_model(tmp_path, model, start):
    path = tmp_path / "model"
    save_model(path, model, History(Recipe(epochs=1)))
    process = start("-c", KILLED_WHILE_WRITING, path)
    assert process.wait(300) == -signal.SIGKILL
    assert same_weights(load_model(path)[0], model)
    save_model(path, model, History(Recipe(epochs=1)))
    assert same_weights(load_model(path)[0], model)


def test_a_process_killed_while_it_trains_the_shared_model_does_not_block_the_next(cache, start):
    slow = SHARED.replace("import sys", "import sys, time").replace(
        "model, _ =", "torch.optim.Adam.step = lambda *_: time.sleep(600)\nmodel, _ ="
    )
    process = start("-c", slow)
    wait_for(lambda: any(cache.rglob("*.lock")), process)
    process.kill()
    process.wait()
    result = start("-c", SHARED, stdout=subprocess.PIPE)
    said, _ = result.communicate(timeout=300)
    assert result.returncode == 0 and float(said)
    assert [name for name in files_below(cache) if name.endswith(".safetensors")]


def write_notebook(path: Path, *cells: str) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nbformat.write(notebook, path)


DIE = "import os\nos.kill(os.getpid(), 9)"


def nbval(start, folder: Path) -> tuple[int, str]:
    """The status and the words of pytest --nbval, with the settings of the chapters."""
    shutil.copy(ROOT / "chapters" / "conftest.py", folder)
    call = ["-m", "pytest", "--nbval", "-p", "no:cacheprovider", "-c", os.devnull, "."]
    process = start(*call, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


def test_nbval_fails_where_a_cell_prints_a_warning_but_not_for_missing_mnist(tmp_path, start):
    warn = "import warnings\nwarnings.warn('{}')"
    missing = warn.format("MNIST is not in a folder. These are the digits.")
    write_notebook(tmp_path / "warns.ipynb", missing, "1 + 1", warn.format("a bad sign"))
    status, said = nbval(start, tmp_path)
    assert status == 1 and "1 failed, 2 passed" in said and "a bad sign" in said, said


def test_nbval_fails_at_once_where_a_kernel_dies(tmp_path, start):
    write_notebook(tmp_path / "dies.ipynb", "1 + 1", DIE, "2 + 2")
    begin = time.monotonic()
    status, said = nbval(start, tmp_path)
    assert status == 1 and "the kernel died" in said, said
    assert time.monotonic() - begin < 60, "CELL_TIMEOUT is 300 s: it must not be waited for"


def test_pairing_fails_at_once_where_a_kernel_dies_and_leaves_no_notebook(tmp_path, start):
    header = (ROOT / "chapters" / "elbo.md").read_text().split("---\n")[1]
    page = tmp_path / "page.md"
    page.write_text(f"---\n{header}---\n\n```{{code-cell}} ipython3\n{DIE}\n```\n")
    pairing = ROOT / "_ext" / "pair_notebooks.py"
    process = start(pairing, page, stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1 and str(page) in said and "died" in said.lower(), said
    assert files_below(tmp_path) == ["page.md"]


@pytest.fixture
def small_book(tmp_path) -> Path:
    """The book's settings with one chapter of two cells, in a folder without chapters."""
    book = tmp_path / "book"
    book.mkdir()
    for name in ("_config.yml", "_ext", "_static", "_templates", "references.bib"):
        (book / name).symlink_to(ROOT / name)
    header = (ROOT / "chapters" / "elbo.md").read_text("utf-8").split("---\n")[1]
    (book / "_toc.yml").write_text("format: jb-book\nroot: index\n")
    (book / "index.md").write_text(f"---\n{header}---\n\n# A title\n")
    return book


def add_cell(book: Path, code: str) -> None:
    with (book / "index.md").open("a") as page:
        page.write(f"\n```{{code-cell}} ipython3\n{code}\n```\n")


def build(start, book: Path) -> subprocess.Popen:
    program = Path(sys.executable).with_name("jupyter-book")
    call = [program, "build", book, "-W", "-n", "--keep-going", "--all"]
    return start(*call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_a_build_killed_in_a_cell_takes_its_kernel_along_and_the_next_build_works(
    small_book, tmp_path, cache, start
):
    kernel = tmp_path / "kernel"
    add_cell(
        small_book,
        "import os, pathlib, time\n"
        f"running = pathlib.Path({str(kernel)!r})\n"
        "if not running.exists():\n"
        "    running.write_text(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        "print(6 * 7)",
    )
    killed = build(start, small_book)
    wait_for(lambda: kernel.exists() and kernel.read_text(), killed, seconds=300)
    killed.kill()
    killed.wait()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{kernel.read_text()}").exists():
        assert time.monotonic() < deadline, "the kernel outlives its build"
        time.sleep(0.1)
    said, _ = (again := build(start, small_book)).communicate(timeout=300)
    assert again.returncode == 0, said
    assert ">42\n" in (small_book / "_build" / "html" / "index.html").read_text("utf-8")


@pytest.mark.slow
def test_a_build_whose_kernel_dies_fails_at_once_and_says_so(small_book, cache, start):
    add_cell(small_book, DIE)
    said, _ = (failed := build(start, small_book)).communicate(timeout=300)
    assert failed.returncode != 0 and "kernel" in said.lower() and "died" in said.lower(), said


# Files that someone has tampered with.


def rebuilt(good: bytes, change) -> bytes:
    """A model file with another header, which ``change`` makes from the old one."""
    size = struct.unpack("<Q", good[:8])[0]
    head = json.loads(good[8 : 8 + size])
    about = json.loads(head["__metadata__"]["vaelib"])
    change(head, about)
    if "vaelib" in head["__metadata__"]:
        head["__metadata__"]["vaelib"] = json.dumps(about)
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + good[8 + size :]


def sizes(**changed):
    return lambda head, about: about["sizes"].update(changed)


def offsets(begin, end):
    return lambda head, about: head["encoder.mu.bias"].update(data_offsets=[begin, end])


TAMPERED = {
    "more hidden units than memory": sizes(hidden_dim=10**12),
    "more hidden units than an integer counts": sizes(hidden_dim=10**30),
    "no hidden unit": sizes(hidden_dim=0),
    "half a hidden unit": sizes(hidden_dim=15.5),
    "hidden units in words": sizes(hidden_dim="16"),
    "a size that is unknown": sizes(depth=3),
    "sizes in a list": lambda head, about: about.update(sizes=[784, 16, 2]),
    "no sizes": lambda head, about: about.pop("sizes"),
    "no recipe": lambda head, about: about.pop("recipe"),
    "a recipe with a field more": lambda head, about: about["recipe"].update(device="cuda"),
    "no description": lambda head, about: head["__metadata__"].pop("vaelib"),
    "a tensor beyond the end": offsets(0, 10**9),
    "a tensor of negative length": offsets(8, 0),
    "a tensor that overlaps another": offsets(0, 8),
    "another dtype": lambda head, about: head["encoder.mu.bias"].update(dtype="F16"),
    "another shape": lambda head, about: head["encoder.mu.bias"].update(shape=[1, 2]),
    "a tensor under another name": lambda head, about: head.update(
        {"encoder.mu.offset": head.pop("encoder.mu.bias")}
    ),
}


@pytest.fixture
def good(tmp_path, model) -> bytes:
    save_model(tmp_path / "good", model, History(Recipe(epochs=1)))
    return (tmp_path / "good").read_bytes()


@pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED)
def test_a_file_that_does_not_fit_its_own_description_is_refused_by_name(change, good, tmp_path):
    path = tmp_path / "tampered"
    path.write_bytes(rebuilt(good, change))
    with pytest.raises(ValueError, match="tampered is not a model file of vaelib"):
        load_model(path)


def test_a_header_rebuilt_without_a_change_is_accepted(good, tmp_path, model):
    path = tmp_path / "rebuilt"
    path.write_bytes(rebuilt(good, lambda head, about: None))
    assert same_weights(load_model(path)[0], model)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"format": "vaelib model 1"', "[1]", "null", "9" * 5000, "\ud800"],
    ids=["nested", "cut off", "a list", "null", "a long number", "half a character"],
)
def test_a_description_that_is_no_description_is_refused_by_name(text, good, tmp_path):
    def change(head, about):
        head["__metadata__"] = {"other": "", "vaelib": ""}
        about.clear()

    content = rebuilt(good, change)
    marked = content.replace(b'"vaelib": "{}"', b'"vaelib": ' + json.dumps(text).encode())
    head = struct.unpack("<Q", content[:8])[0] + len(marked) - len(content)
    path = tmp_path / "tampered"
    path.write_bytes(struct.pack("<Q", head) + marked[8:])
    with pytest.raises(ValueError, match="tampered is not a model file of vaelib"):
        load_model(path)


def test_a_flipped_bit_in_the_header_never_crashes_and_never_changes_the_shapes(
    good, tmp_path, model
):
    """120 single bits of length and header: an error that names the file, or the same sizes."""
    generator = torch.Generator().manual_seed(0)
    size = 8 + struct.unpack("<Q", good[:8])[0]
    path = tmp_path / "flipped"
    refused = 0
    for bit in torch.randint(size * 8, (120,), generator=generator).tolist():
        content = bytearray(good)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            loaded, history = load_model(path)
        except ValueError as error:
            assert "flipped is not a model file of vaelib" in str(error)
            refused += 1
        else:
            assert [p.shape for p in loaded.parameters()] == [p.shape for p in model.parameters()]
            assert isinstance(history, History)
    assert 60 < refused < 120  # a flip in the history's numbers, say, can pass


def test_a_folder_in_the_place_of_a_model_is_refused_by_name(tmp_path):
    with pytest.raises(OSError, match=re.escape(str(tmp_path))):
        load_model(tmp_path)


def test_a_tampered_shared_model_is_trained_anew(cache, few):
    model, _ = trained_vae(2, few)
    (path,) = cache.rglob("*.safetensors")
    path.write_bytes(rebuilt(path.read_bytes(), sizes(hidden_dim=10**12)))
    again, _ = trained_vae(2, few)
    assert same_weights(model, again)
