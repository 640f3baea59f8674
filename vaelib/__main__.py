"""The command line: ``python -m vaelib train | evaluate | sample | prepare``."""

import argparse
import contextlib
import io
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from vaelib.bounds import log_likelihood
from vaelib.data import binarize, load_images
from vaelib.files import naming, remove_unfinished, write_atomically
from vaelib.shared import trained_vae
from vaelib.training import fit, load_model, mean_elbo, save_model, seeded_vae

EXAMPLES = """\
examples:
  python -m vaelib train --epochs 20 --save vae.safetensors --metrics vae.jsonl
  python -m vaelib train --checkpoint vae.ckpt --resume --save vae.safetensors
  torchrun --nproc-per-node=2 -m vaelib train --save vae.safetensors
  python -m vaelib evaluate --model vae.safetensors --num-samples 1000 --images 500
  python -m vaelib sample --model vae.safetensors --output samples.png
"""


class Parser(argparse.ArgumentParser):
    """An argument parser that answers a wrong call with one line and status 2."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message}\n")


def positive_int(text: str) -> int:
    """An integer from one to a billion."""
    with contextlib.suppress(ValueError):
        if 1 <= int(text) <= 10**9:
            return int(text)
    raise argparse.ArgumentTypeError(f"expected an integer from 1 to 10^9, found {text!r}")


def seed_int(text: str) -> int:
    """An integer that a generator takes as its seed."""
    with contextlib.suppress(ValueError):
        if 0 <= int(text) < 2**63:
            return int(text)
    raise argparse.ArgumentTypeError(f"expected an integer from 0 to 2^63 - 1, found {text!r}")


def positive_float(text: str) -> float:
    """A finite number above zero."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a positive number, found {text!r}")


