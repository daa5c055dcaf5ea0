"""A RUN.toml: read, checked and resolved once, at the door."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PlainValidator,
    PositiveInt,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from tracin.checks import is_int
from tracin.errors import RunFileError

if TYPE_CHECKING:
    from tracin.scoring.batch_size import BatchSize
    from tracin.scoring.query_form import LowRank

NEEDED = '[task] function = "task.py:task"'


Cosine = Annotated[float, Field(gt=0, le=1)]
T = TypeVar("T")


class _Table(BaseModel):
    # Strict: true is not a number of results, and "5" is a string.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TaskTable(_Table):
    """Where the model, loss, data and checkpoints come from."""

    function: str


class BatchTokensTable(_Table):
    """A batch size in tokens, as `tracin.Tokens` takes it."""

    tokens: PositiveInt


def _batch_size(value: Any) -> Any:
    """The setting, if it is a batch size; alternatives by pydantic name what no file has."""
    if value == "auto" or is_int(value, low=1) or isinstance(value, BatchTokensTable):
        return value
    is_table = isinstance(value, dict) and list(value) == ["tokens"]
    if is_table and is_int(value["tokens"], low=1):
        return BatchTokensTable(tokens=value["tokens"])
    raise PydanticCustomError(
        "batch_size",
        "Input should be 'auto', a whole number of at least 1, or a table such as "
        "{ tokens = 16384 }",
    )


class LowRankTable(_Table):
    """How queries are held, as `tracin.LowRank` takes it."""

    low_rank: PositiveInt


def _query_form(value: Any) -> Any:
    """The setting, if it says how queries are held."""
    if value is None or isinstance(value, LowRankTable):
        return value
    is_table = isinstance(value, dict) and list(value) == ["low_rank"]
    if is_table and is_int(value["low_rank"], low=1):
        return LowRankTable(low_rank=value["low_rank"])
    raise PydanticCustomError(
        "query_form", "Input should be a table such as { low_rank = 16 }, of at least 1"
    )


class TracInTable(_Table):
    """What `tracin.TracIn` takes; what is left out keeps its default."""

    parameters: str | list[str] | None = None
    learning_rates: Literal["equal", "span"] | list[float] | None = None
    preconditioner: Literal["adam", "kfac", "ekfac", "kernel", "adam_kernel"] | None = None
    curvature_folder: str | None = None
    batch_size: Annotated[Any, PlainValidator(_batch_size)] = "auto"
    device: str | None = None

    @property
    def size(self) -> "BatchSize":
        """The batch size as the library takes it."""
        if not isinstance(self.batch_size, BatchTokensTable):
            return self.batch_size
        from tracin.data import Tokens  # with torch, which --help does without

        return Tokens(self.batch_size.tokens)


class ExplainTable(_Table):
    """What `explain` takes."""

    k: PositiveInt = 10
    normalise: Literal["none", "cosine", "query"] = "none"
    group: Literal["none", "sum", "mean"] = "none"
    drop_misclassified: bool = False
    query_form: Annotated[Any, PlainValidator(_query_form)] = None

    @property
    def form(self) -> "LowRank | None":
        """How queries are held, as the library takes it."""
        if self.query_form is None:
            return None
        from tracin import LowRank  # with torch, which --help does without

        return LowRank(self.query_form.low_rank)


class AskTable(_Table):
    """What `ask` takes."""

    k: PositiveInt = 5
    new_tokens: PositiveInt = 64
    normalise: Literal["none", "cosine"] = "none"
    near_copies: Literal["none"] | Cosine = 0.8


class TokensTable(_Table):
    """What `tokens` takes: which texts it looks at, per query."""

    k: PositiveInt = 3
    normalise: Literal["none", "cosine"] = "none"


class MislabelledTable(_Table):
    """What `mislabelled` takes."""

    rank_by: str | None = None


class SelectTable(_Table):
    """What `select` takes."""

    budget: PositiveInt = 100
    normalise: Literal["none", "cosine", "checkpoint_cosine"] = "none"
    duplicates: Literal["none"] | Cosine = 0.98


class ReplayTable(_Table):
    """What `replay` takes."""

    k: PositiveInt = 10
    path: Literal["trapezoid", "first_order", "midpoint", "simpson"] = "trapezoid"
    start: NonNegativeInt = 0
    stop: PositiveInt | None = None
    every: PositiveInt = 1


class EvaluateTable(_Table):
    """What `evaluate` takes."""

    k: PositiveInt = 10
    queries: PositiveInt = 100
    subsets: NonNegativeInt = 50
    seeds: PositiveInt = 2
    first_seed: NonNegativeInt = 1000
    resamples: PositiveInt = 1000


class IndexTable(_Table):
    """What `index` takes; the folder is relative to the RUN.toml, or a URL."""

    folder: str = "index"
    dim: PositiveInt = 2048
    seed: int = 0
    split: dict[str, PositiveInt] | None = None
    number_format: str = "float16"
    shard_size: PositiveInt = 8192


class OutputTable(_Table):
    """Where results go, relative to the RUN.toml, and how many examples are kept to look at."""

    folder: str = "results"
    examples: NonNegativeInt = 5000


class Settings(_Table):
    """A whole RUN.toml."""

    task: TaskTable
    tracin: TracInTable = Field(default_factory=TracInTable)
    explain: ExplainTable = Field(default_factory=ExplainTable)
    ask: AskTable = Field(default_factory=AskTable)
    tokens: TokensTable = Field(default_factory=TokensTable)
    mislabelled: MislabelledTable = Field(default_factory=MislabelledTable)
    select: SelectTable = Field(default_factory=SelectTable)
    replay: ReplayTable = Field(default_factory=ReplayTable)
    evaluate: EvaluateTable = Field(default_factory=EvaluateTable)
    index: IndexTable = Field(default_factory=IndexTable)
    output: OutputTable = Field(default_factory=OutputTable)


def with_option(sets: Sequence[str] | None, setting: str, value: object) -> list[str]:
    """The changes of --set, and last that of an option of its own; None where it was not given."""
    own = [] if value is None else [f"{setting}={value}"]
    return [*(sets or []), *own]


def unless_none(value: T | Literal["none"]) -> T | None:
    """A setting as the library takes it: TOML has no None, so that "none" stands for it."""
    return None if value == "none" else value


def read_settings(path: Path, overrides: Sequence[str]) -> Settings:
    """Read a RUN.toml and apply overrides such as "explain.k=5"."""
    try:
        text = path.read_bytes()
    except (OSError, ValueError) as error:  # a ValueError where the path itself holds a NUL
        reason = getattr(error, "strerror", None) or error
        raise RunFileError(
            f"{path} cannot be read: {reason}. 'tracin init FOLDER' writes one to start from."
        ) from error
    try:
        tables = tomllib.loads(text.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RunFileError(f"{path} is not a TOML file: {error}.") from error
    except RecursionError as error:
        raise RunFileError(f"{path} nests its values too deeply for a RUN.toml.") from error
    for override in overrides:
        _apply(tables, override)
    try:
        return Settings.model_validate(tables)
    except ValidationError as error:
        raise RunFileError(f"{path}: {_words(error)}") from error


def _apply(tables: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise RunFileError(
            f"--set takes a name and a value, such as explain.k=5, not {override!r}."
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except RecursionError as error:
        raise RunFileError(f"--set {name}: the value is nested too deeply.") from error
    except tomllib.TOMLDecodeError as error:
        value = text.strip()  # a bare word is a string
        if value[:1] in ("[", "{", '"', "'"):
            raise RunFileError(f"--set {override}: {text} is not a TOML value: {error}.") from error
    table = tables
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise RunFileError(f"--set {override}: '{key}' is a value, not a table.")
    table[keys[-1]] = value


def _words(error: ValidationError) -> str:
    problems: dict[str, list[str]] = {}
    for each in error.errors():
        path = each["loc"]
        if each["type"] == "extra_forbidden":
            name = ".".join(map(str, path))
            problems[f"there is no setting '{name}'; {_known(path[:-1])}"] = []
        elif each["type"] == "missing":
            name = ".".join(map(str, path))
            problems[f"the setting '{name}' is missing; a run needs {NEEDED}"] = []
        else:
            # Beyond table and key pydantic names alternatives that the file does not have.
            name = ".".join(map(str, path[:2]))
            expected = each["msg"].removeprefix("Input should be ")
            if each["type"] == "model_type":
                expected = f"a table: {_known(path)}"
            problems.setdefault(f"'{name}' = {each['input']!r}", []).append(expected)
    return (
        "; ".join(
            f"{what}, but it should be {', or '.join(expected)}" if expected else what
            for what, expected in problems.items()
        )
        + "."
    )


def _known(path: tuple[Any, ...]) -> str:
    model: Any = Settings
    for key in path:
        model = model.model_fields[str(key)].annotation
    return "there are " + ", ".join(f"'{name}'" for name in model.model_fields)
