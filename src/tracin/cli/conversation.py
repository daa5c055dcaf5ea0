"""A question and its answer as tokens: by the tokenizer's chat template, where it has one."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from tracin.cli.answer_end import is_taught
from tracin.cli.opened import Opened
from tracin.errors import QueryError, RunFileError

if TYPE_CHECKING:
    from torch import Tensor

    from tracin.run import Run


@final
@dataclass(frozen=True)
class Conversation:
    """A question and an answer to it, as token ids.

    Attributes:
        prompt: All before the answer.
        answer: What the model said, or should have said, with what ends it where that was trained.
        is_cut: Whether the model said as many tokens as it may, and had not ended.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    is_cut: bool = False

    def as_query(self) -> "dict[str, Tensor]":
        """One example, whose loss is that of the answer alone: [1, positions] each."""
        import torch

        from tracin.losses import IGNORED

        ids = torch.tensor([[*self.prompt, *self.answer]])
        labels = ids.clone()
        labels[0, : len(self.prompt)] = IGNORED
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def check_tokenizer(tokenizer: Any, command: str) -> None:
    """Refuse what makes no tokens of a text.

    Args:
        tokenizer: What the task returned.
        command: The name of the command that needs it.

    Raises:
        RunFileError: There is no tokenizer, or it lacks a method.
    """
    if tokenizer is None:
        raise RunFileError(
            f"tracin {command} makes tokens of a question, so the task must return its 'tokenizer' "
            "too: one of Hugging Face's, or an object with encode(text) -> ids and decode(ids) -> "
            "text."
        )
    lacking = [
        name for name in ("encode", "decode") if not callable(getattr(tokenizer, name, None))
    ]
    if lacking:
        raise RunFileError(
            f"The task's 'tokenizer', {type(tokenizer).__name__}, has no {' and no '.join(lacking)}"
            ". It needs encode(text) -> ids and decode(ids) -> text, as Hugging Face's tokenizers "
            "have them."
        )


def conversation_of(
    opened: Opened, checkpoint: int, question: str, answer: str | None
) -> Conversation:
    """A question with its answer, as `with_answer`; as `with_generated` if none is given."""
    task = opened.task
    if answer is not None:
        return with_answer(task.tokenizer, question, answer, task.train)
    most = opened.settings.ask.new_tokens
    return with_generated(
        opened.tracer, checkpoint, task.tokenizer, question, most, train=task.train
    )


def prompt_of(tokenizer: Any, question: str) -> tuple[int, ...]:
    """The tokens of a question, ready to be answered.

    Args:
        tokenizer: Its chat template is filled in, where it has one; else the question stands alone.
        question: The text.

    Raises:
        QueryError: No token comes of it.
    """
    if _has_template(tokenizer):
        ids = _encoded(tokenizer, _filled(tokenizer, question, None), is_whole=False)
    else:
        ids = _without_end(tokenizer, _encoded(tokenizer, question, is_whole=True))
    if not ids:
        raise QueryError(f"The tokenizer makes no token of the question {question!r}.")
    return tuple(ids)


def with_answer(tokenizer: Any, question: str, answer: str, train: Any) -> Conversation:
    """A question with an answer that is given.

    Under a chat template the answer ends as the template ends a turn, else by the tokenizer's end
    token; both only where training taught the end. Without a template the answer follows the
    question directly.

    Args:
        tokenizer: As for `prompt_of`.
        question: The text.
        answer: The text.
        train: The training data, which says whether an end is taught.

    Raises:
        QueryError: No token comes of one of the two.
    """
    prompt = prompt_of(tokenizer, question)
    ids = _without_end(tokenizer, _encoded(tokenizer, answer, is_whole=False))
    if not ids:
        raise QueryError(f"The tokenizer makes no token of the answer {answer!r}.")
    if not _has_template(tokenizer):
        end: Any = getattr(tokenizer, "eos_token_id", None)
        if end is not None and ids[-1] != end and is_taught(end, train):
            ids = [*ids, int(end)]
        return Conversation(prompt, tuple(ids))
    said, end = _turn(tokenizer, question, answer)
    end_ids = _encoded(tokenizer, end, is_whole=False)
    text = f"{said}{end}" if end_ids and is_taught(end_ids[-1], train) else said
    return Conversation(prompt, tuple(_encoded(tokenizer, text, is_whole=False)))


