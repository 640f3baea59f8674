"""Shared by all tests: one seed and one thread count before each test, float64 by name."""

import pytest
import torch

collect_ignore = ["annotations_run.py"]  # a script of its own: test_annotations.py runs it


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def tiny_data():
    """300 training and 40 test images of two stripe patterns: small, but learnable."""
    from vaelib import ImageData

    noise = torch.Generator().manual_seed(1)
    labels = torch.randint(2, (340,), generator=noise)
    stripes = torch.stack([torch.arange(784) % 2, torch.arange(784) // 28 % 2])
    flip = torch.rand(340, 784, generator=noise) < 0.05
    images = ((stripes[labels] ^ flip.long()) * 255).to(torch.uint8)
    return ImageData("tiny", images[:300], labels[:300], images[300:], labels[300:])
