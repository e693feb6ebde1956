"""Write the page of a `DoctorResult`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .doctor import DoctorResult


def write_doctor_page(result: DoctorResult, path: Path) -> Path:
    """Write the page and return its path."""
    return path
