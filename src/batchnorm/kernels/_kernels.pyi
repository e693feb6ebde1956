"""The compiled loops of `csrc`. Tensors are passed by address, and `bindings` guarantees dtype, layout and size."""

class Problem:
    def __init__(
        self,
        n: int,
        c: int,
        s: int,
        channels_last: bool,
        bfloat16: bool,
        activation: int,
        slope: float,
        threads: int,
        weight: int,
        bias: int,
        residual: int,
    ) -> None: ...

def forward(
    problem: Problem,
    x: int,
    eps: float,
    z: int,
    batch: int,
    saved: int,
    running_mean: int,
    running_var: int,
    momentum: float,
    count: int,
    size: int,
) -> bool: ...
def backward(
    problem: Problem,
    x: int,
    dz: int,
    saved: int,
    dx: int,
    dresidual: int,
    dweight: int,
    dbias: int,
    total: int,
    count: int,
    size: int,
) -> None: ...
def normalize(problem: Problem, x: int, saved: int, z: int) -> None: ...
def inference(problem: Problem, x: int, mean: int, var: int, eps: float, z: int) -> None: ...
def update_running(running_mean: int, running_var: int, mean: int, var: int, c: int, momentum: float) -> bool: ...
def target() -> str: ...
def has_pool() -> bool: ...
def last_level_cache() -> int: ...
