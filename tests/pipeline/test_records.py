"""Records: what is written is read, and anything else is refused by the name of its file."""

import json
from pathlib import Path

import pytest

from jobs.errors import CorruptedError
from pipeline.records import EvaluateRecord, RunRecord, TrackingLocation, TrainRecord
from pipeline.workspace import Run


def test_record_written_is_read_back(tmp_path: Path) -> None:
    run = Run(tmp_path / "runs" / "r")
    assert run.read(RunRecord) is None
    records = (
        RunRecord(settings={"seed": "1"}, tracking=TrackingLocation(uri="", experiment="e", run_id="r")),
        TrainRecord(run_id="r", checkpoint="step-00000002", step=2, weights_sha256="ab"),
        EvaluateRecord(key="k", weights_sha256="ab", model_uri="models:/m/1", metrics={"elbo": -1.25e-7}),
    )
    for record in records:
        run.write(record)
        assert run.read(type(record)) == record
    assert sorted(path.name for path in run.folder.iterdir()) == ["evaluate.json", "run.json", "train.json"]


def test_new_run_records_have_different_keys() -> None:
    assert RunRecord().key != RunRecord().key


@pytest.mark.parametrize(
    "change",
    [{"step": "many"}, {"step": None}, {"extra": 1}, {"version": 2}],
    ids=["type", "null", "unknown", "version"],
)
def test_invalid_record_error_names_the_file(change: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / TrainRecord.FILENAME
    TrainRecord(run_id="r", checkpoint="c", step=2, weights_sha256="ab").write(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CorruptedError, match=r"train\.json"):
        TrainRecord.read(path)


def test_truncated_record_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / RunRecord.FILENAME
    path.write_text('{"key": "k", "sett')
    with pytest.raises(CorruptedError, match=r"run\.json"):
        RunRecord.read(path)
