"""What stays in a folder of predictions, and what goes with its row."""

from types import SimpleNamespace

import pytest

from fomo import config, tasks
from fomo.config import UserError
from fomo.data.cases import Case
from fomo.prediction import folder as folder_module
from fomo.prediction import inputs
from fomo.prediction.folder import PredictionFolder
from fomo.run_folder import RunFolder
from fomo.runtime import files


def member_of(sha256, kind="segmentation", targets=(), classes=("0", "1")):
    settings = config.Config(task=config.Task(type=kind, targets=targets))
    task = tasks.build(settings)
    task.state["classes"] = list(classes)
    return SimpleNamespace(
        sha256=sha256, path=f"{sha256}.pt", network=None, config=settings, task=task, sees_slices=False
    )


def case(id):
    return Case(id, id, (), None, None, None)


@pytest.mark.parametrize("line", ["{}", "[1, 2]", "null", '[{"input": "x"}, []]', '[{"id": "a"}, [3]]', '"ab"'])
def test_a_damaged_line_of_rows_that_no_table_has_is_named(tmp_path, line):
    path = tmp_path / "lines.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(files.Damaged, match="lines.jsonl"):
        files.read_lines(path, folder_module._check_line)


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
    PredictionFolder(tmp_path, [member]).begin([])
    settings = files.read_json(tmp_path / "settings.json")
    said = {"task": member.config.task.type, **said}
    assert settings == {"checkpoints": [{"sha256": "a", "mirror_axes": []}], "paths": ["a.pt"], **said}


def test_masks_of_other_checkpoints_go_with_their_rows(tmp_path):
    def start(sha256, again=()):
        folder = PredictionFolder(tmp_path, [member_of(sha256)])
        folder.begin([case(id) for id in again], overwrite=bool(again))
        return sorted(folder.rows)

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


def test_a_case_is_there_with_its_row_and_all_its_volumes(tmp_path):
    def begun():
        folder = PredictionFolder(tmp_path, [member_of("one")])
        todo = folder.begin([case("a"), case("b"), case("c")], volumes=("mask",))
        return folder, [item.id for item in todo]

    folder, todo = begun()
    assert todo == ["a", "b", "c"]
    for id in "ba":
        folder.add(id, {"predicted_voxels": 1})
    (tmp_path / "masks" / "a.nii.gz").write_bytes(b"")
    folder.save()
    assert [row["id"] for row in files.read_csv(tmp_path / "predictions.csv")] == ["a", "b"]
    assert begun()[1] == ["b", "c"]


def test_tables_are_written_at_once_and_then_when_that_takes_little_of_the_time(tmp_path, monkeypatch):
    folder = PredictionFolder(tmp_path, [member_of("one")])
    folder.begin([case(str(number)) for number in range(100)])
    folder.add("0", {})
    assert len(files.read_csv(tmp_path / "predictions.csv")) == 1
    monkeypatch.setattr(folder, "_took", 1000.0)  # of many cases, on a slow disk
    folder.add("1", {})
    assert len(files.read_csv(tmp_path / "predictions.csv")) == 1
    folder.save()
    assert len(files.read_csv(tmp_path / "predictions.csv")) == 2


def test_an_end_at_any_moment_loses_no_row(tmp_path, monkeypatch):
    """Rows that no table has yet lie beside them; of one that was being written a part may be there."""

    def begun():
        folder = PredictionFolder(tmp_path, [member_of("one")])
        folder.begin([case(id) for id in "abcd"])
        return folder

    folder = begun()
    folder.add("c", {"x": 0.1})
    monkeypatch.setattr(folder, "_took", 1000.0)  # of many cases: no table is written for long
    folder.add("a", {"x": 1e-9, "text": "=1"})
    folder.add("b", {"x": None})
    assert [row["id"] for row in files.read_csv(tmp_path / "predictions.csv")] == ["c"]
    with open(tmp_path / ".unsaved.jsonl", "a") as file:
        file.write('[{"id": "d", "x": "2')
    after = begun()
    assert list(after.rows) == ["c", "a", "b"] and not (tmp_path / ".unsaved.jsonl").exists()
    after.add("d", {"x": 2})
    after.save()
    rows = files.read_csv(tmp_path / "predictions.csv")
    assert [(row["id"], row["x"], row["text"]) for row in rows] == [
        ("a", "1e-09", "=1"), ("b", "", ""), ("c", "0.1", ""), ("d", "2", ""),
    ]  # fmt: skip
    assert not (tmp_path / ".unsaved.jsonl").exists()


def test_a_row_before_the_first_table_and_of_other_checkpoints(tmp_path, monkeypatch):
    folder = PredictionFolder(tmp_path, [member_of("one")])
    folder.begin([case("a")])
    monkeypatch.setattr(folder, "save", lambda: None)
    folder.add("a", {"x": 1})
    other = PredictionFolder(tmp_path, [member_of("two")])
    with pytest.raises(UserError, match="holds predictions of other checkpoints"):
        other.begin([case("a")])
    assert PredictionFolder(tmp_path, [member_of("one")]).begin([case("a"), case("b")]) == [case("b")]
    other.begin([case("a")], overwrite=True)
    assert not other.rows and not (tmp_path / ".unsaved.jsonl").exists()


@pytest.mark.parametrize("id", ["../../victim", "/victim", "a/b", "..", "", ".hidden", "a\\b", "a\nb"])
def test_an_id_in_an_edited_table_deletes_nothing(tmp_path, id):
    """masks/../../victim.nii.gz would lie outside of the folder."""
    answers = tmp_path / "deep" / "answers"
    PredictionFolder(answers, [member_of("one")]).begin([])
    (answers / "masks").mkdir()
    for victim in (tmp_path / "victim.nii.gz", tmp_path / "deep" / "victim.nii.gz", answers / "masks" / "a.nii.gz"):
        victim.write_bytes(b"precious")
    files.write_csv(str(answers / "predictions.csv"), [{"id": "a"}, {"id": id}])
    before = sorted(tmp_path.rglob("*"))
    for sha256 in ("one", "two"):
        with pytest.raises(files.Damaged, match="predictions.csv .the id .*, wanted printable text without /"):
            PredictionFolder(answers, [member_of(sha256)]).begin([case("a")], overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("id", ["../../victim", "..", "a/b"])
def test_an_id_in_a_table_of_a_run_names_no_file_elsewhere(tmp_path, id):
    fold = RunFolder(tmp_path / "run").fold(1)
    for place in (fold.mask, fold.saliency, fold.reconstruction):
        with pytest.raises(files.Damaged, match="the id"):
            place(id, new=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [".nii.gz", "..nii.gz", f"{'x' * 200}.nii.gz"])
def test_the_name_of_a_file_is_an_id_only_if_it_can_be_one(name):
    with pytest.raises(UserError, match="got the id .*, wanted printable text"):
        inputs.case_from_channels(["t1"], {"t1": f"scans/{name}"})
