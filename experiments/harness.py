"""What every experiment shares: its options, steps that are kept, and where its findings go.

An experiment asks for its long steps by name, so that a run that was broken off continues where it
stopped, and hands in tables and figures. These lie in `results/NAME`; with `--docs` they also
replace the experiment's part of a page of the documentation.
"""

import argparse
import hashlib
import io
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

import tracin
from tracin.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RESULTS = DOCS / "results.md"


@dataclass(frozen=True)
class Options:
    """How much of an experiment to run.

    Attributes:
        scale: The share of its full size: of epochs, or of examples, as the experiment says.
        seeds: How many times, each with its own weights, order and noise.
        is_quick: Whether to show only that all of it runs, within seconds.
        folder: Where its results go.
        device: Where models are trained and scored.
        writes_docs: Whether its tables and figures go into the documentation, too.
        own: The options that this experiment alone has.
    """

    scale: float
    seeds: int
    is_quick: bool
    folder: Path
    device: str
    writes_docs: bool
    own: argparse.Namespace = field(default_factory=argparse.Namespace)


def no_options(parser: argparse.ArgumentParser) -> None:
    """An experiment without options of its own."""


def parsed(
    name: str,
    about: str,
    seeds: int,
    arguments: list[str] | None,
    *,
    scale: float = 1.0,
    add_own: Callable[[argparse.ArgumentParser], None] = no_options,
) -> Options:
    """Read the command line of an experiment.

    Args:
        name: Of its module.
        about: What it shows.
        seeds: How many it has unless it is told otherwise.
        arguments: The words of the command line; None for those of this process.
        scale: The share of the full size that it has unless it is told otherwise.
        add_own: Adds the options that this experiment alone has.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--scale", type=float, default=scale, help=f"share of the full size (default {scale:g})"
    )
    parser.add_argument("--seeds", type=int, default=seeds, help=f"runs (default {seeds})")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that all of it runs")
    parser.add_argument("--folder", type=Path, default=Path("results") / name)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument(
        "--docs", action="store_true", help="put the findings into docs/results.md as well"
    )
    common = {action.dest for action in parser._actions}
    add_own(parser)
    chosen = parser.parse_args(arguments)
    own = {name: value for name, value in vars(chosen).items() if name not in common}
    if not 0 < chosen.scale <= 1:
        parser.error("--scale is more than 0 and at most 1")
    if chosen.seeds < 1:
        parser.error("--seeds is at least 1")
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    return Options(
        chosen.scale,
        1 if chosen.quick else chosen.seeds,
        chosen.quick,
        chosen.folder / "quick" if chosen.quick else chosen.folder,
        chosen.device,
        chosen.docs,
        argparse.Namespace(**own),
    )


class Experiment:
    """One run of an experiment.

    Args:
        name: Of its module, and of its part of docs/results.md.
        options: How much of it to run.
        settings: Everything else that its steps depend on; a step that was kept under other
            settings is done again.
        page: The page of the documentation that has its part; None for docs/results.md.
    """

    def __init__(
        self, name: str, options: Options, settings: Mapping[str, Any], page: Path | None = None
    ) -> None:
        self.name, self.options, self._page = name, options, page or RESULTS
        self._settings = json.dumps(
            {"scale": options.scale, "quick": options.is_quick, **settings},
            sort_keys=True,
            default=str,
        )
        self._parts: list[str] = []
        self._figures: list[str] = []
        self._seconds = 0.0
        options.folder.mkdir(parents=True, exist_ok=True)

    @property
    def seeds(self) -> range:
        """The seeds to run."""
        return range(self.options.seeds)

    def scaled(self, full: int, least: int = 1) -> int:
        """So many of `full` as the scale says."""
        return max(least, round(full * self.options.scale))

    def step(self, key: str, work: Callable[[], Any]) -> Any:
        """Do a long step, or read what it gave when it was done under the same settings.

        Args:
            key: Its name in this experiment: with the seed, if it depends on one.
            work: Gives tensors, numbers and text, in lists and dictionaries.
        """
        print(f"{self.name}: {key} ...", end=" ", flush=True)
        digest = hashlib.sha256(f"{self._settings}\n{key}".encode()).hexdigest()[:12]
        path = (
            self.options.folder / "steps" / f"{key.replace('/', '-').replace(' ', '-')}-{digest}.pt"
        )
        if path.is_file():
            kept = torch.load(path, weights_only=True)
            print(f"kept ({kept['seconds']:.1f} s)", flush=True)
        else:
            start = perf_counter()
            kept = {"value": work(), "seconds": perf_counter() - start}
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as unfinished:
                torch.save(kept, unfinished)
            print(f"{kept['seconds']:.1f} s", flush=True)
        self._seconds += kept["seconds"]
        return kept["value"]

    def say(self, text: str) -> None:
        """Add a paragraph of Markdown."""
        print(f"\n{text}\n", flush=True)
        self._parts.append(text)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Add a table."""
        lines = [head, ["---"] * len(head), *rows]
        self.say("\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines))

    def figure(
        self, figure: "Figure", file: str, caption: str, *, may_be_published: bool = True
    ) -> None:
        """Add a figure, as a PNG.

        Args:
            figure: What was drawn.
            file: Its name, without a suffix.
            caption: What it shows.
            may_be_published: Whether it holds nothing of data that must not be passed on; else it
                stays in the results' folder.
        """
        name = f"{self.name}-{file}.png"
        with replacing(self.options.folder / name) as unfinished:
            drawn = io.BytesIO()
            dots = 50 if self.options.is_quick else 100
            figure.savefig(drawn, format="png", facecolor="white", dpi=dots)
            # A palette takes a third of the bytes, so that figures may contain photographs.
            with Image.open(drawn) as image:
                image.convert("RGB").quantize(256).save(unfinished, format="png", optimize=True)
        if may_be_published:
            self._figures.append(name)
            self._parts.append(f"![{caption}](results/{name})")
        else:
            self._parts.append(
                f"The figure `{name}` in the results' folder: {caption[0].lower()}{caption[1:]}."
            )

    def finish(self) -> None:
        """Write findings and settings into the folder, and into the documentation if asked to."""
        about = (
            f"`python -m experiments.{self.name}`: {self.options.seeds} "
            f"{'seed' if self.options.seeds == 1 else 'seeds'}, scale {self.options.scale:g}, "
            f"{self._seconds:.0f} s on {self.options.device}; tracin {tracin.__version__}, torch "
            f"{torch.__version__.partition('+')[0]}, Python {platform.python_version()}, "
            f"{torch.get_num_threads()} of {os.cpu_count()} threads."
        )
        section = "\n\n".join([about, *self._parts]) + "\n"
        _write(self.options.folder / "findings.md", section.replace("](results/", "]("))
        _write(self.options.folder / "settings.json", self._settings + "\n")
        if self.options.writes_docs:
            (DOCS / "results").mkdir(exist_ok=True)
            for name in self._figures:
                with replacing(DOCS / "results" / name) as unfinished:
                    unfinished.write_bytes((self.options.folder / name).read_bytes())
            _write(self._page, placed(self._page.read_text(), self.name, section))
        print(f"\n{about}\nFindings: {self.options.folder / 'findings.md'}")


def placed(page: str, name: str, section: str) -> str:
    """A page with an experiment's part replaced, which stands between two comments.

    Raises:
        ValueError: The page has no such part.
    """
    first, last = f"<!-- experiments.{name} -->", f"<!-- /experiments.{name} -->"
    before, found, rest = page.partition(first)
    _, ended, after = rest.partition(last)
    if not (found and ended):
        raise ValueError(f"The page lacks {first} ... {last}: where shall the part go?")
    return f"{before}{first}\n\n{section}\n{last}{after}"


def _write(path: Path, text: str) -> None:
    with replacing(path) as unfinished:
        unfinished.write_text(text)
