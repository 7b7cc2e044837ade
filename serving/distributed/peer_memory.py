"""Memory that all ranks read and write: each allocates its own and maps that of the others. Knows no contents."""

from __future__ import annotations

from collections.abc import Callable

import torch

from serving.contracts import PeerMemory
from serving.distributed.parallel import ParallelContext
from serving.errors import DeviceError

_MESSAGE_BYTES = 512
_FAILED, _DONE = b"\0", b"\1"


def share_memory(
    make: Callable[[], PeerMemory], num_bytes: int, parallel: ParallelContext, device: torch.device
) -> list[int]:
    """Addresses, as this process sees them, of every rank's `num_bytes` of zeros, in the order of ranks.

    All ranks call it together. Where one of them cannot, all raise `DeviceError` with the reason of the first that could
    not. The group exchanges tensors on `device`.
    """
    mine: list[tuple[PeerMemory, int]] = []
    addresses: list[int] = []

    def allocate() -> bytes:
        memory = make()
        address = memory.allocate(num_bytes)
        mine.append((memory, address))
        return memory.export(address)

    exported = _agree(allocate, parallel, device)

    def map_all() -> bytes:
        memory, own = mine[0]
        addresses.extend(
            own if rank == parallel.rank else memory.open(handle) for rank, handle in enumerate(exported)
        )
        return b""

    _agree(map_all, parallel, device)
    return addresses


def _agree(action: Callable[[], bytes], parallel: ParallelContext, device: torch.device) -> list[bytes]:
    """What `action` gave on each rank; DeviceError on all of them if it raised that on one."""
    try:
        message = _DONE + action()
    except DeviceError as error:
        message = _FAILED + str(error).encode()
    answers = _exchange(message, parallel, device)
    for rank, answer in enumerate(answers):
        if answer[:1] == _FAILED:
            raise DeviceError(f"rank {rank}: {answer[1:].decode(errors='replace')}")
    return [answer[1:] for answer in answers]


def _exchange(message: bytes, parallel: ParallelContext, device: torch.device) -> list[bytes]:
    """The messages of all ranks; what is longer than a message may be is cut."""
    if parallel.group is None:
        return [message]
    cut = message[: _MESSAGE_BYTES - 2]
    padded = len(cut).to_bytes(2, "little") + cut.ljust(_MESSAGE_BYTES - 2, b"\0")
    mine = torch.frombuffer(bytearray(padded), dtype=torch.uint8).to(device)
    parts = [torch.empty_like(mine) for _ in range(parallel.size)]
    parallel.group.allgather([parts], [mine]).wait()
    received = [bytes(part.cpu().numpy()) for part in parts]
    return [one[2 : 2 + int.from_bytes(one[:2], "little")] for one in received]
