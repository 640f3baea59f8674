"""Every public function against a table of hard inputs: the answer, or an error by name.

Bad values of each tensor argument (NaN, infinity, another kind, dtype, rank or width) and of each
number; values that are only unusual (strided, with a gradient, one row), which must give what
plain ones give; the largest and smallest floats; and the options of the command line.
"""

import math
import re

import pytest
import torch
from torch.testing import assert_close

import vaelib
from vaelib.__main__ import main
from vaelib.annealing import annealed_importance_sampling
from vaelib.bounds import importance_log_weights
from vaelib.estimators import draw_measure_valued_noise
from vaelib.training import Recipe, save_model, seeded_vae

D, L, B, N, C = 6, 3, 4, 5, 2
noise = torch.Generator().manual_seed(7)


def normal(*shape):
    return torch.randn(shape, generator=noise)


def square(z):
    return z.square().flatten(1).sum(1)


def log_joint(z):
    return -z.square().sum(-1) / 2


vae = seeded_vae(0, data_dim=D, hidden_dim=3, latent_dim=L)
oracle = vaelib.LinearGaussianModel(normal(D, L), normal(D), 0.5)
x = (normal(B, D) > 0).float()
mu, log_var, z = normal(B, L), normal(B, L), normal(B, L)
mean, spread, eps = normal(L), normal(L), normal(N, L)
weights = normal(N, 4, L)
cov = torch.eye(L) + 0.1
logits = normal(L, C)
gumbel = normal(N, L, C)
one_hot = torch.eye(C)[torch.zeros(N, L, dtype=torch.int64)]
scores = normal(12)

