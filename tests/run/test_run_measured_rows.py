import csv
import dataclasses
from pathlib import Path

from tests.run.run_helpers import run_it, write_run

from krzem.accuracy.reader import read_case
from krzem.run.measured_rows import measured_rows, write_back
from krzem.run.run_file import read_run


def test_what_was_measured_is_a_row_that_calibration_reads(tmp_path: Path) -> None:
    path = write_run(tmp_path, pools=["first"])
    run_it(path)
    settings = read_run(path)
    on_hopper = dataclasses.replace(settings.pools[0], accelerator="h800", count=8, layout="dp=8")
    written = write_back(dataclasses.replace(settings, pools=(on_hopper,)))
    assert written is not None
    with written.open() as file:
        (row,) = csv.DictReader(file)
    case = read_case(row)
    assert case.seconds is not None
    assert case.seconds > 0
    assert (case.devices, case.layout.dp, case.global_batch) == (8, 8, 8)
    assert case.architecture.layers == 32, "the model of the run file"
    assert row["metric_tokens_per_s_per_device"]


def test_a_pool_that_hardly_trained_has_no_row(tmp_path: Path) -> None:
    path = write_run(tmp_path, steps=5)
    run_it(path)
    assert measured_rows(read_run(path)) == []
