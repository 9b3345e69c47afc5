"""A picture of a batch, as the network gets it."""

import math
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor


def plot_images(images: Tensor, titles: Sequence[str], mean: Sequence[float], std: Sequence[float]) -> Figure:
    """Draw images in a grid, normalisation undone.

    Args:
        images: Normalised images (N, C, H, W) of 1, 3 or 4 channels.
        titles: Text above each image.
        mean: Mean of each channel that was subtracted.
        std: Standard deviation of each channel that was divided by.
    """
    shape = (1, -1, 1, 1)
    pictures = (images * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)).clamp(0, 1)
    columns = math.ceil(math.sqrt(len(titles)))
    rows = math.ceil(len(titles) / columns)
    # Not by pyplot: that would keep the figure alive, and open a window where there is a screen.
    figure = Figure(figsize=(2 * columns, 2.2 * rows), layout="constrained")
    for number, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.imshow(picture.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, fontsize=9)
        axes.axis("off")
    return figure
