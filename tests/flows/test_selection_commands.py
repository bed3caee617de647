"""`select` and `refit` from the outside: what they print, and how they refuse."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.config import load_config
from store.errors import InvalidInputError


def run(*arguments: str, code: int = 0) -> tuple[str, str]:
    """Run a command in this process; returns standard output and standard error."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def test_the_certificate_is_printed_in_figures_a_person_can_read(store) -> None:
    out, _ = run("select", store.uri, "--keep", "5")
    rows = dict(line.split(maxsplit=1) for line in out.splitlines() if len(line.split()) > 1)
    assert rows["certified"].strip() == "yes"
    assert re.fullmatch(r"(\w[\w ]* \d+\.\d\d(, )?)+", rows["seconds"].strip())
    for name in ("penalty", "objective", "relative_gap", "kkt_violation"):
        assert len(re.sub(r"e-\d+|\D|^0\.0*", "", rows[name].strip())) <= 4, rows[name]


def test_a_heuristic_says_so_and_adam_reports_its_objective(store) -> None:
    out, _ = run("select", store.uri, "--scorer", "adam", "--steps", "10", "--penalty", "0.01", "--average-over", "2")
    assert "no certificate: adam is a heuristic" in out
    assert "certified" not in out
    adam = json.loads(run("select", store.uri, "--scorer", "adam", "--steps", "30", "--penalty", "0.05", "--json")[0])
    exact = json.loads(run("select", store.uri, "--penalty", "0.05", "--json")[0])
    assert exact["certificate"]["certified"]
    assert adam["certificate"]["objective"] > exact["certificate"]["objective"]
    assert (adam["scorer"], adam["support"]) == ("adam", None)


def test_options_reach_the_selection(store) -> None:
    best = json.loads(run("select", store.uri, "--scorer", "f_classif", "--keep", "30", "--json")[0])
    whole = json.loads(run("select", store.uri, "--scorer", "f_classif", "--keep", "30", "--whole-layers", "--json")[0])
    assert sum(n > 0 for n in best["per_layer"].values()) > sum(n > 0 for n in whole["per_layer"].values())
    assert whole["kept"] == 30
    skipped = run("select", store.uri, "--scorer", "random", "--seed", "3", "--offset", "100", "--keep", "28", code=2)
    assert "cannot keep 28 features after an offset of 100" in skipped[1]


def test_a_selection_of_another_store_trains_a_head_that_names_it(store, tmp_path) -> None:
    other = str(tmp_path / "other.zarr")
    shutil.copytree(store.uri, other)
    made = json.loads(run("select", store.uri, "--scorer", "variance", "--json")[0])
    assert "does not exist" in run("refit", other, "--selection", made["selection"], code=2)[1]
    head = json.loads(run("refit", other, "--selection", made["selection"], "--selection-from", store.uri, "--json")[0])
    assert head["features"] == made["kept"]
    again = json.loads(run("refit", other, "--selection-from", store.uri, "--json")[0])
    assert (again["head"], again["selection"]) == (head["head"], made["selection"])
    assert "--selection-from says where" in run("refit", other, "--linear", "--selection-from", other, code=2)[1]


def test_a_refit_takes_the_newest_selection_and_says_so(store) -> None:
    assert f"`head2toe select {store.uri}` makes one" in run("refit", store.uri, code=2)[1]
    chosen = []
    for keep in ("5", "4", "3", "2"):
        out, _ = run("select", store.uri, "--scorer", "variance", "--keep", keep, "--json")
        chosen.append(json.loads(out)["selection"])
        found, said = run("refit", store.uri, "--dry-run", "--json")
        assert json.loads(found)["selection"] == chosen[-1]
        assert said == f"taking the newest selection, {chosen[-1]}: {keep} features by variance; --selection ID " + (
            "takes another.\n"
        )
    assert chosen != sorted(chosen), "made in another order than that of their names, within a second"
    run("select", store.uri, "--scorer", "variance", "--keep", "5")  # which was there, and keeps its age
    assert f"of selection {chosen[-1]}, to be trained" in run("refit", store.uri, "--dry-run", "--quiet")[0]
    trained = json.loads(run("refit", store.uri, "--json", "--quiet")[0])
    assert (trained["selection"], trained["features"]) == (chosen[-1], 2)
    out, said = run("refit", store.uri, "--selection", chosen[0][:6])
    assert re.search(rf"^selection +{chosen[0]}\b", out, re.MULTILINE)
    assert "taking" not in said
    assert "selection '' does not exist" in run("refit", store.uri, "--selection", "", code=2)[1]
    assert "selection" not in run("refit", store.uri, "--linear")[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fraction", "abc"], "error: fraction is 'abc' but should be a valid number."),
        (["--normalization", "unitnorm"], "error: normalization is 'unitnorm' but should be 'unit_norm', 'standard"),
        (["--scorer", "adm"], "error: scorer 'adm' is unknown; did you mean 'adam'"),
        (["--scorer", "chi2", "--penalty", "1"], "error: penalty does not apply to scorer chi2, only to group_lasso"),
        (["--layer-mean", "1.5"], "error: layer_mean is '1.5' but should be less than or equal to 1."),
    ],
)
def test_options_that_cannot_be_used_are_explained(options, message) -> None:
    _, err = run("select", "nowhere", *options, code=2)
    assert message in err
    assert "Value error" not in err


def test_the_optimizer_of_a_refit_is_chosen_with_its_own_options(store) -> None:
    adam = json.loads(run("refit", store.uri, "--linear", "--optimizer", "adam", "--steps", "7", "--json")[0])
    assert adam["steps"] == 7
    assert not adam["reused"]
    exact = json.loads(run("refit", store.uri, "--linear", "--validation-fraction", "0", "--json")[0])
    assert exact["validation_loss"] is None
    assert exact["loss"] < adam["loss"]
    for options, message in (
        (["--optimizer", "adm"], "error: optimizer 'adm' is unknown; did you mean 'adam'"),
        (["--steps", "7"], "error: steps does not apply to optimizer lbfgs, only to adam; leave it out."),
        (["--optimizer", "adam", "--learning-rate", "x"], "error: learning_rate is 'x' but should be a valid number."),
    ):
        assert message in run("refit", store.uri, "--linear", *options, code=2)[1]


def test_figures_of_a_head_are_for_people_and_lines_end_where_their_text_ends(store) -> None:
    given = ["refit", store.uri, "--linear", "--seed", "3"]
    exact = json.loads(run(*given, "--json")[0])
    out, _ = run(*given)
    assert f"computed in {exact['seconds']:.2f} s" in " ".join(out.split())
    assert f"validation_loss {exact['validation_loss']:.4g}" in " ".join(out.split())
    assert all(line == line.rstrip() for line in out.splitlines())
    digest = json.loads(run("select", store.uri, "--scorer", "variance", "--json")[0])["selection"]
    near = digest[:5] + ("0" if digest[5] != "0" else "1")
    assert f"did you mean '{digest}'" in run("refit", store.uri, "--selection", near, code=2)[1]


def test_an_unknown_normalization_of_the_baseline_is_refused(store) -> None:
    _, err = run("refit", store.uri, "--linear", "--normalization", "unitnorm", code=2)
    assert "normalization='unitnorm' is unknown; did you mean 'unit_norm'" in err


def test_a_configuration_refuses_a_scorer_before_anything_runs(tmp_path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("extraction: {backbone: test_resnet, data: digits}\nselection: {scorer: l3}")
    with pytest.raises(InvalidInputError, match=r"c\.yaml': scorer 'l3' is unknown; did you mean 'l2', 'l1'"):
        load_config(path)
