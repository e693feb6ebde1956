"""The log of damaged images."""

import pytest

import batchnorm as bn
from batchnorm.paper.images.damage import DamagedImage, DamageLog


def test_damage_is_logged_by_name_up_to_a_limit(caplog):
    log = DamageLog(2)
    log.record([DamagedImage("a.jpg", "truncated"), DamagedImage("b.jpg", "empty")])
    assert [record.getMessage() for record in caplog.records] == [
        "skipped a damaged image: a.jpg: truncated",
        "skipped a damaged image: b.jpg: empty",
    ]
    with pytest.raises(
        bn.BatchNormError, match=r"more than --max-damaged 2 images are damaged; the last one is c\.jpg"
    ):
        log.record([DamagedImage("c.jpg", "text")])


def test_an_image_damaged_in_every_epoch_counts_once(caplog):
    log = DamageLog(1)
    for place in range(5):  # Decoders name objects in memory, which differ each time.
        log.record([DamagedImage("a.jpg", f"truncated at {place}")])
    assert len(caplog.records) == 1
