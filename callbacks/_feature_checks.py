"""What must hold before features take the place of images, checked on real samples."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from lit_transfer.callbacks._feature_batches import Chosen
from lit_transfer.callbacks._feature_front import Front
from lit_transfer.callbacks._feature_steps import Steps, seed_generators
from lit_transfer.features import Outline, Serving, check_still, find_image, is_random, outline_of, probe, run_until

__all__ = ["Seen", "check_samples"]

_AT_ONCE = 8  # samples in a batch of the checks


@dataclass(frozen=True)
class Seen:
    """What the checks have found out about the samples of a loader.

    Attributes:
        structure: How a sample is nested.
        image: Which leaf of it is the image.
        outline: What crosses the boundary.
        indices: Which samples were run.
        images: These samples as the backbone takes them, (len(indices), *outline.image).
        features: Their features, (len(indices), *outline.feature).
        views: How many views of each sample are worth keeping: 1 where nothing is random.
    """

    structure: TreeSpec
    image: int
    outline: Outline
    indices: list[int]
    images: Tensor
    features: Tensor
    views: int


def check_samples(front: Front, steps: Steps, chosen: Chosen, name: str, views: int) -> Seen:
    """Run some samples through the step, as far as the backbone.

    Args:
        front: The frozen front.
        steps: Runs the step.
        chosen: Reads samples.
        name: What to call them in errors.
        views: How many views of each sample the user wants.

    Raises:
        ValueError: Features in the place of images would not give what the images give; it says why and what to do.
        TypeError: What crosses the boundary is no single tensor.
    """
    check_still(front.backbone, front.boundary)
    indices = probe(chosen.length)
    batches = [indices[start : start + _AT_ONCE] for start in range(0, len(indices), _AT_ONCE)]
    first: list[Any] = []

    def draw(number: int) -> Iterator[Tensor]:
        generator = seed_generators(number)
        for samples, batch in chosen(batches, generator=generator, epochs=[number] * len(batches)):
            if not first:
                first.extend([samples, batch])
            yield run_until(lambda batch=batch: steps.run(batch), front.backbone, None)[0]  # type: ignore[misc]  # mypy does not infer a lambda with a default

    with torch.no_grad():
        if not is_random(draw):
            if views > 1:
                rank_zero_info(f"FeatureCaching: nothing in the {name} samples is random, so one view of each is kept.")
            views = 1
        elif views == 1:
            raise ValueError(_random(name))
        samples, batch = first
        seen = _look(front, steps, samples, batch, batches[0], name, views)
        _check_served(front, steps, chosen, samples, batch, seen)
    return seen


def _random(name: str) -> str:
    found = f"What the backbone takes of the {name} samples differs from draw to draw: they are augmented"
    if name != "train":
        return f"{found}. Validate without random transforms, or leave FeatureCaching out."
    return (
        f"{found} by the dataset, collate_fn, a transfer hook or the step. Leave the augmentation out "
        "(augment='none'), or have several views of each image cached: FeatureCaching(views=8)."
    )


def _look(
    front: Front, steps: Steps, samples: list[Any], batch: Any, indices: list[int], name: str, views: int
) -> Seen:
    """Run one batch to the boundary, with gradients and without, and see what is taken and what crosses."""
    with torch.enable_grad():
        outline, taken, feature = outline_of(lambda: steps.run(batch), front.backbone, front.boundary)
    found = find_image(samples, taken)
    if found is None:
        raise ValueError(
            f"The {name} images reach {front.name} other than the dataset gives them: something in between "
            "(collate_fn, on_before_batch_transfer, on_after_batch_transfer, the step) changes them, and would change "
            "features too. Let the dataset's transform do it."
        )
    again = run_until(lambda: steps.run(batch), front.backbone, front.unit)[1]
    if not torch.equal(feature, again):
        raise ValueError(f"{front.where} gives other features for the same images: something before it is random.")
    return Seen(*found, outline, indices, taken.detach().clone(), feature.detach().clone(), views)


def _check_served(front: Front, steps: Steps, chosen: Chosen, samples: list[Any], batch: Any, seen: Seen) -> None:
    """Compare what the backbone gives for the images and for their features, bit for bit."""
    features = seen.features.cpu().contiguous().view(-1, *seen.outline.carried)
    replaced = [_with_feature(s, seen, f) for s, f in zip(samples, features, strict=True)]
    with steps.evaluating():
        direct = run_until(lambda: steps.run(batch), front.backbone, front.backbone)[1]
        serving = Serving(front.backbone, front.boundary, seen.outline)
        try:
            given = run_until(lambda: steps.run(chosen.collate(replaced)), front.backbone, front.backbone)[1]
        except Exception as error:
            raise ValueError(
                f"The step cannot take the features of {front.where}, of shape {seen.outline.carried}, in the place of "
                f"images: {type(error).__name__}: {error}"
            ) from error
        finally:
            serving.remove()
    pairs = zip(tree_leaves(direct), tree_leaves(given), strict=True)
    if not all(torch.equal(one, other) if isinstance(one, Tensor) else one == other for one, other in pairs):
        raise ValueError(
            f"From the output of {front.where} alone, {front.name} does not give what it gives for images: more than "
            "one tensor crosses this boundary. Freeze the whole backbone or other stages, or leave FeatureCaching out."
        )


def _with_feature(sample: Any, seen: Seen, feature: Tensor) -> Any:
    leaves, structure = tree_flatten(sample)
    leaves[seen.image] = feature
    return tree_unflatten(leaves, structure)
