"""A link to an equation or a figure of the same page shows it, with the pointer and the keyboard."""

import pytest

LINK = "article a.internal[href='#equation-eq-elbo-importance']"
EQUATION = "#equation-eq-elbo-importance"
WAIT = 400  # milliseconds, more than the delay of a preview


@pytest.fixture
def link(open_page):
    link = open_page("chapters/elbo").locator(LINK).first
    link.scroll_into_view_if_needed()
    link.page.wait_for_timeout(WAIT)
    assert link.page.locator(".preview").count() == 0
    return link


def text(locator) -> str:
    return locator.inner_text().replace("#", "").strip()


@pytest.mark.parametrize("reach", ["hover", "focus"])
def test_preview_shows_the_equation_until_escape(link, reach):
    getattr(link, reach)()
    preview = link.page.locator(".preview")
    preview.wait_for(timeout=2000)
    assert text(preview) == text(link.page.locator(EQUATION)) != ""
    box = preview.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 1280 and box["y"] >= 0
    link.page.keyboard.press("Escape")
    assert preview.count() == 0


def test_preview_stays_below_the_pointer_and_goes_with_it(link):
    link.hover()
    preview = link.page.locator(".preview")
    preview.wait_for(timeout=2000)
    box = preview.bounding_box()
    link.page.mouse.move(box["x"] + 10, box["y"] + box["height"] / 2)
    link.page.wait_for_timeout(WAIT)
    assert preview.count() == 1
    link.page.mouse.move(2, 2)
    link.page.wait_for_timeout(WAIT)
    assert preview.count() == 0


def test_preview_holds_nothing_to_focus_and_no_id_twice(link):
    link.focus()
    link.page.locator(".preview").wait_for(timeout=2000)
    assert link.page.locator(EQUATION).count() == 1
    link.page.keyboard.press("Tab")
    assert link.page.evaluate("!document.activeElement.closest('.preview')")
