"""Test the kernels with torch's compilers, exporters, autocast, checkpointing and processes, and torch without them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from support.commands import run_ranks
from support.interpreter import python
from support.kernel_cases import SLOPE, by_the_kernels, make, run
from torch.utils.checkpoint import checkpoint

import batchnorm as bn
from batchnorm.kernels import autograd, bindings, dispatch
from batchnorm.kernels.activation import Transform

pytestmark = by_the_kernels


def network(**options):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        bn.BatchNorm2d(8, activation="relu", **options),
        torch.nn.Conv2d(8, 4, 3),
        bn.BatchNorm2d(4, activation="leaky_relu", **options),
    )


def gradients(model, x):
    z = model(x)
    z.square().sum().backward()
    return z, [p.grad for p in model.parameters()], list(model.buffers())


@pytest.mark.parametrize("channels_last", [False, True])
def test_compiled_whole_and_eager_agree(channels_last):
    eager = network()
    compiled = copy.deepcopy(eager)
    x = torch.randn(4, 3, 9, 9)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    torch._dynamo.reset()
    # Only the graph is under test, not the code generator. "aot_eager" compiles in a second.
    got = gradients(torch.compile(compiled, fullgraph=True, backend="aot_eager"), x)
    torch.testing.assert_close(got, gradients(eager, x), rtol=1e-5, atol=1e-4)


def test_a_default_device_elsewhere_leaves_the_kernel_on_the_cpu():
    layer = bn.BatchNorm2d(4, activation="relu")
    x, *_, dz = make((3, 4, 9, 9))
    want = [t.clone() for t in (*torch.autograd.grad(layer(x), [*layer.parameters()], dz), layer(x))]
    with torch.device("meta"):
        z = layer(x)
        found = [*torch.autograd.grad(z, [*layer.parameters()], dz), z]
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


def test_a_saved_tensor_may_come_back_with_other_strides():
    x, weight, bias, dz = make((3, 4, 5, 6))
    want = run(x, weight, bias, dz, "relu")

    def unpack(t):
        return t.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0) if t.dim() == 4 else t

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
        found = run(x, weight, bias, dz, "relu")
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


def narrowed(t):
    return t.float() if t.dtype == torch.float64 else t.to(torch.bfloat16) if t.dim() > 2 else t


def restrided(t):
    return t.mT.contiguous().mT if t.dim() == 2 else t


@pytest.mark.parametrize(
    ("pack", "unpack"), [(narrowed, torch.Tensor.float), (restrided, lambda t: t)], ids=["compressed", "other strides"]
)
def test_saved_tensors_may_come_back_as_hooks_made_them(pack, unpack):
    x, weight, bias, dz = make((4, 32, 20, 20))
    x = x.bfloat16().float()  # so that the compressing hook loses nothing
    want = run(x, weight, bias, dz, "relu")
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        found = run(x, weight, bias, dz, "relu")
    for got, expected in zip(found, want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_narrow_input_may_come_back_wide():
    x, weight, bias, dz = make((4, 32, 20, 20), torch.bfloat16)
    want = run(x, weight, bias, dz, "relu")
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t.float() if t.dim() == 4 else t):
        found = run(x, weight, bias, dz, "relu")
    for got, expected in zip(found, want, strict=True):
        torch.testing.assert_close(got, expected, rtol=2**-7, atol=1e-2)


def test_saved_tensors_of_other_shapes_are_refused():
    x, weight, bias, dz = make((4, 32, 5, 5))
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t[:1] if t.dim() == 2 else t)
    with hooks, pytest.raises(bn.BatchNormError, match=r"shapes \(4, 32, 5, 5\) and \(1, 32\) from hooks"):
        run(x, weight, bias, dz, "relu")


@pytest.mark.parametrize("shape", [(2, 3, 0), (0, 3, 4), (2, 3, 0, 5)])
def test_the_operator_has_nan_statistics_for_an_empty_batch_as_in_eager_mode(shape):
    x, weight = torch.empty(shape), torch.ones(shape[1], requires_grad=True)
    z, batch, _ = torch.ops.batchnorm.normalize_by_batch(x, weight, None, 1e-5, "relu", 0.0, None)
    assert z.shape == shape
    assert batch.isnan().all()
    z.sum().backward()


def test_an_exported_program_may_be_cast_to_half_precision():
    x, weight, bias, dz = (t.half() for t in make((3, 4, 5, 6)))
    want = run(x.float(), weight.float(), bias.float(), dz.float(), "relu")
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    z = torch.ops.batchnorm.normalize_by_batch(*inputs, 1e-5, "relu", 0.0, None)[0]
    for found, expected in zip((z, *torch.autograd.grad(z, inputs, dz)), (want[0], *want[3:]), strict=True):
        assert found.dtype == torch.float16
        torch.testing.assert_close(found, expected.half(), rtol=2**-10, atol=1e-4)  # rounded once


@pytest.mark.parametrize(
    ("x", "weight"), [(torch.ones(4, 3).double(), None), (torch.ones(4, 3), torch.ones(2)), (torch.ones(4), None)]
)
def test_the_operator_refuses_what_it_cannot_compute(x, weight):
    with pytest.raises(bn.BatchNormError, match="Export the network again"):
        torch.ops.batchnorm.normalize_by_batch(x, weight, None, 1e-5, None, 0.0, None)


def test_no_channels_are_nothing_to_compute():
    z, batch, _ = torch.ops.batchnorm.normalize_by_batch(torch.ones(5, 0), None, None, 1e-5, None, 0.0, None)
    assert z.shape == (5, 0)
    assert batch.shape == (2, 0)


def test_exported_program_calls_the_operator_for_any_batch_size():
    model, x = network(), torch.randn(4, 3, 9, 9)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
    assert "batchnorm.normalize_by_batch" in str(program.graph)
    x = torch.randn(7, 3, 9, 9)
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.slow
def test_an_exported_program_loads_after_importing_functional(tmp_path):
    model, x = network(), torch.randn(4, 3, 9, 9)
    program = torch.export.export(copy.deepcopy(model), (x,))
    torch.export.save(program, tmp_path / "training.pt2")
    torch.export.save(program.run_decompositions(), tmp_path / "decomposed.pt2")
    torch.save(x, tmp_path / "x.pt")
    code = """