def with_generated(
    run: "Run", checkpoint: int, tokenizer: Any, question: str, most: int, *, train: Any
) -> Conversation:
    """A question with what the model says at a checkpoint: its likeliest token, one by one.

    The token that ends it belongs to it as in `with_answer`: where training taught it.

    Args:
        run: The model, which comes back as it was, and its checkpoints.
        checkpoint: Its number.
        tokenizer: As for `prompt_of`.
        question: The text.
        most: How many tokens at most.
        train: The training data, which says whether an end is taught.

    Raises:
        QueryError: The model generates nothing.
    """
    import torch

    from tracin.checkpoints import loaded
    from tracin.guards import untouched
    from tracin.guards.untouched import use_eval
    from tracin.sharding import device_of

    generate: Any = getattr(run.model, "generate", None)
    if not callable(generate):
        raise QueryError(
            f"{type(run.model).__name__} cannot answer: it has no generate(), which Hugging Face's "
            'causal language models have. Give the answer to explain: --answer "TEXT".'
        )
    prompt = prompt_of(tokenizer, question)
    options: dict[str, Any] = {"max_new_tokens": most, "do_sample": False, "num_beams": 1}
    padding = getattr(tokenizer, "pad_token_id", None)
    if padding is not None:
        options["pad_token_id"] = padding
    # A fine-tuned model's own configuration may not know what ends a turn of the chat template.
    ends = _ends(tokenizer, run.model)
    if ends:
        options["eos_token_id"] = ends
    with untouched(run.model), loaded(run.model, run.checkpoints[checkpoint], run.device):
        use_eval(run.model)
        ids = torch.tensor([prompt], device=device_of(run.model))
        with torch.no_grad():
            found: Any = generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    answer = tuple(found[0, len(prompt) :].tolist())
    if not answer:
        raise QueryError(
            f"The model generates nothing at checkpoint '{run.checkpoints[checkpoint].name}'. Give "
            'the answer to explain: --answer "TEXT".'
        )
    if answer[-1] not in ends:
        return Conversation(prompt, answer, is_cut=len(answer) >= most)
    is_kept = len(answer) == 1 or is_taught(answer[-1], train)
    return Conversation(prompt, answer if is_kept else answer[:-1])


def text_of_tokens(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of some tokens, without those that begin, end or pad one."""
    named = _takes(tokenizer.decode, "skip_special_tokens")
    listed = [int(each) for each in ids]
    return str(
        tokenizer.decode(listed, skip_special_tokens=True) if named else tokenizer.decode(listed)
    )


def _has_template(tokenizer: Any) -> bool:
    return getattr(tokenizer, "chat_template", None) is not None


def _filled(tokenizer: Any, question: str, answer: str | None) -> str:
    """The chat template with a question; with an answer, where there is one."""
    said = [{"role": "user", "content": question}]
    if answer is not None:
        said.append({"role": "assistant", "content": answer})
    # As text: what it returns as tokens differs between releases of transformers.
    return tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=answer is None)


def _turn(tokenizer: Any, question: str, answer: str) -> tuple[str, str]:
    """What the chat template makes of an answer, and what it ends the turn with.

    White space after the end is no part of it: a model that generates stops before.
    """
    before, whole = (_filled(tokenizer, question, each) for each in (None, answer))
    if not whole.startswith(before):
        # A template may write a prompt for a new answer otherwise than that of an old one.
        return answer, getattr(tokenizer, "eos_token", None) or ""
    turn, said = whole[len(before) :], answer.strip()
    at = len(turn) - len(turn.lstrip()) + len(said)
    if turn[:at].lstrip() != said:  # written otherwise: its end cannot be told from it
        return turn.rstrip(), ""
    return turn[:at], turn[at:].rstrip()


def _ends(tokenizer: Any, model: Any) -> list[int]:
    """The tokens that generation stops at: the model's and the tokenizer's."""
    config = getattr(model, "generation_config", None)
    named = getattr(config, "eos_token_id", None)
    own = named if isinstance(named, list | tuple) else [named]
    ends = [*own, getattr(tokenizer, "eos_token_id", None)]
    return list(dict.fromkeys(int(each) for each in ends if each is not None))


def _encoded(tokenizer: Any, text: str, *, is_whole: bool) -> list[int]:
    """The tokens of a text; of a whole one, with what begins texts."""
    if _takes(tokenizer.encode, "add_special_tokens"):
        found = tokenizer.encode(text, add_special_tokens=is_whole)
    else:
        found = tokenizer.encode(text)
    return [int(each) for each in getattr(found, "ids", found)]


def _without_end(tokenizer: Any, ids: list[int]) -> list[int]:
    """The tokens of a text that is not over: some tokenizers end every text."""
    is_ended = len(ids) > 1 and ids[-1] == getattr(tokenizer, "eos_token_id", None)
    return ids[:-1] if is_ended else ids


def _takes(function: Any, name: str) -> bool:
    """Whether a function takes an argument of this name."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # not written in Python
        return False
    return any(each.name == name or each.kind is each.VAR_KEYWORD for each in parameters)
