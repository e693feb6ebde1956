"""`batchnorm insert`: batch-normalize a network."""

from __future__ import annotations

from pathlib import Path

from ..algorithm2.choices import Removable
from ..errors import BatchNormError
from .arguments import Shape, Target
from .kernels import warn_without_kernels


def command(
    target: Target,
    shape: Shape,
    weights: Path | None = None,
    where: tuple[str, ...] = (),
    remove: tuple[Removable, ...] = (),
    data: str | None = None,
    batches: int | None = None,
    out: Path | None = None,
) -> None:
    """Insert batch normalization before every nonlinearity that follows an affine layer (Alg. 2, lines 1-5).

    Print what was inserted, removed and skipped, and why.

        batchnorm insert torchvision.models:vgg11 --input 1x3x224x224 --remove dropout --out vgg11_bn.safetensors
        batchnorm insert mine:network --input 1x3x32x32 --data mine:batches --out normalized.safetensors

    Args:
        target: Factory of the network, called without arguments, such as torchvision.models:vgg11.
        shape: Shape of the example input, with its batch axis.
        weights: File with a state_dict: .safetensors, or one by torch.save. A file that would run code is refused.
        where: Names of layers, or of modules around them. Insert only there.
        remove: Layers to remove (Sec. 4.2.1).
        data: MODULE:FACTORY of batches to measure. The new layers then start as the identity on these batches.
        batches: Number of batches to read from --data. By default all; some factories give batches without end.
        out: New .safetensors file for the state_dict of the result. It is not written if nothing was inserted.
    """
    from ..algorithm2.insert import insert
    from ..algorithm2.progress import reported
    from .example import example_for
    from .factory import make_batches, make_model
    from .output import check_out, save_state, write

    warn_without_kernels()
    if batches is not None and data is None:
        raise BatchNormError("--batches counts the batches of --data; give that too")
    check_out(out, (".safetensors",))
    model = make_model(target, weights)
    measured = None if data is None else reported(make_batches(data, batches), progress=True, step="insert")
    result = insert(model, example_for(model, shape), where=where or None, remove=remove, batches=measured)
    print(result)
    if out is not None and not result.inserted:
        raise BatchNormError(f"nothing was inserted, so {out} is not written: it would hold the network's own tensors")
    write(out, lambda file: save_state(result.model, file))
