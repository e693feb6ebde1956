"""The one error type of the package."""


class BatchNormError(ValueError):
    """Input that `batchnorm` cannot work with: says what came, what was wanted and what to do."""


def first_line(error: Exception) -> str:
    """What an error says, without the traces and advice that torch adds."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
