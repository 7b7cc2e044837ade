"""Where several workers of one server keep their values, so that any of them can show the sum.

The client library's multiprocess files are used (PROMETHEUS_MULTIPROC_DIR must be set before it is imported). Files are
named after a *slot* that each worker holds by a file lock, not after its pid: a worker that takes over a dead one's slot
continues its counters, so files neither pile up nor lose counts.
"""

from __future__ import annotations

import fcntl
import os

import prometheus_client.values as prometheus_values

FIRST_SLOT = "slot0"

_held_slots: list[int] = []


def is_shared() -> bool:
    """True when values are kept in files that all workers of this server add up."""
    return bool(getattr(prometheus_values.ValueClass, "_multiprocess", False))


def claim_slot(directory: str) -> str:
    """Take the lowest free worker slot of `directory` for the life of this process and count under its name.

    Does nothing but return the slot when values are not shared. Must be called before `ServerMetrics` is made.
    """
    number = 0
    while True:
        descriptor = os.open(
            os.path.join(directory, f"metrics-slot-{number}.lock"), os.O_RDWR | os.O_CREAT, 0o600
        )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            number += 1
            continue
        _held_slots.append(descriptor)
        break
    slot = f"slot{number}"
    if is_shared():
        prometheus_values.ValueClass = prometheus_values.MultiProcessValue(process_identifier=lambda: slot)
    return slot
