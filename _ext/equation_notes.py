"""Say beside each labelled equation which tests check it, and list them all on one page.

``checked by test_bounds.py::test_elbo_is_a_lower_bound`` stands below the equation in the built
page; the directive ``equation-index`` fills chapters/equations.md.
"""

import re
from collections import defaultdict
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import equations

INDEX = "chapters/equations"
logger = logging.getLogger(__name__)


def collect(app):
    """Read labels and marks once a build; the parsed labels must be those that Sphinx sees."""
    source = Path(app.srcdir)
    app.env.equation_list = equations.find_equations(source / "chapters")
    tests = defaultdict(list)
    for mark in equations.find_marks(source / "tests"):
        file = mark.file.relative_to(source / "tests").as_posix()
        tests[mark.label].append(f"{file}::{mark.test}")
    app.env.equation_tests = dict(tests)


def check_labels(app, env):
    """Warn (and so fail the build) when Sphinx and the index disagree about the labels."""
    parsed = {
        equation.label
        for equation in env.equation_list
        if f"chapters/{equation.page.stem}" in env.found_docs
    }
    for label in parsed ^ set(env.get_domain("math").equations):
        logger.warning("equation %s: label is not written as $$ ... $$ (%s)", label, label)


def add_notes(app, doctree, docname):
    """Put the note below each labelled equation of a page."""
    for equation in list(doctree.findall(nodes.math_block)):
        tests = app.env.equation_tests.get(equation.get("label"))
        if not tests:
            continue
        note = nodes.paragraph("", "checked by ", classes=["checked-by"])
        note += test_name(tests[0])
        if INDEX in app.env.found_docs:
            more = f"and {len(tests) - 1} more" if len(tests) > 1 else "index"
            target = app.builder.get_relative_uri(docname, INDEX)
            target += f"#checked-{equation['label']}"
            note += nodes.Text(" · ")
            note += nodes.reference("", more, refuri=target, internal=True)
        equation.parent.insert(equation.parent.index(equation) + 1, note)


def test_name(name: str) -> nodes.inline:
    """A test's name in code type that may break behind an underscore, and copies as it is."""
    inline = nodes.inline("", "", classes=["test-name"])
    for piece in re.split(r"(?<=[/_])|(?<=::)", name):
        inline += [nodes.Text(piece), nodes.raw("", "<wbr>", format="html")]
        inline += nodes.raw("", r"\allowbreak{}", format="latex")
    return inline


class EquationIndex(SphinxDirective):
    """One section a chapter in reading order: each equation, its place and its tests."""

    def run(self):
        pages = defaultdict(list)
        for equation in self.env.equation_list:
            pages[f"chapters/{equation.page.stem}"].append(equation)
        order = [
            page
            for page in equations.reading_order(Path(self.env.srcdir) / "_toc.yml")
            if page in pages
        ]
        shown = [equation for page in order for equation in pages[page]]
        tests = {test for e in shown for test in self.env.equation_tests.get(e.label, [])}
        plural = "s" if len(tests) != 1 else ""
        summary = f"{len(shown)} labelled equations are checked by {len(tests)} test{plural}."
        return [nodes.paragraph("", summary), *(self.section(page, pages[page]) for page in order)]

    def section(self, page, found):
        title = found[0].page.read_text(encoding="utf-8").split("\n# ", 1)[-1].split("\n", 1)[0]
        section = nodes.section(ids=[nodes.make_id(f"equations-of-{page}")])
        section += nodes.title(title, title.replace("$", ""))
        for equation in found:
            section += self.entry(equation)
        return section

    def entry(self, equation):
        entry = nodes.container(
            ids=[f"checked-{equation.label}"], classes=["equation-entry"], is_div=True
        )
        entry += nodes.math_block(
            equation.math, equation.math, nowrap=False, number=None, label=None
        )
        place = addnodes.pending_xref(
            "",
            nodes.literal("", equation.label),
            refdomain="math",
            reftype="eq",
            reftarget=equation.label,
            refdoc=self.env.docname,
            refwarn=True,
        )
        line = nodes.paragraph("", "", classes=["checked-by"])
        line += [nodes.Text("Equation "), place, nodes.Text(f" ({equation.label}), checked by ")]
        for number, name in enumerate(self.env.equation_tests.get(equation.label, [])):
            line += [nodes.Text(", " if number else ""), test_name(name)]
        entry += line
        return entry


def setup(app):
    app.connect("builder-inited", collect)
    app.connect("env-check-consistency", check_labels)
    app.connect("doctree-resolved", add_notes)
    app.add_directive("equation-index", EquationIndex)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
