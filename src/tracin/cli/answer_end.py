"""Whether the token that ends an answer belongs to it: where training taught it."""

from typing import Any

from tracin.errors import LabelError, LossError

FEW = 16  # training texts that are looked at


def is_taught(token: int, train: Any) -> bool:
    """Whether the first training texts have a loss at a token; yes where that cannot be seen.

    A chat template may write an end of turn whose label the training's collator took away, as the
    one for language models does where the end token is the padding, too.

    Args:
        token: An end token.
        train: The training data, of any kind that `open_examples` takes.
    """
    from tracin.data import open_examples
    from tracin.losses import next_tokens

    texts = open_examples(train, name="train")
    batch = texts.few(range(min(FEW, len(texts))))
    try:
        return bool((next_tokens(batch) == token).any())
    except (LossError, LabelError):  # the task's own loss reads batches of another form
        return True
