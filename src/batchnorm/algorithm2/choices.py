"""The values that options of Algorithm 2 can take. The command's help reads them, so nothing here imports torch."""

from __future__ import annotations

from typing import Literal

Estimator = Literal["pooled", "paper"]  # of `recalibrate`
Removable = Literal["dropout", "lrn"]  # of `insert`
