"""Which equation is checked by which test, read from the sources without running them.

A label is the ``(eq-name)`` behind the closing ``$$`` of an equation in chapters/*.md; a mark is
``@pytest.mark.equation("eq-name")`` on a test, a test class or (as ``pytestmark``) a test module.
"""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

EQUATION = re.compile(r"\$\$(?P<math>.+?)\$\$(?:[ \t]*\((?P<label>[^()\s]+)\))?", re.DOTALL)
FENCED_LABEL = re.compile(r"^\s*(?::label:|\\label\{)\s*(?P<label>eq-[\w-]+)", re.MULTILINE)


@dataclass(frozen=True)
class Equation:
    """A labelled equation: its label, its TeX, and where it stands."""

    label: str
    math: str
    page: Path
    line: int


@dataclass(frozen=True)
class Mark:
    """A test that carries a label; ``label`` is None where it is not a literal string."""

    label: str | None
    file: Path
    test: str
    line: int
    collected: bool


def find_equations(chapters: Path) -> list[Equation]:
    """All labelled equations, page by page."""
    found = []
    for page in sorted(chapters.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        for match in EQUATION.finditer(text):
            if match["label"]:
                line = text.count("\n", 0, match.start()) + 1
                found.append(Equation(match["label"], match["math"].strip(), page, line))
    return found


def find_marks(tests: Path) -> list[Mark]:
    """All marks, file by file. A mark that pytest would not collect is found, too."""
    found = []
    for file in sorted(tests.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
        collected = file.name.startswith("test_")
        found += _marks_in(tree.body, file, "", _module_marks(tree), collected)
    return found


def problems(equations: list[Equation], marks: list[Mark]) -> list[str]:
    """One line for each label without a test, mark without a label, and label given twice."""
    found = []
    first: dict[str, Equation] = {}
    for equation in equations:
        where = f"{equation.page.name}:{equation.line}"
        if equation.label in first:
            other = first[equation.label]
            found.append(
                f"{where}: the label {equation.label} stands already in "
                f"{other.page.name}:{other.line}"
            )
        first.setdefault(equation.label, equation)
    checked = {mark.label for mark in marks if mark.collected}
    for label, equation in first.items():
        if label not in checked:
            found.append(
                f"{equation.page.name}:{equation.line}: no test checks the equation {label}; "
                f'mark one with @pytest.mark.equation("{label}")'
            )
    for mark in marks:
        where = f"{mark.file.name}:{mark.line}"
        if mark.label is None:
            found.append(f"{where}: the mark of {mark.test} must name its label as a literal")
        elif mark.label not in first:
            found.append(f"{where}: {mark.test} checks {mark.label}, which no chapter labels")
        if not mark.collected:
            found.append(f"{where}: {mark.test} carries a mark, but pytest does not collect it")
    return found


def unreadable_labels(chapters: Path) -> list[str]:
    """Labels in another form than ``$$ ... $$ (eq-name)``, which the index would miss."""
    found = []
    for page in sorted(chapters.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        for match in FENCED_LABEL.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            label = match["label"]
            found.append(f"{page.name}:{line}: write the label as $$ ... $$ ({label})")
    return found


def reading_order(toc: Path) -> list[str]:
    """The pages of _toc.yml, first to last, without suffix."""

    def walk(node):
        if isinstance(node, dict):
            for key, value in node.items():
                yield from [value] if key in ("root", "file") else walk(value)
        elif isinstance(node, list):
            for value in node:
                yield from walk(value)

    return list(walk(yaml.safe_load(toc.read_text(encoding="utf-8"))))


def _marks_in(body, file, prefix, inherited, collected) -> list[Mark]:
    """The marks of the tests in a module's or a class's body; a class hands its own down."""
    found = []
    for node in body:
        if isinstance(node, ast.ClassDef):
            own = [*inherited, *_labels_in(node.decorator_list), *_module_marks(node)]
            inside = collected and node.name.startswith("Test")
            found += _marks_in(node.body, file, f"{prefix}{node.name}::", own, inside)
        elif isinstance(node, ast.FunctionDef):
            is_test = node.name.startswith("test")
            own = _labels_in(node.decorator_list) + (inherited if is_test else [])
            found += [
                Mark(label, file, prefix + node.name, line, collected and is_test)
                for label, line in dict(own).items()
            ]
    return found


def _module_marks(node) -> list[tuple[str | None, int]]:
    """The labels in ``pytestmark = ...`` at the top of a module or a class."""
    values = [
        statement.value
        for statement in node.body
        if isinstance(statement, ast.Assign)
        and any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in statement.targets)
    ]
    return _labels_in(values)


def _labels_in(expressions) -> list[tuple[str | None, int]]:
    """Label and line of each ``mark.equation(...)`` in the expressions, pytest.param included."""
    found = []
    for call in (node for expression in expressions for node in ast.walk(expression)):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
            continue
        if call.func.attr == "equation" and ast.unparse(call.func.value).endswith("mark"):
            label = call.args[0] if len(call.args) == 1 and not call.keywords else None
            literal = isinstance(label, ast.Constant) and isinstance(label.value, str)
            found.append((label.value if literal else None, call.lineno))
    return found
