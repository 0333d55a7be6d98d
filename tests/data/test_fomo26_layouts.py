"""The folders of FOMO26: both editions' spellings, archives that unpack twice, and what is ambiguous, by name."""

import dataclasses
import shutil

import nibabel
import numpy as np
import pytest
import yaml
from conftest import ROOT, run_command, wanted

from fomo import kinds
from fomo.config import Data, UserError
from fomo.data import listing, sources

# task: (files of a session, name of its label)
SECOND = {
    1: (("flair", "adc", "dwi_b1000", "t2s"), "label.txt"),
    2: (("flair", "dwi_b1000", "swi"), "seg.nii.gz"),
    3: (("t1w",), "labels.txt"),
    4: (("t2w",), "seg.nii.gz"),
    5: (("t1",), "labels.txt"),
}
OTHER = {
    "dwi_b1000": "dwi",
    "t1w": "t1",
    "t2w": "t2",
    "t1": "t1w",
    "label.txt": "labels.txt",
    "labels.txt": "label.txt",
}
FIRST = {
    task: (tuple(OTHER.get(name, name) for name in names), OTHER.get(label, label))
    for task, (names, label) in SECOND.items()
}


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([0.5, 0.5, 0.5, 1])), path)


def write(root, task, spelling=SECOND, place="sub-{:03d}/ses-01", cases=4):
    names, label = spelling[task]
    rng = np.random.default_rng(task)
    for number in range(1, cases + 1):
        scan = root / "preprocessed" / place.format(number)
        for name in names:
            save(scan / f"{name}.nii.gz", rng.normal(100, 10, (6, 7, 8)).astype(np.float32))
        path = root / "labels" / place.format(number) / label
        if label == "seg.nii.gz":
            mask = np.zeros((6, 7, 8), np.uint8)
            mask[:number, 2, 2], mask[3, :number, 4] = 1, 2 if task == 4 else 1
            save(path, mask)
        else:
            path.parent.mkdir(parents=True)
            path.write_text(f"{20 + number if task == 3 else number % 2}\n")


def config_of(task, root):
    return kinds.load(ROOT / "configs" / "fomo26" / f"task{task}.yaml", [f"data.root={root}"])


def listed(task, root, log=None):
    config = config_of(task, root)
    return sources.list_cases(config.data, kinds.kind(config).wanted(config.task), log=log)


@pytest.mark.parametrize("task", SECOND)
@pytest.mark.parametrize("spelling", (FIRST, SECOND), ids=("first", "second"))
def test_each_recipe_reads_both_spellings(tmp_path, task, spelling):
    place = "sub-{:03d}/ses-01" if spelling is SECOND else "sub_{}/ses_1"
    write(tmp_path, task, spelling, place)
    cases = listed(task, tmp_path)
    assert [case.id for case in cases] == [place.replace("/", "_").format(number) for number in (1, 2, 3, 4)]
    assert {image.path.split("/")[-1].removesuffix(".nii.gz") for image in cases[0].images} == set(spelling[task][0])
    wanted_targets = {1: [1, 0, 1, 0], 2: [1] * 4, 3: [21, 22, 23, 24], 4: [1] * 4, 5: [1, 0, 1, 0]}
    assert [case.target for case in cases] == wanted_targets[task]


@pytest.mark.parametrize("task", (1, 2))
def test_the_archive_may_be_given_at_either_depth(tmp_path, task):
    inner = tmp_path / "all" / f"Task_{task}" / f"Task_{task}"
    write(inner, task)
    paths = [case.files for case in listed(task, inner)]
    assert [case.files for case in listed(task, inner.parent)] == paths
    with pytest.raises(
        UserError, match=f"got Task_{task}, wanted .*there is one in .*all/Task_{task}/Task_{task}: give"
    ):
        listed(task, tmp_path / "all")
    shutil.copytree(inner / "preprocessed", inner.parent / "preprocessed")
    with pytest.raises(
        UserError, match=f"preprocessed in .*all/Task_{task} and in .*all/Task_{task}/Task_{task}, wanted one"
    ):
        listed(task, inner.parent)


def test_several_tasks_below_one_root_are_named(tmp_path):
    for task in (1, 2):
        write(tmp_path / f"Task_{task}", task)
    with pytest.raises(UserError, match="preprocessed in .*Task_1 and in .*Task_2, wanted one: name it"):
        listed(1, tmp_path)
    write(tmp_path, 1)
    with pytest.raises(UserError, match="preprocessed in .*, .*Task_1, .*Task_2, wanted one: name it"):
        listed(1, tmp_path)
    shutil.rmtree(tmp_path / "Task_2")
    with pytest.raises(UserError, match="preprocessed in .* and in .*Task_1, wanted one: name it"):
        listed(1, tmp_path)


