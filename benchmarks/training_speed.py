"""Training speed of one VAE, ours against the textbook loop, pythae and Pyro, in one paired run.

    make bench                                     installs the peers, then the line below
    python -m benchmarks.training_speed            five minutes; writes the result file
    python -m benchmarks.training_speed --quick    half a minute on the digits; writes nothing

Every contestant trains the same network (784-400-20, tanh) on the same thresholded MNIST, from the
same weights, with batches of 128 and Adam at 0.001. Each has a process of its own, so that its
peak memory is its own too. They take turns: one epoch each, round after round, so that whatever
else the machine does meets all of them alike. Between turns the parent process measures the test
ELBO of the weights, outside of every clock.

Contestants: `products` is no trainer but the bound: the matrix products of a step alone, outputs
allocated beforehand. `vaelib` is `vaelib.fit` with a single test image, `vaelib, test pass` the
same with all of them. `textbook` is the loop of tutorials on torchvision's MNIST and a DataLoader;
the rungs below it change one thing at a time. pythae runs its own trainer. Pyro has no reader of
its own and is given the batches of the rung `images in memory`; its ELBO is TraceMeanField_ELBO,
the one with the analytic KL. Peers that are not installed are left out. Run it on an idle machine.

The chapter `speed` reads the result.
"""

import argparse
import contextlib
import datetime
import functools
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits

from benchmarks.vae_gradients import cpu_name
from vaelib import VAE, ImageData, binarize, fit, load_images
from vaelib.training import mean_elbo, seeded_vae

RESULT = Path(__file__).parent / "results" / "training_speed.json"
LEARNING_RATE = 1e-3
PROFILED_STEPS = 300


@dataclass(frozen=True)
class Task:
    """What all contestants train. ``folder`` holds the images as torchvision stores MNIST."""

    data: str
    folder: str
    threads: int
    rounds: int
    hidden_dim: int = 400
    latent_dim: int = 20
    batch_size: int = 128

    def start(self) -> VAE:
        """The network with the weights that everyone starts from."""
        return seeded_vae(0, hidden_dim=self.hidden_dim, latent_dim=self.latent_dim)


class Finished(Exception):
    """All rounds are run: unwinds a contestant's training."""


class Turns:
    """A contestant's side of the race: ``begin`` once it is ready, ``end_epoch`` after each."""

    def __init__(self, connection):
        self.connection = connection

    def begin(self) -> None:
        """Wait for the next turn, then start the clock."""
        if not self.connection.recv():
            raise Finished
        self.started = time.perf_counter()

    def end_epoch(self, weights: Iterable[Tensor]) -> None:
        """Stop the clock, hand the weights in, and wait for the next turn."""
        seconds = time.perf_counter() - self.started
        arrays = [weight.detach().numpy() for weight in weights]
        self.connection.send((seconds, peak_mib(), arrays))
        self.begin()


def products(task: Task, turns: Turns) -> None:
    """The products of forward and backward, without the gradient of the first layer's input."""
    sizes = [len(rows) for rows in load_images(task.data).train.split(task.batch_size)]
    calls = {size: product_calls(task, size) for size in set(sizes)}
    weights = list(task.start().parameters())
    turns.begin()
    for _ in range(task.rounds):
        for size in sizes:
            for left, right, out in calls[size]:
                torch.mm(left, right, out=out)
        turns.end_epoch(weights)