# name: (function, its tensors by name, its other arguments, whether the tensors' rank is fixed)
CALLS = {
    "reparametrize": (vaelib.reparametrize, {"mu": mu, "log_var": log_var, "eps": z}, {}, False),
    "gaussian_log_prob": (
        vaelib.gaussian_log_prob, {"z": z, "mu": mu, "log_var": log_var}, {}, False),
    "gaussian_score": (vaelib.gaussian_score, {"z": z, "mu": mu, "log_var": log_var}, {}, False),
    "kl_standard_normal": (vaelib.kl_standard_normal, {"mu": mu, "log_var": log_var}, {}, False),
    "kl_diagonal": (
        vaelib.kl_diagonal,
        {"mu_q": mu, "log_var_q": log_var, "mu_p": z, "log_var_p": log_var}, {}, False),
    "kl_full": (
        vaelib.kl_full, {"mu_q": mean, "cov_q": cov, "mu_p": spread, "cov_p": 2 * cov}, {}, False),
    "bernoulli_log_prob": (
        vaelib.bernoulli_log_prob, {"x": x, "logits": normal(B, D)}, {}, False),
    "VAE.encode": (vae.encode, {"x": x}, {}, False),
    "VAE.decode": (vae.decode, {"z": z}, {}, False),
    "VAE.log_prior": (vae.log_prior, {"z": z}, {}, False),
    "VAE.log_likelihood": (vae.log_likelihood, {"x": x, "z": z}, {}, False),
    "LinearGaussianModel": (
        vaelib.LinearGaussianModel, {"weight": normal(D, L), "bias": normal(D)},
        {"noise_var": 0.5}, True),
    "LinearGaussianModel.log_evidence": (oracle.log_evidence, {"x": x}, {}, False),
    "LinearGaussianModel.posterior": (oracle.posterior, {"x": x}, {}, False),
    "LinearGaussianModel.encode": (oracle.encode, {"x": x}, {}, False),
    "LinearGaussianModel.log_prior": (oracle.log_prior, {"z": z}, {}, False),
    "LinearGaussianModel.log_likelihood": (oracle.log_likelihood, {"x": x, "z": z}, {}, False),
    "LinearGaussianModel.elbo": (
        oracle.elbo, {"x": x, "mu": mu, "log_var": log_var}, {}, False),
    "LinearGaussianModel.elbo_gradient": (
        oracle.elbo_gradient, {"x": x, "mu": mu, "log_var": log_var}, {}, False),
    "elbo": (vaelib.elbo, {"x": x, "eps": normal(2, B, L)}, {"model": vae, "num_samples": 2}, True),
    "iwae_bound": (
        vaelib.iwae_bound, {"x": x, "eps": normal(2, B, L)},
        {"model": vae, "num_samples": 2}, True),
    "importance_log_weights": (
        importance_log_weights, {"x": x, "eps": normal(2, B, L)},
        {"model": vae, "num_samples": 2}, True),
    "log_likelihood": (
        vaelib.log_likelihood, {"x": x},
        {"model": vae, "num_samples": 3, "chunk_size": 5}, True),
    "data_log_likelihood": (
        vaelib.data_log_likelihood, {"x": x},
        {"model": vae, "num_samples": 3, "chunk_size": 5}, True),
    "annealed_importance_sampling": (
        annealed_importance_sampling, {"x": x},
        {"model": vae, "num_chains": 2, "num_steps": 3, "leapfrog_steps": 2, "chunk_size": 7},
        True),
    "latent_activity": (vaelib.latent_activity, {"x": x}, {"model": vae}, True),
    "active_units": (vaelib.active_units, {"x": x}, {"model": vae}, True),
    "anomaly_scores": (
        vaelib.anomaly_scores, {"x": x}, {"model": vae, "num_samples": 3}, True),
    "likelihood_regret": (
        vaelib.likelihood_regret, {"x": x},
        {"model": vae, "num_samples": 3, "num_steps": 2}, True),
    "mean_and_error": (vaelib.mean_and_error, {"values": scores}, {}, True),
    "bits_per_dimension": (vaelib.bits_per_dimension, {"log_p_x": -scores.abs()},
                           {"data_dim": 784}, None),
    "detection": (
        vaelib.detection, {"normal": scores, "anomalous": scores + 1},
        {"num_replicates": 5}, True),
    "alarm_threshold": (
        vaelib.alarm_threshold, {"validation": scores}, {"false_alarm_rate": 0.2}, True),
    "score_function": (
        vaelib.score_function, {"mu": mean, "log_var": spread, "eps": eps}, {"f": square}, True),
    "local_score_function": (
        vaelib.local_score_function, {"mu": mean, "log_var": spread, "eps": eps},
        {"local_costs": torch.square}, True),
    "pathwise": (
        vaelib.pathwise, {"mu": mean, "log_var": spread, "eps": eps}, {"f": square}, True),
    "antithetic": (
        vaelib.antithetic(vaelib.pathwise), {"mu": mean, "log_var": spread, "eps": eps},
        {"f": square}, True),
    "measure_valued": (
        vaelib.measure_valued, {"mu": mean, "log_var": spread},
        {"f": square, "num_samples": N}, True),
    "sticking_the_landing": (
        vaelib.sticking_the_landing, {"mu": mean, "log_var": spread, "eps": eps},
        {"log_joint": log_joint}, True),
    "importance_weighted_pathwise": (
        vaelib.importance_weighted_pathwise, {"mu": mean, "log_var": spread, "eps": weights},
        {"log_joint": log_joint}, True),
    "doubly_reparametrized": (
        vaelib.doubly_reparametrized, {"mu": mean, "log_var": spread, "eps": weights},
        {"log_joint": log_joint}, True),
    "gradient_moments": (
        vaelib.gradient_moments, {"mu": mean, "log_var": spread},
        {"estimator": vaelib.pathwise, "f": square, "num_samples": 7, "chunk_size": 3}, True),
    "categorical_sample": (
        vaelib.categorical_sample, {"logits": logits, "gumbel": gumbel}, {}, True),
    "categorical_score_function": (
        vaelib.categorical_score_function, {"logits": logits, "z": one_hot}, {"f": square}, True),
    "gumbel_softmax": (
        vaelib.gumbel_softmax, {"logits": logits, "gumbel": gumbel},
        {"f": square, "temperature": 0.5}, True),
    "straight_through": (
        vaelib.straight_through, {"logits": logits, "z": one_hot}, {"f": square}, True),
}
DRAWS = {  # what comes from a generator, and so needs a seed to be compared
    "log_likelihood", "data_log_likelihood", "annealed_importance_sampling", "anomaly_scores",
    "likelihood_regret", "detection", "measure_valued", "gradient_moments",
}


def spoil(value, number):
    bad = value.clone()
    bad.reshape(-1)[-1] = number
    return bad