def test_a_root_that_is_no_folder_is_said(tmp_path):
    with pytest.raises(UserError, match="data.root: .*nowhere does not exist, wanted the folder of the data set"):
        listed(4, tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="data.root: .*file is a file, wanted the folder"):
        listed(4, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no cases found, got no folders, wanted a folder preprocessed"):
        listed(4, tmp_path / "empty")


def test_what_lies_where_a_channel_or_a_label_is_missing_is_named(tmp_path):
    write(tmp_path, 3)
    with pytest.raises(UserError, match="channel .* is missing, .*; there: t1w.nii.gz, and no session has it: is"):
        listed(1, tmp_path)
    session = tmp_path / "preprocessed" / "sub-new" / "ses-01"
    shutil.copytree(tmp_path / "preprocessed" / "sub-001" / "ses-01", session)
    others = sorted(entry.name for entry in (tmp_path / "labels").iterdir())
    said = f"case sub-new_ses-01: no label, wanted .*; .*labels has the subjects {', '.join(others[:5])}"
    with pytest.raises(UserError, match=said + (f" and {len(others) - 5} more" if len(others) > 5 else "$")):
        listed(3, tmp_path)
    for name in [f"x{i:02d}" for i in range(10)]:
        (session / f"{name}.nii.gz").touch()
    (session / "t1w.nii.gz").unlink()
    with pytest.raises(UserError, match="channel 't1w.t1' is missing, .*; there: x00.nii.gz, .*x07.nii.gz and 2 more$"):
        listed(3, tmp_path)


def test_what_is_there_twice_is_named(tmp_path):
    write(tmp_path, 3)
    labels = tmp_path / "labels" / "sub-001" / "ses-01"
    shutil.copy(labels / "labels.txt", labels / "label.txt")
    with pytest.raises(UserError, match="case sub-001_ses-01: got both .*/label.txt and .*/labels.txt, wanted one"):
        listed(3, tmp_path)
    (labels / "label.txt").unlink()
    (labels.parent / "label.txt").write_text("99")
    with pytest.raises(UserError, match="labels.txt says 21 and .*sub-001/label.txt says 99"):
        listed(3, tmp_path)
    (labels.parent / "label.txt").write_text("21")
    scan = tmp_path / "preprocessed" / "sub-001" / "ses-01"
    shutil.copy(scan / "t1w.nii.gz", scan / "t1.nii.gz")
    with pytest.raises(UserError, match="channel 't1w.t1' is there twice, .*t1w.nii.gz and .*t1.nii.gz"):
        listed(3, tmp_path)


def test_one_line_says_what_was_found(tmp_path):
    class Log:
        lines = []

        def __call__(self, event, **values):
            self.lines.append((event, values))

        def warn(self, said, **values):
            raise AssertionError(said)

    for task in (3, 4):
        root = tmp_path / f"Task_{task}"
        write(root / f"Task_{task}", task)
        config = config_of(task, root)
        wished = kinds.kind(config).wanted(config.task)
        Log.lines.clear()
        listing.describe(config, wished, sources.list_cases(config.data, wished, log=Log()), Log())
        [(event, said)] = Log.lines
        (name,), label = SECOND[task]
        assert event == "data" and said["files"] == [f"{name}:4"] and said["labels"] == [f"{label}:4"]
        assert f"Task_{task}/Task_{task}/preprocessed" in said["example"]


def test_a_recipe_is_checked_to_its_end_by_a_dry_run(tmp_path):
    write(tmp_path / "Task_4" / "Task_4", 4, cases=12)
    done = run_command(
        *("cv.py", ROOT / "configs/fomo26/task4.yaml", f"data.root={tmp_path}/Task_4", "--dry-run"),
        f"output={tmp_path}/runs",
    )
    assert done.returncode == 0, done.stderr
    assert (
        "source=fomo4 cases=12 subjects=12" in done.stdout and "model=resenc_unet_b parameters=102348259" in done.stdout
    )


def test_class_names_fit_the_classes():
    path = ROOT / "configs" / "fomo26" / "task4.yaml"
    for names in ("[nerve]", "[nerve, Nerve]", "[nerve, two words]", "[nerve, 2]"):
        with pytest.raises(UserError, match="task.class_names.*wanted none, or 2 different words"):
            kinds.load(path, [f"task.class_names={names}"])
    with pytest.raises(UserError, match="task.class_names"):
        kinds.load(ROOT / "configs" / "fomo26" / "task5.yaml", ["task.class_names=[a]"])


def test_every_recipe_starts_from_the_projects_own():
    for task in SECOND:
        own = yaml.safe_load((ROOT / "configs" / "fomo26" / f"task{task}.yaml").read_text())
        assert own["base"].startswith("../task") and own["model"]["name"] == "resenc_unet_b"
        config = config_of(task, "x")
        assert not kinds.unread(config) and config.optim.lr == "auto" and not config.data.crop
    assert dataclasses.asdict(config_of(4, "x").data)["spacing_mm"] == (0.5, 0.5, 0.5)


def test_masks_of_three_classes_are_never_labels_of_two(tmp_path):
    write(tmp_path, 4)
    data = Data(source="fomo4", root=str(tmp_path), channels=("t2w",))
    three = wanted(type="segmentation", classes=3)
    assert [case.foreground_mm3 for case in sources.list_cases(data, three)][0] == 2 * 0.125
    with pytest.raises(UserError, match="got the mask values 2, wanted whole numbers below task.classes=2"):
        sources.list_cases(data, wanted(type="segmentation"))