import batchnorm, torch
try:
    torch.export.load("training.pt2")
except Exception as error:  # the reason for the next import: the package alone registers no operator
    print("refused:", error)  # in words of torch, which differ from release to release
import batchnorm.functional
z = [torch.export.load(f"{name}.pt2").module()(torch.load("x.pt")).detach() for name in ("training", "decomposed")]
torch.save(z, "z.pt")
"""
    done = python(code, cwd=tmp_path)
    assert "refused:" in done.stdout, done.stdout + done.stderr
    z = model(x).detach()
    torch.testing.assert_close(torch.load(tmp_path / "z.pt"), [z, z])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # in opcheck
@pytest.mark.parametrize("stride", [1, 2])
def test_the_operator_passes_torchs_own_checks(stride):
    x, weight, bias, _ = make((4, 3, 8))
    x, weight, bias = (t.detach().requires_grad_() for t in (x[..., ::stride], weight, bias))
    torch.library.opcheck(autograd.operator, (x, weight, bias, 1e-5, "relu", 0.0, None))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # in opcheck
@pytest.mark.parametrize("activation", [None, "silu"])
def test_the_operator_with_a_residual_passes_torchs_own_checks(activation):
    x, weight, bias, residual = (t.detach().requires_grad_() for t in make((4, 3, 8)))
    torch.library.opcheck(autograd.operator, (x, weight, bias, 1e-5, activation, 0.0, residual))


@pytest.mark.parametrize("activation", [None, "silu"])
def test_a_residual_compiled_whole_and_eager_agree(activation):
    layer, (x, _, _, residual) = bn.BatchNorm1d(3, activation=activation), make((4, 3, 8))
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    results = []
    for each in (layer, compiled):
        inputs = [t.clone().requires_grad_() for t in (x, residual)]
        z = each(*inputs)
        results.append((z, torch.autograd.grad(z.square().sum(), inputs)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-4)


def test_inductors_code_agrees_with_eager():
    eager = network()
    compiled = copy.deepcopy(eager)
    x = torch.randn(4, 3, 9, 9).contiguous(memory_format=torch.channels_last)
    torch._dynamo.reset()
    got = gradients(torch.compile(compiled, fullgraph=True), x)
    torch.testing.assert_close(got, gradients(eager, x), rtol=1e-5, atol=1e-4)


def test_the_kernels_are_deterministic_algorithms():
    arguments = make((8, 40, 20, 20))
    free = run(*arguments, "relu")
    torch.use_deterministic_algorithms(True)
    try:
        strict = run(*arguments, "relu")
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(free, strict, strict=True))


def train_a_rank(rank: int, file: str, x: torch.Tensor, results: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    model = torch.nn.parallel.DistributedDataParallel(network(track_running_stats=False))
    model(x[4 * rank : 4 * rank + 4]).square().sum().backward()
    if rank == 0:
        torch.save([p.grad for p in model.parameters()], results)
    torch.distributed.barrier()  # a process that leaves early can abort the other
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")  # from torch.distributed
def test_distributed_gradients_are_the_average_over_the_processes(tmp_path):
    x = torch.randn(8, 3, 9, 9)
    results = tmp_path / "gradients.pt"
    run_ranks(train_a_rank, str(tmp_path / "store"), x, str(results))
    parts = [gradients(network(track_running_stats=False), half)[1] for half in x.split(4)]
    want = [(a + b) / 2 for a, b in zip(*parts, strict=True)]
    torch.testing.assert_close(torch.load(results), want, rtol=1e-5, atol=1e-5)


def test_autocast_keeps_the_dtype_of_its_input():
    model = network()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = model(torch.randn(4, 3, 9, 9))
    assert z.dtype == torch.bfloat16
    z.float().sum().backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


def test_functional_call_and_its_gradients_agree_with_the_layer():
    model, x = network(track_running_stats=False), torch.randn(4, 3, 9, 9)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    got = torch.func.grad(lambda p: torch.func.functional_call(model, p, (x,)).square().sum())(parameters)
    torch.testing.assert_close(list(got.values()), gradients(model, x)[1], rtol=1e-5, atol=1e-4)


def test_activation_checkpointing_gives_the_same_gradients():
    plain = network()
    model, x = copy.deepcopy(plain), torch.randn(4, 3, 9, 9)
    checkpoint(model, x, use_reentrant=False).square().sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], gradients(plain, x)[1])


@pytest.mark.parametrize("activation", [None, "leaky_relu", "sigmoid"])
def test_double_backward_agrees_with_torchs(activation):
    x, weight, bias, _ = make((6, 3, 5))
    g = {None: lambda y: y, "leaky_relu": lambda y: F.leaky_relu(y, SLOPE), "sigmoid": torch.sigmoid}[activation]

    def penalty(normalize):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        (dx,) = torch.autograd.grad(normalize(*leaves).pow(3).sum(), leaves[0], create_graph=True)
        return torch.autograd.grad(dx.square().sum(), leaves[:2])

    ours = penalty(lambda x, w, b: dispatch.normalize_by_batch(x, Transform(w, b, 1e-5, activation, SLOPE))[0])
    theirs = penalty(lambda x, w, b: g(F.batch_norm(x, None, None, w, b, training=True)))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_float64_runs_in_torch_and_passes_gradcheck():
    x, weight, bias, _ = (t.double() for t in make((4, 3, 5)))
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    assert torch.autograd.gradcheck(
        lambda x, w, b: dispatch.normalize_by_batch(x, Transform(w, b, 1e-5, "leaky_relu"))[0], inputs
    )


@pytest.mark.parametrize("tracked", [False, True])
def test_saved_for_the_backward_are_the_input_the_parameters_and_two_numbers_a_channel(tracked):
    x, *_ = (t.requires_grad_() for t in make((4, 3, 50)))
    layer, saved = bn.BatchNorm1d(3, track_running_stats=tracked, activation="relu"), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(x)
    assert {t.data_ptr() for t in saved[:3]} == {t.data_ptr() for t in (x, layer.weight, layer.bias)}
    assert [t.shape for t in saved[3:]] == [(2, 3)]
    assert saved[3].untyped_storage().nbytes() == 2 * 3 * 8


def test_running_statistics_moved_by_the_kernel_are_noticed_by_autograd():
    mean, var = torch.zeros(3), torch.ones(3)
    version = mean._version
    assert dispatch.update_running(bindings.Running(mean, var, 0.5), torch.ones(3), torch.ones(3)) is True
    assert mean._version > version
    assert mean.tolist() == [0.5] * 3


def test_without_compiled_kernels_torch_gives_the_same_results(monkeypatch):
    arguments = make((4, 3, 5, 5))
    compiled = run(*arguments, "leaky_relu")
    monkeypatch.setattr(bindings, "_kernels", None)
    assert bn.kernel_target() is None
    for ours, torchs in zip(compiled, run(*arguments, "leaky_relu"), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-4)


def test_an_exported_program_says_that_it_wants_the_kernels(monkeypatch):
    layer, x = bn.BatchNorm2d(3), torch.randn(4, 3, 5, 5)
    program = torch.export.export(layer, (x,)).module()
    monkeypatch.setattr(bindings, "_kernels", None)
    with pytest.raises(bn.BatchNormError, match=r"wants the compiled kernels.*this installation has none"):
        program(x)


@pytest.mark.parametrize("start", [torch.tensor(4), torch.tensor(4.0), torch.tensor(4, dtype=torch.int32)], ids=str)
def test_batches_are_counted_in_whatever_type_the_count_came(start):
    layer = bn.BatchNorm1d(3)
    layer.num_batches_tracked = start.clone()
    layer(torch.randn(8, 3))
    assert layer.get_buffer("num_batches_tracked").item() == 5
    assert layer.get_buffer("num_batches_tracked").dtype == start.dtype


def test_a_batch_that_is_not_finite_is_not_counted_by_the_kernel():
    layer = bn.BatchNorm1d(3)
    with pytest.warns(RuntimeWarning, match="left out"):
        layer(torch.full((8, 3), torch.inf))
    assert layer.num_batches_tracked == 0
