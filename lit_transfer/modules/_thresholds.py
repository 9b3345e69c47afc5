"""From which probability on a label is given: the threshold of the best F1."""

import torch
from torch import Tensor

UNTUNED = 0.5


def best_thresholds(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Find for each label the threshold at which it is given with the highest F1; `probability >= threshold` gives it.

    Between two neighbouring probabilities each threshold gives the same answers. It lies in the middle then, so that
    rounding does not matter, or at 0.5 where that is among them; of equally good places, the one nearest to 0.5 counts.

    Args:
        probabilities: Of each image and label, (N, L).
        targets: 0 or 1 of the same shape.

    Returns:
        Thresholds (L,); 0.5 for a label that no image has, whose F1 says nothing.
    """
    return torch.stack([_best(*column) for column in zip(probabilities.T, targets.T > 0.5, strict=True)])


def _best(probabilities: Tensor, having: Tensor) -> Tensor:
    untuned = probabilities.new_tensor(UNTUNED)
    if not having.any():
        return untuned
    # Ascending: each ends a gap of equal answers.
    above, place = torch.unique(probabilities, return_inverse=True)
    below = torch.cat([above.new_zeros(1), above[:-1]])
    given = torch.zeros(len(above), dtype=torch.float64)  # images of this probability, then of this or a higher one
    right = given.clone()
    given.index_add_(0, place, torch.ones_like(place, dtype=torch.float64))
    right.index_add_(0, place, having.double())
    given, right = (counts.flip(0).cumsum(0).flip(0) for counts in (given, right))
    f1 = 2 * right / (given + having.sum())
    middle = (below + above) / 2
    middle = torch.where(middle > below, middle, above)  # they may be neighbours in float32
    at = torch.where((below < UNTUNED) & (above >= UNTUNED), untuned, middle)[f1 == f1.max()]
    return at[(at - UNTUNED).abs().argmin()]
