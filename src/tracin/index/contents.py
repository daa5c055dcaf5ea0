"""What an index was made from: parameters, projection, plan, preconditioner; all match a run's."""

from collections.abc import Mapping
from itertools import chain
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

from tracin.checkpoints import Checkpoint
from tracin.errors import IndexingError, PreconditionerError
from tracin.files import bytes_of, fingerprint
from tracin.index.store import Manifest, Store
from tracin.index.table import extra_columns
from tracin.preconditioners import Adam
from tracin.run import Run, parameter_shapes
from tracin.schema import MOST, AnyMapping, Fields, Items, Maybe, Named, Text, Whole
from tracin.sketches import Plan, Projection

SCHEMA = Fields(
    {
        "parameters": Named(Items(Whole(0, 1 << 40), most=64)),
        "projection": Fields(
            {"dim": Whole(1), "seed": Whole(-MOST), "split": Maybe(Named(Whole(1)))}
        ),
        "plan": AnyMapping(),
        "under": Maybe(Text("adam")),
    }
)
# Indexes of plain gradients have no such field.
PLAIN: dict[str, Any] = {"under": None}


def about_of(
    shapes: Mapping[str, list[int]], projection: Projection, plan: Plan, under: Adam | None
) -> dict[str, Any]:
    """The fields that a second build must share, as JSON.

    Args:
        shapes: Of the parameters that are traced, by name.
        projection: As the caller set it.
        plan: How gradients become rows.
        under: What the rows are under; None for plain gradients.
    """
    return {
        "parameters": dict(shapes),
        "projection": projection_of(projection),
        "plan": plan.to_json(),
        **({} if under is None else {"under": "adam"}),
    }


def rows_under(manifest: Manifest) -> Adam | None:
    """The preconditioner whose root multiplies the gradients of an index; None for none."""
    return None if manifest.about.get("under") is None else Adam()


def refuse_other_preconditioner(store: Store, run: Run) -> None:
    """Rows under Adam's factors have lost what a run under anything else would need.

    Raises:
        PreconditionerError: The rows are such, and the run's preconditioner is another, or none.
    """
    under = rows_under(store.manifest)
    if under is None or run.preconditioner == under:
        return
    has = "no preconditioner" if run.preconditioner is None else f"{run.preconditioner!r}"
    raise PreconditionerError(
        f"{store.place.url} keeps gradients under Adam's second moments, for runs with "
        f"preconditioner=tracin.Adam() alone, and this run has {has}. Give the run "
        "preconditioner=tracin.Adam(), or build an index with this run in another folder."
    )


def plan_in(store: Store) -> Plan:
    """How the gradients of an index became its rows.

    Raises:
        IndexingError: Its manifest does not say, or contradicts itself.
    """
    manifest = store.manifest
    try:
        about = SCHEMA({**PLAIN, **manifest.about}, "about")
        plan = Plan.from_json(about["plan"])
        shapes = about["parameters"].values()
        if sorted(map(prod, shapes)) != sorted(plan.numbers.values()):
            raise ValueError("the plan is of other parameters")
        pieces = tuple((side.start, side.stop) for side in plan.columns.sides)
        if (plan.width, pieces) != (manifest.width, manifest.pieces):
            raise ValueError("the plan makes other columns than are kept")
        groups = plan.columns.groups
        if dict(manifest.extra_columns) != extra_columns(groups):
            raise ValueError("the extra columns is not what an index keeps")
        if any(len(each.weights) != groups for each in manifest.checkpoints):
            raise ValueError(f"a checkpoint has not {groups} weights")
        return plan
    except (ValueError, IndexingError) as error:
        raise IndexingError(
            f"{store.place.url} holds files of rows, but not those of an index of gradients "
            f"({error}): its manifest was changed. Put it back from a copy, or build the index in "
            "a new folder."
        ) from error


def projection_of(projection: Projection) -> dict[str, Any]:
    """A projection as JSON."""
    split = None if projection.split is None else dict(projection.split)
    return {"dim": projection.dim, "seed": projection.seed, "split": split}


def draw_of(key: str) -> int:
    """The number of a checkpoint's random numbers: the same whenever its weights come."""
    return int(key[:12], 16)


_KEYS: WeakKeyDictionary[Run, dict[Adam | None, list[str]]] = WeakKeyDictionary()


def checkpoint_keys(run: Run, under: Adam | None) -> list[str]:
    """A fingerprint of each checkpoint's weights, in the order of the checkpoints; kept.

    Under Adam also of its moments, which rows depend on no less.

    Raises:
        CheckpointError: A file cannot be read, or has no moments.
    """
    known = _KEYS.setdefault(run, {})
    if under not in known:
        known[under] = [checkpoint_key(checkpoint, under) for checkpoint in run.checkpoints]
    return known[under]


def checkpoint_key(checkpoint: Checkpoint, under: Adam | None = None) -> str:
    """Equal for the same weights bit for bit, frozen ones too; under Adam the same moments, too."""
    weights = (
        piece
        for name, weight in sorted(checkpoint.weights().items())
        for piece in (name, str(weight.dtype), bytes_of(weight))
    )
    left_out = checkpoint.left_out().metadata().values()
    return fingerprint(chain(weights, left_out, under.read_at(checkpoint) if under else ()), size=8)


def refuse_other_parameters(store: Store, run: Run) -> None:
    """The run's parameters must be those of the rows.

    Raises:
        IndexingError: They are not.
    """
    there, here = store.manifest.about["parameters"], parameter_shapes(run)
    differing = [
        f"{name} is {there.get(name, 'missing')} there and {here.get(name, 'missing')} here"
        for name in dict.fromkeys([*there, *here])
        if there.get(name) != here.get(name)
    ]
    if differing:
        raise IndexingError(
            f"{store.place.url} is an index of other parameters: "
            f"{'; '.join(differing[:4])}. Use the model and the `parameters` that it was built "
            "with."
        )
