"""Every labelled equation is tied to a test, and the mechanism that says so can fail."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "_ext"))

import equations  # noqa: E402

PAGE = """# A page

Not labelled: $$ a $$

$$
\\log p(x) \\ge \\mathcal L
$$ (eq-bound)

> Inline $x$, then

$$ b = c $$ (eq-short)
"""
TESTS = """
import pytest
from pytest import mark

@pytest.mark.equation("eq-bound")
@pytest.mark.equation("eq-short")
def test_both(): ...
"""


@pytest.fixture
def tree(tmp_path):
    """A book of one page and one test file in which everything is tied."""
    for folder, name, text in (("chapters", "page.md", PAGE), ("tests", "test_page.py", TESTS)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(text)
    return tmp_path


def problems_of(root: Path) -> list[str]:
    found = equations.find_equations(root / "chapters")
    return equations.problems(found, equations.find_marks(root / "tests"))


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_every_equation_of_the_book_has_a_test():
    problems = problems_of(ROOT) + equations.unreadable_labels(ROOT / "chapters")
    assert not problems, "\n" + "\n".join(problems)


def test_labels_are_read_with_their_equation_and_line(tree):
    bound, short = equations.find_equations(tree / "chapters")
    assert (bound.label, bound.math, bound.line) == ("eq-bound", r"\log p(x) \ge \mathcal L", 5)
    assert (short.label, short.math, short.line) == ("eq-short", "b = c", 11)
    assert problems_of(tree) == []


def test_deleting_a_mark_fails(tree):
    replace(tree / "tests/test_page.py", '@pytest.mark.equation("eq-short")\n', "")
    (problem,) = problems_of(tree)
    assert problem.startswith("page.md:11: no test checks the equation eq-short")


def test_deleting_a_label_fails(tree):
    replace(tree / "chapters/page.md", " (eq-bound)", "")
    assert problems_of(tree) == ["test_page.py:5: test_both checks eq-bound, which no chapter labels"]


def test_a_label_given_twice_fails(tree):
    (tree / "chapters/zebra.md").write_text("$$ d $$ (eq-bound)\n")
    assert problems_of(tree) == ["zebra.md:1: the label eq-bound stands already in page.md:5"]


def test_a_misspelt_mark_fails_on_both_sides(tree):
    replace(tree / "tests/test_page.py", '"eq-bound"', '"eq-bond"')
    missing, unknown = problems_of(tree)
    assert "no test checks the equation eq-bound" in missing
    assert "test_both checks eq-bond" in unknown


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("def test_both", "def helper"),
        ("def test_both(): ...", "class Both:\n    def test_both(self): ..."),
    ],
)
def test_a_mark_that_pytest_does_not_collect_fails(tree, old, new):
    replace(tree / "tests/test_page.py", old, new)
    problems = problems_of(tree)
    assert sum("pytest does not collect it" in problem for problem in problems) >= 1
    assert sum("no test checks the equation" in problem for problem in problems) == 2


def test_a_mark_outside_a_test_file_fails(tree):
    (tree / "tests/test_page.py").rename(tree / "tests/page.py")
    assert any("no test checks the equation eq-bound" in problem for problem in problems_of(tree))


def test_a_computed_label_fails(tree):
    replace(tree / "tests/test_page.py", '"eq-short"', '"eq-" + "short"')
    assert any("must name its label as a literal" in problem for problem in problems_of(tree))


@pytest.mark.parametrize(
    "source",
    [
        'pytestmark = pytest.mark.equation("eq-bound")\ndef test_a(): ...',
        'pytestmark = [pytest.mark.slow, pytest.mark.equation("eq-bound")]\ndef test_a(): ...',
        '@pytest.mark.equation("eq-bound")\nclass TestIt:\n    def test_a(self): ...',
        'class TestIt:\n    @mark.equation("eq-bound")\n    def test_a(self): ...',
        '@mark.parametrize("x", [pytest.param(1, marks=mark.equation("eq-bound"))])\n'
        "def test_a(x): ...",
    ],
    ids=["module", "module list", "class", "method", "parameter"],
)
def test_marks_are_found_wherever_pytest_reads_them(tmp_path, source):
    (tmp_path / "test_it.py").write_text(source)
    (mark,) = equations.find_marks(tmp_path)
    assert mark.label == "eq-bound" and mark.collected and mark.test.endswith("test_a")


def test_a_test_that_raises_nothing_inherits_no_foreign_mark(tmp_path):
    (tmp_path / "test_it.py").write_text(
        'class TestOne:\n    pytestmark = pytest.mark.equation("eq-bound")\n'
        "    def test_a(self): ...\ndef test_b(): ...\n"
    )
    assert [mark.test for mark in equations.find_marks(tmp_path)] == ["TestOne::test_a"]


@pytest.mark.parametrize(
    "text", ["```{math}\n:label: eq-fenced\na\n```", "\\begin{align}\n\\label{eq-ams} a\n\\end{align}"]
)
def test_a_label_in_another_form_fails(tmp_path, text):
    (tmp_path / "page.md").write_text(text)
    (problem,) = equations.unreadable_labels(tmp_path)
    assert "write the label as $$ ... $$" in problem


def test_reading_order_follows_the_toc(tmp_path):
    toc = tmp_path / "_toc.yml"
    toc.write_text("root: index\nparts:\n  - chapters:\n      - file: b\n      - file: a\n")
    assert equations.reading_order(toc) == ["index", "b", "a"]


@pytest.fixture
def build(tree):
    """Build the small book with Sphinx, warnings as errors; return what went wrong."""
    (tree / "conf.py").write_text(
        f"import sys\nsys.path.append({str(ROOT / '_ext')!r})\n"
        "extensions = ['myst_parser', 'equation_notes']\n"
        "myst_enable_extensions = ['dollarmath']\n"
    )
    (tree / "_toc.yml").write_text("root: index\nchapters:\n  - file: chapters/page\n")
    (tree / "index.md").write_text(
        "# Book\n\n```{toctree}\nchapters/page\nchapters/equations\n```\n"
    )
    (tree / "chapters/equations.md").write_text("# Equations\n\n```{equation-index}\n```\n")

    def run() -> str:
        command = [sys.executable, "-m", "sphinx", "-q", "-W", "-n", tree, tree / "html"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode == 0) == (done.stderr == "")
        return done.stderr

    return run


def test_pages_name_the_tests_of_each_equation(tree, build):
    assert build() == ""
    page = (tree / "html/chapters/page.html").read_text().replace("<wbr>", "")
    index = (tree / "html/chapters/equations.html").read_text().replace("<wbr>", "")
    assert page.count("test_page.py::test_both") == 2
    assert 'href="equations.html#checked-eq-bound"' in page
    assert "2 labelled equations are checked by 1 test" in index
    for label in ("eq-bound", "eq-short"):
        assert f'id="checked-{label}"' in index
        assert f'href="page.html#equation-{label}"' in index


def test_build_fails_on_a_label_that_the_index_misses(tree, build):
    with (tree / "chapters/page.md").open("a") as page:
        page.write("\n```{math}\n:label: eq-fenced\na\n```\n")
    assert "equation eq-fenced: label is not written as $$" in build()
