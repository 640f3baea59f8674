"""Every built page: no request, no error, no axe violation, formulas typeset, nothing too wide."""

import os
from pathlib import Path

import axe_playwright_python
import pytest

BOOK = Path(os.environ.get("BOOK_HTML") or Path(__file__).parents[2] / "_build" / "html")
NAMES = sorted(
    str(page.relative_to(BOOK).with_suffix(""))
    for page in BOOK.rglob("*.html")
    if not page.relative_to(BOOK).parts[0].startswith("_")
) or ["index"]
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text("utf-8")
LIMIT = 1_500_000  # bytes of a page without its images

# What is folded (solutions, code, menus of the page) must be right too.
UNFOLD = """() => {
    document.querySelectorAll("details").forEach(fold => fold.open = true);
    document.querySelectorAll(".toggle-hidden")
        .forEach(fold => fold.classList.remove("toggle-hidden"));
}"""
# axe needs minutes for the thousands of glyphs and code tokens on a page. Glyphs are hidden from
# assistive software and have the colour of their formula: a letter as wide stands for them. One
# stands for the MathML that is read aloud, too: axe finds no text in it. Of the code tokens of one
# kind the first stays, and of the others the text.
THIN_OUT = """() => {
    for (const spoken of document.querySelectorAll("mjx-assistive-mml"))
        spoken.textContent = "x";
    for (const glyphs of document.querySelectorAll("mjx-math")) {
        const width = glyphs.getBoundingClientRect().width;
        glyphs.style.display = "inline-block";
        glyphs.style.width = `${width}px`;
        glyphs.textContent = "x";
    }
    const seen = new Set();
    for (const token of document.querySelectorAll(".highlight pre span")) {
        const kind = [token, token.closest("div.cell_input, div.cell_output, .highlight")]
            .map(element => element.className).join();
        if (token.id || token.children.length) continue;
        if (seen.has(kind)) token.replaceWith(token.textContent);
        seen.add(kind);
    }
    document.body.normalize();
}"""
FORMULAS = """() => {
    const found = [];
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const node = walk.currentNode;
        if (node.parentElement.closest("script, style, pre, code, mjx-assistive-mml")) continue;
        if (/\\\\[(\\[]|\\$\\$/.test(node.data)) found.push("not typeset: " + node.data.trim());
    }
    for (const box of document.querySelectorAll("span.math, div.math"))
        if (!box.querySelector("mjx-container")) found.push("not typeset: " + box.textContent);
    for (const error of document.querySelectorAll("mjx-merror, mjx-assistive-mml merror"))
        found.push("TeX error: " + (error.title || error.textContent));
    for (const image of document.querySelectorAll("img"))
        if (!image.alt.trim()) found.push("no alt text: " + image.src);
        else if (image.complete && !image.naturalWidth) found.push("no picture: " + image.src);
    return found;
}"""
# A box is too wide if it makes the page scroll sideways.
TOO_WIDE = """() => {
    const room = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth <= room) return [];
    const wide = [...document.querySelectorAll("main *")]
        .filter(box => box.getBoundingClientRect().right > room + 1)
        .map(box => box.outerHTML.slice(0, 100));
    return [document.documentElement.scrollWidth + " pixels wide: " + wide.slice(0, 3).join()];
}"""
# 300 ms after a change the theme decides which boxes scroll and so must take the focus.
SETTLE = "() => new Promise(done => setTimeout(done, 400))"
RUN_AXE = """rules => axe.run(document, {
    resultTypes: ["violations"],
    preload: false,  // it would ask for the style sheets, which file:// refuses to a script
    ...(rules && {runOnly: rules}),
}).then(({violations}) => violations.flatMap(({id, nodes}) =>
    nodes.map(node => `${id}: ${node.html.slice(0, 200)}: ${node.failureSummary}`)))"""


def show(page, width, colours):
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=colours, reduced_motion="reduce")
    page.evaluate(SETTLE)
    page.wait_for_function("name => document.documentElement.dataset.theme == name", arg=colours)


@pytest.mark.parametrize("name", NAMES)
def test_page(name, html, open_page):
    page = open_page(name)
    page.evaluate(UNFOLD)
    problems = page.evaluate(FORMULAS)
    for width in (1280, 360):
        show(page, width, "light")
        problems += [f"at {width}: {problem}" for problem in page.evaluate(TOO_WIDE)]
    page.evaluate(THIN_OUT)
    page.evaluate(SETTLE)
    page.evaluate(AXE)
    for colours, rules in (("light", None), ("dark", ["color-contrast"])):  # others see no colour
        for width in (1280, 360):
            show(page, width, colours)
            problems += [f"{colours}, {width}: {p}" for p in page.evaluate(RUN_AXE, rules)]
    assert not problems, "\n" + "\n".join(problems)


@pytest.mark.parametrize("name", NAMES)
def test_page_is_light(name, html):
    size = (html / f"{name}.html").stat().st_size
    assert size <= LIMIT, f"{size} bytes"
