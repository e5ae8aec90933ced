"""Figures that come out as files."""

import numpy as np
import PIL.Image
import pytest

from train_loop.evaluation.figures import write_images


def test_images_of_all_groups_are_drawn(tmp_path):
    path = tmp_path / "figure.png"
    red, blue = np.zeros((2, 4, 4, 3))
    red[..., 0] = 1.0
    blue[..., 2] = 1.0
    write_images(
        path,
        {
            # More than a row of them, and labels that look like formulas.
            "red": (np.stack([red] * 9), ["$cat", "dog_$", *["bird"] * 7]),
            "blue": (np.stack([blue] * 2), ["fish"] * 2),
        },
    )
    pixels = np.asarray(PIL.Image.open(path).convert("RGB"))
    places = {
        name: np.argwhere((pixels == color).all(-1))
        for name, color in {"red": [255, 0, 0], "blue": [0, 0, 255]}.items()
    }
    # Group by group, from the top.
    assert places["red"][:, 0].max() < places["blue"][:, 0].min()
    # All have the same size.
    area = {name: len(found) for name, found in places.items()}
    assert area["red"] / area["blue"] == pytest.approx(9 / 2, rel=0.1)
