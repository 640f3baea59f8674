"""The race of training loops is fair: one network, one start, one objective, one set of images."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from vaelib import ImageData, binarize, elbo

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import training_speed as race  # noqa: E402


@pytest.fixture
def task(tmp_path, tiny_data):
    race.store_as_torchvision(tiny_data, tmp_path)
    return race.Task("tiny", str(tmp_path), threads=1, rounds=2, hidden_dim=30, latent_dim=4)


def test_operations_of_a_step_are_those_that_torch_counts(task):
    model, x = task.start(), torch.rand(6, 784).round()
    with FlopCounterMode(display=False) as counter:
        (-elbo(model, x).value.mean()).backward()
    assert counter.get_total_flops() == 6 * race.flop_per_image(task)


def test_products_alone_do_as_many_operations_as_a_step(task):
    with FlopCounterMode(display=False) as counter:
        for left, right, out in race.product_calls(task, 6):
            torch.mm(left, right, out=out)
    assert counter.get_total_flops() == 6 * race.flop_per_image(task)


@pytest.mark.parametrize("loss_of", [race.loss_from_probabilities, race.loss_from_logits])
def test_textbook_loss_is_the_negative_elbo_summed_over_the_batch(task, loss_of):
    x = torch.rand(6, 784).round()
    textbook, model = race.textbook_model(task), task.start()
    torch.manual_seed(3)
    loss = loss_of(textbook, x)
    torch.manual_seed(3)
    bound = elbo(model, x, eps=torch.randn(6, 4)[None])
    assert_close(loss, -bound.value.sum())
    loss.backward()
    (-bound.value.sum()).backward()
    for ours, theirs in zip(model.parameters(), textbook.parameters(), strict=True):
        assert_close(theirs.grad, ours.grad, rtol=1e-4, atol=1e-5)


def test_textbook_loader_shows_the_same_binary_images(tmp_path, task):
    grey = (torch.arange(784) % 256).to(torch.uint8).roll(5).expand(130, 784)
    labels = torch.arange(130) % 10
    data = ImageData("grey", grey, labels, grey, labels)
    race.store_as_torchvision(data, tmp_path / "grey")
    loader = race.textbook_loader(race.replace(task, folder=str(tmp_path / "grey")), workers=0)
    assert torch.equal(torch.stack([x.view(784) for x, _ in loader.dataset]), binarize(grey))
    assert torch.equal(torch.tensor([label for _, label in loader.dataset]), labels)
    batch, _ = next(iter(loader))
    assert batch.shape == (128, 1, 28, 28)


def test_memory_batches_are_every_image_once_in_another_order(tiny_data):
    batches = list(race.memory_batches(tiny_data.train, 128))
    assert [len(x) for x in batches] == [128, 128, 44]
    shown, stored = torch.cat(batches), binarize(tiny_data.train)
    assert not torch.equal(shown, stored)
    assert sorted(map(tuple, shown.tolist())) == sorted(map(tuple, stored.tolist()))


def test_summary_takes_medians_and_pairs_the_rounds():
    records = {
        "products": {"seconds": [1.0, 1.0, 2.0], "test_elbo": [-9.0] * 3, "peak_mib": 1},
        "vaelib": {"seconds": [2.0, 2.0, 8.0], "test_elbo": [-9.0, -5.0, -4.0], "peak_mib": 2},
        "slow": {"seconds": [6.0, 8.0, 24.0], "test_elbo": [-9.0, -8.0, -7.0], "peak_mib": 3},
    }
    summary = race.summarize(records, images=100, operations=10**9, target=-5.0)
    assert summary["vaelib"]["seconds"] == {"median": 2.0, "low": 2.0, "high": 5.0}
    assert summary["vaelib"]["images_per_second"] == 50
    assert summary["vaelib"]["gflop_per_second"] == 0.5
    assert summary["vaelib"]["fraction_of_peak"]["median"] == 0.5  # of 1/2, 1/2, 1/4
    assert summary["vaelib"]["fraction_of_peak"]["low"] == 0.375
    assert (summary["vaelib"]["epochs_to_target"], summary["vaelib"]["seconds_to_target"]) == (2, 4)
    assert summary["slow"]["times_ours"]["median"] == 3.0  # of 3, 4, 3
    assert summary["slow"]["epochs_to_target"] is None


def test_a_contestant_that_fails_stops_the_race_with_its_traceback(task, tiny_data):
    with pytest.raises(RuntimeError, match=r"(?s)textbook failed:.*Dataset not found"):
        race.compete(["textbook"], race.replace(task, folder="nowhere"), tiny_data.test)


def test_a_short_race_is_run_to_its_end_and_writes_nothing():
    before = race.RESULT.read_bytes() if race.RESULT.exists() else None
    command = [sys.executable, "-m", "benchmarks.training_speed", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (race.RESULT.read_bytes() if race.RESULT.exists() else None) == before
    result = json.loads(done.stdout)
    assert list(result["records"]) == ["products", "vaelib", "textbook"]
    for name, record in result["records"].items():
        assert len(record["seconds"]) == 2 and min(record["seconds"]) > 0
        assert record["peak_mib"] > 100
        first, last = record["test_elbo"]
        assert last == first if name == "products" else last > first + 20
    # the same task: after as many epochs from the same start, much the same bound
    ours, theirs = (result["records"][name]["test_elbo"] for name in ("vaelib", "textbook"))
    assert ours == pytest.approx(theirs, rel=0.05)
    milliseconds = result["profile_ms_per_step"]
    whole = milliseconds.pop("whole step")
    assert min(whole, *milliseconds.values()) > 0
