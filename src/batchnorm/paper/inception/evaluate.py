"""Sec. 4.2.3: errors of trained networks on the validation images, over crops, and of their ensemble."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ...algorithm2.fold import fold
from ...errors import BatchNormError
from ..images.damage import DamageLog
from ..images.interface import Images
from ..images.loader import evaluation_batches
from ..images.normalize import normalize
from ..images.sources import check_classes, open_images
from ..mnist.measure import count_hits
from ..training.processes import ALONE
from ..training.rows import Row
from ..training.run import Run
from .jobs import CHECKPOINT, Job
from .trainer import network

LOG = logging.getLogger(__name__)
FORWARD_IMAGES = 144  # crops that go through a network at once, so that memory stays flat
FOLD_TOLERANCE = 1e-3  # of the logits; the networks are float32


class Diverged(BatchNormError):
    """A run whose network computes nothing any more."""


def load_network(job: Job, folded: bool) -> tuple[nn.Module, tuple[str, ...]]:
    """The network of a run, in eval mode, at its newest checkpoint, and its classes.

    `folded`: its BN composed away (Alg. 2, line 11).

    Raises:
        BatchNormError: the run has no checkpoint, or a damaged one; Diverged, if its parameters are not finite.
    """
    state = Run(job.folder).checkpoint(CHECKPOINT).load()
    if state is None:
        raise BatchNormError(f"{job.folder} has no checkpoint to evaluate; train it first")
    classes, channels, size = tuple(state["classes"]), state["channels"], job.config.size
    model = network(job.config, job.variant, len(classes), channels).eval()
    model.load_state_dict(state["model"])
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise Diverged(f"{job.folder} has diverged: its parameters are not finite")
    if folded and job.variant.batch_norm:
        example = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
        model = fold(model, example, tolerance=FOLD_TOLERANCE).model
    # Convolutions follow their weights' format, which fold does not keep.
    model.to(memory_format=job.config.memory_format)  # pyright: ignore[reportCallIssue]
    return model, classes


def evaluate(
    jobs: Sequence[Job],
    data: str,
    crops: int,
    folded: bool,
    workers: int | None,
    progress: Callable[[int, int], None],
) -> list[Row]:
    """Top-1 and top-5 accuracy of each run, and of their ensemble, in one pass over the validation images.

    Runs that have diverged are left out, with a warning, unless all have.

    A prediction is the arithmetic mean of the class probabilities: of the crops, then of the networks (Sec. 4.2.3).

    Arguments:
        data: as in training.
        crops: 1, or the paper's 144.
        progress: called as `progress(images done, images)`.

    Raises:
        BatchNormError: runs that see images of different sizes; images that do not fit.
    """
    sizes = {job.config.size for job in jobs}
    if len(sizes) > 1:
        raise BatchNormError(f"the runs see images of different sizes, {sizes}; evaluate them one by one")
    (size,) = sizes
    source = open_images(data, "val", jobs[0].index)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks = _networks(jobs, folded, source)
    jobs = list(networks)
    models = [model.to(device) for model in networks.values()]
    hits = torch.zeros(len(jobs) + 1, 3, dtype=torch.float64)
    damage = DamageLog(len(source))
    for batch in evaluation_batches(source, size, crops, max(1, FORWARD_IMAGES // crops), ALONE, workers):
        damage.record(batch.damaged)
        if not len(batch.labels):
            continue
        images = normalize(batch.images.to(device))
        each = torch.stack([_probabilities(model, images) for model in models]).cpu()
        for counts, probabilities in zip(hits, [*each, each.mean(0)], strict=True):
            counts += count_hits(probabilities, batch.labels)
        progress(int(hits[0, 2]), len(source))
    if not hits[0, 2]:
        raise BatchNormError(f"none of the {len(source)} images of {data} can be read")
    labels = [f"{job.variant.name}, seed {job.config.seed}" for job in jobs]
    members = [(job.variant.name, [label]) for job, label in zip(jobs, labels, strict=True)]
    common = {"crops": crops, "size": size, "folded": folded}
    return [
        {"name": name, "runs": runs, **common, "images": int(count), "top1": top1 / count, "top5": top5 / count}
        for (name, runs), (top1, top5, count) in zip([*members, ("ensemble", labels)], hits.tolist(), strict=True)
        if name != "ensemble" or len(jobs) > 1
    ]


def _networks(jobs: Sequence[Job], folded: bool, source: Images) -> dict[Job, nn.Module]:
    """The networks of the jobs that have not diverged."""
    networks, diverged = {}, []
    for job in jobs:
        try:
            model, classes = load_network(job, folded)
        except Diverged as error:
            diverged.append(error)
            continue
        check_classes(source, classes)
        networks[job] = model
    if not networks:
        raise diverged[0]
    for error in diverged:
        LOG.warning("left out: %s", error)
    return networks


@torch.inference_mode()
def _probabilities(model: nn.Module, images: Tensor) -> Tensor:
    """Class probabilities (N, classes) of images (N, C, H, W), or of (N, crops, C, H, W) averaged over the crops."""
    if images.dim() == 4:
        return model(images).softmax(1)
    return model(images.flatten(0, 1)).softmax(1).unflatten(0, images.shape[:2]).mean(1)
