"""Results that print: the same text on a terminal, as a repr, and in a notebook."""

from html import escape


class Printed:
    """A result whose text is its table: `print(result)`, or its name alone at a prompt."""

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"
