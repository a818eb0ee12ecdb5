"""Names of runs in metrics: short, and without what a URI may carry."""

from __future__ import annotations

import pytest

from sentiment.observability.prometheus import name_of


@pytest.mark.parametrize(
    ("output", "name"),
    [
        ("/home/someone/runs/demo/model", "demo/model"),
        ("runs/scored/", "runs/scored"),
        ("scored", "scored"),
        ("/odd@name/why?", "odd@name/why?"),
        ("s3://bucket/2021/scored", "2021/scored"),
        ("s3://bucket/scored", "bucket/scored"),
        ("s3://key:secret@bucket/scored?endpoint_override=host%3A9000", "bucket/scored"),
        ("s3://key:secret@bucket", "bucket"),
        ("file:///data/runs/scored", "runs/scored"),
    ],
)
def test_a_run_is_called_after_its_folder(output: str, name: str) -> None:
    assert name_of(output) == name
