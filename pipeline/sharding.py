"""Shards: which blocks of a store are whose, when several processes or machines each take a part of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from store.claims import Block
from store.errors import InvalidInputError
from store.layout import Split

_SHARD = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")


@dataclass(frozen=True)
class Shard:
    """One of several parts of a store, which together are all of it and have no block in common.

    Block number j, counted over all splits, belongs to shard 1 + (j modulo `count`). What is already committed plays
    no part, so every process knows its blocks without asking the others; claims (`store.claims`) still decide if two
    processes are given the same shard.

    Attributes
    ----------
    number : int
        Which part, from 1.
    count : int
        How many parts there are.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the shard that a text such as ``"2/4"`` means.

        Raises
        ------
        InvalidInputError
            If it means none.
        """
        match = _SHARD.fullmatch(text.strip())
        number, count = map(int, match.groups()) if match else (0, 0)
        if not 1 <= number <= count:
            raise InvalidInputError(
                f"shard {text!r} is not NUMBER/COUNT with 1 ≤ NUMBER ≤ COUNT; the shards of four processes are "
                "1/4, 2/4, 3/4 and 4/4."
            )
        return cls(number, count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, blocks: list[Block]) -> list[Block]:
        """Return this shard's part of all blocks of a store, which must be in the order of `all_blocks`."""
        return blocks[self.number - 1 :: self.count]


WHOLE = Shard(1, 1)


def all_blocks(splits: Iterable[Split]) -> list[Block]:
    """Return every block of a store, in the order in which shards count them."""
    return [(split.name, block) for split in splits for block in range(split.n_blocks)]
