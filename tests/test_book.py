"""The chapters hold to the form that readers and the build rely on."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

import vaelib

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "_ext"))

import equations  # noqa: E402
import pair_notebooks  # noqa: E402

PAGES = [*ROOT.glob("index.md"), *sorted((ROOT / "chapters").glob("*.md"))]
GENERATED = {"equations", "api", "bibliography"}
CHECK = re.compile(r"\bassert\b|assert_close|assert_allclose|pytest\.raises")
# which modules of vaelib each one may import: arrows point one way
IMPORTS = {
    "checks": set(),
    "compensated": set(),
    "gaussian": {"checks", "compensated"},
    "bernoulli": {"checks"},
    "linear_gaussian": {"checks", "gaussian"},
    "model": {"checks", "gaussian", "bernoulli"},
    "bounds": {"checks", "gaussian"},
    "estimators": {"checks", "gaussian"},
    "data": {"checks"},
    "files": set(),
    "gradient": {"model"},
    "training": {"checks", "model", "bounds", "data", "files", "gradient"},
    "shared": {"data", "files", "model", "training"},
    "annealing": {"checks", "gaussian", "bounds"},
    "evaluation": {"checks", "bounds"},
    "plotting": set(),
}


def cells(page: Path, kind: str) -> list:
    return [cell for cell in jupytext.read(page).cells if cell.cell_type == kind]


def code_of(page: Path) -> str:
    return "\n".join(cell.source for cell in cells(page, "code"))


CHAPTERS = [page for page in PAGES if "{code-cell}" in page.read_text(encoding="utf-8")]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
each_chapter = pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)


def test_pairs_are_in_step():
    assert pair_notebooks.main(["--check"]) == 0, "run `make notebooks`"


def test_toc_lists_every_page_once():
    listed = equations.reading_order(ROOT / "_toc.yml")
    present = [str(page.relative_to(ROOT).with_suffix("")) for page in PAGES]
    assert sorted(listed) == sorted(present)


@each_chapter
def test_chapter_is_read_as_a_notebook(page):
    assert cells(page, "code"), f"{page.name} lacks the header of a MyST notebook"


@each_chapter
def test_chapter_checks_its_claims(page):
    if page.stem == "index":
        return  # the front page draws one picture and claims nothing
    assert CHECK.search(code_of(page)), f"{page.name} has code but no check"


@each_chapter
def test_code_lines_are_short(page):
    long = [line for line in code_of(page).splitlines() if len(line) > 79]
    assert not long, f"{page.name}: lines over 79 characters\n" + "\n".join(long)


@each_chapter
def test_figures_have_text_alternative_and_caption(page):
    for cell in cells(page, "code"):
        if "plt.show(" not in cell.source:
            continue
        settings = cell.metadata.get("mystnb", {})
        alt = settings.get("image", {}).get("alt", "").strip()
        figure = settings.get("figure", {})
        first = cell.source.splitlines()[0]
        assert alt, f"{page.name}: the figure of the cell {first!r} has no alt text"
        assert figure.get("name") and figure.get("caption", "").strip(), (
            f"{page.name}: the figure of the cell {first!r} has no name or no caption"
        )


@each_chapter
def test_exercises_have_solutions(page):
    text = page.read_text(encoding="utf-8")
    exercises = set(re.findall(r"^`{3,}\{exercise\}.*\n:label: (\S+)", text, re.MULTILINE))
    solutions = re.findall(r"^`{3,}\{solution(?:-start)?\} (\S+)", text, re.MULTILINE)
    assert exercises == set(solutions), f"{page.name}: an exercise or a solution stands alone"
    assert len(solutions) == len(exercises), f"{page.name}: a second solution to one exercise"
    if page.stem not in GENERATED | {"index", "notation", "errata"}:
        assert len(exercises) >= 4, f"{page.name}: {len(exercises)} exercises, at least 4 expected"


@each_page
def test_page_holds_no_path_of_one_machine(page):
    """No source and no stored output names a home, a temporary or a working folder."""
    for file in (page, page.with_suffix(".ipynb")):
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        found = re.search(r"(?<![\w.])/(?:home|root|tmp|work|Users|mnt|opt)/\w+", text)
        assert not found, f"{file.name} holds {found[0]}"


def test_api_page_lists_every_public_name():
    text = (ROOT / "chapters" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"\.\. auto(?:function|class):: (\w+)$", text, re.MULTILINE)
    assert sorted(listed) == sorted(vaelib.__all__)


def imports_of(source: str) -> set[str]:
    """The modules of vaelib that a module of vaelib imports, wherever the import stands."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""] + [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("vaelib.")}
    return found & set(IMPORTS)


