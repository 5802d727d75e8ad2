"""The explorer for text: two lines of tokens to point at, with arcs between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bilrp.show.explorer import Explorer, still

if TYPE_CHECKING:
    from bilrp.engine.explanation import Explanation

MARKS = ("▁", "Ġ")  # with which tokenizers mark that a word begins


class TextExplorer(Explorer):
    """Two lines of tokens to explore; a cell that ends with it shows it.

    Made by `Explanation.explore(tokens=...)`. Works as `bilrp.Explorer` does, with tokens in place
    of patches: point, lock, arrow keys, leave tokens out.

    Parameters
    ----------
    explanation : Explanation
        Of tokens or other groups: relevance (G, G').
    tokens, tokens2 : sequence of str
        What the owners of x and x' are called. Marks of tokenizers are understood: "▁" or "Ġ" at
        the beginning of a word, "##" where one goes on.
    similarity : callable (tokens, tokens2) -> float, optional
        The similarity of two such lists, in the units of the explanation; it gives the true effect
        of leaving tokens out, in a live notebook. Default: only the predicted effect.
    names : (str, str)
        What the two texts are called.
    alt : str, optional
        Describes the still picture that is shown where scripts are off.

    Raises
    ------
    ValueError
        If there are not as many tokens as owners, or the scores are not finite.
    """

    def __init__(
        self,
        explanation: Explanation,
        tokens: Sequence[str],
        tokens2: Sequence[str],
        similarity: Callable[[list[str], list[str]], float] | None = None,
        names: tuple[str, str] = ("First text", "Second text"),
        alt: str | None = None,
    ) -> None:
        for line in (tokens, tokens2):
            if isinstance(line, str) or not all(isinstance(token, str) for token in line):
                raise ValueError(f"tokens must be two lists of strings, got {line!r}"[:200])
        owners = tuple(explanation.relevance.shape)
        if owners != (len(tokens), len(tokens2)):
            raise ValueError(
                f"the explanation {owners} does not fit {len(tokens)} and {len(tokens2)} tokens"
            )
        x: Any = list(tokens)
        x2: Any = list(tokens2)
        compare: Any = similarity
        super().__init__(explanation, x, x2, compare, names, alt)

    def _described(self) -> str:
        return (
            f"{self.names[0]} and {self.names[1]} as a table, token by token: red for pairs that "
            "make them similar, blue for those that speak against it; "
            f"y = {self.explanation.similarity:.4g}."
        )

    def _drawn(self) -> str:
        from bilrp.show.plot import table

        first, second = ([word["text"][:16] for word in shown(line)] for line in (self.x, self.x2))
        e = self.explanation
        size = (min(9.0, 1.2 + 0.42 * len(second)), min(9.0, 0.9 + 0.26 * len(first)))
        if e.similarity == 0:
            return still(lambda ax: ax.text(0.5, 0.5, "y = 0"), size)
        return still(lambda ax: table(e, first, second, ax=ax), size)

    def _shown(self) -> dict[str, Any]:
        return {"tokens": [shown(line) for line in (self.x, self.x2)]}

    def _place(self, side: int, number: int) -> int:
        return number

    def _without(self, x: Any, mask: Tensor) -> Any:
        return [token for token, hidden in zip(x, mask.tolist(), strict=True) if not hidden]

    def _masks(self, *cover: Iterable[Any]) -> list[Tensor]:
        """Tokens left out as bool (T,) for each side."""
        masks = []
        for size, numbers in zip(self.explanation.relevance.shape, cover, strict=True):
            mask = torch.zeros(size, dtype=torch.bool)
            for number in numbers:
                if not isinstance(number, int) or not 0 <= number < size:
                    raise ValueError(f"there is no token {number!r} among {size}")
                mask[number] = True
            masks.append(mask)
        return masks


def shown(tokens: Sequence[str]) -> list[dict[str, Any]]:
    """Tokens without their tokenizer's marks, and whether each goes on with the word before."""
    marked = any(token.startswith(MARKS) for token in tokens)
    lines = []
    for number, token in enumerate(tokens):
        text, joined = token, marked and number > 0 and not token.startswith(MARKS)
        if token.startswith("##") and len(token) > 2:
            text, joined = token[2:], number > 0
        elif marked:
            text = token.lstrip("".join(MARKS))
        text = text.replace("\n", "⏎").replace("\t", "⇥")
        lines.append({"text": text if text.strip() else "␣", "joined": joined})
    return lines
