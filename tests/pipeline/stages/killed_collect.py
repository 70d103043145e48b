"""The stage `collect` in the current folder, killed (SIGKILL) at its N-th operation on the disk.

python -m tests.pipeline.stages.killed_collect N
"""

from __future__ import annotations

import os
import signal
import sys

import torch

from pipeline.stages.collect import main
from tests.pipeline.store.example import on_operation

if __name__ == "__main__":
    torch.set_num_threads(1)
    on_operation(int(sys.argv[1]), lambda: os.kill(os.getpid(), signal.SIGKILL), setattr)
    main()
