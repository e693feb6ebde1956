"""Evaluation: folding, crops, ensembles, damaged images, diverged runs."""

from dataclasses import replace

import pytest
import torch
from support.inception_runs import TINY, no_progress, train
from support.jpegs import CLASSES, damage, jpeg_shards, jpeg_tree
from torch import nn

import batchnorm as bn
from batchnorm.paper.images.crops import crops_144
from batchnorm.paper.images.normalize import normalize
from batchnorm.paper.images.sources import open_images
from batchnorm.paper.inception import evaluate as evaluation
from batchnorm.paper.inception.evaluate import evaluate, load_network
from batchnorm.paper.inception.jobs import new_jobs, resumed_jobs
from batchnorm.paper.inception.variants import BN_X30, INCEPTION_X5


def evaluate_folded(jobs, data, crops=1):
    return evaluate(jobs, str(data), crops, folded=True, workers=0, progress=no_progress)


def test_a_folded_network_has_no_bn_and_keeps_classes_and_memory_format(finished):
    folded, classes = load_network(*resumed_jobs(finished.folder), folded=True)
    assert classes == CLASSES
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in folded.modules())
    kernels = [p for p in folded.parameters() if p.dim() == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


def test_evaluation_agrees_with_the_last_measurement_of_training(tree, finished):
    (row,) = evaluate_folded(resumed_jobs(finished.folder), tree)
    assert row["top1"] == finished.rows()[-1]["top1"]
    assert (row["images"], row["folded"], row["runs"]) == (50, True, ["bn-x5, seed 1"])


def test_an_ensemble_is_the_mean_of_probabilities_of_144_crops(tree, finished, tmp_path):
    few = str(jpeg_shards(tmp_path / "few", train=1, val=1))
    (tmp_path / "few" / "val-000002.tar").unlink()  # 7 images are enough.
    other = train(tmp_path / "other", BN_X30, replace(TINY, data=tree, seed=2, steps=2, eval_every=2))
    jobs = [*resumed_jobs(finished.folder), *resumed_jobs(other.folder)]
    rows = evaluate_folded(jobs, few, crops=144)
    assert [row["name"] for row in rows] == ["bn-x5", "bn-x30", "ensemble"]
    images, hits = open_images(few, "val"), 0
    networks = [load_network(job, folded=False)[0] for job in jobs]
    for number in range(len(images)):
        crops = normalize(crops_144(images.read(number), 28))
        with torch.no_grad():
            means = torch.stack([network(crops).softmax(1).mean(0) for network in networks])
        hits += int(means.mean(0).argmax()) == images.label(number)
    assert rows[-1]["top1"] == pytest.approx(hits / len(images))
    assert rows[-1]["runs"] == ["bn-x5, seed 1", "bn-x30, seed 2"]


@pytest.fixture
def diverged(tree, tmp_path):
    run = train(tmp_path / "diverged", INCEPTION_X5, replace(TINY, data=tree, lr=1e6))
    return resumed_jobs(run.folder)


def test_only_diverged_runs_are_an_error(tree, diverged):
    with pytest.raises(bn.BatchNormError, match="has diverged: its parameters are not finite"):
        evaluate_folded(diverged, tree)


def test_a_diverged_run_is_left_out_with_a_warning(tree, finished, diverged, caplog):
    rows = evaluate_folded([*diverged, *resumed_jobs(finished.folder)], tree)
    assert [row["runs"] for row in rows] == [["bn-x5, seed 1"]]
    assert f"left out: {diverged[0].folder} has diverged" in caplog.text


@pytest.mark.parametrize("crops", [1, 144])
def test_a_batch_of_damaged_images_is_skipped(damaged, finished, crops, monkeypatch):
    monkeypatch.setattr(evaluation, "FORWARD_IMAGES", 3 if crops == 1 else 144)  # It is alone in its batch.
    (row,) = evaluate_folded(resumed_jobs(finished.folder), damaged, crops)
    assert row["images"] == 9


def test_no_readable_image_is_an_error(damaged, finished):
    damage(*(damaged / "val").rglob("*.jpg"))
    with pytest.raises(bn.BatchNormError, match=r"none of the 10 images of .* can be read"):
        evaluate_folded(resumed_jobs(finished.folder), damaged)


def test_a_run_without_a_checkpoint_is_an_error(tree, tmp_path):
    (job,) = new_jobs("bn-x5", replace(TINY, data=tree), tmp_path / "new")
    with pytest.raises(bn.BatchNormError, match="has no checkpoint to evaluate"):
        load_network(job, folded=True)


def test_classes_that_were_not_trained_are_an_error(finished, tmp_path):
    renamed = jpeg_tree(tmp_path / "renamed", train=1, val=1)
    for number, path in enumerate(sorted((renamed / "val").iterdir())):
        path.rename(path.with_name(f"other{number}"))
    with pytest.raises(bn.BatchNormError, match="validation classes were not trained, such as 'other0'"):
        evaluate_folded(resumed_jobs(finished.folder), renamed)


def test_runs_of_different_image_sizes_are_an_error(tree, finished, tmp_path):
    (other,) = new_jobs("bn-x5", replace(TINY, data=tree, size=32), tmp_path / "other")
    with pytest.raises(bn.BatchNormError, match="images of different sizes"):
        evaluate_folded([*resumed_jobs(finished.folder), other], tree)
