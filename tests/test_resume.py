"""Checkpoints: a run that was cut off ends as the undisturbed one, to the last bit."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch

from vaelib import fit
from vaelib.__main__ import main
from vaelib.training import save_model, seeded_vae


class CutOff(Exception):
    pass


def small_vae():
    return seeded_vae(0, hidden_dim=16, latent_dim=2)


def cut_off_at(epoch: int):
    def on_epoch(row: dict) -> None:
        if row["epoch"] == epoch:
            raise CutOff

    return on_epoch


RUN = {"epochs": 4, "batch_size": 50, "binarization": "stochastic", "seed": 3}


@pytest.fixture
def checkpoint(tmp_path, tiny_data):
    """The checkpoint of a run that was cut off after its second epoch of four."""
    path = tmp_path / "run.ckpt"
    with pytest.raises(CutOff):
        fit(small_vae(), tiny_data, **RUN, checkpoint=path, on_epoch=cut_off_at(2))
    return path


def saved_bytes(tmp_path, model, history) -> bytes:
    save_model(tmp_path / "model", model, history)
    return (tmp_path / "model").read_bytes()


def test_a_resumed_run_ends_as_the_undisturbed_one(checkpoint, tmp_path, tiny_data):
    undisturbed, resumed = small_vae(), seeded_vae(9, hidden_dim=16, latent_dim=2)
    expected = fit(undisturbed, tiny_data, **RUN)
    seen = []
    history = fit(
        resumed, tiny_data, **RUN, checkpoint=checkpoint, resume=True, on_epoch=seen.append
    )
    assert history.resumed == 2 and seen == history.rows
    assert saved_bytes(tmp_path, resumed, history) == saved_bytes(tmp_path, undisturbed, expected)


def test_resume_without_a_checkpoint_starts_afresh(tmp_path, tiny_data):
    path, first, second = tmp_path / "none.ckpt", small_vae(), small_vae()
    history = fit(first, tiny_data, **RUN, checkpoint=path, resume=True)
    assert history.resumed == 0 and path.exists()
    expected = fit(second, tiny_data, **RUN)
    assert saved_bytes(tmp_path, first, history) == saved_bytes(tmp_path, second, expected)


def test_a_finished_run_can_go_on_for_more_epochs(checkpoint, tmp_path, tiny_data):
    resumed, undisturbed = small_vae(), small_vae()
    fit(resumed, tiny_data, **RUN, checkpoint=checkpoint, resume=True)
    more = RUN | {"epochs": 5}
    history = fit(small_vae(), tiny_data, **more, checkpoint=checkpoint, resume=True)
    assert history.resumed == 4
    expected = fit(undisturbed, tiny_data, **more)
    assert history.curve("test", "elbo") == expected.curve("test", "elbo")


def test_a_checkpoint_that_is_there_is_not_overwritten(checkpoint, tiny_data):
    before = checkpoint.read_bytes()
    with pytest.raises(FileExistsError, match=r"run\.ckpt is there already: resume it or remove"):
        fit(small_vae(), tiny_data, **RUN, checkpoint=checkpoint)
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("seed", {"seed": 4}),
        ("batch_size", {"batch_size": 60}),
        ("learning_rate", {"learning_rate": 2e-3}),
        ("binarization", {"binarization": "threshold"}),
        ("hidden_dim", {}),
        ("dtype", {}),
        ("data", {}),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(checkpoint, tiny_data, name, change):
    before, model, data = checkpoint.read_bytes(), small_vae(), tiny_data
    if name == "hidden_dim":
        model = seeded_vae(0, hidden_dim=17, latent_dim=2)
    elif name == "dtype":
        model = model.double()
    elif name == "data":
        data = type(data)(
            "tiny", 255 - data.train, data.train_labels, data.test, data.test_labels
        )
    weights = [weight.clone() for weight in model.parameters()]
    with pytest.raises(ValueError, match=rf"run\.ckpt belongs to another run: its {name} is"):
        fit(model, data, **(RUN | change), checkpoint=checkpoint, resume=True)
    assert checkpoint.read_bytes() == before
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights, strict=True))


def test_fewer_epochs_than_the_checkpoint_has_are_refused(checkpoint, tiny_data):
    with pytest.raises(ValueError, match="epochs must be at least 2, .* found 1"):
        fit(small_vae(), tiny_data, **(RUN | {"epochs": 1}), checkpoint=checkpoint, resume=True)


class Bomb:
    """Its unpickling would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def changed(good: bytes, drop: str | None = None, **tensors) -> bytes:
    """The checkpoint with other tensors, its description unchanged."""
    length = int.from_bytes(good[:8], "little")
    about = json.loads(good[8 : 8 + length])["__metadata__"]
    held = safetensors.torch.load(good) | tensors
    return safetensors.torch.save({k: v for k, v in held.items() if k != drop}, about)


