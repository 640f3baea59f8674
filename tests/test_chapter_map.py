"""The map of the front page shows what the chapters say that they need."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "_ext"))

import chapter_map  # noqa: E402

CHAPTERS = [
    ROOT / f"{page}.md"
    for _, pages in chapter_map.numbered_parts(ROOT / "_toc.yml")
    for page in pages
]
TOC = """root: index
parts:
  - caption: "Part & parcel"
    numbered: true
    chapters:
      - file: chapters/one
      - file: chapters/two
      - file: chapters/three
  - caption: Back
    chapters:
      - file: chapters/back
"""
PAGES = {
    "one": "# One\n\nYou need: courage, and [back](back.md) at hand.\n\n[Not this](three.md).\n",
    "two": "# Two < three\n\nYou need [the\nfirst](one.md).\n",
    "three": "# Three\n\nYou need [one](one.md) and [two](two.md).\n",
    "back": "# Back\n",
}


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)
def test_chapter_says_what_it_needs(page):
    assert chapter_map.NEED.search(page.read_text(encoding="utf-8"))


def test_the_book_has_no_circle_and_one_chapter_to_start_with():
    names = {page.stem for page in CHAPTERS}
    needs = {page.stem: chapter_map.stated_needs(page) & names for page in CHAPTERS}
    assert not chapter_map.direct_needs(needs)[CHAPTERS[0].stem]


def test_what_follows_from_the_rest_is_left_out():
    needs = {"a": set(), "b": {"a"}, "c": {"a", "b"}, "d": {"a", "c"}}
    assert chapter_map.direct_needs(needs) == {"a": set(), "b": {"a"}, "c": {"b"}, "d": {"c"}}


@pytest.mark.parametrize("needs", [{"a": {"a"}}, {"a": {"b"}, "b": {"c"}, "c": {"a"}}])
def test_a_circle_is_an_error_that_names_it(needs):
    with pytest.raises(ValueError, match="circle: .*a"):
        chapter_map.direct_needs(needs)


def test_built_page_links_each_chapter_and_tells_the_needs(tmp_path):
    (tmp_path / "chapters").mkdir()
    for name, text in PAGES.items():
        (tmp_path / f"chapters/{name}.md").write_text(text)
    (tmp_path / "_toc.yml").write_text(TOC)
    toctree = "```{toctree}\nchapters/one\nchapters/two\nchapters/three\nchapters/back\n```\n"
    (tmp_path / "index.md").write_text(f"# Book\n\n```{{chapter-map}}\n```\n\n{toctree}")
    (tmp_path / "conf.py").write_text(
        f"import sys\nsys.path.append({str(ROOT / '_ext')!r})\n"
        "extensions = ['myst_parser', 'chapter_map']\n"
    )
    command = [sys.executable, "-m", "sphinx", "-q", "-W", tmp_path, tmp_path / "html"]
    subprocess.run(command, check=True)
    page = (tmp_path / "html/index.html").read_text()
    drawing = page[page.index("<svg") : page.index("</svg>")]
    assert drawing.count('class="need"') == 2  # three needs one by way of two
    assert "<desc>2 builds on 1; 3 builds on 2.</desc>" in drawing
    assert "Part &amp; parcel" in drawing and "2. Two &lt; three" in drawing
    for name in ("one", "two", "three"):
        assert f'href="chapters/{name}.html"' in drawing
    assert "back.html" not in drawing
