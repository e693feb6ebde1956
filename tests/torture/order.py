"""Check that calls come in the order that a power loss needs."""

from torture.faults import Call


def disorder(calls: list[Call]) -> list[str]:
    """Return the calls that come too early.

    - A file is renamed after its content is on the disk.
    - A checkpoint gets its name after the records before it are on the disk.
    - A folder is on the disk at the end, after its last rename.
    """
    unsynced, found = set(), []
    for call in calls:
        if call.name in ("create", "empty", "write"):
            unsynced.add(call.path)
        elif call.name == "sync":
            unsynced.discard(call.path)
        elif call.name == "rename":
            records = call.to.with_name("metrics.jsonl")
            if call.path in unsynced:
                found.append(f"call {call.number} renames {call.path.name} before its content is on the disk")
            if call.to.suffix == ".pt" and records in unsynced:
                found.append(f"call {call.number} names {call.to.name} before its records are on the disk")
            unsynced.add(call.to.parent)
    return found + [f"{path} is not on the disk at the end" for path in sorted(unsynced) if path.is_dir()]
