"""The explorer of score_vs_reparam, moved by real input and held against the package.

Exact variances meet the closed forms of estimator_oracles and vaelib's own estimators on a grid;
sampled ones meet vaelib's estimators fed with the page's 4,000 draws.
"""

import itertools
import re

import estimator_oracles as oracles
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe

from vaelib.estimators import pathwise, score_function
from vaelib.plotting import COLORS

RTOL = 1e-6
ESTIMATORS = {"score": score_function, "pathwise": pathwise}
NAMES = {"score": "score function", "pathwise": "pathwise"}
K = {"quadratic": (-3, 3), "exponential": (0.1, 2), "cosine": (0.1, 5)}  # ends of the slider
MU, SIGMA = (-2, 2), (0.2, 2)
GRID = [
    (cost, mu, sigma, k)
    for cost, (low, high) in K.items()
    for mu, sigma, k in itertools.product((-2, -0.35, 0, 2), (0.2, 1, 2), (low, 1.1, high))
]
SET = """(root, [cost, ...numbers]) => {
    const form = root.querySelector("form");
    form.querySelector(`[value=${cost}]`).click();
    ["mu", "sigma", "k"].forEach((name, i) => {
        form.elements[name].value = numbers[i];
        form.elements[name].dispatchEvent(new Event("input", {bubbles: true}));
    });
    return root.state;
}"""
COLOURS = """root => {
    const of = (selector, property) => getComputedStyle(root.querySelector(selector))[property];
    const paper = getComputedStyle(root).backgroundColor;
    return {text: [".verdict", "legend", "svg text", "td"].map(s =>
                [s === "svg text" ? of(s, "fill") : of(s, "color"), paper]),
            bars: [...root.querySelectorAll("svg")].map(svg =>
                [getComputedStyle(svg.querySelector("rect")).fill, paper])};
}"""


@pytest.fixture
def explorer(open_page):
    root = open_page("chapters/score_vs_reparam").locator(".estimator-explorer")
    root.scroll_into_view_if_needed()
    return root


def state(root):
    return root.evaluate("root => root.state")


def slider(root, name):
    return root.locator(f"input[name={name}]")


def place(found):
    return tuple(found[name] for name in ("cost", "mu", "sigma", "k"))


def on_noise(which, cost, mu, sigma, k, eps):
    """Single-sample gradients for mu from the package."""
    mean, std = torch.tensor([[mu], [sigma]], dtype=torch.float64)
    return ESTIMATORS[which](oracles.COSTS[cost](k), mean, 2 * std.log(), eps).mu[:, 0]


def closed_form(which, *where):
    table = {"score": oracles.score_function_variance, "pathwise": oracles.pathwise_variance}
    return table[which](*where)[0]


def assert_exact(found):
    where = place(found)
    assert found["mean"] == pytest.approx(oracles.gradient(*where)[0], rel=RTOL, abs=1e-12)
    exact = {which: closed_form(which, *where) for which in ESTIMATORS}
    assert found["exact"] == pytest.approx(exact, rel=RTOL)
    assert found["smaller"] == min(exact, key=exact.get)
    ratio = max(exact.values()) / min(exact.values())
    assert found["ratio"] == pytest.approx(ratio, rel=RTOL)


def number(shown):
    """What a reader reads: 0.3139, −1.05 or 3.825 × 10¹⁸."""
    shown = shown.replace("−", "-").translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-"))
    return float(shown.replace(" × 10", "e"))


def assert_shown(root):
    """Sliders, sentence and table say what the state holds, to their four digits."""
    found = state(root)
    for name in ("mu", "sigma", "k"):
        value = slider(root, name).locator("xpath=..").locator(".value").inner_text()
        assert number(value) == pytest.approx(found[name], abs=1e-9)
    verdict = root.locator(".verdict").inner_text()
    shown = [number(part.rstrip(",. ")) for part in re.findall(r"−?\d[\d. ×⁰¹²³⁴⁵⁶⁷⁸⁹⁻]*", verdict)]
    expected = [found["exact"]["score"], found["exact"]["pathwise"], found["ratio"]]
    assert shown == pytest.approx(expected, rel=6e-4)
    winner = {"score": "The score function", "pathwise": "The pathwise gradient"}
    assert f"{winner[found['smaller']]} has the smaller variance" in verdict
    for row, which in zip(root.locator("tbody tr").all(), ESTIMATORS):
        assert row.locator("th").inner_text() == NAMES[which]
        exact, sampled = row.locator("td").all_inner_texts()
        value, error = sampled.replace("\n", " ").split("±")
        assert number(exact) == pytest.approx(found["exact"][which], rel=6e-4)
        assert number(value) == pytest.approx(found["sampled"][which], rel=6e-4)
        assert number(error) == pytest.approx(found["error"][which], rel=6e-2)


