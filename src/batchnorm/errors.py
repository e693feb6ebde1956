"""The one error type of the package."""


class BatchNormError(ValueError):
    """Input that `batchnorm` cannot work with: says what came, what was wanted and what to do."""
