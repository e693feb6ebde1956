"""Every planted fault is found by its check at its layer and is gone after the remedy. Healthy networks are healthy."""

import pytest
from doctor.bank import FAULTS, patient
from support.patients import FAMILIES, LOSS, pictures, recalibrated

import batchnorm as bn


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_mended(name, family):
    check, plant = FAULTS[name]
    cases = plant(patient(family))
    ill = next(cases)
    found = [finding for finding in ill.examine().findings if finding.check == check]
    named = {layer for finding in found for layer in finding.layers}
    assert found
    assert set(ill.where) <= named
    if len(ill.where) == 1 and check not in ("padding", "sorted batches", "data shift", "dropout before BN"):
        assert next(iter(found[0].layers), None) == ill.where[0] or "never" in found[0].reason or len(named) > 1
    assert [finding for finding in next(cases).examine().findings if finding.check == check] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_healthy_network_is_healthy(family):
    patient = recalibrated(family)
    result = bn.doctor(patient.model, pictures(3, 6), loss=LOSS, eval_batches=pictures(4, 6))
    assert [finding for finding in result.findings if finding.severity != "note"] == []
    assert result.healthy
