"""Files that commands write where the user says."""

from __future__ import annotations

from pathlib import Path

from store.errors import InvalidInputError


def check_folder(path: Path) -> None:
    """Refuse a file whose folder is not there, before the work whose result it shall hold.

    Raises
    ------
    InvalidInputError
        If there is no such folder.
    """
    if not path.parent.is_dir():
        raise InvalidInputError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}; create it.")
