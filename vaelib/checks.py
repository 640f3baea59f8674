"""Checks of tensor arguments at the border of the public functions.

Each raises an error that names the argument, what was found and what was expected.
"""

import math

import torch
from torch import Tensor


def check_floating(**tensors: Tensor) -> None:
    """Raise a TypeError unless every argument is a floating-point tensor."""
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, found {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"{name} must be of a floating-point dtype, found {value.dtype}")


def check_finite(**tensors: Tensor) -> None:
    """Raise a ValueError if an argument holds NaN or an infinity."""
    for name, value in tensors.items():
        value = value.detach()
        if value.is_meta:
            raise ValueError(f"{name} must hold values, found a tensor on the meta device")
        if math.isfinite(value.sum().item()):  # one cheap pass; finite values may sum to infinity
            continue
        finite = torch.isfinite(value)
        if not finite.all():
            bad = value[~finite]
            raise ValueError(
                f"{name} must be finite, found {bad.numel()} of {value.numel()} values "
                f"that are not (the first is {bad[0].item()})"
            )


def check_vectors(**tensors: Tensor) -> None:
    """Check a family of batched vectors: floating, on one device, finite, with broadcasting shapes.

    The last axes must be equal (an axis of 1 against N is an error, not a broadcast); the leading
    axes must broadcast.
    """
    check_floating(**tensors)
    (first, reference), *others = tensors.items()
    if reference.ndim == 0:
        raise ValueError(f"{first} must have at least one axis, found a scalar")
    for name, value in others:
        if value.ndim == 0 or value.shape[-1] != reference.shape[-1]:
            raise ValueError(
                f"{name} must have the same last axis as {first}: found {name} of shape "
                f"{tuple(value.shape)} and {first} of shape {tuple(reference.shape)}"
            )
    check_same_device(**tensors)
    check_broadcast({name: value.shape[:-1] for name, value in tensors.items()})
    check_finite(**tensors)


def check_square(size: int, **matrices: Tensor) -> None:
    """Check square matrices [*, size, size]: floating, finite, symmetric up to rounding."""
    check_floating(**matrices)
    for name, matrix in matrices.items():
        if matrix.shape[-2:] != (size, size) or size == 0:
            raise ValueError(
                f"{name} must have shape [*, L, L] with L = {size} (and L at least 1), "
                f"found {tuple(matrix.shape)}"
            )
        check_finite(**{name: matrix})
        asymmetry = (matrix - matrix.mT).abs().amax((-2, -1))
        rounding = 100 * torch.finfo(matrix.dtype).eps * matrix.abs().amax((-2, -1))
        if (asymmetry > rounding).any():
            raise ValueError(
                f"{name} must be symmetric, found entries that differ by {asymmetry.max():g}"
            )


def check_same_device(**tensors: Tensor) -> None:
    """Raise a ValueError unless all arguments lie on the device of the first."""
    (first, reference), *others = tensors.items()
    for name, value in others:
        if value.device != reference.device:
            raise ValueError(
                f"{name} must be on the device of {first}: found {value.device} and "
                f"{reference.device}"
            )


def check_broadcast(shapes: dict[str, torch.Size]) -> None:
    """Raise a ValueError unless the (leading) shapes broadcast against each other."""
    if len(set(shapes.values())) == 1:
        return
    try:
        torch.broadcast_shapes(*shapes.values())
    except RuntimeError:
        found = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise ValueError(f"the leading axes must broadcast, found {found}") from None


def check_unit_interval(**tensors: Tensor) -> None:
    """Raise a ValueError unless all values lie in [0, 1] (NaN does not)."""
    for name, value in tensors.items():
        if value.numel():
            low, high = (bound.item() for bound in torch.aminmax(value.detach()))
            if not (low >= 0 and high <= 1):
                raise ValueError(
                    f"{name} must lie in [0, 1], found values from {low:g} to {high:g}"
                )


def check_data(**tensors: Tensor) -> None:
    """Check data sets [B, D]: floating, not empty, finite."""
    check_floating(**tensors)
    for name, value in tensors.items():
        if value.ndim != 2 or 0 in value.shape:
            raise ValueError(
                f"{name} must have shape [B, D] and not be empty, found {tuple(value.shape)}"
            )
    check_finite(**tensors)


def check_choice(name: str, value: object, choices: tuple) -> None:
    """Raise a ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        expected = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be {expected}, found {value!r}")


def check_positive_int(**values: int) -> None:
    """Raise a ValueError unless every argument is an integer of at least one."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, found {value!r}")
