"""What the checks of arguments accept, refuse and say."""

import math
import re

import pytest
import torch

from vaelib import checks

A = torch.zeros(4, 3)


def refuses(error: type[Exception], message: str):
    return pytest.raises(error, match="^" + re.escape(message))


def test_floating_point_tensors_of_every_width_pass():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        checks.check_floating(a=A.to(dtype))


@pytest.mark.parametrize(
    "bad, message",
    [
        ([1.0], "b must be a torch.Tensor, found list"),
        (A.numpy(), "b must be a torch.Tensor, found ndarray"),
        (A.long(), "b must be of a floating-point dtype, found torch.int64"),
        (A.bool(), "b must be of a floating-point dtype, found torch.bool"),
        (A.to(torch.complex64), "b must be of a floating-point dtype, found torch.complex64"),
    ],
    ids=["list", "array", "integers", "booleans", "complex"],
)
def test_anything_but_a_floating_point_tensor_is_a_type_error(bad, message):
    with refuses(TypeError, message):
        checks.check_floating(a=A, b=bad)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_single_value_that_is_not_finite_is_found(bad):
    value = A.clone()
    value[3, 2] = bad
    with refuses(ValueError, f"b must be finite, found 1 of 12 values that are not (the first is {bad})"):
        checks.check_finite(a=A, b=value)


def test_infinities_that_cancel_in_a_sum_are_found():
    with refuses(ValueError, "a must be finite, found 2 of 2"):
        checks.check_finite(a=torch.tensor([math.inf, -math.inf]))


def test_finite_values_whose_sum_overflows_pass():
    checks.check_finite(a=torch.full((10,), 3e38), b=torch.full((9,), 6e4).half())


def test_nothing_is_finite():
    checks.check_finite(a=torch.zeros(0, 3))


def test_vectors_with_equal_last_axes_and_broadcasting_leading_axes_pass():
    checks.check_vectors(a=torch.zeros(5, 1, 3), b=A, c=torch.zeros(3))


@pytest.mark.parametrize(
    "other, message",
    [
        (
            torch.zeros(4, 1),
            "b must have the same last axis as a: found b of shape (4, 1) and a of shape (4, 3)",
        ),
        (
            torch.tensor(0.0),
            "b must have the same last axis as a: found b of shape () and a of shape (4, 3)",
        ),
        (torch.zeros(5, 3), "the leading axes must broadcast, found a (4,), b (5,)"),
        (torch.full((3,), math.nan), "b must be finite, found 3 of 3"),
    ],
    ids=["column", "scalar", "leading", "nan"],
)
def test_vectors_that_do_not_fit_are_refused(other, message):
    with refuses(ValueError, message):
        checks.check_vectors(a=A, b=other)


def test_a_scalar_is_no_vector():
    with refuses(ValueError, "a must have at least one axis, found a scalar"):
        checks.check_vectors(a=torch.tensor(1.0))


def test_tensors_on_two_devices_are_refused():
    with refuses(ValueError, "b must be on the device of a: found meta and cpu"):
        checks.check_same_device(a=A, b=torch.zeros(4, 3, device="meta"))
    with refuses(ValueError, "b must be on the device of a"):
        checks.check_vectors(a=A, b=torch.zeros(4, 3, device="meta"))


def test_symmetric_square_matrices_pass_and_definiteness_is_not_asked():
    checks.check_square(2, a=-torch.eye(2), b=torch.eye(2).expand(3, 2, 2), c=torch.zeros(0, 2, 2))
    noisy = torch.tensor([[1.0, 0.5], [0.5 + 1e-6, 1.0]])
    checks.check_square(2, a=noisy)


@pytest.mark.parametrize(
    "matrix, message",
    [
        (torch.eye(3), "b must have shape [*, L, L] with L = 2 (and L at least 1), found (3, 3)"),
        (torch.zeros(2), "b must have shape [*, L, L] with L = 2 (and L at least 1), found (2,)"),
        (torch.tensor([[1.0, 2], [0, 1]]), "b must be symmetric, found entries that differ by 2"),
        (torch.tensor([[1.0, math.nan], [0, 1]]), "b must be finite, found 1 of 4"),
    ],
    ids=["size", "vector", "asymmetric", "nan"],
)
def test_bad_matrices_are_refused(matrix, message):
    with refuses(ValueError, message):
        checks.check_square(2, a=torch.eye(2), b=matrix)


def test_asymmetry_is_judged_for_each_matrix_by_its_own_size():
    batch = torch.stack([1e9 * torch.eye(2), torch.tensor([[1.0, 0.0], [0.1, 1.0]])])
    with refuses(ValueError, "a must be symmetric, found entries that differ by 0.1"):
        checks.check_square(2, a=batch)


def test_matrices_of_no_rows_are_refused():
    with refuses(ValueError, "a must have shape [*, L, L] with L = 0 (and L at least 1)"):
        checks.check_square(0, a=torch.zeros(0, 0))


def test_unit_interval_holds_its_ends_and_nothing_beyond():
    checks.check_unit_interval(a=torch.tensor([0.0, 0.5, 1.0]), b=torch.zeros(0, 3))
    for bad in (-1e-7, 1.5, math.nan):
        with refuses(ValueError, "a must lie in [0, 1], found values from "):
            checks.check_unit_interval(a=torch.tensor([0.5, bad]))


def test_a_choice_must_be_among_the_choices():
    checks.check_choice("how", "b", ("a", "b"))
    with refuses(ValueError, "how must be 'a' or 'b', found 'c'"):
        checks.check_choice("how", "c", ("a", "b"))


@pytest.mark.parametrize("bad", [0, -1, 1.0, "1", True, None])
def test_a_count_must_be_a_positive_integer(bad):
    checks.check_positive_int(n=1)
    with refuses(ValueError, f"n must be an integer of at least 1, found {bad!r}"):
        checks.check_positive_int(n=bad)
