"""The line under a chapter's title holds what was counted and what was measured."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from docutils import nodes

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "_ext"))

import page_times  # noqa: E402

HEADER = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3 (ipykernel)
  language: python
  name: python3
---

"""
CELL = "```{code-cell} ipython3\nimport time\n\ntime.sleep(1.5)\nprint('one two three')\n```\n"
EXERCISE = "```{exercise}\n:label: ex\nTry.\n```\n```{solution} ex\n" + "word " * 4000 + "\n```\n"


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A book whose chapter has 2,000 words and a cell that sleeps for 1.5 seconds."""
    folder = tmp_path_factory.mktemp("book")
    (folder / "conf.py").write_text(
        f"import sys\nsys.path.append({str(ROOT / '_ext')!r})\n"
        "extensions = ['myst_nb', 'sphinx_exercise', 'page_times']\n"
        "nb_execution_mode = 'cache'\nexclude_patterns = ['_build']\n"
    )
    (folder / "index.md").write_text(
        f"{HEADER}# Book\n\n{CELL}\n```{{toctree}}\nchapter\nplain\n```\n"
    )
    (folder / "chapter.md").write_text(f"{HEADER}# Chapter\n\n{'word ' * 2000}\n\n{CELL}{EXERCISE}")
    (folder / "plain.md").write_text("# Plain\n\nNo code.\n")
    return folder


def build(book: Path) -> dict[str, str]:
    """The line of each page, empty where there is none; a warning is an error."""
    command = [sys.executable, "-m", "sphinx", "-q", "-E", "-W", book, book / "_build/html"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {page.stem: page.read_text() for page in (book / "_build/html").glob("*.html")}
    pattern = re.compile(r'<h1>.*?</h1>\s*<p class="page-times">(.*?)</p>', re.DOTALL)
    lines = {name: pattern.search(pages[name]) for name in ("index", "chapter", "plain")}
    return {name: line[1] if line else "" for name, line in lines.items()}


def test_only_an_executed_chapter_has_the_line_and_a_cached_run_keeps_its_time(book):
    first = build(book)
    assert first["index"] == first["plain"] == ""
    read, run = re.fullmatch(
        r"To read: about (\d+) minutes, without the solutions\. "
        r"To run: (\d+) seconds, measured when this page was built\.",
        first["chapter"],
    ).groups()
    assert read == "10"  # 2,000 words, and not the 4,000 of the solution
    assert 2 <= int(run) < 60
    assert build(book) == first


def test_a_page_counts_words_code_lines_and_formulas_and_no_output():
    page = nodes.section()
    page += nodes.title("", "Two words")
    page += nodes.paragraph("", "", nodes.Text("if "), nodes.math("", "a + b"), nodes.Text(" then"))
    page += nodes.math_block("", "c = d")
    page += nodes.literal_block("", "x = 1\n\ny = 2\n")
    page += nodes.container("", nodes.literal_block("", "printed"), classes=["cell_output"])
    page += page_times.HideCodeCellNode("", nodes.literal_block("", "folded"))
    assert page_times.count(page) == {"word": 5, "code line": 2, "displayed formula": 1}


@pytest.mark.parametrize(
    ("words", "minutes"), [(0, 1), (400, 2), (1900, 10), (2300, 10), (2600, 15), (9000, 45)]
)
def test_reading_time_is_rounded_as_it_can_be_known(words, minutes):
    page = nodes.section("", nodes.paragraph("", "word " * words))
    assert page_times.reading_minutes(page) == minutes


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 second"), (1.4, "1 second"), (13.1, "13 seconds"), (89.4, "89 seconds")]
    + [(95, "2 minutes"), (60 * 45, "45 minutes")],
)
def test_a_time_is_told_in_one_unit(seconds, text):
    assert page_times.in_words(seconds) == text
