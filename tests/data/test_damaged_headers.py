"""Files that their first bytes show to be damaged are named before any other is prepared, also by --dry-run."""

import gzip

import pytest

from fomo import kinds, tasks
from fomo.config import UserError
from fomo.data import cache, sources
from fomo.data.phantoms import heads
from fomo.runs import crossval
from fomo.space import nifti


def test_damaged_files_are_found_before_others_are_prepared(tiny_config, tmp_path):
    heads.make(tmp_path / "heads", 3, 6, 24)
    paths = sorted((tmp_path / "heads").rglob("t1.nii.gz"))
    paths[4].write_bytes(gzip.decompress(paths[4].read_bytes()))
    paths[5].write_bytes(b"")
    place = {"source": "fomo3", "root": str(tmp_path / "heads"), "cache": str(tmp_path / "cache")}
    config = kinds.load(tiny_config("regression", data=place))
    wanted = tasks.wanted(config)
    listed = sources.list_cases(config.data, wanted)
    said = r"not compressed: take the \.gz off its name \(1 more failed: "
    with pytest.raises(UserError, match=said):
        sources.prepare(listed, config.data, wanted)
    assert not list((tmp_path / "cache").rglob("case.json"))
    with pytest.raises(UserError, match=said):
        crossval.run(config, dry_run=True)
    cache.check_headers(listed[:4])


def test_what_is_called_gz_and_is_something_else_is_shown(tmp_path):
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(b"<html>")
    with pytest.raises(ValueError, match="it is no .gz file: it begins with b'<htm'"):
        nifti.read_header(path)