def test_exact_variances_agree_at_all_ends_of_the_sliders(explorer):
    for where in GRID:
        found = explorer.evaluate(SET, list(where))
        assert place(found) == where
        assert_exact(found)


@pytest.mark.parametrize("cost", K)
def test_exact_values_and_standard_errors_agree_with_the_package_on_a_grid(explorer, cost):
    eps = torch.linspace(-14, 42, 40_001, dtype=torch.float64)[:, None]
    weight = torch.exp(-(eps[:, 0] ** 2) / 2) * (56 / 40_000 / (2 * torch.pi) ** 0.5)
    for where in itertools.product([cost], MU, SIGMA, K[cost]):
        found = explorer.evaluate(SET, list(where))
        for which in ESTIMATORS:
            rows = on_noise(which, *where, eps)
            centred = rows - weight @ rows
            variance, fourth = weight @ centred**2, weight @ centred**4
            assert found["exact"][which] == pytest.approx(variance.item(), rel=RTOL)
            error = ((fourth - variance**2) / 4000).sqrt().item()
            assert found["error"][which] == pytest.approx(error, rel=RTOL)


def test_sampled_variances_are_those_of_the_package_on_the_same_draws(explorer):
    draws = torch.tensor(explorer.evaluate("root => root.draws"), dtype=torch.float64)
    assert draws.shape == (4000,)
    assert draws.mean().abs() < 5 / 4000**0.5
    assert (draws.var() - 1).abs() < 5 * (2 / 4000) ** 0.5
    for where in GRID:
        found = explorer.evaluate(SET, list(where))
        low, high = found["range"]
        for which in ESTIMATORS:
            rows = on_noise(which, *where, draws[:, None])
            assert found["sampled"][which] == pytest.approx(rows.var().item(), rel=RTOL)
            outside = ((rows < low) | (rows > high)).double().mean().item()
            assert found["outside"][which] == pytest.approx(outside, abs=1e-9)
            assert outside <= 0.02
            if found["error"][which] < 0.1 * found["exact"][which]:  # no heavy tail
                off = found["sampled"][which] - found["exact"][which]
                assert abs(off) < 5 * found["error"][which]


def test_every_visit_draws_the_same_numbers(explorer):
    draws = explorer.evaluate("root => root.draws")
    before = state(explorer)
    explorer.page.reload()
    assert explorer.evaluate("root => root.draws") == draws
    assert state(explorer) == before


def test_it_starts_near_the_crossing(explorer):
    found = state(explorer)
    assert place(found) == ("cosine", 1, 1, 1.1)
    assert found["smaller"] == "score" and found["ratio"] < 1.2
    assert_exact(found)
    assert_shown(explorer)


def test_dragging_a_slider_with_the_mouse(explorer):
    for name, ends in (("k", K["cosine"]), ("mu", MU), ("sigma", SIGMA)):
        slider(explorer, name).scroll_into_view_if_needed()
        box = slider(explorer, name).bounding_box()
        mouse, middle = explorer.page.mouse, box["y"] + box["height"] / 2
        mouse.move(box["x"] + box["width"] / 2, middle)
        mouse.down()
        centre = state(explorer)[name]
        assert centre == pytest.approx(sum(ends) / 2, abs=0.06)
        mouse.move(box["x"] + 0.75 * box["width"], middle, steps=5)
        dragged = state(explorer)  # while the button is down
        assert centre + 0.1 * (ends[1] - ends[0]) < dragged[name] < ends[1]
        mouse.up()
        assert_exact(state(explorer))
        assert_shown(explorer)


def test_arrow_keys_cross_the_point_where_the_variances_are_equal(explorer):
    slider(explorer, "k").focus()
    for hundredth in (109, 108, 107):
        explorer.page.keyboard.press("ArrowLeft")
        found = state(explorer)
        assert found["k"] == hundredth / 100 and found["smaller"] == "score"
    gap = found["exact"]["pathwise"] - found["exact"]["score"]
    assert 0 < gap < min(found["error"].values())  # as the chapter says
    explorer.page.keyboard.press("ArrowLeft")
    assert state(explorer)["k"] == 1.06 and state(explorer)["smaller"] == "pathwise"
    assert_exact(state(explorer))
    assert_shown(explorer)
    explorer.page.keyboard.press("End")
    assert state(explorer)["k"] == 5
    assert_exact(state(explorer))


