"""The built book in the system's Chromium, from file:// and with the network closed.

`make check-book` runs this folder; a plain `pytest` leaves it out, since it needs both a built
book (_build/html, or the folder that BOOK_HTML names) and a browser (CHROMIUM names another one).
"""

import os
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
]
LOCAL = ("file:", "data:", "blob:", "about:")
TYPESET = """async () => {
    if (document.querySelector("script[src*=mathjax]")) await MathJax.startup.promise;
    await document.fonts.ready;
}"""


@pytest.fixture(scope="session")
def browser():
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.fail(f"no {', '.join(BROWSERS)} on PATH, and CHROMIUM names none")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def html() -> Path:
    """The folder of the built book."""
    repository = Path(__file__).resolve().parents[2]
    folder = Path(os.environ.get("BOOK_HTML") or repository / "_build" / "html").resolve()
    if not (folder / "index.html").is_file():
        pytest.fail(f"no built book in {folder}: run `make book`, or set BOOK_HTML")
    return folder


@pytest.fixture
def open_page(browser, html):
    """open_page("chapters/elbo") -> the loaded page, its formulas typeset.

    The test fails at its end if a page asked the network or put an error on the console.
    """
    contexts, external, errors = [], [], []

    def note_request(request):
        if not request.url.startswith(LOCAL):
            external.append(request.url)

    def note_message(message):
        if message.type == "error":
            errors.append(f"{message.text} ({message.location})")

    def open_page(name: str, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
        )
        contexts.append(context)
        context.route(lambda url: not url.startswith(LOCAL), lambda route: route.abort())
        context.on("request", note_request)
        page = context.new_page()
        page.on("websocket", lambda socket: external.append(socket.url))
        page.on("console", note_message)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((html / f"{name}.html").as_uri())
        page.evaluate(TYPESET)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not external, f"requests that leave the book: {external}"
    assert not errors, f"errors on the console: {errors}"