DAMAGE = {
    "truncated": lambda good, folder: good[: len(good) // 2],
    "empty": lambda good, folder: b"",
    "pickle": lambda good, folder: pickle.dumps(Bomb(folder / "executed")),
    "foreign": lambda good, folder: safetensors.torch.save({"weight": torch.zeros(2)}),
    "a model": lambda good, folder: good.replace(b"vaelib checkpoint 1", b"vaelib model 1     "),
    "no moments": lambda good, folder: changed(good, drop="exp_avg"),
    "one weight": lambda good, folder: changed(good, weights=torch.zeros(1)),
    "short generator": lambda good, folder: changed(good, generator=torch.zeros(8).byte()),
    "two steps": lambda good, folder: changed(good, step=torch.zeros(2)),
    "no history": lambda good, folder: good.replace(b'\\"kl\\"', b'\\"KL\\"'),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_refused_by_name(checkpoint, tmp_path, tiny_data, kind):
    content = DAMAGE[kind](checkpoint.read_bytes(), tmp_path)
    assert content != checkpoint.read_bytes()
    checkpoint.write_bytes(content)
    with pytest.raises(ValueError, match=r"run\.ckpt is not a checkpoint file"):
        fit(small_vae(), tiny_data, **RUN, checkpoint=checkpoint, resume=True)
    assert checkpoint.read_bytes() == content and not (tmp_path / "executed").exists()


# The command line


OPTIONS = "train --data digits --epochs 6 --hidden 32 --latent 2 --batch-size 100".split()


def command(folder, *more: str) -> list[str]:
    files = [f"--{kind}={folder / kind}" for kind in ("checkpoint", "metrics", "save")]
    return [*OPTIONS, *files, "--resume", *more]


def epochs_in(path) -> list[int]:
    return [json.loads(line)["epoch"] for line in path.read_text().splitlines()]


def test_resuming_a_finished_run_trains_no_further_and_says_so(tmp_path, capsys):
    assert main(command(tmp_path)) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    assert main(command(tmp_path)) == 0
    assert "holds all 6 epochs: nothing was left to train" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_a_run_killed_while_it_wrote_left_goes_with_the_next(tmp_path):
    assert main(command(tmp_path)) == 0
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for name in ("checkpoint", "save"):
        (tmp_path / f".{name}.12").write_bytes(whole[name][:100])
    (tmp_path / "save").unlink()
    assert main(command(tmp_path)) == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume"], "--resume needs --checkpoint"),
        (["--checkpoint", "no-folder/c"], "--checkpoint: there is no folder"),
        (["--save", "no-folder/m"], "--save: there is no folder"),
        (["--device", "abacus"], "--device must be auto or one of those here"),
        (["--checkpoint", "there"], "checkpoint there is there already"),
    ],
)
def test_a_wrong_call_ends_with_one_line(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").write_bytes(b"not ours")
    assert main([*OPTIONS, *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error
    assert (tmp_path / "there").read_bytes() == b"not ours"


def run(arguments: list[str], **more) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-m", "vaelib", *arguments]
    return subprocess.Popen(call, env=environment, stdout=subprocess.DEVNULL, **more)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[bytes, float]:
    """The bytes that the undisturbed run saves, and the seconds that its epochs take."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run(command(folder)).wait(timeout=120) == 0
    rows = [json.loads(line) for line in (folder / "metrics").read_text().splitlines()]
    return (folder / "save").read_bytes(), sum(row["seconds"] for row in rows)


@pytest.mark.parametrize("kill", range(5))
def test_a_killed_run_resumes_to_the_same_bytes(undisturbed, tmp_path, kill):
    expected, seconds = undisturbed
    child = run(command(tmp_path))
    deadline = time.monotonic() + 120
    while not (tmp_path / "checkpoint").exists() and time.monotonic() < deadline:
        time.sleep(0.001)  # import and data come first: the moment is counted from epoch one
    time.sleep(random.Random(kill).uniform(0, seconds))
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert run(command(tmp_path)).wait(timeout=120) == 0
    assert (tmp_path / "save").read_bytes() == expected
    assert epochs_in(tmp_path / "metrics") == [1, 2, 3, 4, 5, 6]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "metrics", "save"]


# Several processes


def test_two_processes_reproduce_one_to_rounding(tmp_path):
    """Batches of 75 images, an odd number, and 297 test images, so that the shares differ."""
    options = [*OPTIONS[:4], "2", *OPTIONS[5:-1], "75", "--binarization", "stochastic"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    for name, start in (("one", [sys.executable]), ("two", torchrun)):
        files = [f"--{kind}={tmp_path / name}.{kind}" for kind in ("save", "metrics", "checkpoint")]
        result = subprocess.run(
            [*start, "-m", "vaelib", *options, *files], timeout=200, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
    one, two = (safetensors.torch.load_file(tmp_path / f"{name}.save") for name in ("one", "two"))
    assert not all(torch.equal(one[name], two[name]) for name in one)  # the sums differ in order
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=2e-5)
    rows = [json.loads((tmp_path / f"{n}.metrics").read_text().splitlines()[1]) for n in ("one", "two")]
    for split in ("train", "test"):
        assert rows[0][split]["elbo"] == pytest.approx(rows[1][split]["elbo"], rel=1e-5)