def build_parser() -> argparse.ArgumentParser:
    """The parser with its four subcommands."""
    parser = Parser(
        prog="python -m vaelib",
        description="Train a Gaussian VAE for binary images, measure it, sample from it.\n"
        "All values are in nats per image.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    as_default = argparse.ArgumentDefaultsHelpFormatter

    def command(name: str, run, description: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=description, description=description, formatter_class=as_default
        )
        sub.set_defaults(run=run)
        return sub

    train = command("train", run_train, "fit a VAE by Adam on the ELBO")
    add_data_options(train)
    train.add_argument("--epochs", type=positive_int, default=20, help="passes over the images")
    train.add_argument("--hidden", type=positive_int, default=500, help="width of both tanh layers")
    train.add_argument("--latent", type=positive_int, default=20, help="dimension of z")
    train.add_argument("--batch-size", type=positive_int, default=128, help="images a step")
    train.add_argument("--learning-rate", type=positive_float, default=1e-3, help="of Adam")
    train.add_argument("--seed", type=seed_int, default=0, help="fixes weights, order and noise")
    train.add_argument(
        "--device", default="auto", help="cpu, cuda or mps; auto takes cuda, else mps, else cpu"
    )
    train.add_argument("--compile", action="store_true", help="hand the step to torch.compile")
    train.add_argument(
        "--checkpoint", type=Path, help="keep all that is needed to go on in this file, each epoch"
    )
    train.add_argument(
        "--resume",
        action="store_true",
        help="go on where the checkpoint stands, or start where there is none",
    )
    train.add_argument("--metrics", type=Path, help="write one JSON object an epoch to this file")
    train.add_argument("--save", type=Path, help="write the trained model (safetensors) here")

    evaluate = command("evaluate", run_evaluate, "print ELBO and log p(x) of test images as JSON")
    evaluate.add_argument("--model", type=Path, required=True, help="a file that train saved")
    add_data_options(evaluate)
    evaluate.add_argument(
        "--num-samples", type=positive_int, default=1000, help="importance samples an image"
    )
    evaluate.add_argument(
        "--images", type=positive_int, default=1000, help="test images for log p(x)"
    )
    evaluate.add_argument("--seed", type=seed_int, default=0, help="fixes the noise")

    sample = command("sample", run_sample, "write a grid of sampled images as PNG")
    sample.add_argument("--model", type=Path, required=True, help="a file that train saved")
    sample.add_argument("--output", type=Path, required=True, help="the PNG file to write")
    sample.add_argument("--count", type=positive_int, default=100, help="images in the grid")
    sample.add_argument(
        "--means", action="store_true", help="show the decoder's means in place of binary samples"
    )
    sample.add_argument("--seed", type=seed_int, default=0, help="fixes the noise")

    command("prepare", run_prepare, "load the data and train the models that the chapters share")
    return parser


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Options that name the images."""
    parser.add_argument(
        "--data", choices=("auto", "mnist", "digits"), default="auto", help="which images"
    )
    parser.add_argument(
        "--root", type=Path, help="folder of MNIST (else $VAELIB_DATA, else the user's cache)"
    )
    parser.add_argument(
        "--binarization",
        choices=("threshold", "stochastic"),
        default="threshold",
        help="pixel > 127, or a Bernoulli draw with the grey level as its probability",
    )


def run_train(args: argparse.Namespace) -> None:
    """Train, print a line an epoch, write metrics, checkpoint and model where asked."""
    if args.resume and args.checkpoint is None:
        raise ValueError("--resume needs --checkpoint FILE, found none")
    for option in ("metrics", "checkpoint", "save"):
        if getattr(args, option):
            check_output(option, getattr(args, option))
    if args.save:
        remove_unfinished(args.save)
    with process_group(choose_device(args.device)) as (device, first):
        data = load_images(args.data, args.root)
        if first:
            print(data, file=sys.stderr)
        model = seeded_vae(
            args.seed,
            data_dim=data.train.shape[1],
            hidden_dim=args.hidden,
            latent_dim=args.latent,
        ).to(device)
        with contextlib.ExitStack() as stack:
            metrics = None

            def report(row: dict) -> None:
                nonlocal metrics
                if args.metrics and metrics is None:
                    stack.enter_context(naming(args.metrics))
                    metrics = stack.enter_context(args.metrics.open("w"))
                if metrics:
                    print(json.dumps(row), file=metrics, flush=True)
                print(
                    f"epoch {row['epoch']:3d}  {row['seconds']:5.1f} s  "
                    f"ELBO train {row['train']['elbo']:8.2f}  test {row['test']['elbo']:8.2f}"
                )

            history = fit(
                model,
                data,
                epochs=args.epochs,
                batch_size=args.batch_size,
                learning_rate=args.learning_rate,
                binarization=args.binarization,
                seed=args.seed,
                checkpoint=args.checkpoint,
                resume=args.resume,
                compiled=args.compile,
                on_epoch=report,
            )
        if first and history.resumed == args.epochs:
            print(f"{args.checkpoint} holds all {args.epochs} epochs: nothing was left to train")
        if first and args.save:
            save_model(args.save, model, history)


def check_output(option: str, path: Path) -> None:
    """Raise an OSError that names the option, where its file can have no place."""
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"--{option}: there is no folder {path.absolute().parent}")
    if path.is_dir():
        raise IsADirectoryError(f"--{option}: {path} is a folder, expected a file")


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is the first that is there of cuda, mps and cpu."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available.get(name.split(":")[0]):
        there = ", ".join(kind for kind, there in available.items() if there)
        raise ValueError(f"--device must be auto or one of those here ({there}), found {name!r}")
    return torch.device(name)


@contextlib.contextmanager
def process_group(device: torch.device):
    """The group of processes that torchrun started, if it did: (own device, is this the first?)."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield device, True
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield device, dist.get_rank() == 0
    finally:
        dist.destroy_process_group()


def run_evaluate(args: argparse.Namespace) -> None:
    """Print the ELBO over all test images and log p(x) over the first ones."""
    model, _ = load_model(args.model)
    data = load_images(args.data, args.root)
    bound = mean_elbo(model, data.test, binarization=args.binarization, seed=args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    x = binarize(data.test[: args.images], args.binarization, generator)
    estimate = log_likelihood(model, x, num_samples=args.num_samples, generator=generator)
    result = {
        "data": data.name,
        "binarization": args.binarization,
        "test": bound,
        "log_likelihood": {
            "images": len(x),
            "num_samples": args.num_samples,
            "mean": estimate.value.mean().item(),
            "mean_standard_error": estimate.standard_error.mean().item(),
            "median_effective_sample_size": estimate.effective_sample_size.median().item(),
        },
    }
    print(json.dumps(result, indent=2))


@torch.no_grad()
def run_sample(args: argparse.Namespace) -> None:
    """Draw z from the prior, decode, and write the grid."""
    from torchvision.utils import save_image

    check_output("output", args.output)
    remove_unfinished(args.output)
    model, _ = load_model(args.model)
    if model.data_dim != 784:
        raise ValueError(f"{args.model} models {model.data_dim} pixels, sample draws 28 x 28 = 784")
    generator = torch.Generator().manual_seed(args.seed)
    z = torch.randn(args.count, model.latent_dim, generator=generator)
    images = torch.sigmoid(model.decode(z))
    if not args.means:
        images = torch.bernoulli(images, generator=generator)
    columns = max(1, round(args.count**0.5))
    picture = io.BytesIO()
    save_image(
        1 - images.reshape(-1, 1, 28, 28), picture, format="png", nrow=columns, pad_value=1
    )
    write_atomically(args.output, picture.getvalue())


def run_prepare(args: argparse.Namespace) -> None:
    """Fill the caches that the chapters read."""
    data = load_images()
    print(data)
    for latent_dim in (20, 2):
        _, history = trained_vae(latent_dim, data)
        print(f"{latent_dim:2d}-D model: test ELBO {history.curve('test', 'elbo')[-1]:.2f}")


def main(argv: list[str] | None = None) -> int:
    """Run one command; a wrong value or a file that cannot be used ends with one line."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except (OSError, ValueError) as error:
        print(f"{parser.prog} {args.command}: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
