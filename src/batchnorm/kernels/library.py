"""The compiled library of `csrc`, called by ctypes through the structs of `csrc/interface.h`."""

from __future__ import annotations

import ctypes
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

from . import __path__ as FOLDERS

# In a folder of its own: beside this module pkgutil would take it for a module, because of its suffix.
FILE = Path("lib", "libbatchnorm.so")
INTERFACE = 1  # batchnorm_interface in csrc/interface.cpp
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
        ImportError: the library was built for another interface than this.
    """

    def __init__(self, file: Path) -> None:
        self._loaded = ctypes.CDLL(str(file))
        try:
            built = ctypes.c_int64.in_dll(self._loaded, "batchnorm_interface").value
        except ValueError:  # no such symbol
            built = None
        if built != INTERFACE:
            raise ImportError(f"{file} has interface {built}; wanted {INTERFACE}; install batchnorm again")
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
        reason = (
            f"batchnorm's compiled kernels cannot be loaded: {error}. Torch's own operations run instead, slower. "
            "Install batchnorm again, from source with a C++17 compiler"
        )
        warnings.warn(reason, RuntimeWarning, stacklevel=2)
        return None


def installed_file() -> Path | None:
    """Return the installed library, or None. In an editable install the package has two folders, and one has it."""
    files = (folder / FILE for folder in map(Path, FOLDERS))
    return next((file for file in files if file.exists()), None)
