"""Draw which chapter builds on which, from the chapters' own words.

A chapter says what it needs in a paragraph that starts with "You need" and links other chapters.
The directive ``chapter-map`` lists the numbered chapters of _toc.yml in reading order and draws a
curve to each from those that it needs.
"""

import re
from html import escape
from pathlib import Path

import yaml
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

ROW, LEFT, WIDTH = 24, 58, 368  # of the drawing, in pixels of a phone's page
NEED = re.compile(r"^You need.*?(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)


def numbered_parts(toc: Path) -> list[tuple[str, list[str]]]:
    """Caption and pages of each part of the book whose chapters have numbers."""
    parts = yaml.safe_load(toc.read_text(encoding="utf-8"))["parts"]
    return [
        (part["caption"], [chapter["file"] for chapter in part["chapters"]])
        for part in parts
        if part.get("numbered")
    ]


def title_of(page: Path) -> str:
    return re.search(r"^# (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)[1]


def stated_needs(page: Path) -> set[str]:
    """The names of the pages that the paragraph "You need" of a page links."""
    paragraph = NEED.search(page.read_text(encoding="utf-8"))
    return set(re.findall(r"\]\((\w+)\.md\)", paragraph[0])) if paragraph else set()


def direct_needs(needs: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same without what follows from the rest; raises ValueError on a circle."""

    def behind(page, path=()):
        if page in path:
            raise ValueError(f"chapters need one another in a circle: {' <- '.join((*path, page))}")
        found = set()
        for need in needs[page]:
            found |= {need} | behind(need, (*path, page))
        return found

    return {
        page: own - set().union(*(behind(need, (page,)) for need in own))
        for page, own in needs.items()
    }


class chapter_map(nodes.General, nodes.Element):
    """The map; ``parts`` as from numbered_parts, ``titles`` and ``needs`` by page."""


class ChapterMap(SphinxDirective):
    def run(self):
        source = Path(self.env.srcdir)
        self.env.note_dependency(str(source / "_toc.yml"))
        parts = numbered_parts(source / "_toc.yml")
        pages = {Path(page).name: source / f"{page}.md" for _, names in parts for page in names}
        for page in pages.values():
            self.env.note_dependency(str(page))
        needs = {name: stated_needs(page) & set(pages) for name, page in pages.items()}
        titles = {name: title_of(page) for name, page in pages.items()}
        return [chapter_map(parts=parts, titles=titles, needs=direct_needs(needs))]


def draw(parts, titles, needs, address) -> str:
    """The map as SVG; ``address(page)`` is where a chapter stands."""
    rows, height, text = {}, 0, []
    for caption, pages in parts:
        height += ROW
        text.append(f'<text x="{LEFT}" y="{height}" class="part">{escape(caption)}</text>')
        for page in pages:
            height += ROW
            name = Path(page).name
            rows[name] = height
            text.append(
                f'<a href="{escape(address(page))}">'
                f'<circle cx="{LEFT - 8}" cy="{height - 4}" r="3"/>'
                f'<text x="{LEFT}" y="{height}">{len(rows)}. {escape(titles[name])}</text></a>'
            )
    numbers = {name: number for number, name in enumerate(rows, start=1)}
    curves = [curve(rows[need], rows[page]) for page in rows for need in sorted(needs[page])]
    told = [
        f"{numbers[page]} builds on {' and '.join(str(n) for n in sorted(map(numbers.get, own)))}"
        for page, own in needs.items()
        if own
    ]
    return (
        f'<svg viewBox="0 0 {WIDTH} {height + 8}" role="group" aria-label="Map of the chapters">'
        f"<desc>{'; '.join(told)}.</desc>"
        '<marker id="map-tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="6" orient="auto">'
        f'<path d="M0 0 8 4 0 8z"/></marker>{"".join(curves + text)}</svg>'
    )


def curve(start: float, end: float) -> str:
    """From one row to another, the wider the further."""
    x, bend = LEFT - 12, LEFT - 12 - min(14 + abs(end - start) / 3, 62)
    shift = 2 if end > start else -2  # from below one dot to above the next
    y0, y1 = start - 4 + shift, end - 4 - shift
    return f'<path class="need" d="M{x} {y0}C{bend:.0f} {y0} {bend:.0f} {y1} {x} {y1}"/>'


def visit_html(self, node):
    def address(page):
        return self.builder.get_relative_uri(self.builder.current_docname, page)

    drawing = draw(node["parts"], node["titles"], node["needs"], address)
    legend = "<p>An arrow leads from a chapter to one that builds on it.</p>"
    self.body.append(f'<div class="chapter-map">{drawing}{legend}</div>')
    raise nodes.SkipNode


def skip(self, node):
    raise nodes.SkipNode


def setup(app):
    app.add_node(chapter_map, html=(visit_html, None), latex=(skip, None), text=(skip, None))
    app.add_directive("chapter-map", ChapterMap)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
