"""The output of a segmentation may lie anywhere but in its archive."""

from __future__ import annotations

from pathlib import Path

import pytest

from segray.errors import SegrayError
from segray.outputs import check_place
from segray.settings import SegmentSettings


@pytest.mark.parametrize(
    ("archive", "output", "fits"),
    [
        ("s3://bucket/imagery", "s3://bucket/imagery-masks", True),
        ("s3://bucket/imagery/list.txt", "s3://bucket/imagery/masks", True),
        ("xyz://17::s3://bucket/tiles", "s3://bucket/masks", True),
        ("s3://bucket", "s3://bucket/masks", False),
        ("s3://bucket/imagery", "s3://bucket/imagery", False),
        ("xyz://17::s3://bucket/tiles", "s3://bucket/tiles/masks", False),
        ("{folder}/imagery", "{folder}/masks", True),
        ("{folder}/imagery", "{folder}/imagery/masks", False),
        ("{folder}/link", "{folder}/imagery/masks", False),
        ("{folder}/imagery/../imagery", "{folder}/link/masks", False),
    ],
)
def test_masks_do_not_become_imagery(tmp_path: Path, archive: str, output: str, fits: bool) -> None:
    (tmp_path / "imagery").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "imagery")
    archive, output = (uri.format(folder=tmp_path) for uri in (archive, output))
    settings = SegmentSettings(model="model", archive=archive, output=output)
    if fits:
        check_place(settings)
    else:
        with pytest.raises(SegrayError, match=f"--output {output} lies in the archive .*; give a folder beside it"):
            check_place(settings)
