"""Verification: read everything in a store once and name what is damaged or missing."""

from __future__ import annotations

from pipeline.compute import Progress, map_tasks
from store.activations import ActivationStore
from store.errors import Head2ToeError
from store.layout import ChunkRef


def verify_store(store: ActivationStore, progress: Progress | None = None) -> list[str]:
    """Return a sentence per problem found; an empty list for a store that is complete and undamaged.

    Parameters
    ----------
    store : ActivationStore
        Opened with ``allow_incomplete=True``.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.
    """
    missing = store.missing()
    problems = [
        f"block {block} of split {split!r} is missing; the same extraction writes it."
        for split, blocks in missing.items()
        for block in blocks
    ]
    committed: list[ChunkRef] = []
    for split in store.splits:
        try:
            store.labels(split)
            store.ids(split)
            if split not in missing:
                store.norms(split)
        except Head2ToeError as error:
            problems.append(str(error))
        gone = set(missing.get(split, ()))
        committed += [ref for ref in store.chunks(split) if ref.block not in gone]

    def check(ref: ChunkRef) -> str | None:
        try:
            store.read_chunk(ref)
        except Head2ToeError as error:
            return str(error)
        return None

    found = map_tasks(check, committed, stage="verifying chunks", progress=progress)
    return list(dict.fromkeys([*problems, *(f for f in found if f is not None)]))
