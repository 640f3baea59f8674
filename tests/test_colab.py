"""The hidden first cell of a notebook brings the book and vaelib to where they are missing."""

import os
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "_ext"))

import pair_notebooks  # noqa: E402

PAGE = ROOT / "chapters" / "elbo.md"
# A pip that copies the package, as the real one would ask the network for setuptools.
PIP = """
import pathlib, shutil, sys
*options, requirement = sys.argv[1:]
assert options == ["install", "--quiet"] and requirement.endswith("[chapters]")
source = pathlib.Path(requirement.removesuffix("[chapters]")) / "vaelib"
shutil.copytree(source, pathlib.Path(__file__).parents[1] / "vaelib")
"""


def git(*arguments, cwd):
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", *author, *arguments], cwd=cwd, check=True, capture_output=True)


@pytest.fixture
def address(tmp_path):
    """A repository with a package vaelib and a file that a chapter reads."""
    source = tmp_path / "source"
    for name, text in (("vaelib/__init__.py", "answer = 42"), ("chapters/drawing.html", "drawn")):
        (source / name).parent.mkdir(parents=True)
        (source / name).write_text(text)
    git("init", "--quiet", cwd=source)
    git("checkout", "--quiet", "-b", "stable", cwd=source)
    git("add", ".", cwd=source)
    git("commit", "--quiet", "--message=all", cwd=source)
    return source.as_uri()


@pytest.fixture
def configure(tmp_path, monkeypatch):
    def write(url):
        config = tmp_path / "_config.yml"
        config.write_text(f"repository: {{url: '{url}', branch: stable}}\n")
        monkeypatch.setattr(pair_notebooks, "CONFIG", config)

    return write


@pytest.fixture
def run(tmp_path):
    """Run code in an empty folder, by a Python that has no vaelib until pip brings it."""
    (tmp_path / "site" / "pip").mkdir(parents=True)
    (tmp_path / "site" / "pip" / "__init__.py").touch()
    (tmp_path / "site" / "pip" / "__main__.py").write_text(PIP)
    (tmp_path / "content").mkdir()
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}

    def run(code):
        command = [sys.executable, "-S", "-c", code]  # -S: without the packages of this one
        return subprocess.run(
            command, cwd=tmp_path / "content", env=environment, capture_output=True, text=True
        )

    return run


READ = "\nimport vaelib\nprint(vaelib.answer, open('drawing.html').read())"


def test_first_cell_brings_package_and_files(address, configure, run):
    configure(address)
    (cell,) = pair_notebooks.setup_cells("elbo")
    assert run("import vaelib").returncode, "the test's Python has a vaelib of its own"
    assert run(cell.source + READ).stdout == "42 drawn\n"
    # after a restart of the kernel the package is there, and the cell finds the files again
    assert run(cell.source + READ).stdout == "42 drawn\n"


def test_first_cell_says_so_when_the_repository_cannot_be_fetched(tmp_path, configure, run):
    configure((tmp_path / "nowhere").as_uri())
    (cell,) = pair_notebooks.setup_cells("elbo")
    assert "CalledProcessError" in run(cell.source).stderr


def test_first_cell_does_nothing_where_the_package_is_installed(configure, tmp_path, monkeypatch):
    configure((tmp_path / "nowhere").as_uri())
    monkeypatch.chdir(tmp_path)
    (cell,) = pair_notebooks.setup_cells("elbo")
    exec(cell.source, {})
    assert Path.cwd() == tmp_path


def test_first_cell_is_hidden_and_the_chapter_follows_it(address, configure):
    configure(address)
    setup, *cells = pair_notebooks.read_chapter(PAGE).cells
    assert setup.metadata["cellView"] == "form" and setup.metadata["jupyter"]["source_hidden"]
    assert [cell.source for cell in cells] == [cell.source for cell in jupytext.read(PAGE).cells]


def test_without_an_address_no_cell_is_added(configure):
    configure("")
    cells = pair_notebooks.read_chapter(PAGE).cells
    assert [cell.source for cell in cells] == [cell.source for cell in jupytext.read(PAGE).cells]


def test_a_page_without_code_gets_no_cell(address, configure):
    configure(address)
    assert not pair_notebooks.has_code(pair_notebooks.read_chapter(ROOT / "chapters" / "api.md"))


def test_a_new_address_makes_a_pair_stale(tmp_path, address, configure):
    configure(address)
    page = tmp_path / "elbo.md"
    page.write_bytes(PAGE.read_bytes())
    page.with_suffix(".ipynb").write_bytes(PAGE.with_suffix(".ipynb").read_bytes())
    configure("")
    assert pair_notebooks.stale_pairs([page]) == []
    configure(address)
    assert pair_notebooks.stale_pairs([page]) == ["elbo.ipynb is out of step with elbo.md"]
