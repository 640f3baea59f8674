"""Show the level of each exercise as stars, and list all exercises on one page.

An exercise states its level at the start of its text, ``(★)`` to ``(★★★★)``, so that it is read in
Jupyter, too. In the book the mark becomes stars with a text alternative; the directive
``exercise-list`` fills chapters/exercises.md.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx_exercise.nodes import (
    exercise_enumerable_node,
    exercise_latex_number_reference,
    exercise_node,
)

import equations

HIGHEST = 4
LEVEL = re.compile(rf"\((?P<stars>★{{1,{HIGHEST}}})\)\s+")
EXERCISE = re.compile(
    r"^`{3,}\{exercise\}[ ]*(?P<title>.*)\n(?P<options>(?::.*\n)*)\s*(?P<text>.*)", re.MULTILINE
)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exercise:
    """An exercise of a page; ``level`` is None where it states none."""

    label: str
    title: str
    level: int | None
    page: Path
    line: int


def find_exercises(page: Path) -> list[Exercise]:
    """All exercises of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in EXERCISE.finditer(text):
        label = re.search(r":label: (\S+)", match["options"])
        level = LEVEL.match(match["text"] + " ")
        found.append(
            Exercise(
                label[1] if label else "",
                match["title"],
                len(level["stars"]) if level else None,
                page,
                text.count("\n", 0, match.start()) + 1,
            )
        )
    return found


class level_mark(nodes.Inline, nodes.TextElement):
    """The stars of an exercise; the attribute ``level`` counts the full ones."""


def stars(level: int) -> level_mark:
    return level_mark("", "★" * level + "☆" * (HIGHEST - level), level=level)


def visit_level_html(self, node):
    name = f"level {node['level']} of {HIGHEST}"
    attributes = {"class": "exercise-level", "role": "img", "aria-label": name}
    self.body.append(self.starttag(node, "span", "", **attributes))


def depart_level_html(self, node):
    self.body.append("</span>")


def pass_by(self, node):
    """Elsewhere the stars are text."""


def show_levels(app, doctree):
    """Turn the mark of each exercise into stars; an exercise without one is a warning."""
    is_exercise = (exercise_node, exercise_enumerable_node)
    for exercise in doctree.findall(lambda node: isinstance(node, is_exercise)):
        first = next(exercise.children[1].findall(nodes.Text), nodes.Text(""))
        mark = LEVEL.match(first)
        if mark is None:
            name = exercise["label"]
            logger.warning("exercise %s: no level, (★) to (★★★★), starts it", name, location=name)
        else:
            level = stars(len(mark["stars"]))
            first.parent.replace(first, [level, nodes.Text(" " + first[mark.end() :])])


class ExerciseList(SphinxDirective):
    """One section a chapter in reading order: each exercise with its number, title and level."""

    def run(self):
        source = Path(self.env.srcdir)
        pages = [source / f"{name}.md" for name in equations.reading_order(source / "_toc.yml")]
        found = {page: find_exercises(page) for page in pages}
        for page in pages:
            self.env.note_dependency(str(page))
        levels = Counter(e.level for exercises in found.values() for e in exercises if e.level)
        summary = nodes.paragraph("", f"{levels.total()} exercises: ")
        for number, level in enumerate(sorted(levels)):
            summary += [nodes.Text(f"{', ' if number else ''}{levels[level]} of "), stars(level)]
        summary += nodes.Text(".")
        return [summary, *(self.section(page, e) for page, e in found.items() if e)]

    def section(self, page, exercises):
        title = re.search(r"^# (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)[1]
        section = nodes.section(ids=[nodes.make_id(f"exercises-of-{page.stem}")])
        section += nodes.title(title, "", *self.parse_inline(title)[0])
        entries = nodes.bullet_list(classes=["exercise-list"])
        entries += [self.entry(e) for e in exercises if e.level]
        section += entries
        return section

    def entry(self, exercise):
        place = addnodes.pending_xref(
            "",
            nodes.inline("", exercise.label, classes=["xref", "std", "std-ref"]),
            refdomain="std",
            reftype="ref",
            reftarget=exercise.label,
            refdoc=self.env.docname,
            refexplicit=False,
            refwarn=True,
        )
        line = nodes.paragraph("", "", stars(exercise.level), nodes.Text(" "), place)
        line += [nodes.Text(": "), *self.parse_inline(exercise.title)[0]]
        return nodes.list_item("", line)


def number_by_chapter(app):
    """Jupyter Book numbers exercises by section in LaTeX, and by chapter in HTML."""
    app.config.numfig_secnum_depth = 1


class LinkAcrossPages(SphinxPostTransform):
    """In LaTeX sphinx-exercise labels an exercise in a way that only its own page refers to."""

    default_priority = 23  # after its own transforms
    formats = ("latex",)

    def run(self):
        for link in list(self.document.findall(addnodes.number_reference)):
            label = link.get("refuri", "").rpartition("#")[2]
            if label in self.env.sphinx_exercise_registry:
                link.replace_self(
                    exercise_latex_number_reference("", "", *link.children, refid=label)
                )


def setup(app):
    app.add_node(
        level_mark,
        html=(visit_level_html, depart_level_html),
        latex=(pass_by, pass_by),
        text=(pass_by, pass_by),
    )
    app.connect("builder-inited", number_by_chapter, priority=900)
    app.connect("doctree-read", show_levels)
    app.add_directive("exercise-list", ExerciseList)
    app.add_post_transform(LinkAcrossPages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
