"""The two plain values that a trace gives."""

from dataclasses import dataclass

__all__ = ["Stage", "Trace"]


@dataclass(frozen=True)
class Stage:
    """A run of consecutive units of a module, which is frozen, unfrozen and given a learning rate as one.

    Attributes:
        name: `"stem"` for the first, then `"stage1"` to `"stageN"`, and `"head"` for the classifier.
        modules: Dotted names of its units in the order of their first use, those without parameters included.
        parameters: Names as in `module.named_parameters()`; a tied parameter once, under its first name.
        output_shape: Shape of what its last unit with a weight matrix gives, without batch dimension; None if unknown.
    """

    name: str
    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    output_shape: tuple[int, ...] | None


@dataclass(frozen=True)
class Trace:
    """What one run tells about a module.

    Attributes:
        stages: In the order of use. Each parameter of the module is in exactly one. `"head"` is last, where there is a
            classifier; its `modules` are all that make logits: the classifier and any that runs beside it on the same
            features, as in distilled models.
        classifier: Dotted name of the module that makes the logits; None if there is none.
        feature_shape: What the classifier receives, or without one, what the module returns; no batch dimension.
        unused: Parameters that the run in eval mode did not use, such as auxiliary classifiers. They have their place
            in a stage all the same.
        first_conv: Dotted name of the first convolution that was used, which takes the image's channels.
    """

    stages: tuple[Stage, ...]
    classifier: str | None
    feature_shape: tuple[int, ...]
    unused: tuple[str, ...]
    first_conv: str | None = None
