"""The published numbers are rerun as published, and a rerun that was killed loses nothing."""

import dataclasses
import datetime
import io
import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributions import Bernoulli, Normal
from torch.testing import assert_close

from vaelib import elbo
from vaelib.evaluation import mean_and_error

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import iwae_table, kingma_figure2, resumable  # noqa: E402

CPU = torch.device("cpu")
SMALL_IWAE = iwae_table.Recipe(
    passes=6, batch_size=60, num_samples=20, curve_images=5, curve_samples=10
)
SMALL_KINGMA = kingma_figure2.Recipe(latent_dim=3, passes=4, hidden_dim=10, train_images=50)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(iwae_table, "TEST_BLOCK", 15)


def without_clock(row: dict) -> dict:
    return {name: value for name, value in row.items() if name not in ("date", "cpu_seconds")}


def test_schedule_is_the_papers_at_its_length():
    stages = iwae_table.schedule(3280)
    assert [n for n, _ in stages] == [3**i for i in range(8)]
    assert [rate for _, rate in stages] == [1e-3 * 10 ** (-i / 7) for i in range(8)]


@pytest.mark.parametrize("passes", [1, 5, 100, 820, 1093])
def test_every_stage_is_shortened_alike(passes):
    stages = iwae_table.schedule(passes)
    assert sum(n for n, _ in stages) == passes
    for i, (n, _) in enumerate(stages):
        assert abs(n - 3**i * passes / 3280) <= 1


def test_learning_rate_grows_with_the_batch():
    paper = iwae_table.learning_rates(iwae_table.Recipe(batch_size=20))
    ours = iwae_table.learning_rates(iwae_table.Recipe(batch_size=100))
    assert paper[0] == 1e-3 and paper[-1] == 1e-4 and len(paper) == 3280
    assert_close(torch.tensor(ours), 5 * torch.tensor(paper))


def test_networks_have_the_papers_sizes_and_start(tiny_data):
    model = iwae_table.start(iwae_table.Recipe(), tiny_data, CPU).model
    shapes = [tuple(w.shape) for name, w in model.named_parameters() if name.endswith("weight")]
    assert shapes == [(200, 784), (200, 200), (50, 200), (50, 200), (200, 50), (200, 200)] + [
        (784, 200)
    ]
    for name, w in model.named_parameters():
        if name.endswith("weight"):
            bound = math.sqrt(6 / sum(w.shape))
            # Of 10,000 uniform draws or more, all in the inner 99.7 %: a chance of 1e-13.
            assert 0.997 * bound < w.abs().max() <= bound
        elif name != "decoder.4.bias":
            assert not w.any()


def test_decoder_starts_at_the_mean_image(tiny_data):
    model = iwae_table.start(iwae_table.Recipe(), tiny_data, CPU).model
    mean = tiny_data.train.double().mean(0) / 255
    assert_close(
        model.decoder[-1].bias.sigmoid().double(), mean.clamp(1e-3, 0.999), atol=1e-6, rtol=0
    )


def test_bound_of_the_networks_is_that_of_torch_distributions(tiny_data):
    model = iwae_table.start(iwae_table.Recipe(), tiny_data, CPU).model
    x = tiny_data.test[:3].bool().float()
    eps = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        h = model.encoder(x)
        q = Normal(model.mu(h), (model.log_var(h) / 2).exp())
        z = q.loc + eps * q.scale
        expected = Bernoulli(logits=model.decoder(z)).log_prob(x).sum(-1)
        expected = expected + Normal(0.0, 1.0).log_prob(z).sum(-1) - q.log_prob(z).sum(-1)
        assert_close(elbo(model, x, eps=eps, kl="sampled").value, expected.mean(0))


def test_curve_has_the_first_and_the_last_pass():
    for passes in (1, 2, 820):
        assert {1, passes} <= iwae_table.curve_passes(passes)
        assert max(iwae_table.curve_passes(passes)) == passes


def test_summary_is_the_mean_over_all_images_and_its_error():
    draw = torch.Generator().manual_seed(0)
    values = 90 + 10 * torch.randn(40, generator=draw, dtype=torch.float64)
    errors = torch.rand(40, generator=draw, dtype=torch.float64)
    blocks = [
        {
            "images": len(v),
            "sum": v.sum().item(),
            "sum_of_squares": v.square().sum().item(),
            "sampling_variance": e.square().sum().item(),
            "smallest_effective_sample_size": 2.0,
            "sum_of_effective_sample_sizes": 3.0 * len(v),
        }
        for v, e in zip(values.split(15), errors.split(15))
    ]
    found = iwae_table.summary(blocks)
    mean, error = mean_and_error(values)
    assert (found["minus_log_p"], found["standard_error"]) == (round(mean, 3), round(error, 3))
    assert found["sampling_error"] == round((errors.square().sum().sqrt() / 40).item(), 4)
    assert found["images"] == 40 and found["mean_effective_sample_size"] == 3


