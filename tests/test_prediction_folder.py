"""What stays in a folder of predictions, and what goes with its row."""

from types import SimpleNamespace

import pytest

from fomo.config import UserError
from fomo.prediction import prediction_folder
from fomo.runtime import files


def member(sha256):
    return member_of(sha256, "segmentation")


def member_of(sha256, kind, targets=(), classes=("0", "1")):
    config = SimpleNamespace(task=SimpleNamespace(type=kind, targets=targets, classes=2))
    task = SimpleNamespace(state={"classes": list(classes)})
    return SimpleNamespace(sha256=sha256, path=f"{sha256}.pt", network=None, config=config, task=task)


@pytest.mark.parametrize(
    "member, said",
    [
        (member_of("a", "segmentation"), {"targets": [], "classes": 2}),
        (member_of("a", "regression", ("bmi",)), {"targets": ["bmi"]}),
        (
            member_of("a", "classification", ("cohort",), ("CN", "AD")),
            {"targets": ["cohort"], "class_names": ["CN", "AD"]},
        ),
    ],
)
def test_what_was_learned_is_in_the_settings(tmp_path, member, said):
    prediction_folder.start(str(tmp_path), [member], "predictions.csv", {}, False)
    settings = files.read_json(tmp_path / "settings.json")
    assert settings == {"checkpoints": [{"sha256": "a", "mirror_axes": []}], "paths": ["a.pt"], **said}


def test_masks_of_other_checkpoints_go_with_their_rows(tmp_path):
    def start(sha256, again=()):
        inputs = {name: () for name in again}
        return sorted(prediction_folder.start(str(tmp_path), [member(sha256)], "predictions.csv", inputs, bool(again)))

    def masks():
        return sorted(path.name[0] for path in (tmp_path / "masks").iterdir())

    assert start("one") == []
    (tmp_path / "masks").mkdir()
    for name in "abc":
        (tmp_path / "masks" / f"{name}.nii.gz").write_bytes(b"")
    files.write_csv(str(tmp_path / "predictions.csv"), [{"id": name} for name in "abc"])
    assert start("one") == ["a", "b", "c"] == masks()
    with pytest.raises(UserError, match="holds predictions of other checkpoints"):
        start("two")
    assert masks() == ["a", "b", "c"], "refused, and nothing is lost"
    assert start("one", again=["b"]) == ["a", "c"] == masks()
    assert start("two", again=["a"]) == [] == masks()
