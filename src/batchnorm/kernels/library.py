"""The compiled library of `csrc`, called by ctypes through the structs of `csrc/interface.h`."""

from __future__ import annotations

import ctypes
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

from . import __path__ as FOLDERS

# Beside this module pkgutil would take the library for a module, because of its suffix.
FILES = ("lib/libbatchnorm.so", "lib/libbatchnorm.dylib")
# The structs of csrc/interface.h, field by field. Packing one and passing it costs 0.7 us; ctypes takes 3.7 us for as
# many arguments, and 10 us for a ctypes.Structure.
PROBLEM = "3q4if3P"
FORWARD = struct.Struct(f"@{PROBLEM}qd4Pd3P")
BACKWARD = struct.Struct(f"@{PROBLEM}q8Pq")
INFERENCE = struct.Struct(f"@{PROBLEM}d5P")
RUNNING = struct.Struct("@qd4P")


class Library:
    """The functions of the compiled library. Tensors are passed by address; 0 stands for none.

    The four calls take the fields of their structs in order. None checks dtype, layout or size: `bindings` does.

    Raises:
        OSError: the file is no library that this machine can load.
        ImportError: the library was built from other structs than these.
    """

    def __init__(self, file: Path) -> None:
        self._loaded = ctypes.CDLL(str(file))
        sizes = [layout.size for layout in (FORWARD, BACKWARD, INFERENCE, RUNNING)]
        built = list((ctypes.c_int64 * 4).in_dll(self._loaded, "batchnorm_sizes"))
        if built != sizes:
            raise ImportError(f"{file} was built for structs of {built} bytes; wanted {sizes}; install batchnorm again")
        self.forward = self._function("batchnorm_forward", FORWARD)
        self.backward = self._function("batchnorm_backward", BACKWARD)
        self.inference = self._function("batchnorm_inference", INFERENCE)
        self.update_running = self._function("batchnorm_running", RUNNING)

    def _function(self, name: str, layout: struct.Struct) -> Callable[..., int]:
        function, pack = getattr(self._loaded, name), layout.pack
        function.argtypes, function.restype = [ctypes.c_char_p], ctypes.c_int

        def call(*fields: float) -> int:
            result = function(pack(*fields))
            if result < 0:
                raise MemoryError(f"{name}: no memory for the sums of the channels")
            return result

        return call

    def target(self) -> str:
        """Return the instruction set in use."""
        function = self._loaded.batchnorm_target
        function.restype = ctypes.c_char_p
        return function().decode()

    def has_pool(self) -> bool:
        """Return True if the library found torch's pool of threads."""
        return bool(self._loaded.batchnorm_has_pool())

    def last_level_cache(self) -> int:
        """Return the size of the last-level cache in bytes."""
        function = self._loaded.batchnorm_last_level_cache
        function.restype = ctypes.c_int64
        return function()


def load() -> Library | None:
    """Return the compiled library, or None without one. Warn if there is one that this machine cannot load."""
    file = installed_file()
    if file is None:
        return None
    try:
        return Library(file)
    except OSError as error:
        reason = f"batchnorm's compiled kernels cannot be loaded: {error}. Torch's own operations run instead, slower."
        warnings.warn(reason, RuntimeWarning, stacklevel=2)
        return None


def installed_file() -> Path | None:
    """Return the installed library, or None. In an editable install the package has two folders, and one has it."""
    candidates = (Path(folder, name) for folder in FOLDERS for name in FILES)
    return next((file for file in candidates if file.exists()), None)
