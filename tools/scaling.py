"""Print what the paper's training costs on other machines: the model of docs/scaling.md, from recorded measurements.

    python tools/scaling.py

A step of N processes takes as long as the slower of two operations that overlap: computing the gradients of 32 images,
and averaging the gradients. A ring moves 2 (N - 1) / N of the gradients, in 2 (N - 1) hops. The last column is the rate
at which the images must be read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

RECORD = Path(__file__).parents[1] / "records" / "inception-speed" / "training.json"
STEPS, BATCH = 31e6, 32  # of the plain network, until its best accuracy
IMAGES = STEPS * BATCH
GRADIENT_BYTES = 4 * 11_188_288
# The backward costs twice the forward, which torch's FlopCounterMode counts.
FLOPS_AN_IMAGE = 3 * 3.87e9
JPEG_BYTES = 110e3  # ImageNet's training images, on average


@dataclass(frozen=True)
class Machine:
    """Describe a machine or a cluster.

    Arguments:
        name: The row of the table.
        processes: The number of processes.
        images_per_second: The images per second that one process alone trains on.
        bandwidth: The bytes per second between two processes.
        hop: The latency in seconds between two processes.
    """

    name: str
    processes: int
    images_per_second: float
    bandwidth: float
    hop: float


def step_seconds(machine: Machine) -> tuple[float, float]:
    """Return the seconds that one step spends on computing and on averaging gradients."""
    n = machine.processes
    moving = 2 * (n - 1) / n * GRADIENT_BYTES / machine.bandwidth + 2 * (n - 1) * machine.hop
    return BATCH / machine.images_per_second, moving if n > 1 else 0.0


def main() -> None:
    training = json.loads(RECORD.read_text())["training"]
    here = training["ours, NHWC, float32"]["images_per_second"]
    gpu = 0.15 * 312e12 / FLOPS_AN_IMAGE  # an assumption: 15 % of an A100's bfloat16 peak
    machines = [
        Machine("this machine", 1, here, 1.0, 0.0),
        Machine("8 GPUs, one machine", 8, gpu, 200e9, 5e-6),
        Machine("100 machines of 8 GPUs", 800, gpu, 20e9, 10e-6),
        Machine("10,000 GPUs", 10_000, gpu, 20e9, 10e-6),
    ]
    print(f"{'':24} {'images/s':>10} {'computing':>11} {'gradients':>11} {'31M x 32 images':>16} {'data GB/s':>10}")
    for machine in machines:
        computing, moving = step_seconds(machine)
        rate = machine.processes * BATCH / max(computing, moving)
        days = IMAGES / rate / 86400
        row = f"{rate:10,.0f} {computing * 1e3:8.1f} ms {moving * 1e3:8.1f} ms {days:11,.2f} days"
        print(f"{machine.name:24} {row} {rate * JPEG_BYTES / 1e9:10.2f}")


if __name__ == "__main__":
    main()
