"""`Finding`: one thing that is wrong with a network, the numbers that show it, and the line that mends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")  # worst first


@dataclass(frozen=True)
class Finding:
    """Tell what is wrong, where, and what to do.

    Arguments:
        check: what was looked for, such as "stale statistics". docs/doctor.md has the list.
        severity: "error" if results are wrong; "warning" if they are likely to be, or the next training step will
            spoil them; "note" for a fact that may be meant so.
        layers: the names of the layers, the worst or the first one first. Empty for the network as a whole. A bare BN
            layer is named by its class.
        evidence: what was measured, with numbers.
        reason: why that is wrong.
        remedy: the one call or edit that mends it.

    Example:
        >>> import torch
        >>> import batchnorm as bn
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(2, momentum=0.9))
        >>> finding = bn.doctor(model, [torch.randn(64, 2)]).findings[0]
        >>> finding.check, finding.severity, finding.layers
        ('momentum', 'warning', ('0',))
        >>> finding.evidence
        '0: momentum 0.9 keeps 90% of the noise of the last batch'
    """

    check: str
    severity: Severity
    layers: tuple[str, ...]
    evidence: str
    reason: str
    remedy: str
