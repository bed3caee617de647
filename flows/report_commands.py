"""The command `report`: the page of a stored selection and its heads, without running anything again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.console import ProgressBars, counted, print_json
from flows.options import DryRun, Json, StoreArgument
from flows.outputs import check_folder
from flows.redaction import redact
from store.errors import InvalidInputError


def report(
    uri: StoreArgument,
    selection: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Digest of a selection, or its beginning; the newest that has a head."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the page goes; default: reports/ of the store's root.")
    ] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write the page that shows a selection and its heads, and print where it is; nothing is computed again.

    It is one HTML file that needs no network; docs/report.md says what is on it.

    For example:
      head2toe report demo/3f2a
      head2toe report demo/3f2a --selection 8e64 --output digits.html
    """
    from pipeline.newest import newest_selection
    from pipeline.report import check_selection, read_rows, render_report, report_place, save_report
    from pipeline.selection import read_selection
    from store import open_store
    from store.aliases import resolve_store

    if output is not None:
        check_folder(output)
    store = open_store(resolve_store(uri))
    if selection is None:
        selection = newest_selection(store, used_first=True)
    else:
        check_selection(store, selection)
    chosen = read_selection(store, selection)
    place = report_place(store, chosen) if output is None else str(output)
    if not dry_run:
        with ProgressBars() as progress:
            page = redact(render_report(store, chosen, progress=progress))
        if output is None:
            save_report(store, chosen, page)
        else:
            _write(output, page)
    if not (as_json or dry_run):
        typer.echo(place)
        return
    heads = [{"method": r.method, "head": r.digest, "accuracy": r.accuracy} for r in read_rows(store, chosen)]
    if as_json:
        print_json({"report": place, "store": store.uri, "selection": chosen.digest, "heads": heads})
    else:
        typer.echo(f"{place}, on selection {chosen.digest} and {counted(len(heads), 'head')}")


def _write(path: Path, page: str) -> None:
    """Write a file, which is there only once it is whole."""
    work = path.with_name(f".{path.name}.partial")
    try:
        work.write_text(page, encoding="utf-8")
        work.replace(path)
    except OSError as error:
        work.unlink(missing_ok=True)
        raise InvalidInputError(f"cannot write {str(path)!r}: {error.strerror or error}.") from error


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(report)
