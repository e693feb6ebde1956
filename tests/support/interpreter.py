"""Code in an interpreter of its own, where nothing is imported yet, and packages can be missing."""

import subprocess
import sys

# tyro reads `"torch" in sys.modules`, so a None there is not the same as a package that is not installed.
WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {missing!r} else super().find_spec(name, path, target)

sys.meta_path[:] = [Installed if finder is PathFinder else finder for finder in sys.meta_path]
"""


def python(code, *arguments, missing=(), cwd=None):
    """Run `code` in a new interpreter, in which the packages `missing` are not installed."""
    command = [sys.executable, "-c", WITHOUT.format(missing=tuple(missing)) + code, *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=cwd)


def batchnorm(*arguments, missing=(), cwd=None):
    """Run the command line in a new interpreter, in which the packages `missing` are not installed."""
    code = "sys.argv[0] = 'batchnorm'; from batchnorm.cli.main import main; main()"
    return python(code, *arguments, missing=missing, cwd=cwd)
