"""MODULE:FACTORY names a network or batches."""

import re

import pytest

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("tiny", r"wanted MODULE:FACTORY, such as torchvision\.models:resnet18; got 'tiny'$"),
        ("./tiny.py:plain", r"wanted MODULE:FACTORY, such as torchvision\.models:resnet18; got '\./tiny\.py:plain'$"),
        ("tiny.py:plain", r"wanted MODULE:FACTORY, such as torchvision\.models:resnet18; got 'tiny\.py:plain'$"),
        (
            "nowhere:net",
            "cannot make nowhere:net: ModuleNotFoundError: No module named 'nowhere'. Install that package, or start",
        ),
        ("tiny:nothing", "cannot make tiny:nothing: AttributeError"),
        (
            "tiny:wants",
            r"cannot make tiny:wants: TypeError: wants\(\) missing 1 required positional.*name a function that needs",
        ),
        ("tiny:number", "tiny:number returns int; wanted a torch.nn.Module"),
    ],
)
def test_what_makes_no_network_is_one_line(fails, target, message):
    assert re.match(message, fails("fold", target, "--input", "2x3x8x8"))


@pytest.mark.parametrize("command", [("recalibrate",), ("insert", "--input", "2x3x8x8")])
def test_what_makes_no_batches_is_one_line(fails, command):
    found = fails(*command, "tiny:with_norm", "--data", "tiny:number")
    assert found == "tiny:number returns int; wanted an iterable of batches"
