"""The explorer of the latent plane draws what the trained decoder says, wherever it is moved."""

import pytest
import torch

from vaelib import binarize, load_images, trained_vae

PAGE = "chapters/generation"
pytestmark = pytest.mark.filterwarnings("ignore:MNIST is not in")  # a book of the digits is one, too


@pytest.fixture(scope="module")
def model():
    return trained_vae(2)[0]


@pytest.fixture
def explorer(open_page):
    """explorer(...) -> the element, on a page opened with these settings, in view."""

    def explorer(**settings):
        root = open_page(PAGE, **settings).locator(".latent-explorer[data-ready]")
        root.evaluate("e => e.scrollIntoView({block: 'center'})")
        return root

    return explorer


def state(root) -> tuple[list[float], torch.Tensor]:
    code, probabilities = root.evaluate("e => [e.code, [...e.probabilities]]")
    return code, torch.tensor(probabilities, dtype=torch.float32)


def check(root, model) -> list[float]:
    """Pixels, canvas, readout and sliders belong to one code, the one that is returned."""
    code, found = state(root)
    with torch.no_grad():
        exact = model.decode(torch.tensor(code, dtype=torch.float32)).sigmoid()
    assert (found - exact).abs().max() < 1e-2
    drawn = root.locator("canvas").evaluate(
        "c => [...c.getContext('2d').getImageData(0, 0, 28, 28).data]"
    )
    ink = 1 - torch.tensor(drawn).view(784, 4)[:, :3] / 255
    assert (ink - exact[:, None]).abs().max() < 1e-2 + 1 / 255
    names = [f"{z:.2f}".replace("-", "−") for z in code]
    speckles = torch.minimum(exact, 1 - exact).sum().item()
    text = root.locator(".readout").inner_text()
    assert text.startswith(f"z = ({names[0]}, {names[1]})")
    assert float(text.split(":")[1]) == pytest.approx(speckles, abs=1.5)
    assert [float(s.input_value()) for s in root.locator("input").all()] == pytest.approx(code)
    return code


TICKS = """svg => ["−4", "4"].map((name) => [...svg.querySelectorAll(":scope > text")]
    .filter((text) => text.textContent === name)
    .map((text) => text.getBoundingClientRect())
    .map((box) => [box.x + box.width / 2, box.y + box.height / 2])
    .sort((a, b) => b[1] - a[1]))"""  # the number below the plane first, then the one at its left


def at(root, z1: float, z2: float) -> tuple[float, float]:
    """Where a code lies on the screen, read off the numbers at the axes."""
    ((x0, _), (_, y0)), ((x1, _), (_, y1)) = root.locator("svg").evaluate(TICKS)
    return x0 + (z1 + 4) / 8 * (x1 - x0), y0 + (z2 + 4) / 8 * (y1 - y0)


def test_explorer_starts_at_the_origin(explorer, model):
    assert check(explorer(), model) == [0, 0]


@pytest.mark.parametrize("width", [1280, 360])
def test_mouse_drags_the_code(explorer, model, width):
    root = explorer(width=width)
    mouse = root.page.mouse
    mouse.move(*at(root, 0, 0))
    mouse.down()
    seen = [state(root)[1]]
    for target in [(-2, -2.5), (-1, -2), (0.5, -1.5), (2, 1.75), (-4.5, 4.5)]:
        mouse.move(*at(root, *target), steps=3)
        assert check(root, model) == pytest.approx(target, abs=0.08)
        seen.append(state(root)[1])
    for before, after in zip(seen, seen[1:]):
        assert (before - after).abs().max() > 0.3
    mouse.move(5, 5)  # far outside the plane: the code stops at its edge
    assert check(root, model) == [-5, 5]
    mouse.up()
    mouse.move(*at(root, 1, 1))  # no button: nothing follows
    assert check(root, model) == [-5, 5]


def test_finger_drags_the_code_and_not_the_page(explorer, model):
    root = explorer(width=360, height=740)
    page = root.page
    devtools = page.context.new_cdp_session(page)
    devtools.send("Emulation.setTouchEmulationEnabled", {"enabled": True})
    scrolled = page.evaluate("scrollY")

    def touch(kind, *points):
        where = [{"x": x, "y": y} for x, y in points]
        devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": where})

    touch("touchStart", at(root, -3, 0))
    assert check(root, model) == pytest.approx((-3, 0), abs=0.08)
    before = state(root)[1]
    for step in range(1, 11):
        touch("touchMove", at(root, -3 + step / 2, -step / 4))
    touch("touchEnd")
    assert check(root, model) == pytest.approx((2, -2.5), abs=0.08)
    assert (state(root)[1] - before).abs().max() > 0.3
    assert page.evaluate("scrollY") == scrolled


def test_arrow_keys_move_the_code(explorer, model):
    root = explorer()
    root.locator("svg").focus()
    before = state(root)[1]
    for key, code in [
        ("ArrowRight", [0.05, 0]),
        ("ArrowUp", [0.05, 0.05]),
        ("Shift+ArrowLeft", [-0.45, 0.05]),
        ("Shift+ArrowDown", [-0.45, -0.45]),
    ]:
        root.page.keyboard.press(key)
        assert check(root, model) == pytest.approx(code)
    assert (state(root)[1] - before).abs().max() > 0.03
    for _ in range(12):
        root.page.keyboard.press("Shift+ArrowRight")
    assert check(root, model) == pytest.approx([5, -0.45])


def test_sliders_are_reached_by_tab_and_move_one_coordinate_each(explorer, model):
    root = explorer()
    keyboard = root.page.keyboard
    root.locator("svg").focus()
    for name, code in [("z₁", [-0.1, 0]), ("z₂", [-0.1, -0.1])]:
        keyboard.press("Tab")
        focused = root.page.evaluate("document.activeElement.labels[0].textContent.trim()")
        assert focused == name
        keyboard.press("ArrowLeft")
        keyboard.press("ArrowLeft")
        assert check(root, model) == pytest.approx(code)
    keyboard.press("End")
    assert check(root, model) == pytest.approx([-0.1, 5])


def test_discs_lie_at_the_codes_of_test_images_with_their_labels(explorer, model):
    root, data = explorer(), load_images()
    with torch.no_grad():
        codes = model.encode(binarize(data.test[:5000]))[0]
    discs = root.locator(".digit").all()
    assert len(discs) >= 150
    for disc in discs[::10]:
        box = disc.locator("circle").bounding_box()
        middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        root.page.mouse.click(*middle)
        code, _ = state(root)
        own = codes[data.test_labels[:5000] == int(disc.text_content())]
        assert (own - torch.tensor(code, dtype=torch.float32)).abs().amax(1).min() < 0.05


@pytest.mark.parametrize("dark", [False, True])
def test_explorer_is_legible_and_fits_a_phone(explorer, dark):
    root = explorer(width=360, dark=dark)
    assert root.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    box = root.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360
    for part in ("svg text >> nth=0", ".readout"):
        style = root.locator(part).evaluate(
            "e => getComputedStyle(e)[e.tagName === 'text' ? 'fill' : 'color']"
        )
        light = sum(int(c) for c in style.strip("rgba()").split(",")[:3]) / 3
        assert light > 180 if dark else light < 75
    heights = root.locator("svg text").evaluate_all(
        "e => e.map((text) => text.getBoundingClientRect().height)"
    )
    assert min(heights) > 8
