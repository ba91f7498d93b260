"""What may say which ids an answer can have: a grammar, a budget.

Numbers only; who makes a constraint is not known here. The engine asks for a mask before it chooses an id and
hands the chosen id back. Whatever has these four names is a constraint.
"""

from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Constraint(Protocol):
    """The state of one answer under a rule."""

    @property
    def ended(self) -> bool:
        """Whether the answer is complete: the sample then finishes with "stop"."""

    def mask(self) -> "NDArray[np.uint32] | None":
        """Return which ids may come next: bit i of word i // 32, lowest first. None: all.

        Ids beyond the last word are forbidden.
        """

    def accept(self, token_id: int) -> None:
        """Take in the id that was chosen."""

    def fork(self) -> Self:
        """Return a copy that goes its own way from here."""
