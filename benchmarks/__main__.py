"""python -m benchmarks: ratios to a plain forward and backward pass, and peak memory."""

import argparse
import json
from pathlib import Path

import torch

from benchmarks.memory import peak
from benchmarks.operations import operations
from benchmarks.pairs import Ratio, timed
from benchmarks.rival import captum_self_influence
from benchmarks.rows import ROWS, self_influence
from benchmarks.subjects import mlp_subject

GROUPS = ("mlp", "resnet", "resnet56", "lm", "index", "tracing", "captum", "memory")
MEMORY = (("mlp", 4000, 20_000), ("resnet", 256, 768), ("lm", 64, 192))


def main() -> None:
    """Print one line a row: target, median ratio with its range, seconds, operations."""
    options = _options()
    torch.set_num_threads(options.threads)
    chosen = options.rows.split(",")
    report: list[dict[str, object]] = []
    print(f"torch {torch.__version__}, {options.threads} threads; ratios to a plain forward +")
    print(f"backward pass over the same examples, median of {options.rounds} pairs (range)\n")
    print(
        f"{'work':<46}{'target':>7}{'ratio':>7}{'range':>12}{'plain s':>9}{'tracin s':>9}{'ops':>6}"
    )
    for row in ROWS:
        if row.group not in chosen:
            continue
        subject = row.subject(options.quick)
        works = {"plain": subject.plain_pass, "tracin": lambda s=subject, r=row: r.work(s)}
        counted = {name: operations(work) for name, work in works.items()}  # warms up as well
        seconds = timed(works, options.rounds)
        ratio = Ratio.of(seconds["tracin"], seconds["plain"])
        median = {name: sorted(each)[len(each) // 2] for name, each in seconds.items()}
        print(
            f"{row.name:<46}{row.target:>7.2f}{ratio.median:>7.2f}"
            f"{f'{ratio.least:.2f}-{ratio.most:.2f}':>12}{median['plain']:>9.2f}"
            f"{median['tracin']:>9.2f}{counted['tracin'] / counted['plain']:>6.2f}",
            flush=True,
        )
        report.append({"work": row.name, "target": row.target, **vars(ratio), **median})
    if "captum" in chosen:
        report.append(_captum(options.quick))
    if "memory" in chosen:
        report += [_memory(*each) for each in MEMORY]
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _captum(is_quick: bool) -> dict[str, object]:
    subject = mlp_subject(500 if is_quick else 2000, checkpoints=1)
    try:
        captum_self_influence(subject)
    except ImportError:
        print("\nCaptum is not installed: pip install captum")
        return {"work": "captum", "skipped": "not installed"}
    works = {
        "tracin": lambda: self_influence(subject),
        "captum": lambda: captum_self_influence(subject),
        "plain": subject.plain_pass,
    }
    works["tracin"]()
    seconds = timed(works, 3)
    to_plain = Ratio.of(seconds["captum"], seconds["plain"])
    slower = Ratio.of(seconds["captum"], seconds["tracin"])
    print(
        f"\nCaptum TracInCP, self-influence, MLP, {len(subject.train[0])} examples: "
        f"{to_plain.median:.0f} x a plain pass, {slower.median:.0f} x tracin "
        f"({slower.least:.0f}-{slower.most:.0f})",
        flush=True,
    )
    return {"work": "captum self-influence, MLP", **vars(to_plain), "to_tracin": slower.median}


def _memory(build: str, few: int, many: int) -> dict[str, object]:
    bytes_ = {
        (work, examples): peak(build, examples, work)
        for work in ("plain", "tracin")
        for examples in (few, many)
    }
    ratios = [bytes_["tracin", n] / max(1, bytes_["plain", n]) for n in (few, many)]
    print(
        f"peak memory, self-influence, {build}: {ratios[0]:.2f} x the plain pass with {few} "
        f"examples, {ratios[1]:.2f} x with {many} "
        f"({', '.join(f'{size / 2**20:.0f}' for size in bytes_.values())} MiB; target 1.5)",
        flush=True,
    )
    return {"work": f"memory, {build}", "ratios": ratios}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rows", default=",".join(GROUPS), help="any of " + ", ".join(GROUPS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    return parser.parse_args()


if __name__ == "__main__":
    main()
