"""Draws docs/layers.svg from the code: run `python docs/make_layers.py` after the layers changed.

Each row is a layer of the import-linter contract in pyproject.toml. A line goes from a part to each
part that it imports, but for those that it also reaches through another: with them no line could be
followed.
"""

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "tracin"
PICTURE = ROOT / "docs" / "layers.svg"

WIDTH, ROW, BOX, LETTER = 900, 62, 28, 7.4


def layers() -> list[list[str]]:
    """The layers of the package, from above, each with its parts in the contract's order."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for contract in settings["tool"]["importlinter"]["contracts"]:
        if contract["type"] == "layers" and contract.get("containers", ["tracin"]) == ["tracin"]:
            rows = [re.split(r"[|:]", layer) for layer in contract["layers"]]
            return [[name.strip(" ()").removeprefix("tracin.") for name in row] for row in rows]
    raise SystemExit("pyproject.toml has no layers contract for the package")


def imported(path: Path) -> set[str]:
    """The parts of the package that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "tracin":
            names |= {f"tracin.{one.name}" for one in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
    return {name.split(".")[1] for name in names if name.startswith("tracin.")}


def imports(parts: list[str]) -> dict[str, set[str]]:
    """For each part, the parts that it imports."""
    found: dict[str, set[str]] = {}
    for part in parts:
        folder = SOURCE / part
        files = sorted(folder.rglob("*.py")) if folder.is_dir() else [SOURCE / f"{part}.py"]
        found[part] = set().union(*map(imported, files)) & set(parts) - {part}
    return found


def reduced(direct: dict[str, set[str]]) -> dict[str, set[str]]:
    """Without the imports that a longer way also shows."""

    def below(part: str) -> set[str]:
        return direct[part].union(*map(below, direct[part]))

    return {part: its - set().union(*map(below, its)) for part, its in direct.items()}


def picture() -> str:
    """The SVG."""
    rows = layers()
    lines = reduced(imports([part for row in rows for part in row]))
    centre: dict[str, tuple[float, float]] = {}
    boxes: list[str] = []
    for number, row in enumerate(rows):
        y = ROW * number + ROW / 2
        for place, part in enumerate(row):
            # Rows of one part take turns left and right, so that lines pass beside them.
            share = (place + 0.5) / len(row) if len(row) > 1 else 0.36 + 0.28 * (number % 2)
            x, width = WIDTH * share, LETTER * len(part) + 24
            centre[part] = x, y
            boxes.append(
                f'<rect x="{x - width / 2:.1f}" y="{y - BOX / 2:.1f}" width="{width:.1f}" '
                f'height="{BOX}" rx="6"/><text x="{x:.1f}" y="{y + 4:.1f}">{part}</text>'
            )
    paths = []
    for part, its in lines.items():
        x, y = centre[part]
        for other in sorted(its):
            to_x, to_y = centre[other]
            bend = (to_y - y) / 2
            paths.append(
                f'<path d="M{x:.1f} {y + BOX / 2:.1f} C{x:.1f} {y + bend:.1f} '
                f'{to_x:.1f} {to_y - bend:.1f} {to_x:.1f} {to_y - BOX / 2:.1f}"/>'
            )
    style = (
        "rect{fill:#eef3fb;stroke:#4a6fa5}path{fill:none;stroke:#4a6fa5;stroke-opacity:.45}"
        "text{font:13px ui-monospace,monospace;text-anchor:middle;fill:#1d2b44}"
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {ROW * len(rows)}" '
        f'role="img"><title>The layers of tracin</title><style>{style}</style>'
    )
    ground = f'<rect width="{WIDTH}" height="{ROW * len(rows)}" style="fill:#fff;stroke:none"/>'
    return "\n".join([head, ground, *paths, *boxes, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(picture())
