"""Evaluate trained networks and their ensemble on the validation images (Sec. 4.2.3)."""

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
from ..training.checkpoint import load_tensors
from ..training.processes import ALONE, device_type
from ..training.rows import Row
from ..training.run import Run
from .jobs import CHECKPOINT, Job
from .records import TrainingHeader
from .scores import count_hits
from .settled import run_digest
from .trainer import build_network

LOG = logging.getLogger(__name__)
FORWARD_IMAGES = 144  # Crops in one forward pass. It bounds the memory.
FOLD_TOLERANCE = 1e-3  # Of the logits. The networks are float32.


class Diverged(BatchNormError):
    """A run whose network has parameters that are not finite."""


def load_network(job: Job, folded: bool) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the network of a run's newest checkpoint, in eval mode, and its classes.

    Arguments:
        job: the run.
        folded: fold every BN into its neighbors (Alg. 2, line 11).

    Raises:
        BatchNormError: the run has no checkpoint, or one that is damaged, of other settings or of another network.
        Diverged: the network's parameters are not finite.
    """
    checkpoint = Run(job.folder).checkpoint(CHECKPOINT, run_digest(job.config, job.variant), TrainingHeader)
    state = checkpoint.load()
    if state is None:
        raise BatchNormError(f"{job.folder} has no checkpoint to evaluate; train it first")
    classes, channels, size = tuple(state["classes"]), state["channels"], job.config.size
    model = build_network(job.config, job.variant, len(classes), channels).eval()
    try:
        load_tensors(model, state.get("model"))
    except BatchNormError as error:
        raise BatchNormError(f"{checkpoint.path}: {error}") from error
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise Diverged(f"{job.folder} has diverged: its parameters are not finite")
    if folded and job.variant.batch_norm:
        example = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
        model = fold(model, example, tolerance=FOLD_TOLERANCE).model
    # Convolutions use the memory format of their weights, which fold does not keep.
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
    """Measure top-1 and top-5 accuracy of each run and of their ensemble, in one pass over the validation images.

    A prediction is the arithmetic mean of the class probabilities: over the crops, then over the networks
    (Sec. 4.2.3). Diverged runs are left out with a warning.

    Arguments:
        jobs: the runs.
        data: the images, as in training.
        crops: 1, or the paper's 144.
        folded: fold every BN into its neighbors (Alg. 2, line 11).
        workers: processes that read images; by default one a core.
        progress: called as `progress(images done, all images)`.

    Returns:
        A row for each run, then one for the ensemble if there are several.

    Raises:
        BatchNormError: the runs differ in image size; the images do not fit or cannot be read; all runs diverged.
    """
    size = _common_size(jobs)
    source = open_images(data, "val", jobs[0].index)
    networks = _load_networks(jobs, folded, source)
    hits = _count_hits(list(networks.values()), source, size, crops, workers, progress)
    if not hits[0, 2]:
        raise BatchNormError(f"none of the {len(source)} images of {data} can be read")
    labels = [f"{job.variant.name}, seed {job.config.seed}" for job in networks]
    members = [(job.variant.name, [label]) for job, label in zip(networks, labels, strict=True)]
    common = {"crops": crops, "size": size, "folded": folded}
    return [
        {"name": name, "runs": runs, **common, "images": int(count), "top1": top1 / count, "top5": top5 / count}
        for (name, runs), (top1, top5, count) in zip([*members, ("ensemble", labels)], hits.tolist(), strict=True)
        if name != "ensemble" or len(networks) > 1
    ]


def _common_size(jobs: Sequence[Job]) -> int:
    sizes = {job.config.size for job in jobs}
    if len(sizes) > 1:
        raise BatchNormError(f"the runs use images of different sizes, {sizes}; evaluate them one by one")
    return sizes.pop()


def _load_networks(jobs: Sequence[Job], folded: bool, source: Images) -> dict[Job, nn.Module]:
    """Load the networks of all jobs that have not diverged."""
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


def _count_hits(
    models: Sequence[nn.Module],
    source: Images,
    size: int,
    crops: int,
    workers: int | None,
    progress: Callable[[int, int], None],
) -> Tensor:
    """Return `count_hits` of each model, and of their ensemble in the last row: (models + 1, 3)."""
    device = torch.device(device_type())
    models = [model.to(device) for model in models]
    hits = torch.zeros(len(models) + 1, 3, dtype=torch.float64)
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
    return hits


@torch.inference_mode()
def _probabilities(model: nn.Module, images: Tensor) -> Tensor:
    """Return class probabilities (N, classes) of images (N, C, H, W), or of (N, crops, C, H, W) averaged over crops."""
    if images.dim() == 4:
        return model(images).softmax(1)
    return model(images.flatten(0, 1)).softmax(1).unflatten(0, images.shape[:2]).mean(1)
