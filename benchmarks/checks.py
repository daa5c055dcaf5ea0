"""python -m benchmarks.checks: what a run's checks and audits cost, in CPU time of a plain pass.

Time is that of this process on one thread, so that others on the machine weigh little.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch

from benchmarks.subjects import Subject, lm_subject, mlp_subject, resnet_subject
from tracin.gradients.audit import Audit
from tracin.gradients.auditor import Auditor
from tracin.gradients.engine import Gradients
from tracin.gradients.pair_check import PairCheck
from tracin.gradients.repeatable import Draws

SUBJECTS: Mapping[str, Callable[[], Subject]] = {
    "MLP, 10,000 examples, 3 checkpoints": lambda: mlp_subject(10_000),
    "ResNet-20, 2,048 images": lambda: resnet_subject(20, 2048),
    "4-layer language model, 256 sequences of 128": lambda: lm_subject(256),
}
PARTS: Mapping[str, tuple[type, str]] = {
    "one example's loss, looked at": (Gradients, "inspect"),
    "examples in smaller batches": (PairCheck, "leave_to_audit"),
    "pairs, where an audit found something": (PairCheck, "check"),
    "autograd's gradients of audited batches": (Auditor, "next"),
    "the pass's gradients of the same, added up": (Audit, "take"),
    "batches that went another way": (Auditor, "after"),
    "comparing the two": (Auditor, "judge"),
    "random numbers drawn in a pass": (Draws, "refuse_since"),
}


class Clock:
    """CPU time spent in each part, without the parts within it."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._within: list[float] = []

    def around(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same function; its time is added to the part's."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            self._within.append(0.0)
            try:
                return work(*args, **kwargs)
            finally:
                spent = time.process_time() - start
                self.spent[part] += spent - self._within.pop()
                if self._within:
                    self._within[-1] += spent

        return timed


def main() -> None:
    """Print, per model and part, the share of a plain pass."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    clock = Clock()
    for part, (owner, name) in PARTS.items():
        setattr(owner, name, clock.around(part, getattr(owner, name)))
    for name, make in SUBJECTS.items():
        _print_row(name, make(), clock, rounds)


def _print_row(name: str, subject: Subject, clock: Clock, rounds: int) -> None:
    plain, whole, parts = [], [], []
    for _ in range(rounds + 1):
        plain.append(_seconds(subject.plain_pass))
        clock.spent.clear()
        whole.append(_seconds(lambda: subject.traced().self_influence(subject.train)))
        parts.append(dict(clock.spent))
    plain, whole, parts = plain[1:], whole[1:], parts[1:]  # the first round warms up
    unit = median(plain)
    checks = median(sum(each.values()) for each in parts)
    print(
        f"\n{name}: {median(whole) / unit:.2f} plain passes, checks and audits {checks / unit:.1%}"
    )
    for part in PARTS:
        print(f"  {part:<48}{median(each.get(part, 0.0) for each in parts) / unit:>7.1%}")


def _seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
