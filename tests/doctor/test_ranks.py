"""Two processes of one job whose buffers differ."""

import pytest
import torch
import torch.distributed as dist
from support.commands import run_ranks
from torch import nn

import batchnorm as bn


def examine(rank, store, output):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4), nn.BatchNorm1d(4)).eval()
    batches = [torch.randn(3, 4) for _ in range(6)]
    bn.recalibrate(model, batches)
    model[1].running_mean += rank
    result = bn.doctor(model, batches)
    found = {finding.check: (finding.layers, finding.evidence, finding.remedy) for finding in result.findings}
    bn.recalibrate(model, batches)
    again = [finding.check for finding in bn.doctor(model, batches).findings]
    torch.save((found["ranks differ"], found["few values"], again), f"{output}-{rank}")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
def test_buffers_that_differ_between_ranks_are_found_and_mended(tmp_path):
    run_ranks(examine, tmp_path / "store", tmp_path / "found")
    for rank in range(2):
        ranks, few, again = torch.load(tmp_path / f"found-{rank}", weights_only=True)
        assert ranks[0] == ("1",)
        assert "differ by up to 1 between 2 processes" in ranks[1]
        assert "each of 2 processes normalizes by its own" in few[1]
        assert few[2].startswith("bn.synchronize(model)")
        assert "ranks differ" not in again


def share(rank, store, output):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = bn.synchronize(nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    batches = [torch.randn(4, 4) for _ in range(6 + rank)]
    result = bn.doctor(model, batches)
    with pytest.raises(bn.BatchNormError, match="'1' gets one value per channel in this process; give larger batches"):
        bn.doctor(model, [x[:1] for x in batches])
    torch.save(
        ([(finding.check, finding.severity) for finding in result.findings], result.unexamined), f"{output}-{rank}"
    )
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
def test_values_of_all_processes_count_and_no_process_waits_for_another(tmp_path):
    """Four values of each of two processes are enough, and one process may have a batch more than the other."""
    run_ranks(share, tmp_path / "store", tmp_path / "found")
    for rank in range(2):
        found, unexamined = torch.load(tmp_path / f"found-{rank}", weights_only=True)
        assert ("few values", "warning") not in found
        assert unexamined == ()