def test_another_cost_is_chosen_with_the_keyboard(explorer):
    explorer.page.keyboard.press("Home")
    explorer.locator("input[value=cosine]").focus()
    for cost in ("exponential", "quadratic"):
        explorer.page.keyboard.press("ArrowUp")
        found = state(explorer)
        assert place(found) == (cost, 1, 1, 1.1)
        ends = [slider(explorer, "k").get_attribute(end) for end in ("min", "max")]
        assert tuple(map(float, ends)) == K[cost]
        assert_exact(found)
        assert_shown(explorer)
    for name in ("mu", "sigma", "k"):  # Tab reaches every control in turn
        explorer.page.keyboard.press("Tab")
        assert explorer.page.evaluate("document.activeElement.name") == name
    explorer.page.keyboard.press("Home")
    assert place(state(explorer)) == ("quadratic", 1, 1, -3)
    assert_exact(state(explorer))
    assert_shown(explorer)
    explorer.page.keyboard.press("Tab")
    explorer.page.keyboard.press("Enter")
    assert place(state(explorer)) == ("cosine", 1, 1, 1.1)


def test_k_moves_into_the_range_of_a_new_cost(explorer):
    slider(explorer, "k").press("End")
    explorer.get_by_label("exponential").check()
    assert place(state(explorer)) == ("exponential", 1, 1, 2)
    assert_exact(state(explorer))
    assert_shown(explorer)


def test_a_tail_that_the_draws_miss_is_announced(explorer):
    assert explorer.locator(".warning").inner_text() == ""
    found = explorer.evaluate(SET, ["exponential", 2, 2, 2])
    for which in ESTIMATORS:
        assert found["sampled"][which] < 1e-3 * found["exact"][which]
        assert found["error"][which] > found["exact"][which]
    assert "Heavy tail" in explorer.locator(".warning").inner_text()
    assert_shown(explorer)


def test_every_control_and_picture_has_a_name(explorer):
    assert explorer.get_by_role("group", name="Cost f(z)").count() == 1
    for name in ("μ, mean of z", "σ, spread of z", "k, in the cost"):
        assert explorer.get_by_role("slider", name=name, exact=True).count() == 1
    assert explorer.get_by_role("radio").count() == 3
    assert explorer.get_by_role("img", name="Histogram of 4,000 draws").count() == 2
    live = explorer.get_by_role("status")
    assert live.get_attribute("aria-live") == "polite"
    assert "Exact variances: score function 0.3139, pathwise 0.3501." in live.inner_text()


def contrast(colours):
    def luminance(colour):
        rgb = torch.tensor([int(c) for c in re.findall(r"\d+", colour)[:3]]).double() / 255
        linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return (linear @ torch.tensor([0.2126, 0.7152, 0.0722]).double()).item()

    low, high = sorted(map(luminance, colours))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_is_legible_fits_and_has_no_axe_violation(open_page, width, dark):
    page = open_page("chapters/score_vs_reparam", width=width, dark=dark)
    root = page.locator(".estimator-explorer")
    for where in (("cosine", 1, 1, 1.1), ("exponential", 2, 2, 2), ("exponential", 1, 0.2, 0.1)):
        root.evaluate(SET, list(where))
        assert root.evaluate("root => root.scrollWidth <= root.clientWidth")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    colours = root.evaluate(COLOURS)
    assert all(contrast(pair) >= 7 for pair in colours["text"])
    assert all(contrast(pair) >= 3 for pair in colours["bars"])
    hexes = ["#%02X%02X%02X" % tuple(map(int, re.findall(r"\d+", c))) for c, _ in colours["bars"]]
    assert hexes == [COLORS["score function"], COLORS["pathwise"]]
    found = Axe().run(page, context=".estimator-explorer", options={"preload": False})
    assert found.response["passes"] and found.response["violations"] == []


def test_the_pictures_follow_the_width_of_the_page(explorer):
    def widths():
        return explorer.locator("svg").evaluate_all("all => all.map(s => s.clientWidth)")

    wide = widths()
    explorer.page.set_viewport_size({"width": 360, "height": 800})
    explorer.page.wait_for_function(
        "old => document.querySelector('.estimator-explorer svg').clientWidth < old", arg=wide[0]
    )
    assert max(widths()) < 330


def test_the_bars_count_the_draws(explorer):
    """Heights and axis: the bars of a picture sum to the share of draws within its range."""
    for where in (("cosine", 1, 1, 1.1), ("quadratic", -2, 2, 3), ("exponential", 1, 1, 1)):
        found = explorer.evaluate(SET, list(where))
        for svg, which in zip(explorer.locator("svg").all(), ESTIMATORS):
            heights = svg.locator("rect").evaluate_all(
                "all => all.map(r => Number(r.getAttribute('height')))"
            )
            marks = svg.evaluate(
                """svg => [...svg.querySelectorAll("text[text-anchor=end]")].map(t =>
                    [Number(t.textContent), Number(t.getAttribute("y")) - 4])"""
            )
            (zero, base), (percent, y) = marks[0], marks[-1]
            assert zero == 0 and percent > 0
            total = sum(heights) / (base - y) * percent
            assert total == pytest.approx(100 * (1 - found["outside"][which]), rel=1e-6)
