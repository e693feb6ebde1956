"""MODULE:FACTORY names a network or batches."""

import re

import pytest
from torch import nn

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
        ("tiny:plain_", r"cannot make tiny:plain_: AttributeError: .*no attribute 'plain_'\. Did you mean 'plain'\?$"),
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


def test_a_list_of_batches_in_place_of_its_factory_is_one_line(fails, tiny):
    tiny.listed = tiny.batches()
    found = fails("recalibrate", "tiny:with_norm", "--data", "tiny:listed")
    assert found == "tiny:listed is a list; wanted a function without arguments that returns the list"


def test_a_network_in_place_of_its_factory_is_one_line(fails, tiny):
    tiny.made = tiny.plain()
    found = fails("fold", "tiny:made", "--input", "2x3x8x8")
    assert found == "tiny:made is a Sequential; wanted a function without arguments that returns the Sequential"


def test_a_network_with_two_inputs_is_one_line_that_names_them(fails, tiny):
    tiny.two = lambda: nn.Bilinear(4, 4, 4)
    found = fails("fold", "tiny:two", "--input", "2x4")
    advice = "Its forward needs input1, input2, and --input makes one tensor: call batchnorm from Python."
    assert found.endswith(advice)
