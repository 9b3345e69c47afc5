"""The one error that reading, matching and loading of weights raises."""


class WeightsError(ValueError):
    """A checkpoint cannot be read, does not fit, or is refused; the model is untouched."""
