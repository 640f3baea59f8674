"""The models that the chapters share, and their cache."""

import subprocess
import sys

import pytest
import torch

import vaelib.shared as shared
from vaelib.shared import trained_vae
from vaelib.training import Recipe


def same_weights(a, b) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(shared.platformdirs, "user_cache_dir", lambda _: str(tmp_path / "cache"))
    monkeypatch.setattr(shared, "shared_epochs", lambda data, latent_dim: 1)
    return tmp_path / "cache" / "models"


def test_a_shared_model_is_trained_once(cache, tiny_data, monkeypatch):
    model, history = trained_vae(2, tiny_data)
    monkeypatch.setattr(shared, "fit", None)  # a second training would now fail
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
        return shared._cache_key(Recipe(epochs), data, latent_dim)

    flipped = type(tiny_data)(
        "tiny", 255 - tiny_data.train, tiny_data.train_labels, tiny_data.test, tiny_data.test_labels
    )
    assert len({key(), key(epochs=2), key(latent_dim=3), key(data=flipped)}) == 4
    assert key() == key()
    code = 'def f():\n    """{}"""\n    return {}\n'
    trees = [
        shared.ast.dump(shared._without_docstrings(code.format(*parts)))
        for parts in (("Old.", 1), ("New.", 1), ("Old.", 2))
    ]
    assert trees[0] == trees[1] != trees[2]


CHILD = """
import sys
import vaelib.shared as shared
shared.platformdirs.user_cache_dir = lambda _: sys.argv[1]
shared.shared_epochs = lambda data, latent_dim: 1
real_fit, trainings = shared.fit, []
shared.fit = lambda *a, **k: (trainings.append(1), real_fit(*a, **k))[1]
shared.trained_vae(2, shared.load_images("digits"))
print(len(trainings))
"""


def test_two_processes_that_ask_at_once_train_once(tmp_path):
    call = [sys.executable, "-c", CHILD, str(tmp_path)]
    children = [subprocess.Popen(call, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    trainings = [int(child.communicate(timeout=300)[0]) for child in children]
    assert sorted(trainings) == [0, 1]
