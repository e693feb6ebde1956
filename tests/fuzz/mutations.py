"""Change files within their form, so that a wrong checksum or length does not stop the reader at once.

Each function takes the content, its largest size, and `change`, which changes any bytes. It returns the changed
content. It may raise any error if the content has not the form.
"""

import gzip
import io
import json
import random
import warnings
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

Change = Callable[[bytes, int], bytes]
Mutation = Callable[[bytes, int, Change], bytes]
PLAIN_EVERY = 4  # one change in so many ignores the form
PNG = b"\x89PNG\r\n\x1a\n"
VALUES = (
    None, True, -1, 0, 1, 2, 0.5, 2**63, 10**30, 1e308, float("nan"), "", "x", "a\0b", "\ud800", [], {}, [[]],
)  # fmt: skip


def mutate(form: str, content: bytes, most: int, seed: int, change: Change) -> bytes:
    """Change the content within its form, or any bytes of it if it has not that form."""
    random.seed(seed)
    if random.randrange(PLAIN_EVERY):
        try:
            changed = FORMS[form](content, most, change)
        except Exception:
            return change(content, most)
        if len(changed) <= most:
            return changed
    return change(content, most)


def plain(content: bytes, most: int, change: Change) -> bytes:
    """Change any bytes."""
    return change(content, most)


def gzipped(content: bytes, most: int, change: Change) -> bytes:
    """Change what is compressed."""
    inner = zlib.decompressobj(31).decompress(content, 8 * most)
    return gzip.compress(change(inner, 8 * most), mtime=0)


def tar(content: bytes, most: int, change: Change) -> bytes:
    """Change any bytes, then write the right checksum into each header."""
    changed = bytearray(change(content, most))
    for start in range(0, len(changed) - 511, 512):
        if changed[start + 257 : start + 262] == b"ustar":
            changed[start + 148 : start + 156] = b" " * 8
            changed[start + 148 : start + 156] = b"%06o\0 " % sum(changed[start : start + 512])
    return bytes(changed)


def zipped(content: bytes, most: int, change: Change) -> bytes:
    """Change a member, remove it, or store it twice."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    chosen, kind = random.randrange(len(members)), random.randrange(10)
    name, inner = members[chosen]
    members[chosen : chosen + 1] = {0: [], 1: [(name, inner)] * 2}.get(kind, [(name, change(inner, most))])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name, inner in members:
            archive.writestr(zipfile.ZipInfo(name), inner)
    return file.getvalue()


def safetensors(content: bytes, most: int, change: Change) -> bytes:
    """Change the header or the values, then write the header's length."""
    end = 8 + int.from_bytes(content[:8], "little")
    header, values = content[8:end], content[end:]
    kind = random.randrange(3)
    header = json_value(header, most, change) if kind == 0 else change(header, most) if kind == 1 else header
    values = change(values, most) if kind == 2 else values
    return len(header).to_bytes(8, "little") + header + values


def json_value(content: bytes, _most: int, _change: Change) -> bytes:
    """Change one value of one line of JSON, or its name, or remove it."""
    lines = content.split(b"\n") if content.count(b"\n{") else [content]
    chosen = random.randrange(len(lines))
    value = json.loads(lines[chosen])
    holder: Any = value
    while True:
        key = random.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        if not isinstance(holder[key], (dict, list)) or not holder[key] or random.randrange(2):
            break
        holder = holder[key]
    kind = random.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[random.choice(("x", "digest", "seed"))] = holder.pop(key)
    else:
        holder[key] = random.choice(VALUES)
    lines[chosen] = json.dumps(value).encode()
    return b"\n".join(lines)


def image(content: bytes, most: int, change: Change) -> bytes:
    """Change any bytes, then write the right checksum into each chunk of a PNG."""
    changed = bytearray(change(content, most))
    start = len(PNG)
    while changed.startswith(PNG) and start + 12 <= len(changed):
        end = start + 8 + int.from_bytes(changed[start : start + 4], "big")
        if end + 4 <= len(changed):
            changed[end : end + 4] = zlib.crc32(changed[start + 4 : end]).to_bytes(4, "big")
        start = end + 4
    return bytes(changed)


FORMS: dict[str, Mutation] = {
    "plain": plain,
    "gzip": gzipped,
    "tar": tar,
    "zip": zipped,
    "safetensors": safetensors,
    "json": json_value,
    "image": image,
}
