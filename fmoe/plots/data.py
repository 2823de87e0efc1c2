"""A sheet of a data set's images, a row a class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from fmoe.data.splits import Split
from fmoe.plots.run import label, png

COLUMNS = 10
"""Images of a class."""
MOST_ROWS = 100
"""Classes that are shown."""
GAP = 2  # pixels between images


def sheet(split: Split, classes: Sequence[str]) -> bytes:
    """PNG of the first images of each class, in their own pixels. split: images uint8 [N,C,H,W]."""
    channels, height, width = split.images.shape[1:]
    rows = min(len(classes), MOST_ROWS)
    canvas = np.full(
        (rows * (height + GAP), COLUMNS * (width + GAP), channels), 255, dtype=np.uint8
    )
    for row in range(rows):
        found = (split.labels == row).nonzero()[:COLUMNS, 0]
        for column, image in enumerate(split.images[found].numpy()):
            top, left = row * (height + GAP), column * (width + GAP)
            canvas[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    across, inches = canvas.shape[1] / canvas.shape[0], max(2.0, 0.45 * rows)
    figure = Figure(figsize=(2 + inches * across, inches + 0.3), layout="constrained")
    axes = figure.subplots()
    axes.imshow(canvas.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks(
        [row * (height + GAP) + height / 2 for row in range(rows)],
        [label(name) for name in classes[:rows]],
    )
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    return png(figure)
