"""The front door: which training examples made the model say this?"""

import os
from collections.abc import Callable
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tracin.checks import count_within, one_of, positive_int
from tracin.data import length, move, open_examples
from tracin.engines import Engine, Serial
from tracin.errors import QueryError
from tracin.gradients import Coverage, Covered, GradientMethod
from tracin.guards import guarded
from tracin.index.build import begun, finished
from tracin.index.index import Index
from tracin.losses import HasTokens, TargetOutcome, no_tokens
from tracin.preconditioners import HasDescribedFit
from tracin.results.example_facts import ExampleFacts
from tracin.results.explanations import Explanations, TopInfluences
from tracin.results.suspects import OF_CLASSES, OF_TARGETS, Suspects, check_ranking
from tracin.results.token_shares import TokenShares
from tracin.results.verification import Verification
from tracin.run import (
    HELD,
    Run,
    asked_of,
    checkpoint_pass,
    class_names,
    first_example,
    judging_pass,
    last_layer,
    open_data,
    rows_pass,
    score_dtype,
)
from tracin.scoring import mislabelled
from tracin.scoring.batch_size import BatchSize, checked_size
from tracin.scoring.checkpoint_pass import CheckpointPass
from tracin.scoring.facts_of import FactsSoFar
from tracin.scoring.held_out import measured_on
from tracin.scoring.left_out import LeftOutSoFar, left_out_in_words, say_left_out
from tracin.scoring.mislabelled import Judgement, classes_of
from tracin.scoring.named_examples import examples_named
from tracin.scoring.query_form import LowRank
from tracin.scoring.ranking import Ranking
from tracin.scoring.score_request import ScoreRequest
from tracin.scoring.settled import settled
from tracin.scoring.target_residuals import TargetJudgement
from tracin.scoring.targets import Target
from tracin.scoring.token_pairs import token_pairs
from tracin.scoring.token_pass import TokenPass
from tracin.scoring.verify import verified
from tracin.sketches import Projection

COVERED = 4  # examples that coverage looks at


