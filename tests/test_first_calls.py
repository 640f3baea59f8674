"""MKL's functions are first called by one thread: their results do not depend on luck."""

import subprocess
import sys

IMPORT_WATCHED = """
import torch
from torch.utils._python_dispatch import TorchDispatchMode

class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if torch.is_tensor(result):
            print(operation._schema.name, str(result.dtype), result.numel())
        return result

with Watch():
    import vaelib
"""


def test_the_import_calls_each_function_of_mkl_on_one_element():
    said = subprocess.run(
        [sys.executable, "-c", IMPORT_WATCHED], capture_output=True, text=True, check=True
    )
    calls = [line.split() for line in said.stdout.splitlines()]
    assert all(int(count) == 1 for *_, count in calls)  # nothing large comes before
    # Of the functions that PyTorch takes from MKL, those that this book calls, and more.
    names = "exp expm1 log log1p log2 sqrt sin cos tan tanh erf erfc acos asin atan log10".split()
    dtypes = ("torch.float32", "torch.float64")
    assert {(f"aten::{name}", dtype) for name in names for dtype in dtypes} <= {
        (name, dtype) for name, dtype, _ in calls
    }
