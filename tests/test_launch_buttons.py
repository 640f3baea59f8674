"""Buttons open the notebooks of a page where the repository has an address; else there are none."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = "https://github.com/owner/name"
PAGE = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3 (ipykernel)
  language: python
  name: python3
---

# A page

```{code-cell} ipython3
1 + 1
```
"""
TOC = "format: jb-book\nroot: index\nchapters:\n  - file: chapters/page\n  - file: chapters/plain\n"


def build(folder: Path, address: str) -> Path:
    """The HTML of a book of three pages with this book's theme; nothing is executed."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    config["repository"]["url"] = address
    config["execute"]["execute_notebooks"] = "off"
    theme = {"html_theme_options": config["sphinx"]["config"]["html_theme_options"]}
    config["sphinx"] = {
        "recursive_update": True,
        "local_extensions": {"book_build": str(ROOT / "_ext")},
        "extra_extensions": config["sphinx"]["extra_extensions"],
        "config": theme,
    }
    (folder / "chapters").mkdir()
    (folder / "_config.yml").write_text(yaml.safe_dump(config))
    (folder / "_toc.yml").write_text(TOC)
    (folder / "references.bib").touch()
    (folder / "index.md").write_text("# Front\n")
    (folder / "chapters/page.md").write_text(PAGE)
    (folder / "chapters/page.ipynb").write_text('{"the": "pair"}')
    (folder / "chapters/plain.md").write_text("# Without code\n")
    command = [Path(sys.executable).with_name("jupyter-book"), "build", folder, "-W", "-n", "-q"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "_build" / "html"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return build(tmp_path_factory.mktemp("published"), ADDRESS)


@pytest.fixture(scope="module")
def unpublished(tmp_path_factory):
    return build(tmp_path_factory.mktemp("unpublished"), "")


def links(html: Path, page: str) -> set[str]:
    """The addresses of other hosts that a page names, and the notebooks that it offers."""
    text = (html / f"{page}.html").read_text(encoding="utf-8")
    found = re.findall(r'<a\s[^>]*href="([^"]+)"', text)
    return {link for link in found if "//" in link or link.endswith(".ipynb")}


def test_binder_and_colab_open_the_notebook_of_the_page(published):
    found = links(published, "chapters/page")
    in_lab = "?urlpath=lab/tree/chapters/page.ipynb"
    assert f"https://mybinder.org/v2/gh/owner/name/main{in_lab}" in found
    colab = "https://colab.research.google.com/github"
    assert f"{colab}/owner/name/blob/main/chapters/page.ipynb" in found
    assert ADDRESS in found


@pytest.mark.parametrize("page", ["index", "chapters/plain"])
def test_a_page_without_notebook_has_no_launch_button(published, page):
    found = links(published, page)
    assert ADDRESS in found
    assert not [link for link in found if re.search("binder|colab|ipynb", link)]


def test_without_an_address_no_button_leads_to_another_host(unpublished):
    assert all("//" not in link for link in links(unpublished, "chapters/page"))


@pytest.mark.parametrize("book", ["published", "unpublished"])
def test_the_download_is_the_pair(book, request):
    html = request.getfixturevalue(book)
    (name,) = (link for link in links(html, "chapters/page") if "//" not in link)
    notebook = html / "chapters" / name
    assert notebook.read_text() == '{"the": "pair"}'
