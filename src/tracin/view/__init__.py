"""The page of `tracin view`: a ranking, what explains its examples, and decisions by one key."""

from tracin.view.examples import save_examples

__all__ = ["save_examples"]
