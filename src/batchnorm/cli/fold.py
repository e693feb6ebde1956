"""`batchnorm fold`: remove batch normalization from a trained network."""

from __future__ import annotations

from pathlib import Path

from .arguments import Shape, Target
from .kernels import warn_without_kernels


def command(target: Target, shape: Shape, weights: Path | None = None, out: Path | None = None) -> None:
    """Fold every batch normalization of a network into its neighbors (Alg. 2, line 11).

    Print what became of each batch normalization, the error on a random input, and the latency before and after.

        batchnorm fold torchvision.models:resnet18 --input 1x3x224x224
        batchnorm fold mine:network --weights trained.safetensors --input 1x3x32x32 --out folded.onnx

    Args:
        target: Factory of the network, called without arguments, such as torchvision.models:resnet18.
        shape: Shape of the example input, with its batch axis.
        weights: File with a state_dict: .safetensors, or one by torch.save. A file that would run code is refused.
        out: New file for the result: .pt2 (torch.export), .onnx, or .safetensors for the tensors alone.
    """
    import torch

    from ..algorithm2.fold import fold
    from .example import example_for
    from .factory import make_model
    from .latency import ROUNDS, latencies
    from .output import check_out, save_network, write

    warn_without_kernels()
    check_out(out, (".pt2", ".onnx", ".safetensors"))
    model = make_model(target, weights)
    example = example_for(model, shape)
    result = fold(model, example)
    print(result)
    before, after = latencies([model, result.model], example)
    print(
        f"latency {before * 1e3:.2f} ms before, {after * 1e3:.2f} ms after "
        f"(median of {ROUNDS}, alternating, {torch.get_num_threads()} threads)"
    )
    write(out, lambda file: save_network(result.model, example, file))
