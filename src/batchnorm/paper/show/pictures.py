"""Write matplotlib figures as PNG and SVG."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.figure import Figure

from ...atomic import write_atomically


def save_picture(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write `name`.png and `name`.svg into `folder` and return their paths.

    Raises:
        StorageError: the disk is full or the folder read-only.
    """
    paths = []
    for kind in ("png", "svg"):
        content = io.BytesIO()
        figure.savefig(content, dpi=150, format=kind)
        paths.append(folder / f"{name}.{kind}")
        write_atomically(paths[-1], content.getvalue())
    return paths