BAD = {
    "NaN": lambda t: spoil(t, math.nan),
    "infinity": lambda t: spoil(t, math.inf),
    "integers": lambda t: t.long(),
    "booleans": lambda t: t.bool(),
    "complex": lambda t: t.to(torch.complex64),
    "a list": lambda t: t.tolist(),
    "an array": lambda t: t.numpy(),
    "None": lambda t: None,
    "one column less": lambda t: t[..., :-1],
    "one column more": lambda t: torch.cat([t, t[..., -1:]], -1),
    "a scalar": lambda t: t.new_zeros(()),
    "no values": lambda t: t.to("meta"),
}
BAD_WHERE_THE_RANK_IS_FIXED = {
    "an axis more": lambda t: t[None],
    "an axis less": lambda t: t[0],
    "nothing": lambda t: t[:0],
}
ALLOWED = {
    ("elbo", "eps", "None"), ("iwae_bound", "eps", "None"),
    ("importance_log_weights", "eps", "None"), ("bits_per_dimension", "log_p_x", "a scalar"),
    ("LinearGaussianModel", "weight", "one column less"),
    ("LinearGaussianModel", "weight", "one column more"),
}
# Any width will do.
FREE_WIDTH = {
    "mean_and_error", "bits_per_dimension", "detection", "alarm_threshold", "VAE.log_prior",
}


def bad_cases():
    for name, (_, tensors, _, fixed) in CALLS.items():
        for argument, value in tensors.items():
            kinds = BAD | (BAD_WHERE_THE_RANK_IS_FIXED if fixed else {})
            for kind in kinds:
                width = kind in ("one column less", "one column more")
                if (width and name in FREE_WIDTH) or (name, argument, kind) in ALLOWED:
                    continue
                yield pytest.param(name, argument, kind, id=f"{name}-{argument}-{kind}")


@pytest.mark.parametrize("name, argument, kind", list(bad_cases()))
def test_a_bad_tensor_is_refused_by_name(name, argument, kind):
    function, tensors, others, _ = CALLS[name]
    change = (BAD | BAD_WHERE_THE_RANK_IS_FIXED)[kind]
    with pytest.raises((TypeError, ValueError)) as caught:
        function(**tensors | {argument: change(tensors[argument])}, **others)
    # Where two widths differ, either argument may be the wrong one.
    names = tensors if "column" in kind else [argument]
    assert any(re.search(rf"\b{name}\b", str(caught.value)) for name in names), caught.value
    assert type(caught.value).__module__ == "builtins"


NUMBERS = {  # argument: what it must not be
    "num_samples": (0, -1, 1.5, True, "3"),
    "chunk_size": (0, -1, 2.0, None),
    "num_chains": (0, -2, 1.5),
    "num_steps": (0, -2, 1.5),
    "leapfrog_steps": (0, 2.5),
    "num_replicates": (0, 1.5),
    "data_dim": (0, -1, 1.5),
    "temperature": (0.0, -1.0, math.nan, math.inf),
    "false_alarm_rate": (0.0, 1.0, -0.1, math.nan),
    "noise_var": (0.0, -1.0, math.nan, math.inf),
}
bad_numbers = [
    pytest.param(name, argument, value, id=f"{name}-{argument}-{value!r}")
    for name, (_, _, others, _) in CALLS.items()
    for argument in others
    for value in NUMBERS.get(argument, ())
]


@pytest.mark.parametrize("name, argument, value", bad_numbers)
def test_a_bad_number_is_refused_by_name_and_value(name, argument, value):
    function, tensors, others, _ = CALLS[name]
    with pytest.raises((TypeError, ValueError), match=argument) as caught:
        function(**tensors, **others | {argument: value})
    assert str(value) in str(caught.value)


def flat(result):
    if isinstance(result, torch.Tensor):
        return [result.detach()]
    if isinstance(result, dict):
        result = list(result.values())
    elif hasattr(result, "__dataclass_fields__"):
        result = [getattr(result, name) for name in result.__dataclass_fields__]
    elif isinstance(result, vaelib.LinearGaussianModel):
        result = [result.log_evidence(x)]
    return [leaf for part in result for leaf in flat(part)] if isinstance(
        result, (list, tuple)) else [torch.tensor(float(result))]


def call(name, tensors):
    function, _, others, _ = CALLS[name]
    seed = {"generator": torch.Generator().manual_seed(3)} if name in DRAWS else {}
    return flat(function(**tensors, **others, **seed))


def strided(value):
    """The same values, every second element of a wider memory."""
    wide = torch.full((*value.shape, 2), math.nan)
    wide[..., 0] = value
    return wide[..., 0]


@pytest.mark.parametrize("change", [strided, lambda t: t.clone().requires_grad_()],
                         ids=["strided", "requires_grad"])
