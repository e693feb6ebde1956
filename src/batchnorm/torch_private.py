"""All private names of torch that the library uses. No other module imports one.

A release of torch may change them without notice. tests/project/test_torch_private.py tells with which they were tried.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import _assert as assert_  # pyright: ignore[reportPrivateImportUsage]
from torch._C import DisableTorchFunction
from torch._C import _current_graph_task_id as current_graph_task_id
from torch._C import _is_tracing as is_tracing
from torch._C import _len_torch_dispatch_stack as len_torch_dispatch_stack
from torch._C._functorch import peek_interpreter_stack
from torch._compile import _disable_dynamo as disable_dynamo
from torch._ops import OpOverload
from torch.autograd import forward_ad
from torch.nn.modules.batchnorm import _BatchNorm as AnyBatchNorm
from torch.nn.modules.batchnorm import _LazyNormBase as LazyNorm
from torch.nn.modules.dropout import _DropoutNd as AnyDropout
from torch.utils import _pytree as pytree

__all__ = [
    "AnyBatchNorm",
    "AnyDropout",
    "DisableTorchFunction",
    "LazyNorm",
    "OpOverload",
    "assert_",
    "batch_norm_impl_index",
    "current_graph_task_id",
    "disable_dynamo",
    "forward_ad_level",
    "is_tracing",
    "len_torch_dispatch_stack",
    "peek_interpreter_stack",
    "process_group_store",
    "pytree",
]

batch_norm_impl_index = torch._batch_norm_impl_index  # pyright: ignore[reportPrivateImportUsage]


def forward_ad_level() -> int:
    """Return the level of forward-mode AD, -1 outside of it."""
    return forward_ad._current_level


def process_group_store(group: Any) -> Any:
    """Return the store through which the processes of a group found each other."""
    return dist.distributed_c10d._get_process_group_store(group)