@final
class TracIn(Run):
    """Exact TracInCP for a model, its loss and its checkpoints (paper, equation 1).

    The influence of a training example z on a query z' is the sum over checkpoints of weight x
    gradient(z) . gradient(z'). Positive: a proponent, whose training steps lowered the query's
    loss; negative: an opponent. With learning rates as weights the unit is that of the loss. Any
    example may be a query or be scored, in the training set or not (Remark 3.5).

    The model comes back from every call as it was: weights, mode, `.grad`, `requires_grad`, hooks,
    random state. Dropout and BatchNorm run in eval mode.

    Args:
        model: The model that was trained, of any kind. DistributedDataParallel, DataParallel and
            `torch.compile` are taken off: the loss gets the model within.
        loss: "cross_entropy", "mse", "causal_lm" (tokens weigh as a trainer's callback recorded;
            "causal_lm_mean" and "causal_lm_sum" decide), or a callable loss(model, batch) -> one
            value per example, [examples].
        checkpoints: A folder written by `tracin.Recorder`, a glob, or a list of paths, state dicts
            or `tracin.Checkpoint`. Their order is kept.
        parameters: None for every trainable parameter, "last" for the layer that a forward pass
            uses last, or names and globs such as ["fc.*"].
        learning_rates: None for the recorded ones, one per checkpoint, "equal" (every weight 1), or
            "span" (the recorded rates of all steps that a checkpoint stands for).
        device: Where to compute; by default where the model is.
        preconditioner: What multiplies a query's gradient: None for nothing, as in equation 1;
            `tracin.Adam()` for the factors of Adam's steps; `tracin.KFAC()`, `tracin.EKFAC()` and
            `tracin.Kernel()` for the inverse of curvature. Scores, self-influence and lengths are
            all under it.
        allow_tf32: Leave it to torch's own settings, such as
            `torch.set_float32_matmul_precision("high")`, whether products of float32 numbers are
            made in TF32: several times as fast on NVIDIA's GPUs, with 10 bits of mantissa.
            `verify` shows what that costs. By default they are exact, whatever those settings say.

    Raises:
        CheckpointError: No checkpoint, one that cannot be read, one without Adam's moments
            where these are needed, or one of a training in which other parameters were trained.
        LearningRateError: A learning rate is missing, zero, or negative.
        ParametersError: No trainable parameter, or a name that matches none.
        LossError: An unknown loss.
        QueryError: The preconditioner is not one.
        DeviceError: There is no such device here.
        UnsupportedModelError: The model, or a part of it, is wrapped by FSDP1.

    Example:
        >>> import torch, tracin
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> weights = {"weight": torch.tensor([[1.0, 0.0]])}
        >>> run = tracin.TracIn(model, "mse", [weights], learning_rates=[0.1])
        >>> train = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0.0, 1.0])
        >>> run.self_influence(train)
        tensor([0.4000, 0.4000])
        >>> run.influence(train, (torch.tensor([[1.0, 1.0]]), torch.tensor([0.0])))
        tensor([[ 0.4000],
                [-0.4000]])
    """

    @guarded
    @settled
    def self_influence(
        self, train: Any, *, batch_size: BatchSize = "auto", progress: bool | None = None
    ) -> Tensor:
        """Each example's influence on itself (paper, section 4.1): [train], never negative.

        High values are examples that are mislabelled, rare or memorised.

        Args:
            train: A map-style Dataset, an unshuffled DataLoader, or a tensor / tuple / dict of
                tensors with the examples first.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: None shows a bar on a terminal or in a notebook.

        Raises:
            NonFiniteError: A loss or gradient is NaN or infinite; names example and checkpoint.
            CoupledExamplesError: An example's loss depends on the rest of its batch.
        """
        examples = open_data(self, train, "train")
        total = torch.zeros(len(examples), dtype=torch.float64)
        steps = checkpoint_pass(self).steps(
            examples,
            range(len(examples)),
            ScoreRequest(norms=True),
            checked_size(batch_size),
            progress,
            "self-influence",
        )
        for step in steps:
            total[step.rows] += _known(step.norms).cpu()
        return total.to(score_dtype(self))

    @guarded
    @settled
    def influence(
        self,
        train: Any,
        queries: Any,
        *,
        group: str | None = None,
        target: Target | None = None,
        query_form: LowRank | None = None,
        batch_size: BatchSize = "auto",
        progress: bool | None = None,
    ) -> Tensor:
        """The influence of every training example on every query: [train, queries].

        The whole matrix is held; where only the strongest matter, `explain` does not.

        Args:
            train: The examples whose influence is asked for.
            queries: The same kinds of data.
            group: "sum" or "mean" makes all of `queries` one: [train]. Faster than a sum over the
                matrix, since each example's gradient is multiplied once.
            target: What proponents raise, as in `explain`; None is for the queries' loss, which
                they lower.
            query_form: How the queries' gradients are held; None for exactly. `tracin.LowRank(16)`
                takes less memory, so that many queries of a large model need fewer passes, and
                says how much it leaves out.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: None shows a bar on a terminal or in a notebook.

        Raises:
            NonFiniteError: A loss or gradient is NaN or infinite; names example and checkpoint.
            CoupledExamplesError: An example's loss depends on the rest of its batch.
            QueryError: The target is none, or of a class that the model does not have; or
                query_form with a group.
            LossError: The target is no differentiable value per query, or is about classes, and
                the loss tells none apart.
        """
        examples = open_data(self, train, "train")
        _check_words(group, ("sum", "mean"), "group")
        _check_form(query_form, group)
        asked = asked_of(
            self, open_examples(queries, name="queries"), target, checked_size(batch_size), progress
        )
        query_set = asked.queries
        width = 1 if group else len(query_set)
        total = torch.zeros(len(examples), width, dtype=score_dtype(self))
        walk = checkpoint_pass(self, asked=asked.loss)
        steps = walk.steps(
            examples,
            range(len(examples)),
            ScoreRequest(query_set, range(len(query_set)), bool(group), form=query_form),
            checked_size(batch_size),
            progress,
            "influence",
        )
        left_out = LeftOutSoFar(len(self.checkpoints), len(query_set))
        for step in steps:
            left_out.take(step)
            total[step.rows, _slice(step.queries)] += _known(step.scores).cpu()
        if query_form is not None:
            shares = left_out.shares()
            say_left_out(left_out_in_words(shares, query_set.ids, query_form), shares)
        if group is None:
            return total
        return total[:, 0] / len(query_set) if group == "mean" else total[:, 0]

    @guarded
    @settled
    def explain(
        self,
        train: Any,
        queries: Any,
        k: int = 10,
        *,
        normalise: str | None = None,
        group: str | None = None,
        drop_misclassified: bool = False,
        target: Target | None = None,
        query_form: LowRank | None = None,
        batch_size: BatchSize = "auto",
        progress: bool | None = None,
    ) -> Explanations:
        """The k strongest proponents and the k strongest opponents of each query.

        Top and bottom come from one streaming pass; [train, queries] is never held.

        Args:
            train: The examples to choose from.
            queries: The examples whose loss is explained.
            k: How many of each, at most the number of examples.
            normalise: None for the scores themselves; "cosine" divides them by the lengths of both
                gradients (over all checkpoints, weighted), so that examples with long gradients
                do not lead every list; "query" by the query's length alone, so that queries can be
                compared. Both lose the unit of loss.
            group: "sum" or "mean" makes all of `queries` one.
            drop_misclassified: Leave out training examples that the last checkpoint gets wrong:
                their large gradients show up for every query (paper, sections 5.2 and 5.3).
            target: What proponents raise and opponents lower; None explains the queries' loss,
                which proponents lower. `tracin.Predicted()`, `tracin.Logit()` and
                `tracin.LogitMargin()` explain what the model says, right or wrong. So does any
                function target(model, batch) that returns a differentiable value per query,
                [queries]; for a loss, return its negative.
            query_form: How the queries' gradients are held; None for exactly. `tracin.LowRank(16)`
                takes less memory, so that many queries of a large model need fewer passes, and
                says how much it leaves out.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: None shows a bar on a terminal or in a notebook.

        Raises:
            QueryError: k is below 1 or larger than the number of examples to choose from; or
                query_form with a group.
            NonFiniteError: A loss or gradient is NaN or infinite; names example and checkpoint.
            LossError: drop_misclassified without a loss that tells classes apart, or a target that
                is no differentiable value per query.
        """
        examples = open_data(self, train, "train")
        _check_words(normalise, ("cosine", "query"), "normalise")
        _check_words(group, ("sum", "mean"), "group")
        _check_form(query_form, group)
        count_within(k, len(examples), f"train holds {len(examples)} examples", QueryError)
        asked = asked_of(
            self, open_examples(queries, name="queries"), target, checked_size(batch_size), progress
        )
        query_set = asked.queries
        passed = judging_pass if drop_misclassified else rows_pass
        walk = passed(self, asked=asked.loss)
        last = len(self.checkpoints) - 1
        known = FactsSoFar(len(examples))
        query_facts: list[ExampleFacts | None] = []
        left_out = LeftOutSoFar(len(self.checkpoints), len(query_set))
        # Each run of queries passes over all blocks, and each block over the run: square blocks
        # cost the fewest passes.
        side = len(query_set) if group else max(1, int((HELD / len(self.checkpoints)) ** 0.5))
        rankings = []
        of_runs: dict[int, ExampleFacts | None] = {}
        for first in range(0, len(query_set), side):
            span = range(len(query_set))[first : first + side]
            width = 1 if group else len(span)
            question = ScoreRequest(
                query_set,
                span,
                bool(group),
                norms=normalise == "cosine",
                facts=first == 0,
                form=query_form,
            )
            ranking = Ranking(examples.ids, k, normalise, drop_misclassified)
            step = max(1, HELD // (width * len(self.checkpoints)))
            for start in range(0, len(examples), step):
                block = range(start, min(start + step, len(examples)))
                of_runs.clear()
                ranking.open(block, width, len(self.checkpoints), score_dtype(self))
                for each in walk.steps(
                    examples, block, question, checked_size(batch_size), progress, "explain"
                ):
                    left_out.take(each, first)
                    ranking.take(each, 1 / len(query_set) if group == "mean" else 1.0)
                    if each.checkpoint == last:
                        of_runs[each.queries.start] = each.query_facts
                        if each.facts is not None:
                            known.add(each.rows, each.facts)
                ranking.close()
            rankings.append(ranking)
            query_facts += [of_runs[start] for start in sorted(of_runs)]
        ids = np.array([f"{group} of {len(query_set)}"]) if group else query_set.ids
        names = tuple(checkpoint.name for checkpoint in self.checkpoints)
        shares, notes = None, ()
        if query_form is not None:
            shares = left_out.shares()
            notes = (left_out_in_words(shares, query_set.ids, query_form),)
            say_left_out(notes[0], shares)
        of_all = asked.facts if asked.loss is not None else ExampleFacts.joined(query_facts)
        return Explanations(
            ids,
            TopInfluences.joined([each.proponents() for each in rankings]).with_facts(known.all()),
            TopInfluences.joined([each.opponents() for each in rankings]).with_facts(known.all()),
            names,
            query_facts=None if group else of_all,
            class_names=class_names(self),
            target=asked.target,
            notes=notes,
            left_out=shares,
        )

    @guarded
    @settled
    def tokens(
        self,
        train: Any,
        queries: Any,
        found: Explanations | None = None,
        *,
        decode: Callable[[list[int]], str] | None = None,
        progress: bool | None = None,
    ) -> TokenShares:
        """Which tokens of a query, and which of a training text, carry the score of the two.

        The loss of a text is a sum over its tokens, and so is its gradient: a token's share of the
        score is the product of its own gradient with the other text's. The shares of either text
        sum to the score, `influence(train, queries)`. A pair takes two passes in forward mode and
        one backward pass per checkpoint, however long the texts are.

        The loss has to know its tokens: "causal_lm" does, and "cross_entropy" where each position
        has a label. A loss of your own needs a method tokens(model, batch) -> [examples,
        positions], whose sum over positions is the loss; aligned with "input_ids", its tokens have
        names.

        Args:
            train: The training examples.
            queries: The queries.
            found: What `explain(train, queries, k=3)` returned, for the tokens of each query with
                its proponents and opponents; None for those of every pair, which have to be few.
            decode: Makes a text of a list of token ids, such as `tokenizer.decode`; None shows ids.
            progress: None shows a bar on a terminal alone.

        Raises:
            LossError: The loss does not know its tokens, or they do not add up to it.
            QueryError: Too many pairs, or explanations of a target.
            DataError: The explanations are about other data.
            PreconditionerError: The preconditioner mixes all parameters, as `tracin.Kernel()` does.
            NonFiniteError: A loss or gradient is NaN or infinite; names example and checkpoint.

        Example:
            >>> import torch, tracin
            >>> model = torch.nn.Embedding.from_pretrained(torch.zeros(3, 3), freeze=False)
            >>> run = tracin.TracIn(
            ...     model, "causal_lm", [model.state_dict()], learning_rates=[1.0]
            ... )
            >>> train, query = torch.tensor([[0, 1, 1, 2]]), torch.tensor([[1, 2]])
            >>> print(run.tokens(train, query)[0])
            query 0, example 0, score 0.1111
            text   place  token    share
            query      1  '2'     0.1111
            train      2  '1'    -0.1111
            train      3  '2'     0.2222
        """
        examples, asked = open_data(self, train, "train"), open_examples(queries, name="queries")
        if not isinstance(self.loss, HasTokens):
            raise no_tokens(self.loss)
        pairs = token_pairs(examples, asked, found)
        walk = checkpoint_pass(self)
        shares = TokenPass(walk, self.loss.tokens, self.weights, examples, asked, decode)
        return TokenShares(tuple(shares.shares(pairs, progress)))

    @guarded
    @settled
    def find_mislabelled(
        self,
        train: Any,
        validation: Any = None,
        *,
        rank_by: str | None = None,
        batch_size: BatchSize = "auto",
        progress: bool | None = None,
    ) -> Suspects:
        """Rank training examples by how likely their label is wrong (paper, section 4.1).

        One pass gives all columns of `Suspects`. On labels that people got wrong, loss and margin
        find far more than self-influence, which is high where an example is rare or memorised: it
        is a column to look at, and `rank_by="self_influence"` is the paper's ranking. Which noise
        prefers what: docs/mislabelled.md. For a regression (loss "mse") labels are targets, the
        suggested ones are predictions, and residuals stand in for margins.

        Args:
            train: The labelled examples.
            validation: Examples that the checkpoints were not trained on, labelled as well as
                train is. Means are then taken over the three checkpoints with the highest accuracy
                on them (for a regression the lowest loss), which keeps those out that know wrong
                labels by heart. Self-influence stays the sum over all.
            rank_by: Which column leads; `Suspects.ranked` changes it afterwards. None for
                "loss_and_margin" of classes, the mean of the ranks by loss and by margin, and for
                "residual" of numbers.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: None shows a bar on a terminal or in a notebook.

        Warns:
            MemorisedWarning: The model agrees with nearly all given labels.

        Raises:
            LossError: The loss returns neither class scores nor predictions: it is neither
                "cross_entropy" nor "mse". Or an example has several labels.
            QueryError: An unknown column in rank_by, or one that this loss does not have.
        """
        if rank_by is not None:
            check_ranking(rank_by)
        examples = open_data(self, train, "train")
        held = None if validation is None else open_examples(validation, name="validation")
        last = last_layer(self, examples)
        traced = {**self.parameters, **last}
        walk = judging_pass(self, traced)
        question = ScoreRequest(
            norms=True,
            apart=frozenset(last),
            only_apart=frozenset(set(last) - set(self.parameters)),
        )
        with first_example(self, examples) as batch:
            outcome = walk.gradients.compute(self.model, batch)
        checked = checked_size(batch_size)
        is_regression = isinstance(outcome, TargetOutcome)
        classes = 1 if is_regression else classes_of(outcome)
        if rank_by is not None:
            check_ranking(rank_by, OF_TARGETS if is_regression else OF_CLASSES)
        held_out = None if held is None else measured_on(walk, held, checked, progress)
        averaged = range(walk.checkpoints) if held_out is None else held_out.best
        judgement = (
            TargetJudgement(len(examples), averaged, walk.checkpoints - 1, outcome)
            if is_regression
            else Judgement(len(examples), averaged, walk.checkpoints - 1)
        )
        size = max(1, mislabelled.HELD // classes)
        for start in range(0, len(examples), size):
            block = range(start, min(start + size, len(examples)))
            judgement.open(block, classes)
            for step in walk.steps(examples, block, question, checked, progress, "mislabelled"):
                judgement.take(step)
            judgement.close()
        names = tuple(walk.names[number] for number in averaged)
        return judgement.suspects(examples.ids, rank_by or judgement.default, names, held_out)

    @guarded
    @settled
    def coverage(self, batch: Any) -> Coverage:
        """How each parameter's gradients are computed, and why, on the first examples of `batch`.

        Every parameter of the model is listed; those that are not traced are "excluded". With a
        preconditioner that computes curvature, the reason also says in what form it is held.

        Args:
            batch: The same kinds of data as elsewhere; its first four examples are used.
        """
        examples = open_data(self, batch, "batch")
        walk = checkpoint_pass(self)
        with walk.at(len(self.checkpoints) - 1) as device:
            positions = range(min(COVERED, len(examples)))
            few = move(examples.few(positions), device)
            with examples_named(examples, positions, few):
                walk.gradients.check(few)
                walk.gradients.begin(length(few), is_checked=True)
                held = self.preconditioner
                fit = None
                if isinstance(held, HasDescribedFit):
                    fit = held.described_fit(walk.gradients.parameters)
                seen = None if fit is None else fit.batch(length(few))
                visit = (lambda name, form, row: None) if seen is None else seen.visit
                walk.gradients.visit(few, visit, is_last=True)
                if seen is not None:
                    seen.commit()
        if fit is None:
            return self._covered(walk)
        entries = dict(self._covered(walk).entries)
        for name, curvature in fit.described().items():
            reason = f"{entries[name].reason}; curvature: {curvature}"
            entries[name] = Covered(entries[name].method, reason)
        return Coverage(entries)

    @guarded
    @settled
    def verify(self, data: Any, examples: int = 8) -> Verification:
        """Measure gradients and scores of the first `examples` of `data` against plain autograd.

        What they are compared with shares no code with what is measured: one ordinary backward
        pass per example, on copies of the weights in float64 if the model runs in it.

        Args:
            data: The same kinds of data as elsewhere.
            examples: How many of its first examples, at most all.

        Returns:
            For each parameter, the largest error over examples and checkpoints, relative to the
            example's whole gradient; printable.

        Raises:
            QueryError: `examples` is below 1.
            NonFiniteError: A loss or a gradient is NaN or infinite.
        """
        positive_int(examples, "examples", QueryError)
        source = open_data(self, data, "data")
        walk = checkpoint_pass(self)
        names = [checkpoint.name for checkpoint in self.checkpoints]
        many = min(examples, len(source))
        return verified(walk, names, source, many, lambda: self._covered(walk))

    @guarded
    def index(
        self,
        train: Any,
        folder: str | os.PathLike[str],
        projection: Projection | None = None,
        *,
        number_format: str = "float16",
        shard_size: int = 8192,
        engine: Engine | None = None,
        recall_queries: int = 16,
        batch_size: BatchSize = "auto",
        progress: bool | None = None,
    ) -> Index:
        """Build an index of the training data's gradients, or finish one that was begun.

        Gradients are sketched to `projection.dim` numbers per example and checkpoint, written to
        files of `shard_size` rows. Files that exist are not built again: after a crash, make the
        same call. With more rows after the old ones, or more checkpoints, these are added.

        With `preconditioner=tracin.Adam()` a new index keeps gradients under the root of Adam's
        factors, and serves such runs alone; with any other, or none, it keeps plain gradients.

        Args:
            train: The training data.
            folder: A folder, or any URL that fsspec knows.
            projection: How much is kept of a gradient; None for `tracin.Projection()`.
            number_format: "float16" or "int8", each with scales per row, or "float32".
            shard_size: Rows in a file, the unit of work.
            engine: What runs the build, from `tracin.engines`; None for this process.
            recall_queries: On how many rows the recall of the finished index is measured; 0 for
                none.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: None shows a bar on a terminal or in a notebook.

        Raises:
            IndexingError: The folder holds another index, or cannot be written; a worker failed.
            PreconditionerError: The folder holds an index under Adam, and this run is not.
            NonFiniteError: A loss or gradient is NaN or infinite.
        """
        job = begun(self, train, folder, projection, number_format, shard_size, batch_size)
        return finished(job, engine or Serial(), progress, recall_queries)

    def _covered(self, walk: CheckpointPass) -> Coverage:
        entries = {}
        for name, parameter in self.model.named_parameters():
            if name in walk.gradients.methods:
                entries[name] = walk.gradients.methods[name]
            elif parameter.requires_grad:
                entries[name] = Covered(GradientMethod.EXCLUDED, "not chosen by parameters=")
            else:
                entries[name] = Covered(
                    GradientMethod.EXCLUDED, "requires_grad is False: not trained"
                )
        return Coverage(entries)


def _slice(positions: range) -> slice:
    return slice(positions.start, positions.stop)


def _known(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise RuntimeError("the pass did not compute this; a bug in tracin")
    return tensor


def _check_words(word: str | None, allowed: tuple[str, ...], name: str) -> None:
    if word is not None:
        one_of(word, allowed, name, QueryError, also="None")


def _check_form(form: LowRank | None, group: str | None) -> None:
    if form is None:
        return
    if not isinstance(form, LowRank):
        raise QueryError(
            f"query_form is None or tracin.LowRank(rank), but got {form!r}. Pass such as "
            "tracin.LowRank(16)."
        )
    if group is not None:
        raise QueryError(
            f"A group is one gradient, the sum of its queries', which is held exactly: leave "
            f"query_form={form!r} out, or the group."
        )
