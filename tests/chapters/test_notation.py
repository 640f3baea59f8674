"""The notation page tells the truth: its expressions run and have the shapes that it states."""

import re
from pathlib import Path

import jupytext
import pytest

import vaelib

PAGE = Path(__file__).resolve().parents[2] / "chapters" / "notation.md"


def rows_with_code() -> list[tuple[str, str | None]]:
    """The column "in code" of each table, with the column "shape" where the table has one."""
    found, columns = [], []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            columns = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not columns:
            columns = cells
        elif not set(line) <= set("|-"):
            assert len(cells) == len(columns), f"a table row with a missing column: {line}"
            row = dict(zip(columns, cells))
            code = re.fullmatch("`(.+)`", row["in code"])
            assert code, f"no code in {line}"
            found.append((code[1], row.get("shape")))
    return found


ROWS = rows_with_code()


@pytest.fixture(scope="module")
def names() -> dict:
    """What the page's own cells define."""
    namespace = {}
    for cell in jupytext.read(PAGE).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, "notation.md", "exec"), namespace)
    return namespace


def test_page_has_its_tables():
    assert len(ROWS) > 40


@pytest.mark.parametrize(("code", "shape"), ROWS, ids=[code for code, _ in ROWS])
def test_expression_runs_and_has_the_stated_shape(names, code, shape):
    value = eval(code, names)
    if shape is None:
        assert isinstance(value, int)  # an axis
    elif shape == "–":
        assert list(value.parameters())  # a network
    else:
        stated = [int(n) if n.isdigit() else names[n] for n in re.findall(r"\w+", shape)]
        assert list(value.shape) == stated


def test_sizes_differ_so_that_no_axis_stands_for_another(names):
    assert len({names[axis] for axis in "BLDKN"} | {8, 784}) == 7


def test_imports_of_the_page_are_public_names():
    source = "\n".join(c.source for c in jupytext.read(PAGE).cells if c.cell_type == "code")
    (imported,) = re.findall(r"from vaelib import \(([^)]+)\)", source)
    assert set(re.findall(r"\w+", imported)) <= set(vaelib.__all__)
