"""How `pytest --nbval chapters` compares the stored outputs with fresh ones.

Numbers agree to four digits, or to one unit of the last digit printed; integers and all other text
agree exactly. Pictures, HTML and stderr are not compared. Cells whose output depends on the data
set or on training carry the tag nbval-ignore-output and assert what must hold.
"""

import math
import re
import time
from decimal import Decimal
from queue import Empty

import pytest

RTOL, ATOL = 1e-4, 1e-12  # below ATOL a number is rounding error
MOST = 0.05  # what one unit of the last digit may be worth: 0.1 is not 0.2
CELL_TIMEOUT = 300  # seconds; a missing shared model is trained within it
NOT_COMPARED = ("stderr", "image/png", "image/jpeg", "image/svg+xml", "text/html")
MNIST_IS_MISSING = "UserWarning: MNIST is not in"  # load_images says so, and goes on with digits
NUMBER = re.compile(r"[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?")


def same_number(a: str, b: str) -> bool:
    """Two printed numbers that may be one number, computed on two machines."""
    if a == b or not re.search(r"[.eE]", a + b):
        return a == b
    last_digit = max(float(Decimal(1).scaleb(Decimal(n).as_tuple().exponent)) for n in (a, b))
    rounding = min(1.0001 * last_digit, MOST * max(abs(float(a)), abs(float(b))))
    return math.isclose(float(a), float(b), rel_tol=RTOL, abs_tol=max(ATOL, rounding))


class Output(str):
    """Text that equals another up to small differences of its numbers."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str) or NUMBER.split(self) != NUMBER.split(other):
            return False
        return all(map(same_number, NUMBER.findall(self), NUMBER.findall(other)))

    def __ne__(self, other: object) -> bool:
        return not self == other


def pytest_configure(config):
    """Bring our defaults: this environment's kernel, and a time limit shorter than 2000 s."""
    if not config.pluginmanager.hasplugin("nbval"):
        return
    if not config.option.nbval_kernel_name:
        config.option.nbval_current_env = True
    if config.option.nbval_cell_timeout == 2000:
        config.option.nbval_cell_timeout = CELL_TIMEOUT


def pytest_collection_modifyitems(items):
    for item in items:
        if type(item).__name__ == "IPyNbCell":
            item.parent.skip_compare = (*item.parent.skip_compare, *NOT_COMPARED)
            item.sanitize = Output


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Fail at once when the kernel dies; nbval itself would wait for the time limit.

    Fail, too, where a cell prints a warning, which nbval does not look at.
    """
    kernel = getattr(item.parent, "kernel", None)
    if kernel is not None and not hasattr(kernel, "wait_without_looking"):
        kernel.wait_without_looking = kernel.await_reply
        kernel.await_reply = lambda msg_id, timeout=None: await_reply(kernel, msg_id, timeout)
    result = yield
    for output in getattr(item, "test_outputs", ()):
        text = output.get("text", "") if output.get("name") == "stderr" else ""
        if "Warning" in text and MNIST_IS_MISSING not in text:
            raise AssertionError(f"the cell prints a warning:\n{text}")
    return result


def await_reply(kernel, msg_id, timeout):
    deadline = time.monotonic() + timeout
    while True:
        try:
            return kernel.wait_without_looking(msg_id, timeout=1)
        except Empty:
            if not kernel.is_alive():
                raise RuntimeError("the kernel died (out of memory?)") from None
            if time.monotonic() > deadline:
                raise
