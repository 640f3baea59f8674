"""Every exercise states its level, and the list and the stars show it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "_ext"))

import exercise_list  # noqa: E402

PAGES = sorted((ROOT / "chapters").glob("*.md"))
PAGE = """# The $x$ page

```{exercise} Let $y$ be
:label: ex-one

(★★) Show it.
```

````{exercise} Again
:label: ex-two
(★) Show it
again.
````
"""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_exercise_states_a_label_a_title_and_a_level(page):
    for exercise in exercise_list.find_exercises(page):
        where = f"{page.name}:{exercise.line}"
        assert exercise.label and exercise.title, f"{where}: an exercise without label or title"
        assert exercise.level, f"{where}: {exercise.label} must start with (★) to (★★★★)"


def test_no_exercise_of_the_book_is_overlooked():
    written = sum(page.read_text(encoding="utf-8").count("{exercise") for page in PAGES)
    generated = (ROOT / "chapters/exercises.md").read_text(encoding="utf-8").count("{exercise")
    found = sum(len(exercise_list.find_exercises(page)) for page in PAGES)
    assert found == written - generated > 60


@pytest.fixture
def book(tmp_path):
    """A book of one page with two exercises."""
    (tmp_path / "conf.py").write_text(
        f"import sys\nsys.path.append({str(ROOT / '_ext')!r})\n"
        "extensions = ['myst_parser', 'sphinx_exercise', 'exercise_list']\n"
        "myst_enable_extensions = ['dollarmath']\n"
    )
    (tmp_path / "_toc.yml").write_text("root: index\nchapters:\n  - file: page\n  - file: all\n")
    (tmp_path / "index.md").write_text("# Book\n\n```{toctree}\npage\nall\n```\n")
    (tmp_path / "all.md").write_text("# Exercises\n\n```{exercise-list}\n```\n")
    (tmp_path / "page.md").write_text(PAGE)
    return tmp_path


def build(book: Path) -> str:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-n", book, book / "html"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode == 0) == (done.stderr == "")
    return done.stderr


def test_labels_titles_levels_and_lines_are_read(book):
    first, second = exercise_list.find_exercises(book / "page.md")
    assert (first.label, first.title, first.level, first.line) == ("ex-one", "Let $y$ be", 2, 3)
    assert (second.label, second.title, second.level, second.line) == ("ex-two", "Again", 1, 9)


def test_page_shows_stars_with_a_text_alternative(book):
    assert build(book) == ""
    page = (book / "html/page.html").read_text()
    assert 'aria-label="level 2 of 4" class="exercise-level" role="img">★★☆☆</span> Show it' in page
    assert "(★" not in page


def test_list_names_each_exercise_by_number_title_and_level(book):
    assert build(book) == ""
    page = (book / "html/all.html").read_text()
    assert "2 exercises: 1 of " in page
    for label, number, level in (("ex-one", 1, "★★☆☆"), ("ex-two", 2, "★☆☆☆")):
        entry = next(e for e in page.split("<li>") if f'href="page.html#{label}"' in e)
        assert f"Exercise {number}</span>" in entry and level in entry
    assert ': Let <span class="math' in page and "The <span" in page


def test_list_follows_a_changed_page(book):
    assert build(book) == ""
    page = book / "page.md"
    page.write_text(page.read_text().replace("(★★)", "(★★★)"))
    assert build(book) == ""
    assert "★★★☆" in (book / "html/all.html").read_text()


@pytest.mark.parametrize("wrong", ["", "(★★★★★) ", "★★ "])
def test_an_exercise_without_a_level_fails_the_build(book, wrong):
    page = book / "page.md"
    page.write_text(page.read_text().replace("(★★) ", wrong))
    assert "exercise ex-one: no level" in build(book)
    assert exercise_list.find_exercises(page)[0].level is None


def test_list_leads_to_each_exercise_in_the_pdf_too(book):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "latex", book, book / "latex"]
    subprocess.run(command, check=True)
    (text,) = (file.read_text() for file in (book / "latex").glob("*.tex"))
    for label in ("ex-one", "ex-two"):
        assert rf"\label{{exercise:{label}}}" in text
        assert rf"\hyperref[exercise:{label}]{{Exercise " in text
