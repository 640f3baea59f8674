"""The training loop, model files, and the cache of shared models."""

import json
import math
import pickle
import subprocess
import sys

import pytest
import safetensors.torch
import torch

import vaelib.training as training
from vaelib import VAE, binarize, elbo, fit
from vaelib.training import (
    History,
    Recipe,
    load_model,
    mean_elbo,
    save_model,
    seeded_vae,
    trained_vae,
    write_atomically,
)


def small_vae(seed: int = 0) -> VAE:
    return seeded_vae(seed, hidden_dim=16, latent_dim=2)


def same_weights(a: VAE, b: VAE) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_fit_has_a_row_an_epoch_whose_elbo_is_reconstruction_minus_kl(tiny_data):
    history = fit(small_vae(), tiny_data, epochs=3, batch_size=50)
    assert [row["epoch"] for row in history.rows] == [1, 2, 3]
    for row in history.rows:
        for split in ("train", "test"):
            terms = row[split]
            assert terms["elbo"] == terms["reconstruction"] - terms["kl"]
            assert terms["kl"] >= 0 and -784 * math.log(2) * 2 < terms["elbo"] < 0


def test_fit_learns_the_stripes(tiny_data):
    history = fit(small_vae(), tiny_data, epochs=40, batch_size=50, learning_rate=5e-3)
    # Two equally likely patterns whose pixels flip with probability 0.05: the entropy of the data.
    entropy = math.log(2) - 784 * (0.05 * math.log(0.05) + 0.95 * math.log(0.95))
    assert -entropy - 25 < history.curve("test", "elbo")[-1] < -entropy + 25
    assert history.curve("test", "elbo")[0] < -2 * entropy


def test_one_epoch_of_fit_is_the_plain_loop(tiny_data):
    model, other = small_vae(), small_vae()
    history = fit(model, tiny_data, epochs=1, batch_size=128, seed=3)

    generator = torch.Generator().manual_seed(3)
    optimizer = torch.optim.Adam(other.parameters(), lr=1e-3, fused=True)
    values = []
    for rows in torch.randperm(300, generator=generator).split(128):
        x = (tiny_data.train[rows] > 127).float()
        eps = torch.randn(1, len(rows), 2, generator=generator)
        bound = elbo(other, x, eps=eps)
        optimizer.zero_grad()
        (-bound.value.mean()).backward()
        optimizer.step()
        values.append(bound.value.detach())
    assert same_weights(model, other)
    expected = torch.cat(values).double().mean().item()
    assert history.rows[0]["train"]["elbo"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("how", ["threshold", "stochastic"])
def test_same_seed_gives_the_same_bits_and_another_seed_does_not(tiny_data, how):
    models = [small_vae() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        torch.rand(seed + 7)  # the global generator must not matter
        fit(model, tiny_data, epochs=2, binarization=how, seed=seed)
    assert same_weights(models[0], models[1])
    assert not same_weights(models[0], models[2])


def test_mean_elbo_is_the_mean_over_images_and_draws_the_same_noise_each_time(tiny_data):
    model = small_vae()
    first = mean_elbo(model, tiny_data.test)
    assert first == mean_elbo(model, tiny_data.test)
    eps = torch.randn(1, 40, 2, generator=torch.Generator().manual_seed(0))
    bound = elbo(model, binarize(tiny_data.test), eps=eps)
    assert first["kl"] == pytest.approx(bound.kl.double().mean().item(), rel=1e-6)
    expected = bound.reconstruction.double().mean().item()
    assert first["reconstruction"] == pytest.approx(expected, rel=1e-6)


def test_on_epoch_sees_each_row_as_it_is_made(tiny_data):
    seen = []
    history = fit(small_vae(), tiny_data, epochs=2, on_epoch=seen.append)
    assert seen == history.rows


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", 2.5),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("binarization", "grey"),
        ("seed", -1),
    ],
)
def test_fit_names_a_wrong_argument(tiny_data, name, value):
    arguments = {"epochs": 1, name: value}
    with pytest.raises(ValueError, match=name):
        fit(small_vae(), tiny_data, **arguments)


def test_fit_names_images_that_do_not_fit_the_model(tiny_data):
    with pytest.raises(ValueError, match=r"x must have a last axis of 10, found .*784"):
        fit(VAE(data_dim=10, hidden_dim=4, latent_dim=2), tiny_data, epochs=1)


def test_curve_names_an_unknown_term():
    with pytest.raises(ValueError, match="term"):
        History(Recipe(epochs=1)).curve("test", "loss")


# Model files


