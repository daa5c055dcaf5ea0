"""Damages checkpoint files of every kind; each must be refused in words, or read as it was.

python -m experiments.checkpoint_faults --flips 500 --cuts 100

Flips one random bit, or cuts a file at a random place, then opens the checkpoint and compares its
weights, learning rate and step with the undamaged one's. A format without checksums cannot tell
other numbers from the right ones: such outcomes are counted apart, as silent. Exits with 1 if
another exception than a `tracin.errors.TracInError` ends a look, or a format with checksums is
silent.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

import tracin
from tracin.errors import TracInError

REFUSED, SAME, SILENT, CRASH = "refused", "as it was", "silent", "crash"
Damage = Callable[[Path, random.Random], None]


@dataclass(frozen=True)
class Kind:
    """One kind of checkpoint.

    Attributes:
        name: What the table calls it.
        write: Writes it into a folder and returns what to open.
        is_sealed: Whether its files carry checksums of the weights.
    """

    name: str
    write: Callable[[Path], Path]
    is_sealed: bool


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A small model after one step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.randn(4, 12)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def torch_file(folder: Path) -> Path:
    """A `.pt` as training loops write it."""
    model, optimizer = trained()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1}
    torch.save(content, folder / "last.pt")
    return folder / "last.pt"


def old_torch_file(folder: Path) -> Path:
    """A `.pt` from before torch 1.6."""
    path = folder / "old.pt"
    torch.save(trained()[0].state_dict(), path, _use_new_zipfile_serialization=False)
    return path


def lightning_file(folder: Path) -> Path:
    """A `.ckpt` as Lightning writes it."""
    model, optimizer = trained()
    content = {
        "pytorch-lightning_version": "2.6.0",
        "state_dict": model.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "global_step": 1,
    }
    torch.save(content, folder / "last.ckpt")
    return folder / "last.ckpt"


def safetensors_file(folder: Path) -> Path:
    """A `.safetensors` of another program."""
    save_file(dict(trained()[0].state_dict()), folder / "model.safetensors")
    return folder / "model.safetensors"


def trainer_folder(folder: Path) -> Path:
    """A folder of Hugging Face's Trainer, in two shards."""
    inner = folder / "checkpoint-1"
    inner.mkdir()
    state = dict(trained()[0].state_dict())
    shards = {"model-1.safetensors": list(state)[:2], "model-2.safetensors": list(state)[2:]}
    for file, names in shards.items():
        save_file({name: state[name] for name in names}, inner / file)
    index = {"weight_map": {name: file for file, names in shards.items() for name in names}}
    (inner / "model.safetensors.index.json").write_text(json.dumps(index))
    log = {"global_step": 1, "log_history": [{"step": 1, "learning_rate": 0.1}]}
    (inner / "trainer_state.json").write_text(json.dumps(log))
    return inner


def recorder_folder(folder: Path) -> Path:
    """A folder of a `tracin.Recorder`."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracin.Recorder(model, optimizer, folder / "run") as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(4, 12)).square().sum().backward()
            optimizer.step()
            recorder.epoch()
    return folder / "run"


KINDS = (
    Kind(".pt of torch.save", torch_file, True),
    Kind(".pt from before torch 1.6", old_torch_file, False),
    Kind(".ckpt of Lightning", lightning_file, True),
    Kind(".safetensors", safetensors_file, False),
    Kind("folder of the Trainer", trainer_folder, False),
    Kind("folder of a Recorder", recorder_folder, True),
)


def flip(file: Path, draw: random.Random) -> None:
    """Change one bit."""
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def cut(file: Path, draw: random.Random) -> None:
    """Leave the beginning alone."""
    content = file.read_bytes()
    file.write_bytes(content[: draw.randrange(len(content))])


def looked(path: Path) -> list[Any]:
    """All that is read: weights, rates and steps."""
    found = tracin.open_checkpoints(path)
    return [(one.weights(), one.learning_rate, one.step) for one in found]


def is_same(left: list[Any], right: list[Any]) -> bool:
    """Whether two looks saw the same."""
    return len(left) == len(right) and all(
        a[1:] == b[1:]
        and a[0].keys() == b[0].keys()
        and all(torch.equal(a[0][key], b[0][key]) for key in a[0])
        for a, b in zip(left, right, strict=True)
    )


def outcomes(kind: Kind, damage: Damage, tries: int, seed: int = 0) -> Counter[str]:
    """How often each outcome came; crashes with the exception's name."""
    draw, found = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sound = Path(folder) / "sound"
        sound.mkdir()
        path = kind.write(sound)
        expected = looked(path)
        for number in range(tries):
            damaged = Path(folder) / f"damaged{number}"
            shutil.copytree(sound, damaged)
            files = sorted(file for file in damaged.rglob("*") if file.is_file())
            full = [file for file in files if file.stat().st_size]
            damage(draw.choice(full), draw)
            try:
                seen = looked(damaged / path.relative_to(sound))
                found[SAME if is_same(seen, expected) else SILENT] += 1
            except TracInError:
                found[REFUSED] += 1
            except Exception as error:
                found[f"{CRASH}: {type(error).__name__}"] += 1
            shutil.rmtree(damaged)
    return found


def main() -> int:
    """Print a table; 1 if something was silent that need not be."""
    parser = argparse.ArgumentParser(description="Damages checkpoint files of every kind.")
    parser.add_argument("--flips", type=int, default=500)
    parser.add_argument("--cuts", type=int, default=100)
    options = parser.parse_args()
    failed = False
    for name, damage, tries in (("flips", flip, options.flips), ("cuts", cut, options.cuts)):
        for kind in KINDS:
            found = outcomes(kind, damage, tries)
            told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found.items()))
            print(f"{kind.name}: {tries} {name}: {told}", flush=True)
            failed |= any(one.startswith(CRASH) for one in found)
            failed |= kind.is_sealed and found[SILENT] > 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