def test_table_row_is_trained_by_the_papers_optimizer(tiny_data, tmp_path, small_blocks):
    row = iwae_table.run_to_end(SMALL_IWAE, tiny_data, CPU, tmp_path / "run")
    state = resumable.load_checkpoint(tmp_path / "run", row["recipe"])
    (group,) = state["optimizer"]["param_groups"]
    assert (group["betas"], group["eps"]) == ((0.9, 0.999), 1e-4)
    assert group["lr"] == iwae_table.learning_rates(SMALL_IWAE)[-1]
    assert row["curve"][-1]["passes"] == SMALL_IWAE.passes
    assert row["curve"][-1]["elbo"] > row["curve"][0]["elbo"]
    assert row["test"]["images"] == len(tiny_data.test)


def test_schedule_that_was_cut_off_goes_on(tiny_data, tmp_path, small_blocks):
    whole = iwae_table.run_to_end(SMALL_IWAE, tiny_data, CPU)
    cut = iwae_table.run_to_end(SMALL_IWAE, tiny_data, CPU, tmp_path / "run", until=4)
    assert (cut["passes"], cut["curve"][-1]["passes"]) == (4, 4)
    assert cut["test"]["minus_log_p"] > whole["test"]["minus_log_p"]
    later = iwae_table.run_to_end(SMALL_IWAE, tiny_data, CPU, tmp_path / "run")
    assert (later["passes"], later["test"]) == (6, whole["test"])
    with pytest.raises(ValueError, match="until must be from 6 to 6, found 4"):
        iwae_table.run_to_end(SMALL_IWAE, tiny_data, CPU, tmp_path / "run", until=4)


@pytest.mark.parametrize("objective", ["vae", "iwae"])
def test_several_draws_train_as_well(tiny_data, objective):
    recipe = dataclasses.replace(SMALL_IWAE, objective=objective, k=3, passes=2)
    row = iwae_table.run_to_end(recipe, tiny_data, CPU)
    assert row["curve"][1]["objective"] > row["curve"][0]["objective"]


def test_figure_starts_from_the_papers_normal_and_prior(tiny_data):
    run = kingma_figure2.start(kingma_figure2.Recipe(latent_dim=5), tiny_data, CPU, 0.02)
    weights = torch.cat([w.detach().flatten() for w in run.model.parameters()]).double()
    # 788,000 draws: the relative standard error of their variance is sqrt(2 / n) = 0.16 %.
    assert abs(weights.square().mean() / 0.01 - 1) < 5 * math.sqrt(2 / len(weights))
    encoder, decoder = run.optimizer.param_groups
    assert (encoder["lr"], encoder["weight_decay"]) == (0.02, 0)
    assert (decoder["lr"], decoder["weight_decay"]) == (0.02, 1 / len(tiny_data.train))


def test_figure_trains_with_the_step_size_of_the_best_first_pass(tiny_data, tmp_path):
    row = kingma_figure2.run_to_end(SMALL_KINGMA, tiny_data, CPU, tmp_path / "run")
    trials = {trial["step_size"]: trial["train"] for trial in row["first_passes"]}
    assert set(trials) == {0.01, 0.02, 0.1}
    assert trials[row["step_size"]] == max(trials.values()) == row["curve"][0]["train"]
    state = resumable.load_checkpoint(tmp_path / "run", row["recipe"])
    assert {group["lr"] for group in state["optimizer"]["param_groups"]} == {row["step_size"]}
    assert row["curve"][-1]["samples"] == SMALL_KINGMA.passes * len(tiny_data.train)


# One process for all: each case forks, runs to the n-th call of a function, and is killed there.
KILLED = """
import os, signal, sys
import torch
from benchmarks import iwae_table, kingma_figure2
from vaelib import ImageData

folder, cases = sys.argv[1], eval(sys.argv[2])
for module, recipe, function, calls, file in cases:
    if os.fork() == 0:
        module = globals()[module]
        iwae_table.TEST_BLOCK = 15
        original, count = getattr(module, function), 0

        def dying(*arguments, **options):
            global count
            count += 1
            if count == calls:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        setattr(module, function, dying)
        data = ImageData(**torch.load(f"{folder}/data", weights_only=True))
        module.run_to_end(module.Recipe(**recipe), data, torch.device("cpu"), f"{folder}/{file}")
        os._exit(0)
    _, status = os.wait()
    assert os.WIFSIGNALED(status), file
"""


