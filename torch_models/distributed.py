"""Data-parallel training: the processes of ``torchrun``, each with a share of every batch."""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor


class LostProcessError(RuntimeError):
    """An operation of all processes failed, because one of them is not there any more."""


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """Turn what gloo and nccl raise, when a process is gone, into one kind of error."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise LostProcessError(str(error).partition("\n")[0]) from error


class ProcessTeam:
    """The processes that ``torchrun`` started, as one of them sees them.

    Collective operations on the host go through gloo, those on a GPU through nccl. Gradients are
    averaged in one operation after the backward pass, not while it runs: whatever a process had to
    do for its own gradients, in smaller pieces, say, when its memory ran out, the others need not
    know.

    Raises:
        LostProcessError: by every operation, once a process has ended.
    """

    def __init__(self) -> None:
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        self.may_restart = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
        # The same for all restarts of one torchrun, and for no other's: it is the parent process.
        self.launch = f"{platform.node()}-{os.getppid()}-{os.environ.get('TORCHELASTIC_RUN_ID')}"
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        # What the last operations worked on. Whoever lets go of a tensor last needs Python's lock
        # for it; were that a thread of gloo's, the end of the group would wait for it in vain.
        self._held: deque[Any] = deque(maxlen=16)
        # Optimizers import it. Imported while there is a group, it keeps the group and its threads
        # to the end of the process; one that is at work when the interpreter ends aborts it.
        importlib.import_module("torch._dynamo")
        store = self._own_store()
        if store is None:
            dist.init_process_group()
        else:
            dist.init_process_group(store=store, rank=self.rank, world_size=self.size)

    def _own_store(self) -> Any:
        """Return where the processes leave their addresses for each other; None for the default.

        On one machine ``torchrun`` keeps one store for all its restarts, and the addresses of the
        processes that died with it. Under the number of the restart there are only the living.
        Several machines do not count alike; there the store must not be shared
        (``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1``).
        """
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return None
        if os.environ.get("GROUP_WORLD_SIZE") != "1":
            return None
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        shared = dist.TCPStore(host, port, is_master=False)  # type: ignore[attr-defined]
        return dist.PrefixStore(f"restart-{restart}", shared)  # type: ignore[attr-defined]

    def largest(self, value: int) -> int:
        """Return the largest of the processes' values."""
        return int(self._reduce(torch.tensor(value), dist.ReduceOp.MAX))

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sum of the processes' arrays, all of one shape."""
        total: NDArray[np.float64] = self._reduce(torch.tensor(values), dist.ReduceOp.SUM).numpy()
        return total

    def _reduce(self, tensor: Tensor, operation: Any) -> Tensor:
        self._held.append(tensor)
        with _together():
            dist.all_reduce(tensor, operation)
        return tensor

    def gather(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the processes' arrays (n_i, ...), one after the other in the order of ranks."""
        mine = torch.tensor(array)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        size = torch.tensor([len(mine)])
        self._held.append((sizes, size))
        with _together():
            dist.all_gather(sizes, size)
        longest = max(int(size) for size in sizes)
        padded = mine.new_zeros(longest, *mine.shape[1:])
        padded[: len(mine)] = mine
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        self._held.append((parts, padded))
        with _together():
            dist.all_gather(parts, padded)
        together = torch.cat([part[: int(n)] for part, n in zip(parts, sizes, strict=True)])
        gathered: NDArray[Any] = together.numpy()
        return gathered

    def agree_on(self, text: str) -> str:
        """Return the text of process 0."""
        mine = np.frombuffer(text.encode() if self.rank == 0 else b"", dtype=np.uint8)
        return self.gather(mine).tobytes().decode()

    def wait(self) -> None:
        """Return when all processes have come here."""
        self.agree_on("")

    def average(self, tensors: Sequence[Tensor], weight: int) -> None:
        """Replace each tensor by its mean over the processes, Σ weight·tensor / Σ weight.

        Args:
            tensors: of one dtype and device, of the same shapes in every process.
            weight: of this process, not negative.
        """
        pieces = [tensor.reshape(-1) for tensor in tensors]
        flat = torch.cat([*pieces, pieces[0].new_ones(1)]) * weight
        with _together():
            dist.all_reduce(flat)
        flat /= flat[-1].clone()
        sizes = [len(piece) for piece in pieces]
        for tensor, mean in zip(tensors, torch.split(flat[:-1], sizes), strict=True):
            tensor.copy_(mean.view(tensor.shape))

    def leave(self) -> None:
        """Give back what the operations held; nothing can be asked of the team after it."""
        dist.destroy_process_group()
        self._held.clear()


def launched_by_torchrun() -> bool:
    """Say whether this process is one of several that find each other by the environment."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
