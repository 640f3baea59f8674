"""A shared link has a title and a text; a picture and an address where the site has one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "_ext"))

import social_preview  # noqa: E402


def tags(folder: Path, repository: str) -> dict[str, str]:
    """The Open Graph tags of a page of a small book whose repository has this address."""
    (folder / "conf.py").write_text(
        f"import sys\nsys.path.append({str(ROOT / '_ext')!r})\n"
        "project = 'Book'\nextensions = ['myst_parser', 'social_preview']\n"
        "html_theme = 'sphinx_book_theme'\nogp_image = '_static/front.png'\n"
        f"html_theme_options = {{'repository_url': {repository!r}}}\n"
    )
    (folder / "index.md").write_text("# Title\n\nWhat it says.\n")
    command = [sys.executable, "-m", "sphinx", "-q", "-E", folder, folder / "html"]
    subprocess.run(command, check=True)
    page = (folder / "html/index.html").read_text()
    return dict(re.findall(r'<meta property="(og:[\w:]+)" content="([^"]*)"', page))


def test_without_an_address_no_tag_points_anywhere(tmp_path):
    found = tags(tmp_path, "")
    assert found["og:title"] == "Title" and found["og:description"] == "What it says."
    assert not {"og:url", "og:image"} & set(found)


def test_with_an_address_page_and_picture_are_absolute(tmp_path):
    found = tags(tmp_path, "https://github.com/Owner/book")
    assert found["og:url"] == "https://owner.github.io/book/index.html"
    assert found["og:image"] == "https://owner.github.io/book/_static/front.png"


@pytest.mark.parametrize(
    ("repository", "address"),
    [
        ("https://github.com/a/b.git", "https://a.github.io/b/"),
        ("https://github.com/a/b.c/", "https://a.github.io/b.c/"),
        ("https://example.org/a/b", ""),
        ("", ""),
    ],
)
def test_address_follows_from_the_repository(repository, address):
    assert social_preview.site_address(repository) == address


def test_picture_of_the_preview_is_in_the_book():
    picture = re.search(r"ogp_image: (\S+)", (ROOT / "_config.yml").read_text())[1]
    assert (ROOT / picture).is_file()
