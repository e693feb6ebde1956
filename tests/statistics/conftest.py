"""One gloo group for all tests of this folder."""

import pytest
from support.ranks import Ranks


@pytest.fixture(scope="session")
def gloo(tmp_path_factory):
    ranks = Ranks(4, tmp_path_factory.mktemp("gloo"))
    yield ranks
    ranks.close()
