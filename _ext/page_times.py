"""Say under a chapter's title how long it takes to read and how long it took to run.

Both are measured when the page is built: the reading time from what stands on the page, the
running time from the record that the execution left in the cache.
"""

from docutils import nodes
from myst_nb.sphinx_ import HideCodeCellNode, NbMetadataCollector
from sphinx_exercise.nodes import solution_node

# Seconds for a reader who follows each step.
SECONDS = {"word": 0.3, "code line": 3, "displayed formula": 20}
FOLDED = (solution_node, HideCodeCellNode)


def is_skipped(node) -> bool:
    """What is folded, and what a cell printed or drew, is not read line by line."""
    return isinstance(node, FOLDED) or "cell_output" in node.get("classes", ())


def count(node) -> dict[str, int]:
    """Words (an inline formula is one), lines of code and displayed formulas below a node."""
    found = dict.fromkeys(SECONDS, 0)
    if isinstance(node, nodes.literal_block):
        found["code line"] = sum(bool(line.strip()) for line in node.astext().splitlines())
    elif isinstance(node, nodes.math_block):
        found["displayed formula"] = 1
    elif isinstance(node, nodes.math):
        found["word"] = 1
    elif isinstance(node, nodes.Text):
        found["word"] = len(node.split())
    elif isinstance(node, nodes.Element) and not is_skipped(node):
        for child in node.children:
            for kind, number in count(child).items():
                found[kind] += number
    return found


def reading_minutes(doctree) -> int:
    """Minutes, rounded to five above ten; at least one."""
    minutes = sum(SECONDS[kind] * number for kind, number in count(doctree).items()) / 60
    return max(1, round(minutes)) if minutes < 10 else 5 * round(minutes / 5)


def in_words(seconds: float) -> str:
    """A measured time for a reader: 1 second, 13 seconds, 2 minutes."""
    number, unit = (seconds, "second") if seconds < 90 else (seconds / 60, "minute")
    number = max(1, round(number))
    return f"{number} {unit}{'s' if number > 1 else ''}"


def add_times(app, doctree):
    """Put the line below the title of each page that was executed, except the front page."""
    docname = app.env.docname
    record = NbMetadataCollector.get_exec_data(app.env, docname)
    title = next(doctree.findall(nodes.title), None)
    if title is None or not record or docname == app.config.root_doc:
        return
    folded = ", without the solutions" if any(doctree.findall(solution_node)) else ""
    text = f"To read: about {in_words(60 * reading_minutes(doctree))}{folded}."
    if record["runtime"] is not None:
        text += f" To run: {in_words(record['runtime'])}, measured when this page was built."
    line = nodes.paragraph("", text, classes=["page-times"])
    title.parent.insert(title.parent.index(title) + 1, line)


def setup(app):
    app.connect("doctree-read", add_times)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
