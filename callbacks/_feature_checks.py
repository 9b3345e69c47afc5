"""What must hold before features take the place of images, checked on real samples."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from lit_transfer.callbacks._feature_batches import Chosen
from lit_transfer.callbacks._feature_front import Front
from lit_transfer.callbacks._feature_steps import Steps, seed_generators
from lit_transfer.features import Outline, Serving, check_still, find_image, is_random, outline_of, run_until

__all__ = ["Seen", "check_samples", "random_samples"]

_AT_ONCE = 4  # samples that are looked at: in eight draws of them a flip is missed with probability 2 ** -28


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
    """

    structure: TreeSpec
    image: int
    outline: Outline
    indices: list[int]
    images: Tensor
    features: Tensor


def check_samples(front: Front, steps: Steps, chosen: Chosen, name: str) -> Seen:
    """Run a few samples through the step, as far as the backbone.

    Whether the dataset gives the same sample each time is not seen here, but while features are computed.

    Args:
        front: The frozen front.
        steps: Runs the step.
        chosen: Reads samples.
        name: What to call them in errors.

    Raises:
        ValueError: Features in the place of images would not give what the images give; it says why and what to do.
        TypeError: What crosses the boundary is no single tensor.
    """
    check_still(front.backbone, front.boundary)
    indices = list(range(min(_AT_ONCE, chosen.length)))
    samples, batch = next(chosen([(indices, 0)], generator=seed_generators(0)))

    def draw(number: int) -> Tensor:
        seed_generators(number)
        return run_until(lambda: steps.run(chosen.collate(samples)), front.backbone, None)[0]

    with torch.no_grad():
        if is_random(draw):
            raise ValueError(
                f"What the backbone takes of the same {name} samples differs each time: collate_fn, a transfer hook or "
                f"the step augments them (mixup and cutmix do), and would augment features too. {_advice(name)}"
            )
        seen = _look(front, steps, samples, batch, indices, name)
        _check_served(front, steps, chosen, samples, batch, seen)
    return seen


def random_samples(name: str) -> ValueError:
    """Make the error for samples that differ from draw to draw."""
    return ValueError(f"The {name} samples differ each time that they are drawn: they are augmented. {_advice(name)}")


def _advice(name: str) -> str:
    if name != "train":
        return "Validate without random transforms, or leave FeatureCaching out."
    return (
        "Leave the augmentation out (augment='none', mixup=0, cutmix=0), let the dataset do it and have several views "
        "of each image cached, FeatureCaching(views=8), or have nothing stored and the front run faster, "
        "FeatureCaching(views=0)."
    )


def _look(front: Front, steps: Steps, samples: list[Any], batch: Any, indices: list[int], name: str) -> Seen:
    """Run one batch to the boundary, with gradients on, and see what is taken and what crosses."""
    with torch.enable_grad():
        outline, taken, feature = outline_of(lambda: steps.run(batch), front.backbone, front.boundary)
    found = find_image(samples, taken)
    if found is None:
        raise ValueError(
            f"The {name} images reach {front.name} other than the dataset gives them: something in between "
            "(collate_fn, on_before_batch_transfer, on_after_batch_transfer, the step) changes them, and would change "
            "features too. Let the dataset's transform do it."
        )
    return Seen(*found, outline, indices, taken.detach().clone(), feature.detach().clone())


def _check_served(front: Front, steps: Steps, chosen: Chosen, samples: list[Any], batch: Any, seen: Seen) -> None:
    """Compare what the backbone gives for the images and for their features, bit for bit."""
    crossed: list[Tensor] = []
    with steps.evaluating():
        handle = front.unit.register_forward_hook(lambda *given: crossed.append(given[2]))
        try:
            direct = run_until(lambda: steps.run(batch), front.backbone, front.backbone)[1]
        finally:
            handle.remove()
        if not torch.equal(crossed[0], seen.features):
            raise ValueError(
                f"{front.where} gives other features for the same images: something before it is random, or another in "
                "training than in evaluation."
            )
        given = _served(front, steps, chosen, samples, seen)
    pairs = zip(tree_leaves(direct), tree_leaves(given), strict=True)
    if not all(torch.equal(one, other) if isinstance(one, Tensor) else one == other for one, other in pairs):
        raise ValueError(
            f"From the output of {front.where} alone, {front.name} does not give what it gives for images: more than "
            "one tensor crosses this boundary. Freeze the whole backbone or other stages, or leave FeatureCaching out."
        )


def _served(front: Front, steps: Steps, chosen: Chosen, samples: list[Any], seen: Seen) -> Any:
    """Run the step on features and return what the backbone gives."""
    features = seen.features.cpu().contiguous().view(-1, *seen.outline.carried)
    batch = chosen.collate([_with_feature(s, seen, f) for s, f in zip(samples, features, strict=True)])
    serving = Serving(front.backbone, front.boundary, seen.outline)
    try:
        return run_until(lambda: steps.run(batch), front.backbone, front.backbone)[1]
    except Exception as error:
        raise ValueError(
            f"The step cannot take the features of {front.where}, of shape {seen.outline.carried}, in the place of "
            f"images: {type(error).__name__}: {error}"
        ) from error
    finally:
        serving.remove()


def _with_feature(sample: Any, seen: Seen, feature: Tensor) -> Any:
    leaves, structure = tree_flatten(sample)
    leaves[seen.image] = feature
    return tree_unflatten(leaves, structure)
