"""Arguments that several commands share, as types for tyro."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

Target = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODULE:FACTORY")]
Shape = Annotated[str, tyro.conf.arg(name="input", metavar="1x3x224x224")]
Runs = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN…")]