@pytest.mark.parametrize("module", IMPORTS)
def test_imports_of_the_package_point_one_way(module):
    file = ROOT / "vaelib" / f"{module}.py"
    if file.exists():
        assert imports_of(file.read_text()) <= IMPORTS[module]


def test_every_module_of_the_package_has_its_row():
    modules = {file.stem for file in (ROOT / "vaelib").glob("*.py")}
    assert modules - {"__init__", "__main__"} <= set(IMPORTS)


def test_an_import_inside_a_function_counts():
    source = "def f():\n    from vaelib import bounds\n    import vaelib.model\n"
    assert imports_of(source) == {"bounds", "model"}


NOTEBOOK = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3 (ipykernel)
  language: python
  name: python3
---

```{code-cell} ipython3
import sys

print("out")
print("noise", file=sys.stderr)
```
"""


@pytest.fixture
def notebook(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(NOTEBOOK)
    return page


def pair(*arguments) -> int:
    """The exit status of the pairing script, in a process of its own."""
    script = str(ROOT / "_ext" / "pair_notebooks.py")
    return subprocess.run([sys.executable, script, *arguments], capture_output=True).returncode


def test_pairing_twice_gives_the_same_bytes(notebook):
    assert pair(notebook) == 0
    first = notebook.with_suffix(".ipynb").read_bytes()
    assert pair(notebook) == 0
    assert notebook.with_suffix(".ipynb").read_bytes() == first
    assert b'"out\\n"' in first and b'"noise\\n"' not in first
    assert sorted(file.name for file in notebook.parent.iterdir()) == ["page.ipynb", "page.md"]


@pytest.mark.parametrize(
    ("old", "new"), [("ipython3\n", "ipython3\n:tags: [hide-input]\n\n"), ("out", "in")]
)
def test_a_changed_source_or_tag_makes_the_pair_stale(notebook, old, new):
    assert pair("--check", notebook) == 1
    assert pair(notebook) == 0
    assert pair("--check", notebook) == 0
    notebook.write_text(notebook.read_text().replace(old, new))
    assert pair("--check", notebook) == 1


def test_pairing_stops_at_a_cell_that_raises(notebook):
    notebook.write_text(notebook.read_text().replace('print("out")', "1 / 0"))
    assert pair(notebook) == 1
    assert not notebook.with_suffix(".ipynb").exists()


@pytest.fixture(scope="module")
def comparison():
    """chapters/conftest.py as a module of its own name."""
    file = ROOT / "chapters" / "conftest.py"
    specification = importlib.util.spec_from_file_location("chapters_conftest", file)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("stored", "fresh", "equal"),
    [
        ("ELBO -3.102725 nats", "ELBO -3.102726 nats", True),  # another machine
        ("ELBO -3.102725 nats", "ELBO -3.103725 nats", False),  # 3e-4 relative
        ("0.1235", "0.1234", True),  # one unit of the last digit
        ("0.1235", "0.1233", False),
        ("0.1", "0.2", False),  # one unit, but worth too much
        ("1.2e-16", "-3.4e-15", True),  # rounding error
        ("1.2e-06", "1.3e-06", False),
        ("20 tests", "21 tests", False),  # integers are exact
        ("-0.00", "0.00", True),
        ("1.0 nats", "1.0 bits", False),
        ("1.0 2.0", "1.0", False),
        ("nan", "1.0", False),
    ],
)
def test_stored_outputs_are_compared_number_by_number(comparison, stored, fresh, equal):
    assert (comparison.Output(stored) == fresh) is equal
    assert (comparison.Output(stored) != fresh) is not equal