def product_calls(task: Task, batch: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Operands and output of each product of one step, laid out as autograd lays them out."""
    layers = [
        (784, task.hidden_dim),
        (task.hidden_dim, task.latent_dim),
        (task.hidden_dim, task.latent_dim),
        (task.latent_dim, task.hidden_dim),
        (task.hidden_dim, 784),
    ]
    calls = []
    for number, (inputs, outputs) in enumerate(layers):
        x, weight, gradient = (
            torch.rand(shape) for shape in ((batch, inputs), (outputs, inputs), (batch, outputs))
        )
        calls.append((x, weight.t(), torch.empty(batch, outputs)))
        calls.append((gradient.t(), x, torch.empty(outputs, inputs)))
        if number > 0:
            calls.append((gradient, weight, torch.empty(batch, inputs)))
    return calls


def flop_per_image(task: Task) -> int:
    """Operations in the products of forward and backward: two for each multiply-add."""
    ends, middle = 784 * task.hidden_dim, task.hidden_dim * task.latent_dim
    return 2 * (2 * ends + 3 * (ends + 3 * middle))


def ours(task: Task, turns: Turns, test_images: int | None) -> None:
    """`vaelib.fit`, tested after each epoch on the first ``test_images``; None means all."""
    data, model = load_images(task.data), task.start()
    test = data.test[:test_images], data.test_labels[:test_images]
    data = ImageData(data.name, data.train, data.train_labels, *test)
    turns.begin()
    fit(
        model,
        data,
        epochs=task.rounds,
        batch_size=task.batch_size,
        learning_rate=LEARNING_RATE,
        on_epoch=lambda row: turns.end_epoch(model.parameters()),
    )


class TextbookVAE(nn.Module):
    """The VAE of tutorials: probabilities come out, the loss takes their logarithms."""

    def __init__(self, hidden_dim: int, latent_dim: int):
        super().__init__()
        self.hidden = nn.Linear(784, hidden_dim)
        self.mu = nn.Linear(hidden_dim, latent_dim)
        self.log_var = nn.Linear(hidden_dim, latent_dim)
        self.decoder_hidden = nn.Linear(latent_dim, hidden_dim)
        self.output = nn.Linear(hidden_dim, 784)

    def logits(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, 784] -> logits [B, 784], mu [B, L], log_var [B, L]."""
        h = torch.tanh(self.hidden(x))
        mu, log_var = self.mu(h), self.log_var(h)
        z = mu + torch.exp(0.5 * log_var) * torch.randn_like(mu)
        return self.output(torch.tanh(self.decoder_hidden(z))), mu, log_var

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, 784] -> probabilities [B, 784], mu [B, L], log_var [B, L]."""
        logits, mu, log_var = self.logits(x)
        return torch.sigmoid(logits), mu, log_var


def kl_term(mu: Tensor, log_var: Tensor) -> Tensor:
    """Summed over the batch, as tutorials write it."""
    return -0.5 * torch.sum(1 + log_var - mu.pow(2) - log_var.exp())


def loss_from_probabilities(model: TextbookVAE, x: Tensor) -> Tensor:
    """Cross-entropy plus KL, summed over the batch."""
    probabilities, mu, log_var = model(x)
    return binary_cross_entropy(probabilities, x, reduction="sum") + kl_term(mu, log_var)


def loss_from_logits(model: TextbookVAE, x: Tensor) -> Tensor:
    """The same value without a sigmoid and its logarithm."""
    logits, mu, log_var = model.logits(x)
    return binary_cross_entropy_with_logits(logits, x, reduction="sum") + kl_term(mu, log_var)


def copy_weights(source: Iterable[Tensor], target: Iterable[Tensor]) -> None:
    """From one network to another whose layers come in the same order."""
    with torch.no_grad():
        for new, old in zip(source, target, strict=True):
            old.copy_(new)


def textbook_model(task: Task) -> TextbookVAE:
    model = TextbookVAE(task.hidden_dim, task.latent_dim)
    copy_weights(task.start().parameters(), model.parameters())
    return model


def black_or_white(image: Tensor) -> Tensor:
    """A picture [1, 28, 28] of grey levels in [0, 1] made binary: the threshold of the book."""
    return (image > 0.5).float()


def textbook_loader(task: Task, workers: int):
    """The DataLoader of tutorials: each image is converted, one by one, whenever it is used."""
    from torchvision import datasets, transforms

    transform = transforms.Compose([transforms.ToTensor(), black_or_white])
    images = datasets.MNIST(task.folder, train=True, transform=transform)
    return torch.utils.data.DataLoader(
        images, batch_size=task.batch_size, shuffle=True, num_workers=workers
    )


def textbook(task: Task, turns: Turns, workers: int) -> None:
    """torchvision, DataLoader, default Adam, a number fetched at each step."""
    loader, model = textbook_loader(task, workers), textbook_model(task)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    turns.begin()
    for _ in range(task.rounds):
        total = 0.0
        for x, _ in loader:
            x = x.view(-1, 784)
            optimizer.zero_grad()
            loss = loss_from_probabilities(model, x)
            loss.backward()
            total += loss.item()
            optimizer.step()
        turns.end_epoch(model.parameters())


def memory_batches(images: Tensor, batch_size: int) -> Iterator[Tensor]:
    """One epoch of shuffled batches [B, 784], converted from uint8 a batch at a time."""
    for rows in torch.randperm(len(images)).split(batch_size):
        yield binarize(images[rows])


def from_memory(task: Task, turns: Turns, loss_of: Callable, fused: bool | None) -> None:
    """The textbook loop with its DataLoader replaced, and a loss and an Adam to choose."""
    images, model = load_images(task.data).train, textbook_model(task)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=fused)
    turns.begin()
    for _ in range(task.rounds):
        total = 0.0
        for x in memory_batches(images, task.batch_size):
            optimizer.zero_grad()
            loss = loss_of(model, x)
            loss.backward()
            total += loss.item()
            optimizer.step()
        turns.end_epoch(model.parameters())


def pythae_trainer(task: Task, turns: Turns) -> None:
    """pythae's BaseTrainer with its own DataLoader; it keeps a copy of the best model."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE as PythaeVAE
    from pythae.models import VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    start = task.start()

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.net = start.encoder

        def forward(self, x: Tensor) -> ModelOutput:
            mu, log_var = self.net(x)
            return ModelOutput(embedding=mu, log_covariance=log_var)

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.net = start.decoder

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=torch.sigmoid(self.net(z)))

    class EndOfEpoch(TrainingCallback):
        def on_epoch_end(self, training_config, **kwargs) -> None:
            turns.end_epoch(start.parameters())

    config = VAEConfig(
        input_dim=(784,), latent_dim=task.latent_dim, reconstruction_loss="bce"
    )
    images = load_images(task.data)
    with tempfile.TemporaryDirectory() as folder:
        trainer = BaseTrainer(
            PythaeVAE(config, encoder=Encoder(), decoder=Decoder()),
            BaseDataset(binarize(images.train), images.train_labels),
            training_config=BaseTrainerConfig(
                output_dir=folder,
                num_epochs=task.rounds,
                per_device_train_batch_size=task.batch_size,
                learning_rate=LEARNING_RATE,
                no_cuda=True,
            ),
            callbacks=[EndOfEpoch()],
        )
        turns.begin()
        trainer.train()


