"""What Binder and Colab install is what the chapters need, and it stands in one place."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import jupytext
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
INSTALLED = {*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["chapters"]}
OF_JUPYTER = {"vaelib", "ipython"}  # no kernel runs without IPython
PAGES = sorted((ROOT / "chapters").glob("*.md"))


def distribution(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def lines_of(file: str) -> list[str]:
    text = (ROOT / file).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def imported(source: str) -> set[str]:
    """The distributions that the source imports, the standard library left out."""
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and not node.level:
            modules.add(node.module.split(".")[0])
    known = packages_distributions()
    return {known[m][0].lower() for m in modules - sys.stdlib_module_names if m in known}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_import_of_a_chapter_is_installed_on_binder(page):
    code = [cell.source for cell in jupytext.read(page).cells if cell.cell_type == "code"]
    assert imported("\n".join(code)) <= {*map(distribution, INSTALLED)} | OF_JUPYTER


def test_an_import_that_binder_lacks_is_seen():
    assert imported("import sklearn.svm\nfrom hypothesis import given\nimport math") == {
        "scikit-learn",
        "hypothesis",
    }


def test_requirements_name_all_that_the_package_and_its_chapters_need():
    assert INSTALLED <= set(lines_of("requirements.txt"))


def test_binder_installs_the_package_in_the_versions_of_the_book():
    lines = lines_of(".binder/requirements.txt")
    assert {"-c ../constraints.txt", "-e .[chapters]"} <= set(lines)
    assert not set(lines) & set(lines_of("requirements.txt")), "name a package once"


def test_binder_and_the_workflow_run_the_python_of_the_book():
    (runtime,) = lines_of(".binder/runtime.txt")
    assert f"command -v {runtime.replace('-', '')}" in (ROOT / "Makefile").read_text()
    workflow = yaml.safe_load((ROOT / ".github/workflows/book.yml").read_text())
    steps = {step.get("uses", "").split("@")[0]: step for step in workflow["jobs"]["build"]["steps"]}
    assert runtime == f"python-{steps['actions/setup-python']['with']['python-version']}"


@pytest.mark.parametrize("script", ["postBuild", "start"])
def test_scripts_of_binder_can_be_executed(script):
    assert (ROOT / ".binder" / script).stat().st_mode & 0o111
