"""Batch Normalization, the whole of it, for PyTorch."""

from . import functional as functional
from .accelerate import accelerate as accelerate
from .compose import FoldRow as FoldRow
from .errors import BatchNormError as BatchNormError
from .fold import FoldResult as FoldResult
from .fold import fold as fold
from .freeze import FreezeResult as FreezeResult
from .freeze import FreezeRow as FreezeRow
from .freeze import freeze as freeze
from .freeze import unfreeze as unfreeze
from .fuse import FuseResult as FuseResult
from .fuse import FuseRow as FuseRow
from .fuse import fuse as fuse
from .insert import InsertResult as InsertResult
from .insert import InsertRow as InsertRow
from .insert import insert as insert
from .kernels.bindings import kernels_available as kernels_available
from .layers import BatchNorm1d as BatchNorm1d
from .layers import BatchNorm2d as BatchNorm2d
from .layers import BatchNorm3d as BatchNorm3d
from .memory import keep_memory as keep_memory
from .moments import Moments as Moments
from .recalibrate import RecalibrateResult as RecalibrateResult
from .recalibrate import RecalibrateRow as RecalibrateRow
from .recalibrate import recalibrate as recalibrate

__version__ = "0.1.0"
