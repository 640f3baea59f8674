"""Every link inside the built book leads to a file that is there, and to a place in it."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ADDRESSES = {"href", "src", "poster"}


class Page(HTMLParser):
    """The addresses that a page names, and the places in it that have a name."""

    def __init__(self, file: Path):
        super().__init__()
        self.links: list[str] = []
        self.places = {"", "top"}  # both mean the top of the page, without an id
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        for key, value in attributes:
            if key in ADDRESSES and value:
                self.links.append(value)
            if key == "id" or (tag == "a" and key == "name"):
                self.places.add(value)


def broken_links(book: Path) -> list[str]:
    """One line for each link of a page to a file or a place that the book lacks."""
    pages = {
        file.resolve(): Page(file)
        for file in sorted(book.rglob("*.html"))
        if not file.relative_to(book).parts[0].startswith("_")
    }
    broken = set()
    for file, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue  # another host's, or data in the page: make check-links
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            places = pages[target].places if target in pages else {""}
            if not target.is_file():
                broken.add(f"{file.stem}: {link}: no such file")
            elif unquote(parts.fragment) not in places:
                broken.add(f"{file.stem}: {link}: no such place")
    return sorted(broken)


def test_every_link_inside_the_book_leads_somewhere(html):
    problems = broken_links(html)
    assert not problems, "\n" + "\n".join(problems)


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ("b.html#there", None),
        ("#here", None),
        ("#", None),
        ("b.html?q=1", None),
        ("https://host.invalid/", None),
        ("c.html", "no such file"),
        ("b.html#here", "no such place"),
        ("#there", "no such place"),
        ("../outside.html", "no such file"),
        ("sub", "no such file"),
    ],
)
def test_a_link_that_leads_nowhere_is_found(tmp_path, link, problem):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.html").write_text(f'<p id="here"><a href="{link}">x</a></p>')
    (tmp_path / "b.html").write_text('<p id="there"><img src="a.html"></p>')
    assert broken_links(tmp_path) == ([f"a: {link}: {problem}"] if problem else [])
