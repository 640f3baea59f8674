"""One style and one palette for the book's figures; helpers take and return ``ax``."""

from importlib.resources import as_file, files

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor

#: A colour keeps its meaning through the book: Okabe and Ito's palette, which colour-blind readers
#: can tell apart, with a grey for data and an indigo (Paul Tol's) for test values.
COLORS = {
    "prior": "#56B4E9",
    "approximate posterior": "#D55E00",
    "true posterior": "#009E73",
    "data": "#4D4D4D",
    "score function": "#CC79A7",
    "pathwise": "#0072B2",
    "train": "#E69F00",
    "test": "#332288",
}


def use_style() -> None:
    """Apply the book's matplotlib style and draw figures at twice the screen's resolution."""
    with as_file(files("vaelib") / "book.mplstyle") as path:
        plt.style.use(path)
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:
        return
    set_matplotlib_formats("retina")


def show_images(ax: Axes, images: Tensor, columns: int = 10) -> Axes:
    """Draw images [N, 784] or [N, 28, 28] as one grid, row by row: 0 is white, 1 is black.

    Integer images (uint8 pixels) are taken to run from 0 to 255.
    """
    images = images.detach().cpu().reshape(-1, 28, 28)
    if not images.is_floating_point():
        images = images / 255
    rows = -(-len(images) // columns)
    grid = images.new_zeros(rows * columns, 28, 28)
    grid[: len(images)] = images
    grid = grid.reshape(rows, columns, 28, 28).transpose(1, 2).reshape(rows * 28, columns * 28)
    ax.imshow(grid.numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    ax.set_axis_off()
    return ax


def table(header: list[str], rows: list[list]):
    """A table for the page: Markdown with its numbers as given (strings are laid out as they are)."""
    from IPython.display import Markdown

    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *rows]
    return Markdown("\n".join("| " + " | ".join(str(c) for c in line) + " |" for line in lines))
