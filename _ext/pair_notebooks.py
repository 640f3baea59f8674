#!/usr/bin/env python
"""Write chapters/NAME.ipynb beside each chapters/NAME.md that has code cells.

The Markdown is the source of truth; the notebook is what Jupyter, Binder and nbval open. It keeps
the text outputs and nothing that differs between two runs, so that a second run gives the same
bytes. Pages without code need no pair. Where _config.yml names the repository's address, a hidden
first cell fetches the book and installs vaelib if they are missing, as they are on Colab.

    python _ext/pair_notebooks.py                    execute and write every chapter
    python _ext/pair_notebooks.py chapters/elbo.md   only this one
    python _ext/pair_notebooks.py --check            execute nothing; exit 1 if a pair is stale
"""

import argparse
import os
import sys
from pathlib import Path

import jupytext
import nbformat
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

BOOK = Path(__file__).resolve().parents[1]
CHAPTERS = BOOK / "chapters"
CONFIG = BOOK / "_config.yml"
KEPT = ("text/plain", "text/markdown", "text/latex")
METADATA = {
    "jupytext": {"formats": "md:myst,ipynb"},
    "kernelspec": {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}
HIDDEN = {"cellView": "form", "jupyter": {"source_hidden": True}}  # in Colab, in JupyterLab
SETUP = """\
#@title Fetch the book and install vaelib, where they are missing
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("vaelib") is None:
    if not os.path.isdir("vae-book"):
        subprocess.run(["git", "clone", "--quiet", "--depth=1", "--branch",
                        {branch!r}, {address!r},
                        "vae-book"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet",
                    "./vae-book[chapters]"], check=True)
    importlib.invalidate_caches()
if os.path.isdir("vae-book"):
    os.chdir("vae-book/chapters")  # chapters read files beside them"""


def read_chapter(page: Path) -> nbformat.NotebookNode:
    """The notebook that a page describes: no outputs, cells numbered in order."""
    notebook = jupytext.read(page)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"{page.stem}-{number:03d}"
    if has_code(notebook):
        notebook.cells[:0] = setup_cells(page.stem)
    notebook.update(nbformat=4, nbformat_minor=5)
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def setup_cells(stem: str) -> list[nbformat.NotebookNode]:
    """The cell that Colab needs; none while the repository has no address."""
    repository = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["repository"]
    if not repository["url"]:
        return []
    source = SETUP.format(address=repository["url"], branch=repository["branch"])
    metadata = nbformat.from_dict(HIDDEN)
    return [nbformat.v4.new_code_cell(source, id=f"{stem}-setup", metadata=metadata)]


def has_code(notebook: nbformat.NotebookNode) -> bool:
    return any(cell.cell_type == "code" for cell in notebook.cells)


def strip(notebook: nbformat.NotebookNode) -> None:
    """Drop pictures, HTML, stderr, tracebacks and time stamps: what no test compares."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
        for out in cell.outputs:
            if "data" in out:
                out.data = {kind: text for kind, text in out.data.items() if kind in KEPT}
                out.metadata = {}
            if out.output_type == "error":
                out.traceback = [f"{out.ename}: {out.evalue}"]


def write_pair(page: Path) -> None:
    """Execute a page in its own folder and replace its pair in one step."""
    notebook = read_chapter(page)
    NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(page.parent)}},
    ).execute()
    strip(notebook)
    nbformat.validate(notebook)
    unfinished = page.with_name(f".{page.stem}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
        unfinished.replace(page.with_suffix(".ipynb"))
    finally:
        unfinished.unlink(missing_ok=True)


def sources(notebook: nbformat.NotebookNode) -> list[tuple]:
    return [(cell.cell_type, cell.source, cell.metadata) for cell in notebook.cells]


def stale_pairs(pages: list[Path]) -> list[str]:
    """One line for each page whose pair is missing or has other sources, tags or settings."""
    problems = []
    for page in pages:
        expected, pair = read_chapter(page), page.with_suffix(".ipynb")
        if not has_code(expected):
            if pair.exists():
                problems.append(f"{pair.name}: {page.name} has no code cell, so delete it")
        elif not pair.exists():
            problems.append(f"{pair.name} is missing")
        elif sources(nbformat.read(pair, as_version=4)) != sources(expected):
            problems.append(f"{pair.name} is out of step with {page.name}")
    return problems


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", type=Path, help="pages (default: all chapters)")
    parser.add_argument("--check", action="store_true", help="only compare sources and tags")
    options = parser.parse_args(arguments)
    pages = options.pages or sorted(CHAPTERS.glob("*.md"))
    if options.check:
        problems = stale_pairs(pages)
        if not options.pages:
            orphans = {p.stem for p in CHAPTERS.glob("*.ipynb")} - {p.stem for p in pages}
            problems += [f"{stem}.ipynb has no {stem}.md" for stem in sorted(orphans)]
        print(*problems, sep="\n", end="\n" if problems else "")
        return int(bool(problems))
    failed = False
    for page in pages:
        if not has_code(read_chapter(page)):
            continue
        try:
            write_pair(page)
            print("wrote", page.with_suffix(".ipynb").name, flush=True)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            print(f"{page}: a cell failed\n{error}", file=sys.stderr, flush=True)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