def test_killed_runs_end_as_if_undisturbed(tiny_data, tmp_path, small_blocks):
    names = ("name", "train", "train_labels", "test", "test_labels")
    torch.save({name: getattr(tiny_data, name) for name in names}, tmp_path / "data")
    cases = [  # a pass has 5 steps of the table and 3 of the figure; a point of the curve is a call
        ("iwae_table", dataclasses.asdict(SMALL_IWAE), "elbo", 15, "in a pass"),
        ("iwae_table", dataclasses.asdict(SMALL_IWAE), "log_likelihood", 8, "in the measurement"),
        ("kingma_figure2", dataclasses.asdict(SMALL_KINGMA), "elbo", 19, "in the figure"),
    ]
    subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path, repr(cases)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        check=True,
        timeout=120,
    )
    for name, settings, _, _, file in cases:
        module = {"iwae_table": iwae_table, "kingma_figure2": kingma_figure2}[name]
        recipe = module.Recipe(**settings)
        left = resumable.load_checkpoint(tmp_path / file, settings)
        assert (0 < left["passes"] < recipe.passes) == (file != "in the measurement"), file
        assert len(left["measured"]) == {"in a pass": 0, "in the measurement": 1}.get(file, 3)
        undisturbed = module.run_to_end(recipe, tiny_data, CPU, tmp_path / "undisturbed")
        resumed = module.run_to_end(recipe, tiny_data, CPU, tmp_path / file)
        assert without_clock(resumed) == without_clock(undisturbed), file
        one, two = (
            resumable.load_checkpoint(tmp_path / f, settings) for f in (file, "undisturbed")
        )
        for part in ("model", "generator"):
            assert_close(one[part], two[part], rtol=0, atol=0)
        assert_close(one["optimizer"]["state"], two["optimizer"]["state"], rtol=0, atol=0)
        (tmp_path / "undisturbed").unlink()


class Payload:
    def __reduce__(self):
        return (print, ("executed",))


def as_saved(state: object) -> bytes:
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"foreign", pickle.dumps(Payload()), as_saved(Payload()), as_saved({}), as_saved([])]
    + [as_saved({"recipe": {}})[:-100]],
)
def test_foreign_checkpoint_is_refused_and_not_executed(tmp_path, content, capsys):
    (tmp_path / "run").write_bytes(content)
    with pytest.raises(ValueError, match="run is no checkpoint"):
        resumable.load_checkpoint(tmp_path / "run", {})
    assert "executed" not in capsys.readouterr().out


def test_checkpoint_of_another_recipe_is_refused(tmp_path):
    resumable.save_checkpoint(tmp_path / "run", {"recipe": {"k": 1}})
    with pytest.raises(ValueError, match=r"\{'k': 1\}, expected \{'k': 5\}"):
        resumable.load_checkpoint(tmp_path / "run", {"k": 5})
    assert resumable.load_checkpoint(tmp_path / "none", {"k": 5}) is None


def test_result_file_keeps_one_row_for_each_key(tmp_path):
    path = tmp_path / "result.json"
    for k, passes in ((5, 1), (1, 1), (5, 2)):
        row = {"recipe": {"objective": "vae", "k": k, "passes": passes}}
        resumable.put_row(path, row, keys=("objective", "k"))
    rows = json.loads(path.read_text())["rows"]
    assert [(r["recipe"]["k"], r["recipe"]["passes"]) for r in rows] == [(1, 1), (5, 2)]


@pytest.mark.parametrize("module", [iwae_table, kingma_figure2])
def test_result_file_says_what_was_run_and_where(module):
    rows = json.loads(module.RESULT.read_text())["rows"]
    assert rows
    for row in rows:
        datetime.date.fromisoformat(row["date"])
        assert row["machine"] and row["python"] and row["torch"]
        assert "MNIST: 60,000 training" in row["data"]
        assert dataclasses.asdict(module.Recipe(**row["recipe"])) == row["recipe"]


def test_stored_rows_of_the_table_are_whole():
    for row in json.loads(iwae_table.RESULT.read_text())["rows"]:
        passes = [point["passes"] for point in row["curve"]]
        assert passes == sorted(set(passes)) and passes[-1] <= row["passes"]
        assert row["passes"] <= row["recipe"]["passes"]
        assert row["test"]["images"] == row["recipe"]["test_images"]
        assert 0 < row["test"]["sampling_error"] < row["test"]["standard_error"]


def test_stored_curves_of_the_figure_are_whole():
    rows = json.loads(kingma_figure2.RESULT.read_text())["rows"]
    assert [row["recipe"]["latent_dim"] for row in rows] == [3, 5, 10, 20, 200]
    for row in rows:
        assert row["curve"][-1]["samples"] == row["recipe"]["passes"] * 60_000 == 3_000_000
        best = max(row["first_passes"], key=lambda trial: trial["train"])
        assert best["step_size"] == row["step_size"]
