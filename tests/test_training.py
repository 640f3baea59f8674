"""The training loop and the model files that it leaves."""

import json
import math
import pickle

import pytest
import safetensors.torch
import torch

from vaelib import VAE, binarize, elbo, fit
from vaelib.training import (
    History,
    Recipe,
    load_model,
    mean_elbo,
    save_model,
    seeded_vae,
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


def test_two_epochs_of_fit_are_the_plain_loop_of_autograd(tiny_data):
    model, other = small_vae().double(), small_vae().double()
    history = fit(model, tiny_data, epochs=2, batch_size=128, seed=3)

    generator = torch.Generator().manual_seed(3)
    optimizer = torch.optim.Adam(other.parameters(), lr=1e-3)
    for row in history.rows:
        values = []
        for rows in torch.randperm(300, generator=generator).split(128):
            x = (tiny_data.train[rows] > 127).double()
            eps = torch.randn(1, len(rows), 2, generator=generator, dtype=torch.float64)
            bound = elbo(other, x, eps=eps)
            optimizer.zero_grad()
            (-bound.value.mean()).backward()
            optimizer.step()
            values.append(bound.value.detach())
        assert row["train"]["elbo"] == pytest.approx(torch.cat(values).mean().item(), rel=1e-12)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


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
    with pytest.raises(ValueError, match="data must hold images of 10 pixels.* found 784"):
        fit(VAE(data_dim=10, hidden_dim=4, latent_dim=2), tiny_data, epochs=1)


def test_fit_names_a_bound_that_is_no_longer_finite(tiny_data):
    with pytest.raises(ValueError, match=r"must stay finite, found .* in epoch 1: learning_rate"):
        fit(small_vae(), tiny_data, epochs=1, learning_rate=1e30)


def test_the_weights_of_a_trained_model_are_its_own(tiny_data):
    model = small_vae()
    fit(model, tiny_data, epochs=1)
    storages = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    assert len(storages) == 10


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


def test_seeded_vae_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    assert same_weights(seeded_vae(5, data_dim=3), seeded_vae(5, data_dim=3))
    assert torch.equal(before, torch.get_rng_state())


def test_history_is_plain_json(saved):
    _, _, history = saved
    assert json.loads(json.dumps(history.rows)) == history.rows
