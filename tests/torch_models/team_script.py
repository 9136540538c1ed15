"""What test_distributed.py runs in several processes: every operation, its answer asserted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from torch_models.distributed import ProcessTeam, launched_by_torchrun

assert launched_by_torchrun()
team = ProcessTeam()
rank, size = team.rank, team.size
assert size == 3
assert team.largest(rank * 7 % 5) == 4
np.testing.assert_array_equal(team.sum(np.array([1.0, rank])), [3.0, 3.0])
# 0, 1 and 2 rows.
rows = np.arange(rank * 2).reshape(rank, 2) + 10 * rank
np.testing.assert_array_equal(team.gather(rows), [[10, 11], [20, 21], [22, 23]])
for text in ("a folder, not ASCII: ÿ", ""):
    assert team.agree_on(text if rank == 0 else "mine") == text
# Weights 0, 1, 3: the mean of rank is (1·1 + 2·3) / 4.
weight = (0, 1, 3)[rank]
matrix = torch.full((2, 3), float(rank)).to(memory_format=torch.contiguous_format)
images = torch.arange(24.0).reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last) * rank
team.average([matrix, images], weight)
torch.testing.assert_close(matrix, torch.full((2, 3), 7 / 4))
torch.testing.assert_close(images, torch.arange(24.0).reshape(1, 2, 3, 4) * 7 / 4)
assert images.is_contiguous(memory_format=torch.channels_last)
parameter = torch.nn.Parameter(torch.ones(2))  # an optimizer, as a command makes it
torch.optim.SGD([parameter], 0.1).step()
team.leave()
# Threads that outlive the group can abort the process while the interpreter ends.
threads = Path("/proc/self/task")
assert not threads.exists() or len(list(threads.iterdir())) == 1
print("OK")
