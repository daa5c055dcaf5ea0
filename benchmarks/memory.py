"""Peak memory of a pass above what was there before it, each measured in a process of its own."""

import subprocess
import sys

_PROGRAM = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(2)
from benchmarks.subjects import mlp_subject, resnet_subject, lm_subject
from benchmarks.rows import self_influence
build, examples, work = sys.argv[1:]
subject = {"mlp": lambda n: mlp_subject(n, 1), "resnet": lambda n: resnet_subject(20, n),
           "lm": lm_subject}[build](int(examples))
run = subject.plain_pass if work == "plain" else lambda: self_influence(subject)
small = type(subject)(**{**vars(subject), "train": tuple(t[:2] for t in subject.train)})
small.plain_pass() if work == "plain" else self_influence(small)

def resident(line):
    status = Path("/proc/self/status").read_text()
    return int(status.split(line + ":")[1].split()[0]) * 1024

Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
before = resident("VmRSS")
run()
print(resident("VmHWM") - before)
"""


def peak(build: str, examples: int, work: str) -> int:
    """Bytes that a pass adds to the process at most.

    Args:
        build: "mlp", "resnet" or "lm".
        examples: How many training examples.
        work: "plain" or "tracin".

    Linux only: the kernel's own high-water mark is read, reset before the pass.
    """
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, build, str(examples), work],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.strip().splitlines()[-1])
