"""Write the page of a `DoctorResult`: the findings, the growth of the gap, and the channels of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import isfinite
from pathlib import Path

from ..escape import printable
from ..page.html import Section, html_table, write_page
from .finding import Finding
from .profile import Profile
from .row import DoctorRow

_ABOUT = """Findings come worst first. An <b>error</b> makes results wrong, a <b>warning</b> is likely to, a <b>note</b>
may be meant so. Standard deviations (std) are those of the data, per channel."""
_LEGEND = """<p class="key">Each bar is a channel. <i class="swatch measured"></i> the data: mean ± std.
<i class="swatch running"></i> the running statistics, which eval uses: mean ± std. <i class="swatch dead"></i> a dead
channel: its output is one constant. The scale is that of the layer.</p>"""
_STYLE = """<style>
.finding { border-left: 4px solid var(--muted); padding: .25rem 0 .25rem 1rem; margin: 1.25rem 0; max-width: 75ch }
.finding.error { border-color: #c8382e } .finding.warning { border-color: #c98500 }
.finding h3 { margin: 0; font-size: 1rem; overflow-wrap: anywhere } .finding p { margin: .25rem 0 }
.finding code, .finding .layers { overflow-wrap: anywhere } .finding .layers { color: var(--muted); font-size: .875rem }
.gap { display: grid; grid-template-columns: minmax(6rem, 30%) 1fr 3.5rem; gap: .25rem .75rem; align-items: center }
.gap span { overflow-wrap: anywhere; font-size: .875rem } .gap b { font-weight: 400; text-align: right }
.gap i { display: block; height: .75rem; background: #2f6db5; min-width: 1px }
details { margin: .5rem 0 } summary { cursor: pointer; overflow-wrap: anywhere }
.channels { width: 100%; height: 9rem; display: block; margin: .5rem 0; border-bottom: 1px solid var(--rule) }
.measured { stroke: #2f6db5; background: #2f6db5 } .running { stroke: #d06a00; background: #d06a00 }
.dead { fill: var(--muted); background: var(--muted) } .zero { stroke: var(--rule) }
.channels line { vector-effect: non-scaling-stroke; stroke-width: 2 } .channels .zero { stroke-width: 1 }
.channels .mark { stroke-width: 6 }
.swatch { display: inline-block; width: .75rem; height: .75rem; margin-left: .75rem }
.range { display: flex; justify-content: space-between; margin: 0; max-width: none; gap: 1rem }
.range { font-size: .8125rem; color: var(--muted) }
@media screen and (prefers-color-scheme: dark) {
  .measured, .gap i { stroke: #6ea8e8; background: #6ea8e8 } .running { stroke: #f0a050; background: #f0a050 }
  .finding.error { border-color: #ff7a70 } .finding.warning { border-color: #f0b840 }
}
</style>"""


def write_doctor_page(
    path: Path, title: str, findings: Sequence[Finding], rows: Sequence[DoctorRow], more: str
) -> Path:
    """Write the page and return its path. It opens offline.

    Arguments:
        path: of the page.
        title: the counts of the findings.
        findings: worst first.
        rows: one per BN layer.
        more: what was examined, and what could not be.

    Raises:
        StorageError: the disk is full or the folder read-only.
    """
    found = "".join(map(_finding, findings)) or "<p>Nothing was found.</p>"
    sections = [
        Section(title, _STYLE + found),
        Section("Where training and eval part", _gaps(rows)),
        Section("Layers", html_table("Layers", _table(rows))),
        Section("Channels", _LEGEND + "".join(map(_channels, rows))),
    ]
    return write_page(path, "What the doctor found", _ABOUT, sections, printable(more))


def _finding(finding: Finding) -> str:
    title = f"{finding.severity}: {finding.check}"
    layers = ", ".join(map(_text, finding.layers)) or "the network"
    return (
        f'<div class="finding {finding.severity}"><h3>{_text(title)}</h3><p class="layers">{layers}</p>'
        f"<p>{_text(finding.evidence)}.</p><p>Why it matters: {_text(finding.reason)}.</p>"
        f"<p>Remedy: <code>{_text(finding.remedy)}</code></p></div>"
    )


def _gaps(rows: Sequence[DoctorRow]) -> str:
    """Return a bar per layer, in the order of `named_modules`."""
    gaps = [(row.name, row.gap) for row in rows if row.gap is not None]
    if not gaps:
        return "<p>No layer has running statistics that training does not use.</p>"
    largest = max([gap for _, gap in gaps if isfinite(gap)] + [0.1])
    bars = (
        f'<span>{_text(name)}</span><i style="width:{100 * min(gap, largest) / largest:.1f}%"></i><b>{gap:.2g}</b>'
        for name, gap in gaps
    )
    about = "How far the normalized input of each layer is from that in training, in standard deviations (RMS)."
    return f'<p>{about}</p><div class="gap">{"".join(bars)}</div>'


def _table(rows: Sequence[DoctorRow]) -> list[list[str]]:
    header = [
        "layer",
        "outcome",
        "values a batch",
        "mean off by (std)",
        "std ratio, min",
        "max",
        "noise of std",
        "checks",
    ]
    lines = [
        [row.name, row.outcome, str(row.values), *map(_number, _numbers(row)), row.reason or "none"] for row in rows
    ]
    return [header, *([printable(cell) for cell in line] for line in lines)]


def _numbers(row: DoctorRow) -> tuple[float | None, ...]:
    return row.mean_shift, row.std_low, row.std_high, row.noise


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _channels(row: DoctorRow) -> str:
    """Return a layer's channels as a picture, closed unless something was found there."""
    if row.profile is None:
        return ""
    opened = " open" if row.outcome in ("error", "warning") else ""
    return f"<details{opened}><summary>{_text(row.name)}: {row.outcome}</summary>{_picture(row.profile)}</details>"


def _picture(profile: Profile) -> str:
    pairs = [
        (profile.mean, profile.std, "measured", 0.35),
        (profile.running_mean, profile.running_std, "running", 0.65),
    ]
    ends = [m + sign * s for mean, std, *_ in pairs for m, s in zip(mean, std, strict=True) for sign in (-1, 1)]
    finite = [end for end in ends if isfinite(end)] or [0.0]
    low, high = min(*finite, 0.0), max(*finite, 0.0) or 1.0
    width = len(profile.mean)

    def y(value: float) -> float:
        return 100 * (high - value) / (high - low or 1)

    lines = [f'<line class="zero" x1="0" x2="{width}" y1="{y(0):.2f}" y2="{y(0):.2f}"/>']
    for mean, std, kind, place in pairs:
        for channel, (m, s) in enumerate(zip(mean, std, strict=True)):
            if isfinite(m) and isfinite(s):
                x = f"{channel + place:.2f}"
                lines.append(f'<line class="{kind}" x1="{x}" x2="{x}" y1="{y(m + s):.2f}" y2="{y(m - s):.2f}"/>')
                lines.append(f'<line class="{kind} mark" x1="{x}" x2="{x}" y1="{y(m) - 1:.2f}" y2="{y(m) + 1:.2f}"/>')
    lines += [f'<rect class="dead" x="{channel}" y="96" width="1" height="4"/>' for channel in profile.dead]
    label = f"{width} channels, {len(profile.dead)} dead"
    gamma = f"; gamma {min(profile.gamma):.3g} to {max(profile.gamma):.3g}" if profile.gamma else ""
    beta = f", beta {min(profile.beta):.3g} to {max(profile.beta):.3g}" if profile.beta else ""
    return (
        f'<p class="range"><span>{high:.3g} at the top</span><span>{label}{gamma}{beta}</span></p>'
        f'<svg class="channels" role="img" aria-label="{label}" viewBox="0 0 {width} 100" preserveAspectRatio="none">'
        f'{"".join(lines)}</svg><p class="range"><span>{low:.3g} at the bottom</span></p>'
    )


def _text(value: str) -> str:
    return escape(printable(value))
