"""The flow under a real Prefect server: everything in order, nothing twice."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flows.config import Head2ToeConfig
from pipeline.extraction_parameters import ExtractionParameters
from pipeline.selection import SelectionParameters

pytestmark = [
    pytest.mark.slow,
    # Prefect's server and its dependencies deprecate each other's functions; that is not ours to mend.
    pytest.mark.filterwarnings("ignore"),
]


def config(root: Path, **selection: object) -> Head2ToeConfig:
    extraction = ExtractionParameters(backbone="test_resnet", weights="random:0", data="digits", image_size=32)
    return Head2ToeConfig(root=str(root), extraction=extraction, selection=SelectionParameters(**selection))


@pytest.mark.usefixtures("prefect_server")
def test_the_flow_runs_every_stage_and_a_second_run_extracts_nothing(tmp_path) -> None:
    from flows.head2toe import head2toe

    first = head2toe(config(tmp_path))
    assert first.extracted == 1797
    linear, ours = first.results
    assert ours.accuracy["test"] > linear.accuracy["test"]
    page = Path(first.report).read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    assert "random weights" in page
    assert "preprocessing is a" in page
    assert [note for note in first.notes if "% of the time" in note]
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!["'#(])[^\s"')]+""", page), (
        "the page needs no other file"
    )

    second = head2toe(config(tmp_path))
    assert (second.extracted, second.reused) == (0, 1797)
    assert second.seconds_saved > 0
    assert second.selection == first.selection
    assert [r.digest for r in second.results] == [r.digest for r in first.results]

    other = head2toe(config(tmp_path, keep=50))
    assert other.extracted == 0
    assert other.results[1].features == 50


@pytest.mark.usefixtures("prefect_server")
def test_a_users_mistake_reaches_the_caller_as_its_sentence_and_is_logged_without_a_stack(tmp_path, caplog) -> None:
    from flows.head2toe import head2toe
    from store.errors import InvalidInputError

    wrong = config(tmp_path).model_copy(
        update={"extraction": ExtractionParameters(backbone="resnet5O", weights="random:0", data="digits")}
    )
    with pytest.raises(InvalidInputError, match="did you mean 'resnet50'"):
        head2toe(wrong)
    assert not [r for r in caplog.records if r.name.startswith("prefect.") and r.exc_info]


@pytest.mark.usefixtures("prefect_server")
def test_parameters_are_validated_by_prefect_too(tmp_path) -> None:
    from prefect.exceptions import ParameterTypeError

    from flows.head2toe import head2toe

    with pytest.raises(ParameterTypeError, match="fraction"):
        head2toe({"extraction": {"backbone": "test_resnet", "data": "digits"}, "selection": {"fraction": 7}})
