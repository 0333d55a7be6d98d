"""What stays in a folder of predictions, and what goes with its row."""

from types import SimpleNamespace

import pytest

from fomo import prediction_folder, tables
from fomo.config import UserError


def member(sha256):
    task = SimpleNamespace(type="segmentation", classes=2)
    return SimpleNamespace(sha256=sha256, path=f"{sha256}.pt", network=None, config=SimpleNamespace(task=task))


def test_masks_of_other_checkpoints_go_with_their_rows(tmp_path):
    def start(sha256, again=None):
        return sorted(prediction_folder.start(str(tmp_path), [member(sha256)], "predictions.csv", again))

    def masks():
        return sorted(path.name[0] for path in (tmp_path / "masks").iterdir())

    assert start("one") == []
    (tmp_path / "masks").mkdir()
    for name in "abc":
        (tmp_path / "masks" / f"{name}.nii.gz").write_bytes(b"")
    tables.write_csv(str(tmp_path / "predictions.csv"), [{"id": name} for name in "abc"])
    assert start("one") == ["a", "b", "c"] == masks()
    with pytest.raises(UserError, match="holds predictions of other checkpoints"):
        start("two")
    assert masks() == ["a", "b", "c"], "refused, and nothing is lost"
    assert start("one", again=["b"]) == ["a", "c"] == masks()
    assert start("two", again=["a"]) == [] == masks()
