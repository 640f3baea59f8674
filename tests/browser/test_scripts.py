"""The built pages name no file of another host and hold no script that does."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

# Attributes whose file a browser loads by itself, unlike the address of a link.
LOADED = {
    "script": "src", "img": "src", "iframe": "src", "embed": "src", "source": "src",
    "video": "src", "audio": "src", "object": "data", "link": "href",
}  # fmt: skip
NAMES_ONLY = {"canonical", "next", "prev", "search", "index", "author", "license"}  # of a <link>
NAMESPACE = "http://www.w3.org/"  # names a format; it is never fetched
ADDRESS = re.compile(r"(?:\b(?:https?|wss?):|['\"`])//[^\s'\"`)]+")


class Page(HTMLParser):
    """Collects what a page loads, and the text of its own scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.loaded, self.scripts, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        names_only = tag == "link" and given.get("rel") in NAMES_ONLY
        if not names_only and given.get(LOADED.get(tag)):
            self.loaded.append(given[LOADED[tag]])
        self.scripts += [code for name, code in attributes if name.startswith("on") and code]
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append("")

    def handle_data(self, data):
        if self.inside:
            self.scripts[-1] += data

    def handle_endtag(self, tag):
        self.inside = False


def strangers(page: Page, folder: Path) -> list[str]:
    """Files that the book does not hold, and addresses of other hosts within a script."""
    found = []
    for address in page.loaded:
        if address.startswith("data:"):
            continue
        file = folder / unquote(re.split("[?#]", address)[0])
        if re.match(r"\w+:|//", address) or not file.is_file():
            found.append(address)
    for script in page.scripts:
        found += [a for a in ADDRESS.findall(script) if not a.strip("'\"`").startswith(NAMESPACE)]
    return found


def test_every_page_loads_only_files_of_the_book(html):
    pages = [p for p in html.rglob("*.html") if "_static" not in p.relative_to(html).parts]
    assert len(pages) > 15
    problems = {
        str(file.relative_to(html)): found
        for file in pages
        if (found := strangers(Page(file.read_text("utf-8")), file.parent))
    }
    assert problems == {}


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://cdn.example.org/x.js"></script>',
        '<script src="//cdn.example.org/x.js"></script>',
        '<script src="missing.js"></script>',
        '<link rel="stylesheet" href="https://example.org/x.css">',
        '<script>import("https://example.org/x.js")</script>',
        "<script>s.src = '//example.org/x.js'</script>",
        '<button onclick="fetch(\'https://example.org\')"></button>',
        '<img src="https://example.org/x.png">',
    ],
)
def test_the_check_finds_a_stranger(text, tmp_path):
    assert strangers(Page(text), tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        '<script src="x.js?v=1"></script>',
        '<a href="https://example.org">a link is not loaded</a>',
        '<script>const svg = "http://www.w3.org/2000/svg"; // a comment</script>',
        '<link rel="canonical" href="https://example.org/">',
        '<img src="data:image/png;base64,AA==">',
    ],
)
def test_the_check_lets_the_book_pass(text, tmp_path):
    (tmp_path / "x.js").touch()
    assert strangers(Page(text), tmp_path) == []
