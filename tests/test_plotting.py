"""The style is the one that figures get, grids hold their images in order, tables keep their text."""

import itertools

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.colors import to_rgb

from vaelib.plotting import COLORS, show_images, table, use_style


@pytest.fixture
def ax():
    with plt.rc_context():
        use_style()
        fig, ax = plt.subplots()
        yield ax
        plt.close(fig)


def drawn(ax) -> torch.Tensor:
    (image,) = ax.get_images()
    return torch.as_tensor(image.get_array().data)


def test_style_keeps_text_legible_on_a_phone_and_the_background_white(ax):
    ax.set(xlabel="epoch", ylabel="nats per image", title="title")
    ax.plot([0, 1], label="line")
    texts = [ax.xaxis.label, ax.yaxis.label, ax.title, *ax.legend().get_texts()]
    texts += [*ax.get_xticklabels(), *ax.get_yticklabels()]
    assert min(text.get_fontsize() for text in texts) >= 10
    width, height = ax.figure.get_size_inches()
    assert 6 <= width <= 8 and height < width
    assert to_rgb(ax.figure.get_facecolor()) == to_rgb(ax.get_facecolor()) == (1, 1, 1)


def test_each_meaning_has_a_colour_of_its_own():
    assert {"prior", "approximate posterior", "true posterior", "data"} <= set(COLORS)
    assert {"score function", "pathwise", "train", "test"} <= set(COLORS)
    for (name, one), (other, two) in itertools.combinations(COLORS.items(), 2):
        distance = sum((a - b) ** 2 for a, b in zip(to_rgb(one), to_rgb(two))) ** 0.5
        assert distance > 0.2, f"{name} and {other} look alike"


@pytest.mark.parametrize("shape", [(7, 784), (7, 28, 28)])
def test_grid_holds_the_images_row_by_row(ax, shape, generator):
    images = torch.rand(shape, generator=generator)
    assert show_images(ax, images, columns=3) is ax
    grid = drawn(ax)
    assert grid.shape == (3 * 28, 3 * 28)
    for i in range(9):
        r, c = divmod(i, 3)
        tile = grid[28 * r : 28 * (r + 1), 28 * c : 28 * (c + 1)]
        expected = images.reshape(-1, 28, 28)[i] if i < 7 else torch.zeros(28, 28)
        assert torch.equal(tile, expected)


def test_grid_draws_one_as_black_and_zero_as_white(ax):
    show_images(ax, torch.zeros(1, 784))
    (image,) = ax.get_images()
    assert image.get_clim() == (0, 1)
    assert image.cmap(image.norm(0.0))[:3] == (1, 1, 1)
    assert image.cmap(image.norm(1.0))[:3] == (0, 0, 0)


def test_grid_takes_uint8_pixels_and_tensors_with_a_gradient(ax):
    show_images(ax, torch.full((2, 784), 255, dtype=torch.uint8), columns=2)
    assert torch.equal(drawn(ax), torch.ones(28, 56))
    ax.clear()
    show_images(ax, torch.full((1, 784), 0.5, requires_grad=True), columns=1)
    assert torch.equal(drawn(ax), torch.full((28, 28), 0.5))


def test_table_keeps_its_strings_and_aligns_numbers_to_the_right():
    text = table(["term", "nats"], [["KL", "25.3"], ["ELBO", "-87.0"]]).data
    assert text.splitlines() == [
        "| term | nats |",
        "| --- | --: |",
        "| KL | 25.3 |",
        "| ELBO | -87.0 |",
    ]
