"""`DoctorResult`: what the doctor found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..algorithm2.results import count, format_table
from ..errors import first_few
from ..escape import printable
from .finding import Finding
from .page import write_doctor_page
from .row import DoctorRow


@dataclass(frozen=True)
class DoctorResult:
    """Hold what was found, and one row per BN layer. Prints as a table, worst first.

    Arguments:
        model: the model that was given. It is as it was.
        findings: worst first.
        rows: one row per BN layer, in the order of `named_modules`.
        batches: the number of batches read.
        unexamined: a sentence per thing that could not be examined.

    Example:
        >>> import torch
        >>> import batchnorm as bn
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8, bias=False), torch.nn.BatchNorm1d(8), torch.nn.ReLU())
        >>> _ = torch.manual_seed(0)
        >>> result = bn.doctor(model, [torch.randn(64, 4) for _ in range(4)])
        >>> result.errors, result.healthy
        (2, False)
        >>> result.findings[-1].check, result.findings[-1].remedy
        ('unfolded', 'bn.fuse(model, example)')
    """

    model: nn.Module
    findings: tuple[Finding, ...]
    rows: tuple[DoctorRow, ...]
    batches: int
    unexamined: tuple[str, ...] = ()

    @property
    def errors(self) -> int:
        """Return the number of findings that make results wrong."""
        return sum(finding.severity == "error" for finding in self.findings)

    @property
    def warnings(self) -> int:
        """Return the number of findings that are likely to."""
        return sum(finding.severity == "warning" for finding in self.findings)

    @property
    def notes(self) -> int:
        """Return the number of findings that may be meant so."""
        return sum(finding.severity == "note" for finding in self.findings)

    @property
    def healthy(self) -> bool:
        """Return True without errors and warnings."""
        return not self.errors and not self.warnings

    def counted(self) -> str:
        """Return how many findings there are of each severity, as a phrase."""
        numbers = ((self.errors, "error"), (self.warnings, "warning"), (self.notes, "note"))
        return ", ".join(f"{number} {word}{'' if number == 1 else 's'}" for number, word in numbers)

    def __str__(self) -> str:
        header = ("severity", "check", "layers", "evidence")
        table = format_table(header, [_cells(finding) for finding in self.findings], empty="nothing found")
        told = [f"{f.check}: {f.reason}.\n  remedy: {f.remedy}" for f in self.findings]
        healthy = count(self.rows, "healthy")
        counts = f"{self.counted()}; {healthy} of {len(self.rows)} layers without a finding, {self.batches} batches"
        lines = [_printable_lines(text) for text in (*told, *self.unexamined)]
        return "\n".join([table, *([""] if lines else []), *lines, *([""] if lines else []), counts])

    def to_html(self, path: str | Path) -> Path:
        """Write one page that needs no other file and no network, and return its path.

        It has the findings, the growth of the difference between training and eval through the network, and per layer
        the running statistics against the measured ones, the values per channel and the dead channels.

        Raises:
            StorageError: the disk is full or the folder read-only.

        Example:
            >>> import torch
            >>> import batchnorm as bn
            >>> result = bn.doctor(torch.nn.Sequential(torch.nn.BatchNorm1d(2)), [torch.randn(32, 2)])
            >>> result.to_html("doctor.html").name
            'doctor.html'
        """
        layers = f"{len(self.rows)} BN layers of {type(self.model).__name__}, {self.batches} batches"
        more = " ".join((f"{layers}.", *self.unexamined))
        return write_doctor_page(Path(path), self.counted(), self.findings, self.rows, more)


def _cells(finding: Finding) -> tuple[str, str, str, str]:
    return finding.severity, finding.check, first_few(finding.layers, 3), finding.evidence


def _printable_lines(text: str) -> str:
    """Escape names in a text, line by line."""
    return "\n".join(map(printable, text.split("\n")))
