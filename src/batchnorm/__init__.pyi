from . import functional as functional
from .algorithm2.fold import FoldResult as FoldResult
from .algorithm2.fold import FoldRow as FoldRow
from .algorithm2.fold import fold as fold
from .algorithm2.freeze import FreezeResult as FreezeResult
from .algorithm2.freeze import FreezeRow as FreezeRow
from .algorithm2.freeze import freeze as freeze
from .algorithm2.freeze import unfreeze as unfreeze
from .algorithm2.fuse import FuseResult as FuseResult
from .algorithm2.fuse import FuseRow as FuseRow
from .algorithm2.fuse import fuse as fuse
from .algorithm2.insert import InsertResult as InsertResult
from .algorithm2.insert import InsertRow as InsertRow
from .algorithm2.insert import insert as insert
from .algorithm2.recalibrate import RecalibrateResult as RecalibrateResult
from .algorithm2.recalibrate import RecalibrateRow as RecalibrateRow
from .algorithm2.recalibrate import recalibrate as recalibrate
from .diagnosis.doctor import DoctorResult as DoctorResult
from .diagnosis.doctor import DoctorRow as DoctorRow
from .diagnosis.doctor import doctor as doctor
from .diagnosis.finding import Finding as Finding
from .errors import BatchNormError as BatchNormError
from .errors import DownloadError as DownloadError
from .errors import Failure as Failure
from .errors import PeerError as PeerError
from .errors import StorageError as StorageError
from .kernels.bindings import kernel_target as kernel_target
from .layers import BatchNorm1d as BatchNorm1d
from .layers import BatchNorm2d as BatchNorm2d
from .layers import BatchNorm3d as BatchNorm3d
from .memory import keep_memory as keep_memory
from .moments import Moments as Moments
from .paper.trial.compare import trial as trial
from .paper.trial.result import TrialResult as TrialResult
from .paper.trial.verdict import TrialRow as TrialRow

__version__: str
__all__: list[str]
