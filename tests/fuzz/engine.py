"""Run one reader under atheris in this process: python -m fuzz.engine READER OUT SCRATCH [options of libFuzzer]."""

import gc
import hashlib
import random
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path
from types import FunctionType

import torch
from fuzz.mutations import mutate
from fuzz.readers import READERS, is_read

CORPUS = Path(__file__).with_name("corpus")
# The modules in which a new line makes an input interesting. The C code behind them is not instrumented.
INSTRUMENTED = (
    "batchnorm.files", "batchnorm.paper", "batchnorm.cli", "tarfile", "gzip", "zipfile", "json", "PIL",
    "numpy.lib.format", "numpy.lib.npyio", "numpy.lib._format_impl", "numpy.lib._npyio_impl",
    "torch.serialization", "torch._weights_only_unpickler", "safetensors",
)  # fmt: skip
_SHARED_MEMORY = Path("/dev/shm")


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder in memory, if the system has one."""
    return tempfile.TemporaryDirectory(prefix="fuzz-", dir=_SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None)


def is_instrumented(module: str) -> bool:
    """Return True if this module or a package around it is in `INSTRUMENTED`."""
    return any(module == name or module.startswith(f"{name}.") for name in INSTRUMENTED)


def main() -> None:
    """Fuzz until libFuzzer ends the process. An error that is a find is written, and fuzzing goes on."""
    atheris = import_module("atheris")  # of the extra `fuzz`, so that the types are checked without it
    name, folder, scratch, *options = sys.argv[1:]
    torch.set_num_threads(1)
    reader, finds = READERS[name], Finds(name, Path(folder) / "finds")
    read = reader.prepare(Path(scratch))

    def test_one_input(content: bytes) -> None:
        try:
            is_read(read, content)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # Rust's panics are no Exception
            finds.add(error, content)

    for seed in (CORPUS / name).iterdir():
        test_one_input(seed.read_bytes())  # imports what is imported late
    for function in [found for found in gc.get_objects() if type(found) is FunctionType]:
        if is_instrumented(function.__module__ or ""):
            atheris.instrument_func(function)  # its hook for imports takes whole packages, and torch takes minutes

    def change(content: bytes, most: int, seed: int) -> bytes:
        return mutate(reader.form, content, most, seed, atheris.Mutate)

    random.seed(0)
    found = Path(folder) / "corpus" / name
    found.mkdir(parents=True, exist_ok=True)
    arguments = [sys.argv[0], f"-max_len={reader.most}", *options, str(found), str(CORPUS / name)]
    atheris.Setup(arguments, test_one_input, custom_mutator=change)
    atheris.Fuzz()


class Finds:
    """Write the smallest input of each error, and its trace beside it."""

    def __init__(self, reader: str, folder: Path) -> None:
        self.reader, self.folder = reader, folder
        self.sizes: dict[str, int] = {}

    def add(self, error: BaseException, content: bytes) -> None:
        """Write the content, unless a smaller one made the same error at the same place."""
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{type(error).__name__}-{Path(frame.filename).stem}-{frame.lineno}"
        if len(content) >= self.sizes.get(place, sys.maxsize):
            return
        self.sizes[place] = len(content)
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{self.reader}-{place}"
        file.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        file.with_name(f"{file.name}.txt").write_text(f"sha256 {digest}\n{''.join(traceback.format_exception(error))}")


if __name__ == "__main__":
    main()
