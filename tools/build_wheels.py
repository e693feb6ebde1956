"""Build the release into a folder: a wheel for Linux on x86-64 and on aarch64, a wheel without kernels, and the sdist.

Each wheel serves every Python and every torch. Zig's C++ compiler builds for both processors and for glibc 2.17, so one
machine builds all. auditwheel then checks what the libraries need. It takes about ten minutes of processor time.

    python tools/build_wheels.py dist

The wheel without kernels is for macOS, Windows and other systems: it works on torch's operations, slower.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROCESSORS = ("x86_64", "aarch64")
PARTS = (*PROCESSORS, "any", "sdist")
GLIBC = "2.17"
# Zig names instruction sets with underscores.
COMPILER = """#!{python}
import os, sys
arguments = [a.replace("x86-64-", "x86_64_") if a.startswith("-march=") else a for a in sys.argv[1:]]
os.execv(sys.executable, [sys.executable, "-m", "ziglang", "c++", "-target", "{target}", "-g0", *arguments])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to put the files")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    given = parser.parse_args()
    folder = given.folder.resolve()
    for processor in PROCESSORS:
        if processor in given.only:
            audit(build_for(processor, folder))
    if "any" in given.only:
        build(folder, "--wheel", "--config-setting=wheel.cmake=false")
    if "sdist" in given.only:
        build(folder, "--sdist")


def build_for(processor: str, folder: Path) -> Path:
    """Build the wheel of one processor. Return its path."""
    with tempfile.TemporaryDirectory() as temporary:
        compiler = Path(temporary, "c++")
        compiler.write_text(COMPILER.format(python=sys.executable, target=f"{processor}-linux-gnu.{GLIBC}"))
        compiler.chmod(0o755)
        cmake = [
            "CMAKE_SYSTEM_NAME=Linux",
            f"CMAKE_SYSTEM_PROCESSOR={processor}",
            f"CMAKE_CXX_COMPILER={compiler}",
            "CMAKE_MODULE_LINKER_FLAGS=-s",  # not install.strip, which knows this machine's processor only
        ]
        arguments = " ".join(f"-D{line}" for line in cmake)
        built = Path(temporary, "built")
        build(built, "--wheel", "--config-setting=install.strip=false", environment={"CMAKE_ARGS": arguments})
        (wheel,) = built.iterdir()
        return renamed(wheel, f"manylinux_{GLIBC.replace('.', '_')}_{processor}", folder)


def renamed(wheel: Path, platform: str, folder: Path) -> Path:
    """Put the wheel into the folder, under the name of the platform that it was built for. Return its path."""
    tagged = run("wheel", "tags", "--remove", f"--platform-tag={platform}", str(wheel)).split()[-1]
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.move(wheel.with_name(tagged), folder / tagged))


def build(folder: Path, *options: str, environment: dict[str, str] | None = None) -> None:
    """Run `python -m build` on the project, in an environment of its own."""
    command = [sys.executable, "-m", "build", "--outdir", str(folder), *options, str(ROOT)]
    subprocess.run(command, env={**os.environ, **(environment or {})}, check=True)


def audit(wheel: Path) -> None:
    """Let auditwheel say which systems the wheel runs on. End if they are not those that its name promises."""
    shown = run("auditwheel", "show", str(wheel))
    print(shown)
    promised = wheel.stem.rpartition("-")[2]
    if f'"{promised}"' not in shown:
        sys.exit(f"{wheel.name}: auditwheel does not confirm {promised}: see above")


def run(module: str, *arguments: str) -> str:
    """Run a module's command. Return what it prints."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