@pytest.mark.parametrize("name", CALLS)
def test_strides_and_gradients_do_not_change_the_answer(name, change):
    tensors = CALLS[name][1]
    changed = {argument: change(value) for argument, value in tensors.items()}
    assert_close(call(name, changed), call(name, tensors))


@pytest.mark.parametrize("name", CALLS)
def test_arguments_are_left_as_they_were(name):
    tensors = {argument: value.clone() for argument, value in CALLS[name][1].items()}
    call(name, tensors)
    for argument, value in CALLS[name][1].items():
        assert torch.equal(tensors[argument], value), argument


@pytest.mark.parametrize("name", [
    n for n, c in CALLS.items()
    if c[3] is False and n not in ("kl_full", "LinearGaussianModel.posterior")
])
def test_one_row_gives_the_row_of_the_batch(name):
    tensors = CALLS[name][1]
    one = call(name, {argument: value[:1] for argument, value in tensors.items()})
    assert_close(one, [leaf[:1] for leaf in call(name, tensors)])


@pytest.mark.parametrize("name", CALLS)
def test_answers_are_finite(name):
    assert all(leaf.isfinite().all() for leaf in call(name, CALLS[name][1]))


LARGEST = torch.finfo(torch.float32).max
EXTREME = {
    "huge": lambda t: 1e30 * t,
    "huge and negative": lambda t: -1e30 * t,
    "the largest number": lambda t: torch.full_like(t, LARGEST),
    "the smallest number": lambda t: torch.full_like(t, -LARGEST),
    "tiny": lambda t: 1e-30 * t,
    "below the normal numbers": lambda t: 1e-42 * t,
}
FUNCTIONS_OF_THE_CALLER = {"f", "log_joint", "local_costs"}


def extreme_cases():
    for name, (_, tensors, _, _) in CALLS.items():
        for argument in [*tensors, "all"]:
            for kind in EXTREME:
                yield pytest.param(name, argument, kind, id=f"{name}-{argument}-{kind}")


@pytest.mark.parametrize("name, argument, kind", list(extreme_cases()))
def test_an_extreme_value_gives_a_number_or_an_error_by_name_and_never_nan(name, argument, kind):
    _, tensors, others, _ = CALLS[name]
    chosen = tensors if argument == "all" else [argument]
    extreme = {key: EXTREME[kind](tensors[key]) for key in chosen}
    try:
        answer = call(name, tensors | extreme)
    except ValueError as error:
        names = {*chosen, *FUNCTIONS_OF_THE_CALLER.intersection(others)}
        assert any(re.search(rf"\b{part}\b", str(error)) for part in names), error
    else:
        assert not any(leaf.isnan().any() for leaf in answer)


# What takes no floating-point tensor: argument by argument, with what the error must say.
IMAGES = torch.zeros(3, 784, dtype=torch.uint8)
LABELS = torch.zeros(3, dtype=torch.int64)
DATA = vaelib.ImageData("tiny", IMAGES, LABELS, IMAGES, LABELS)
OTHERS = {
    "VAE": (vaelib.VAE, {"data_dim": 4, "hidden_dim": 3, "latent_dim": 2}),
    "ImageData": (vaelib.ImageData, {
        "name": "tiny", "train": IMAGES, "train_labels": LABELS, "test": IMAGES,
        "test_labels": LABELS}),
    "binarize": (vaelib.binarize, {"images": IMAGES, "how": "threshold"}),
    "load_images": (vaelib.load_images, {"name": "digits", "root": None}),
    "fit": (vaelib.fit, {
        "model": seeded_vae(0, hidden_dim=3, latent_dim=2), "data": DATA, "epochs": 1,
        "batch_size": 2, "learning_rate": 1e-3, "binarization": "threshold", "seed": 0}),
}
NO_SIZE = (0, -1, 1.5, True, "3", None)
NO_IMAGES = (None, IMAGES.float(), IMAGES.tolist(), IMAGES.numpy(), IMAGES[:, 1:], IMAGES[0, 0])
NOT_IMAGES = {
    "VAE": dict.fromkeys(("data_dim", "hidden_dim", "latent_dim"), NO_SIZE),
    "ImageData": {
        "train": (*NO_IMAGES, IMAGES[0], IMAGES[:0]),
        "test": (*NO_IMAGES, IMAGES[0], IMAGES[:0]),
        "train_labels": (None, [0, 0, 0], LABELS.int(), LABELS[:2], LABELS[None], LABELS.float()),
        "test_labels": (None, [0, 0, 0], LABELS.int(), LABELS[:2], LABELS[None], LABELS.float()),
    },
    "binarize": {"images": NO_IMAGES, "how": ("grey", "", None, 127, "Threshold")},
    "load_images": {"name": ("cifar", "", None, 3, "MNIST"), "root": (3, b"x", ["x"], True)},
    "fit": {
        "epochs": NO_SIZE,
        "batch_size": NO_SIZE,
        "learning_rate": (0.0, -1.0, math.nan, math.inf),
        "binarization": ("grey", "", None, 127),
        "seed": (-1, 0.5, None, "0", 2**64),
    },
}
other_cases = [
    pytest.param(name, argument, value, id=f"{name}-{argument}-{i}")
    for name, arguments in NOT_IMAGES.items()
    for argument, values in arguments.items()
    for i, value in enumerate(values)
]