@pytest.fixture
def saved(tmp_path, tiny_data):
    model = small_vae()
    history = fit(model, tiny_data, epochs=2)
    path = tmp_path / "model.safetensors"
    save_model(path, model, history)
    return path, model, history


def test_a_saved_model_comes_back_with_its_history(saved):
    path, model, history = saved
    loaded, loaded_history = load_model(path)
    assert same_weights(model, loaded)
    assert loaded_history.recipe == history.recipe
    assert loaded_history.curve("test", "elbo") == history.curve("test", "elbo")


def test_equal_runs_write_equal_bytes(saved, tmp_path, tiny_data):
    path, _, _ = saved
    again = small_vae()
    save_model(tmp_path / "other-name", again, fit(again, tiny_data, epochs=2))
    assert path.read_bytes() == (tmp_path / "other-name").read_bytes()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        load_model(tmp_path / "nothing-here")


class Bomb:
    """Its unpickling would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def damaged(kind: str, good: bytes, tmp_path) -> bytes:
    if kind == "truncated":
        return good[: len(good) // 2]
    if kind == "empty":
        return b""
    if kind == "foreign":
        return safetensors.torch.save({"weight": torch.zeros(2)})
    if kind == "other version":
        return good.replace(b"vaelib model 1", b"vaelib model 9")
    if kind == "wrong sizes":
        return good.replace(b'\\"hidden_dim\\": 16', b'\\"hidden_dim\\": 17')
    return pickle.dumps(Bomb(tmp_path / "executed"))


@pytest.mark.parametrize(
    "kind", ["truncated", "empty", "foreign", "other version", "wrong sizes", "pickle"]
)
def test_a_damaged_file_is_refused_by_name_and_never_executed(saved, tmp_path, kind):
    path, _, _ = saved
    content = damaged(kind, path.read_bytes(), tmp_path)
    assert content != path.read_bytes()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is not a model file"):
        load_model(path)
    assert not (tmp_path / "executed").exists()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(training.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# The shared models


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(training.platformdirs, "user_cache_dir", lambda _: str(tmp_path / "cache"))
    monkeypatch.setattr(training, "shared_epochs", lambda data, latent_dim: 1)
    return tmp_path / "cache" / "models"


def test_a_shared_model_is_trained_once(cache, tiny_data, monkeypatch):
    model, history = trained_vae(2, tiny_data)
    monkeypatch.setattr(training, "fit", None)  # a second training would now fail
    again, again_history = trained_vae(2, tiny_data)
    assert same_weights(model, again) and history == again_history


def test_a_damaged_cache_is_trained_anew(cache, tiny_data):
    model, _ = trained_vae(2, tiny_data)
    (path,) = cache.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    again, _ = trained_vae(2, tiny_data)
    assert same_weights(model, again)


def test_the_cache_key_depends_on_recipe_data_and_code_but_not_on_docstrings(tiny_data, tmp_path):
    def key(epochs=1, data=tiny_data, latent_dim=2):
        return training._cache_key(Recipe(epochs), data, latent_dim)

    flipped = type(tiny_data)(
        "tiny", 255 - tiny_data.train, tiny_data.train_labels, tiny_data.test, tiny_data.test_labels
    )
    assert len({key(), key(epochs=2), key(latent_dim=3), key(data=flipped)}) == 4
    assert key() == key()
    code = 'def f():\n    """{}"""\n    return {}\n'
    trees = [
        training.ast.dump(training._without_docstrings(code.format(*parts)))
        for parts in (("Old.", 1), ("New.", 1), ("Old.", 2))
    ]
    assert trees[0] == trees[1] != trees[2]


CHILD = """
import sys
import vaelib.training as training
training.platformdirs.user_cache_dir = lambda _: sys.argv[1]
training.shared_epochs = lambda data, latent_dim: 1
real_fit, trainings = training.fit, []
training.fit = lambda *a, **k: (trainings.append(1), real_fit(*a, **k))[1]
training.trained_vae(2, training.load_images("digits"))
print(len(trainings))
"""


def test_two_processes_that_ask_at_once_train_once(tmp_path):
    call = [sys.executable, "-c", CHILD, str(tmp_path)]
    children = [subprocess.Popen(call, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    trainings = [int(child.communicate(timeout=300)[0]) for child in children]
    assert sorted(trainings) == [0, 1]


def test_seeded_vae_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    assert same_weights(seeded_vae(5, data_dim=3), seeded_vae(5, data_dim=3))
    assert torch.equal(before, torch.get_rng_state())


def test_history_is_plain_json(saved):
    _, _, history = saved
    assert json.loads(json.dumps(history.rows)) == history.rows