def pyro_svi(task: Task, turns: Turns) -> None:
    """Pyro's SVI with TraceMeanField_ELBO and its Adam, on batches from memory."""
    import pyro
    from pyro.distributions import Bernoulli, Normal
    from pyro.infer import SVI, TraceMeanField_ELBO

    net, images = task.start(), load_images(task.data).train

    def model(x: Tensor) -> None:
        pyro.module("decoder", net.decoder)
        with pyro.plate("images", len(x)):
            mean = x.new_zeros(len(x), task.latent_dim)
            z = pyro.sample("z", Normal(mean, 1.0).to_event(1))
            pyro.sample("x", Bernoulli(logits=net.decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", net.encoder)
        with pyro.plate("images", len(x)):
            mu, log_var = net.encoder(x)
            pyro.sample("z", Normal(mu, torch.exp(log_var / 2)).to_event(1))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": LEARNING_RATE}), TraceMeanField_ELBO())
    turns.begin()
    for _ in range(task.rounds):
        total = 0.0
        for x in memory_batches(images, task.batch_size):
            total += svi.step(x)
        turns.end_epoch(net.parameters())


#: In the order of their turns.
CONTESTANTS: dict[str, Callable[[Task, Turns], None]] = {
    "products": products,
    "vaelib": functools.partial(ours, test_images=1),
    "vaelib, test pass": functools.partial(ours, test_images=None),
    "textbook": functools.partial(textbook, workers=0),
    "textbook, 2 workers": functools.partial(textbook, workers=2),
    "images in memory": functools.partial(
        from_memory, loss_of=loss_from_probabilities, fused=None
    ),
    "and logits": functools.partial(from_memory, loss_of=loss_from_logits, fused=None),
    "and fused Adam": functools.partial(from_memory, loss_of=loss_from_logits, fused=True),
    "pythae": pythae_trainer,
    "Pyro": pyro_svi,
}
QUICK = ("products", "vaelib", "textbook")
PEERS = {"pythae": "pythae", "Pyro": "pyro"}  # the module that each one needs


def contestant(name: str, task: Task, connection) -> None:
    """The process of one contestant; a failure is reported as a traceback."""
    torch.set_num_threads(task.threads)
    torch.manual_seed(0)
    torch.optim.Adam(task.start().parameters())  # the first one makes torch import its compiler
    with open(os.devnull, "w") as silence, contextlib.redirect_stderr(silence):  # progress bars
        try:
            CONTESTANTS[name](task, Turns(connection))
        except (Finished, EOFError):
            pass
        except Exception:
            connection.send(traceback.format_exc())


def peak_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent's memory from before the exec
        lines = status.read_text().splitlines()
        (line,) = (line for line in lines if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def compete(names: Iterable[str], task: Task, test: Tensor) -> dict[str, dict]:
    """Rounds of one epoch each: seconds and test ELBO of every epoch, and peak memory."""
    context = multiprocessing.get_context("spawn")
    pipes, judge = {}, task.start()
    records = {name: {"seconds": [], "test_elbo": [], "peak_mib": 0.0} for name in names}
    for name in records:
        pipes[name], theirs = context.Pipe()
        context.Process(target=contestant, args=(name, task, theirs)).start()
        theirs.close()
    try:
        for turn in range(task.rounds):
            for name, record in records.items():
                pipes[name].send(True)
                answer = pipes[name].recv()
                if isinstance(answer, str):
                    raise RuntimeError(f"{name} failed:\n{answer}")
                seconds, memory, arrays = answer
                copy_weights(map(torch.from_numpy, arrays), judge.parameters())
                record["seconds"].append(round(seconds, 4))
                record["test_elbo"].append(round(mean_elbo(judge, test)["elbo"], 3))
                record["peak_mib"] = round(memory)
                last = record["seconds"][-1], record["test_elbo"][-1]
                print(turn + 1, name, *last, file=sys.stderr)
    finally:
        for pipe in pipes.values():
            with contextlib.suppress(OSError):
                pipe.send(False)
    return records


#: Names of torch's operations, by what they are for.
OPERATIONS = {
    "aten::addmm": "matrix products",
    "aten::mm": "matrix products",
    "aten::_fused_adam_": "Adam",
    "aten::index_select": "fetch and binarize",
    "aten::gt": "fetch and binarize",
    "aten::randperm": "fetch and binarize",
}


def purpose(event, task: Task) -> str:
    """What an operation that the profiler saw is for; the others by the arrays they go through."""
    if event.key in OPERATIONS:
        return OPERATIONS[event.key]
    last_axes = {shape[-1] for shape in event.input_shapes if len(shape) > 1}
    if 784 in last_axes:
        return "element by element, pixels"
    if task.hidden_dim in last_axes:
        return "element by element, hidden units"
    return "element by element, the rest"


def profile(task: Task) -> dict[str, float]:
    """Milliseconds a step of `vaelib.fit` spends in each kind of operation, by torch's profiler.

    "whole step" is timed without the profiler, which slows it, small operations most: the sum of
    the others exceeds it, and their shares say more than their milliseconds.
    """
    data = load_images(task.data)
    count = min(len(data.train), PROFILED_STEPS * task.batch_size)
    labels, test = data.train_labels[:count], (data.test[:1], data.test_labels[:1])
    few = ImageData(data.name, data.train[:count], labels, *test)

    def train() -> float:
        start = time.perf_counter()
        fit(task.start(), few, epochs=1, batch_size=task.batch_size, learning_rate=LEARNING_RATE)
        return 1000 * (time.perf_counter() - start)

    whole = [train() for _ in range(4)][1:]  # the first one allocates
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True) as recorded:
        train()
    totals = dict.fromkeys(OPERATIONS.values(), 0.0) | {"whole step": statistics.median(whole)}
    for event in recorded.key_averages(group_by_input_shape=True):
        if event.key.startswith("aten::"):
            kind = purpose(event, task)
            totals[kind] = totals.get(kind, 0.0) + event.self_cpu_time_total / 1000
    steps = -(-count // task.batch_size)
    return {kind: round(total / steps, 4) for kind, total in totals.items()}


def quartiles(values: list[float]) -> dict[str, float]:
    """Median and the quartiles around it."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": round(middle, 4), "low": round(low, 4), "high": round(high, 4)}


def summarize(records: dict[str, dict], images: int, operations: int, target: float) -> dict:
    """Per contestant: seconds an epoch, ratios to the others round by round, way to the target.

    ``operations`` is the number of floating-point operations in an epoch's matrix products.
    ``seconds_to_target`` is the training time up to the end of the first epoch whose test ELBO is
    at least ``target``; None if there is none.
    """
    summary = {}
    for name, record in records.items():
        seconds = record["seconds"]
        reached = [n for n, elbo in enumerate(record["test_elbo"], 1) if elbo >= target]
        summary[name] = {
            "seconds": quartiles(seconds),
            "images_per_second": round(images / statistics.median(seconds)),
            "times_ours": quartiles(
                [mine / theirs for mine, theirs in zip(seconds, records["vaelib"]["seconds"])]
            ),
            "gflop_per_second": round(operations / statistics.median(seconds) / 1e9, 1),
            "fraction_of_peak": quartiles(
                [peak / mine for mine, peak in zip(seconds, records["products"]["seconds"])]
            ),
            "peak_mib": record["peak_mib"],
            "epochs_to_target": reached[0] if reached else None,
            "seconds_to_target": round(sum(seconds[: reached[0]]), 2) if reached else None,
        }
    return summary


def store_as_torchvision(data: ImageData, folder: Path) -> None:
    """Write the training images where and as `torchvision.datasets.MNIST` looks for them."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, images, labels in (
        ("train", data.train, data.train_labels),
        ("t10k", data.test, data.test_labels),
    ):
        for kind, values, shape in (
            ("images-idx3", images, (len(images), 28, 28)),
            ("labels-idx1", labels.to(torch.uint8), (len(labels),)),
        ):
            head = bytes([0, 0, 8, len(shape)])  # two zeros, "unsigned byte", number of axes
            sizes = b"".join(size.to_bytes(4, "big") for size in shape)
            (raw / f"{part}-{kind}-ubyte").write_bytes(head + sizes + values.numpy().tobytes())


def versions() -> dict[str, str]:
    """Of Python and of what takes part."""
    found = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "pythae", "pyro-ppl"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short run that writes nothing")
    parser.add_argument("--rounds", type=int, default=8, help="epochs of each contestant")
    parser.add_argument("--target", type=float, default=-100.0, help="test ELBO to reach, in nats")
    options = parser.parse_args()
    data = load_images("digits" if options.quick else "mnist")
    names = [
        name
        for name in (QUICK if options.quick else CONTESTANTS)
        if name not in PEERS or importlib.util.find_spec(PEERS[name])
    ]
    with tempfile.TemporaryDirectory() as folder:
        store_as_torchvision(data, Path(folder))
        task = Task(data.name, folder, torch.get_num_threads(), options.rounds)
        if options.quick:
            task = replace(task, rounds=2, hidden_dim=50)
        records = compete(names, task, data.test)
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, {task.threads} threads",
        "versions": versions(),
        "data": str(data),
        "settings": {k: v for k, v in asdict(task).items() if k not in ("data", "folder")},
        "target_elbo": options.target,
        "flop_per_image": flop_per_image(task),
        "summary": summarize(
            records, len(data.train), flop_per_image(task) * len(data.train), options.target
        ),
        "profile_ms_per_step": profile(task),
        "records": records,
    }
    print(json.dumps(result, indent=1))
    if not options.quick:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