@pytest.mark.parametrize("name, argument, value", other_cases)
def test_a_bad_argument_of_data_and_training_is_refused_by_name(name, argument, value):
    function, good = OTHERS[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        function(**good | {argument: value})
    assert re.search(rf"\b{argument}\b", str(caught.value)), caught.value


@pytest.mark.parametrize("name", OTHERS)
def test_the_good_arguments_beside_the_bad_ones_are_accepted(name):
    function, good = OTHERS[name]
    function(**good)


COMMANDS = {  # command and option: values that it must refuse
    "train --epochs": ("0", "-1", "1e3", "many", ""),
    "train --hidden": ("0", "-5", "1.5", "9" * 30),
    "train --latent": ("0", "-5", "two", "9" * 30),
    "train --batch-size": ("0", "-1", "all"),
    "train --learning-rate": ("0", "-1", "nan", "inf", "fast"),
    "train --seed": ("-1", "0.5", "x", "9" * 30),
    "train --binarization": ("grey", ""),
    "train --data": ("cifar", ""),
    "evaluate --num-samples": ("0", "-1", "1.5"),
    "evaluate --images": ("0", "-1", "all"),
    "evaluate --model": ("nothing-here", ".", "broken"),
    "sample --count": ("0", "-1", "2.5"),
    "sample --model": ("nothing-here", ".", "broken"),
    "sample --output": ("no-folder/x.png", "."),
}
DEFAULTS = {
    "train": "--data digits --epochs 1 --hidden 2 --latent 1",
    "evaluate": "--data digits --model good --num-samples 1 --images 1",
    "sample": "--model good --output x.png --count 1",
}
wrong_calls = [
    pytest.param(command.split()[0], command.split()[1], value, id=f"{command}={value[:9]}")
    for command, values in COMMANDS.items()
    for value in values
]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with a good model and a broken one."""
    monkeypatch.chdir(tmp_path)
    history = vaelib.History(Recipe(epochs=1))
    save_model("good", seeded_vae(0, hidden_dim=2, latent_dim=1), history)
    (tmp_path / "broken").write_bytes(b"\x80\x04.")
    return tmp_path


@pytest.mark.parametrize("command, option, value", wrong_calls)
def test_a_wrong_option_ends_with_one_line_that_names_it(
    command, option, value, workplace, capsys
):
    arguments = [command, *DEFAULTS[command].split(), option, value]
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("python -m vaelib") and "error: " in line
    named = option[2:].replace("-", "[-_ ]")
    assert re.search(named, line) or (value and str(value) in line), line
    assert not (workplace / "x.png").exists()


def test_the_table_holds_every_public_function():
    named = {name.split(".")[0] for name in (*CALLS, *OTHERS)}
    named.add("trained_vae")  # test_shared.py and test_faults.py: its one number is checked by VAE
    results = {  # of a call: nobody else makes one
        "AnnealedLogLikelihood", "Detection", "ELBO", "GradientMoments", "GradientSamples",
        "History", "MeasureValuedNoise",
    }
    assert {name for name in vaelib.__all__ if callable(getattr(vaelib, name))} - named == results
    total = [len(list(cases())) for cases in (bad_cases, extreme_cases)]
    total += map(len, (bad_numbers, other_cases, wrong_calls))
    assert sum(total) > 1500 and min(total) > 30


def test_noise_for_measure_valued_names_its_arguments():
    for bad in (normal(2, 2), normal(0)):
        with pytest.raises(ValueError, match="mu"):
            draw_measure_valued_noise(bad, 3)
