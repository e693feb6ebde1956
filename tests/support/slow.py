"""Cases of a test that `make test` leaves out."""

from typing import Any

import pytest


def slow(*cases: Any) -> list[Any]:
    """Return the cases of `parametrize`, marked slow. A case is a value, or a tuple of several."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]
