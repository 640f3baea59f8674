"""The command line, run as a user runs it."""

import json
import subprocess
import sys

import pytest

from vaelib.__main__ import main

WRONG_CALLS = {
    "unknown command": ["fly"],
    "no command": [],
    "epochs zero": ["train", "--epochs", "0"],
    "epochs text": ["train", "--epochs", "many"],
    "unknown data": ["train", "--data", "cifar"],
    "negative seed": ["train", "--seed", "-1"],
    "learning rate": ["train", "--learning-rate", "nan"],
    "no model": ["sample", "--output", "x.png"],
    "missing model": ["evaluate", "--model", "nothing-here", "--data", "digits"],
    "missing metrics folder": ["train", "--data", "digits", "--metrics", "no-folder/m.jsonl"],
}


def run(*args: str) -> int:
    """The status, whether it was returned or raised by argparse."""
    try:
        return main(list(args))
    except SystemExit as stop:
        return stop.code


@pytest.mark.parametrize("args", WRONG_CALLS.values(), ids=WRONG_CALLS.keys())
def test_a_wrong_call_exits_2_with_one_line(args, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*args) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if not line.startswith("scikit-learn's digits")]
    assert len(lines) == 1 and "error: " in lines[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"], ["sample"], ["prepare"]])
def test_help_describes_every_option(command, capsys):
    assert run(*command, "--help") == 0
    text = capsys.readouterr().out
    assert "usage: python -m vaelib" in text
    assert all(len(line) <= 100 for line in text.splitlines())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small model that the command line trained on the offline digits."""
    folder = tmp_path_factory.mktemp("run")
    model, metrics = folder / "m.safetensors", folder / "m.jsonl"
    options = "--data digits --epochs 2 --hidden 20 --latent 3 --batch-size 100 --seed 4".split()
    assert run("train", *options, "--save", str(model), "--metrics", str(metrics)) == 0
    return model, metrics


def test_metrics_hold_one_json_object_an_epoch(trained):
    rows = [json.loads(line) for line in trained[1].read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    for row in rows:
        assert list(row) == ["epoch", "seconds", "train", "test"]
        for split in ("train", "test"):
            assert list(row[split]) == ["elbo", "reconstruction", "kl"]
            assert row[split]["elbo"] < 0 < row[split]["kl"]


def test_the_command_line_and_fit_give_the_same_bits(trained):
    import torch

    from vaelib import fit, load_images
    from vaelib.training import load_model, seeded_vae

    model = seeded_vae(4, hidden_dim=20, latent_dim=3)
    history = fit(model, load_images("digits"), epochs=2, batch_size=100, seed=4)
    saved, saved_history = load_model(trained[0])
    pairs = zip(model.parameters(), saved.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert saved_history.recipe == history.recipe
    assert saved_history.curve("train", "elbo") == history.curve("train", "elbo")


def test_evaluate_prints_a_bound_below_its_log_likelihood(trained, capsys):
    options = "--data digits --num-samples 50 --images 40".split()
    assert run("evaluate", "--model", str(trained[0]), *options) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["data"] == "digits" and result["log_likelihood"]["images"] == 40
    # Of two epochs' model: the importance-weighted estimate lies nats above the bound.
    assert result["log_likelihood"]["mean"] > result["test"]["elbo"] - 5


@pytest.mark.parametrize("means", [[], ["--means"]])
def test_sample_writes_a_png_of_28_by_28_images(trained, tmp_path, means):
    from matplotlib.image import imread

    output = tmp_path / "grid.png"
    call = ["sample", "--model", str(trained[0]), "--output", str(output), "--count", "9", *means]
    assert run(*call) == 0
    image = imread(output)[..., 0]
    assert image.shape == (3 * 30 + 2, 3 * 30 + 2)
    binary = ((image == 0) | (image == 1)).all()
    assert binary == (not means)


def test_the_module_runs_as_a_program():
    result = subprocess.run(
        [sys.executable, "-m", "vaelib", "--help"], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0 and "prepare" in result.stdout
