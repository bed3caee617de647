"""Commands that change what lies under a root: `import`, `verify`, `alias` and `remove`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.console import ProgressBars, counted, human_bytes, print_json, say
from flows.options import DryRun, DType, Json, RootArgument, StoreArgument
from store.errors import DamagedStoreError, InvalidInputError


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the application."""
    app.command(name="import")(import_command)
    for command in (verify, alias, remove):
        app.command()(command)


# -------------------------------------------------------------------- verify


def verify(
    uri: StoreArgument,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mark damaged blocks, so that the next extraction rewrites exactly these.")
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Read all of a store and name each part that is damaged or missing; exit code 2 if there is one.

    For example:
      head2toe verify demo/3f2a
      head2toe verify demo/3f2a --repair
    """
    from pipeline.verification import mark_for_rewriting, verify_store
    from store import open_store
    from store.aliases import resolve_store

    place = resolve_store(uri)
    try:
        store = open_store(place, allow_incomplete=True)
    except DamagedStoreError as error:
        if as_json:
            whole = {"what": "metadata", "name": "zarr.json", "message": str(error), "repairable": False}
            print_json({"uri": place, "problems": [whole], "marked": []})
        if repair:
            raise DamagedStoreError(f"--repair cannot mend this: {error}") from error
        raise
    with ProgressBars() as progress:
        problems = verify_store(store, progress)
    marked = [problem for problem in problems if problem.record is not None] if repair else []
    if not dry_run:
        mark_for_rewriting(store, marked)
    if as_json:
        found = [{"what": p.what, "name": p.name, "message": p.message, "repairable": p.repairable} for p in problems]
        print_json({"uri": store.uri, "problems": found, "marked": [p.name for p in marked], **_tried(dry_run)})
    else:
        for problem in problems:
            typer.echo(str(problem))
    if marked:
        say(
            f"{'would mark' if dry_run else 'marked'} {counted(len(marked), 'part')} for rewriting: "
            f"{', '.join(p.name for p in marked)}; run the same extraction or import again, it writes only what is "
            "missing."
        )
    if problems:
        beyond = sum(not p.repairable for p in problems) if repair else 0
        rest = f", {beyond} of which --repair cannot mend" if beyond else ""
        raise DamagedStoreError(f"{counted(len(problems), 'problem')} found in {store.uri!r}{rest}.")
    say(f"{store.uri} is complete and undamaged.")


# -------------------------------------------------------------------- remove and alias


def remove(
    uri: StoreArgument,
    force: Annotated[bool, typer.Option("--force", help="Also if it has selections, heads or protocols.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Remove a store with its results and aliases; refuses one with results worth keeping, and what is no store.

    For example:
      head2toe remove demo/3f2a --dry-run
      head2toe remove demo/3f2a --force
    """
    from store.aliases import resolve_store
    from store.removal import remove_store

    removed = remove_store(resolve_store(uri), force=force, dry_run=dry_run)
    if as_json:
        print_json(vars(removed) | {"aliases": list(removed.aliases)} | _tried(dry_run))
        return
    gone = [counted(getattr(removed, f"{kind}s"), kind) for kind in ("selection", "head", "protocol")]
    gone += [f"alias {name}" for name in removed.aliases]
    _tell(f"removed {removed.uri} with {', '.join(gone)}.", dry_run)


def alias(
    root: RootArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits and '_.-'.")],
    uri: Annotated[
        str | None, typer.Argument(metavar="STORE", help="A store under ROOT, by path, alias or fingerprint.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Move an alias that names another store.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Take the name away; the store stays.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Give a store a name, which then stands for it as ROOT/NAME.

    For example:
      head2toe alias demo digits 3f2a
      head2toe alias demo digits --delete
    """
    from store.aliases import remove_alias, set_alias
    from store.objects import join

    if (uri is None) != delete:
        raise InvalidInputError("give either the STORE that the alias shall name, or --delete.")
    if uri is None:
        remove_alias(root, name, dry_run=dry_run)
        if as_json:
            print_json({"name": name, "deleted": True, **_tried(dry_run)})
        else:
            _tell(f"alias {name} is gone; the store it named is not.", dry_run)
        return
    made = set_alias(root, name, uri, force=force, dry_run=dry_run)
    if as_json:
        print_json(made.model_dump(mode="json") | _tried(dry_run))
    else:
        _tell(f"{join(root, name)} names store {made.fingerprint}.", dry_run)


# -------------------------------------------------------------------- import


def import_command(
    file: Annotated[Path, typer.Argument(metavar="FILE.npz", help="Arrays by layer, and labels; see below.")],
    root: Annotated[str, typer.Option(help="Folder or URL under which the store is written.")],
    class_names: Annotated[
        str | None, typer.Option(help="Names by class index: separated by commas, or a text file of one per line.")
    ] = None,
    dtype: Annotated[DType, typer.Option(help="Type of the stored values.")] = DType.float16,
    embedding: Annotated[str | None, typer.Option(help="Layer that `refit --linear` uses.")] = None,
    name: Annotated[str | None, typer.Option(help="Alias that the store gets under the root.")] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make a store from activations computed elsewhere, and print its URI.

    FILE.npz holds arrays named SPLIT/LAYER of shape (sample, feature), SPLIT/labels, and optionally SPLIT/ids;
    without 'SPLIT/' in any name there is one split, train. Importing a file twice writes nothing the second time.

    For example:
      head2toe import features.npz --root stores --name mine
    """
    from pipeline.importing import import_file
    from store.aliases import check_alias, set_alias

    if name is not None:
        check_alias(name)
    names = None if class_names is None else _class_names(class_names)
    with ProgressBars() as progress:
        done = import_file(
            file,
            root,
            class_names=names,
            dtype=dtype.value,
            embedding=embedding,
            progress=progress,
            dry_run=dry_run,
        )
    if name is not None and not (dry_run and done.imported):
        set_alias(root, name, done.uri, dry_run=dry_run)
    sentence = f"imported {done.imported:,} samples; {done.reused:,} were in the store already."
    if dry_run:
        sentence += f" It would have {human_bytes(done.n_bytes)} of activations."
    if not (dry_run and as_json):
        _tell(sentence, dry_run)
    if as_json:
        print_json({**vars(done), "alias": name, **_tried(dry_run)})
    elif not dry_run:
        typer.echo(done.uri)


def _tried(dry_run: bool) -> dict[str, bool]:
    """Return what tells a document about something that was only tried from one about what was done."""
    return {"dry_run": True} if dry_run else {}


def _tell(sentence: str, dry_run: bool) -> None:
    """Say what was done; what would be done is all that a dry run yields, and no note."""
    if dry_run:
        typer.echo(f"dry run, nothing was changed: {sentence}")
    else:
        say(sentence)


def _class_names(text: str) -> list[str]:
    path = Path(text)
    try:
        if path.is_file():
            return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"class names cannot be read from {text!r}: {error}.") from error
    return [part.strip() for part in text.split(",")]
