"""Download a data set's file into the user's cache, once and verified."""

from __future__ import annotations

import os
import sys
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from ...errors import BatchNormError, DownloadError
from ...escape import printable


def cache_folder(name: str) -> Path:
    """Return the folder of a data set in the user's cache. It may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "batchnorm" / name


def download(url: str, file: Path, check: Callable[[Path], None], missing: str, advice: str) -> Path:
    """Download `url` to `file` and return `file`. Keep nothing that `check` refuses.

    Arguments:
        url: the address.
        file: the file to write.
        check: raises BatchNormError if a downloaded file is not the wanted one.
        missing: says where the data set was looked for, for the message of an error.
        advice: says what the user can do, for the same message.

    Raises:
        DownloadError: the download failed, or `check` refused it.
    """
    print(f"Downloading {url} into {printable(file.parent)}", flush=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")  # Several processes may download at the same time.
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        urllib.request.urlretrieve(url, partial, _print_percent)
        check(partial)
        return partial.replace(file)
    except (OSError, HTTPException, BatchNormError) as error:
        raise DownloadError(f"{missing}, and the download failed: {error}. {advice}") from error
    finally:
        partial.unlink(missing_ok=True)


def _print_percent(blocks: int, block_size: int, size: int) -> None:
    done = blocks * block_size
    percent = min(100, 100 * done // size) if size > 0 else 0
    print(f"\r{percent} % of {size / 1e6:.1f} MB", end="\n" if done >= size else "", file=sys.stderr, flush=True)
