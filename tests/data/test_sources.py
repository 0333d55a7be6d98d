"""Each layout is found, each mistake in one is named, and no pickle gets to run."""

import os
import shutil

import nibabel
import numpy as np
import pytest
from conftest import wanted

from fomo import config
from fomo.data import sources
from fomo.data.cases import Volume, read_volume

CHANNELS = {1: ("dwi_b1000", "flair", "adc", "swi|t2s"), 2: ("dwi_b1000", "flair", "swi|t2s"), 3: ("t1", "t2")}
TYPES = {1: "classification", 2: "segmentation", 3: "regression"}


def write(path, array=None, text=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    if text is not None:
        path.write_text(text)
    else:
        array = np.arange(8, dtype=np.int16).reshape(2, 2, 2) if array is None else array
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)


class Log:
    def __init__(self):
        self.warnings = []

    def warn(self, message, **values):
        self.warnings.append((message, values))


def listed(root, number, labels=True, kind=None, log=None, **values):
    data = config.Data(source=f"fomo{number}", root=str(root), **{"channels": CHANNELS[number], **values})
    return sources.list_cases(data, wanted(type=kind or TYPES[number]), labels=labels, log=log)


def task1_case(root, subject, session="ses_1", label=None, mask=None, swi="swi", derived=True):
    folder, prefix = ("skull_stripped", "ss_") if derived else ("preprocessed", "")
    for name in ("dwi_b1000", "flair", "adc", swi):
        write(root / folder / subject / session / f"{prefix}{name}.nii.gz")
    if label is not None:
        write(root / "labels" / subject / session / "label.txt", text=label)
    if mask is not None:
        name = "labels_masked/{}/{}/seg_masked.nii.gz" if derived else "labels/{}/{}/seg.nii.gz"
        write(root / name.format(subject, session), np.full((2, 2, 2), mask, np.uint8))


def refused(words, *arguments, **values):
    with pytest.raises(config.UserError) as caught:
        listed(*arguments, **values)
    for word in words:
        assert word in str(caught.value), f"'{word}' is not in: {caught.value}"


# ------------------------------------------------------------------------------------------- layouts


def test_task1_channels_sessions_and_labels(tmp_path):
    task1_case(tmp_path, "sub_2", label="1\n", mask=3, swi="t2s")
    task1_case(tmp_path, "sub_1", "ses_1", mask=0)
    task1_case(tmp_path, "sub_1", "ses_2", label="1.0")
    cases = listed(tmp_path, 1)
    assert [case.id for case in cases] == ["sub_1_ses_1", "sub_1_ses_2", "sub_2_ses_1"]
    assert [case.subject for case in cases] == ["sub_1", "sub_1", "sub_2"]
    assert [case.target for case in cases] == [0.0, 1.0, 1.0]
    names = [os.path.basename(image.path) for image in cases[2].images]
    assert names == ["ss_dwi_b1000.nii.gz", "ss_flair.nii.gz", "ss_adc.nii.gz", "ss_t2s.nii.gz"]
    assert cases[1].mask is None and cases[2].mask.path.endswith("labels_masked/sub_2/ses_1/seg_masked.nii.gz")
    assert all(case.group is None for case in cases)


def test_task1_raw_layout_and_one_label_for_the_subject(tmp_path):
    task1_case(tmp_path, "sub_1", mask=1, derived=False)
    task1_case(tmp_path, "sub_2", derived=False)
    write(tmp_path / "labels" / "sub_2" / "label.txt", text="0")
    cases = listed(tmp_path, 1)
    assert [case.target for case in cases] == [1.0, 0.0]
    assert cases[0].images[0].path.endswith("preprocessed/sub_1/ses_1/dwi_b1000.nii.gz")


def test_without_labels_nothing_is_asked_for(tmp_path):
    task1_case(tmp_path, "sub_1")
    (case,) = listed(tmp_path, 1, labels=False)
    assert case.target is None and case.mask is None and len(case.images) == 4


def test_task2_raw_layout(tmp_path):
    for subject, value in (("a", 1), ("b", 0)):
        for name in ("dwi_b1000", "flair", "swi"):
            write(tmp_path / "preprocessed" / subject / "ses_1" / f"{name}.nii")
        write(tmp_path / "labels" / subject / "ses_1" / "seg.nii.gz", np.full((2, 2, 2), value, np.uint8))
    cases = listed(tmp_path, 2)
    assert [case.target for case in cases] == [1.0, 0.0], "presence of foreground, to stratify by"
    assert cases[0].mask.path.endswith("labels/a/ses_1/seg.nii.gz")


@pytest.mark.parametrize("prefix, folder", [("ss_", "preprocessed_2"), ("", "preprocessed")])
def test_task3(tmp_path, prefix, folder):
    for name in ("t1", "t2"):
        write(tmp_path / folder / "sub_1" / "ses_1" / f"{prefix}{name}.nii.gz")
    write(tmp_path / "labels" / "sub_1" / "ses_1" / "label.txt", text="63.25\n")
    (case,) = listed(tmp_path, 3)
    assert case.target == 63.25 and [os.path.basename(i.path) for i in case.images] == [
        f"{prefix}t1.nii.gz",
        f"{prefix}t2.nii.gz",
    ]


# ------------------------------------------------------------------------------------------- arrays


def volumes():
    stack = np.random.default_rng(0).normal(size=(4, 3, 4, 5)).astype(np.float32)
    stack[3] = stack[0] > 1
    return stack


def as_objects(stack):
    holder = np.empty(len(stack), dtype=object)
    for index, array in enumerate(stack):
        holder[index] = array
    return holder


@pytest.mark.parametrize("form", [lambda s: s, lambda s: s.astype(np.float64), as_objects, lambda s: s.astype(object)])
def test_task2_arrays_are_read_in_every_form(tmp_path, form):
    (tmp_path / "preprocessed_2").mkdir()
    np.save(tmp_path / "preprocessed_2" / "FOMO2_sub_7_ses_1.npy", form(volumes()), allow_pickle=True)
    (case,) = listed(tmp_path, 2)
    assert (case.id, case.subject, case.target) == ("FOMO2_sub_7_ses_1", "FOMO2_sub_7", 1.0)
    for index, source in enumerate((*case.images, case.mask)):
        array, affine = read_volume(source)
        assert array.dtype == np.float32 and not source.has_geometry
        np.testing.assert_allclose(array, volumes()[index])
        np.testing.assert_array_equal(affine, np.eye(4))


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    holder = np.empty(4, dtype=object)
    holder[0] = Malicious(str(tmp_path / "executed"))
    np.save(tmp_path / "bad.npy", holder, allow_pickle=True)
    with pytest.raises(ValueError, match="bad.npy: refused: .*mkdir.*not a numpy array"):
        read_volume(Volume(str(tmp_path / "bad.npy"), 1))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("value", [{"a": 1}, [1, 2], np.float32, print])
def test_other_objects_in_an_array_are_refused(tmp_path, value):
    holder = np.empty(4, dtype=object)
    holder[:] = [value] * 4 if not isinstance(value, list) else None
    holder[1] = value
    np.save(tmp_path / "bad.npy", holder, allow_pickle=True)
    with pytest.raises(ValueError, match="bad.npy"):
        read_volume(Volume(str(tmp_path / "bad.npy"), 1))


def test_broken_arrays_are_named(tmp_path):
    (tmp_path / "preprocessed_2").mkdir()
    path = tmp_path / "preprocessed_2" / "sub_1.npy"
    path.write_bytes(b"nonsense")
    refused(["sub_1.npy", "cannot read it as .npy"], tmp_path, 2)
    np.save(path, volumes()[:3])
    refused(["case sub_1", "got 3 volumes, wanted 4"], tmp_path, 2)
    assert len(listed(tmp_path, 2, labels=False)) == 1, "without the mask it can still be predicted"
    np.save(path, as_objects(volumes()))
    path.write_bytes(path.read_bytes()[:-100])
    refused(["case sub_1", "sub_1.npy", "refused"], tmp_path, 2)
    bad = volumes()
    bad[3, 0, 0, 0] = np.nan
    np.save(path, bad)
    refused(["sub_1.npy", "volume 3", "NaN"], tmp_path, 2)


# ------------------------------------------------------------------------------------------ mistakes


def test_empty_and_missing_folders(tmp_path):
    refused([str(tmp_path), "no cases found", "skull_stripped or preprocessed"], tmp_path, 1)
    (tmp_path / "preprocessed").mkdir()
    refused([str(tmp_path), "no cases found"], tmp_path, 1)
    (tmp_path / "preprocessed" / "sub_1").mkdir()
    refused(["sub_1", "no session folder"], tmp_path, 1)


def test_missing_and_ambiguous_channels(tmp_path):
    task1_case(tmp_path, "sub_1", label="0")
    write(tmp_path / "skull_stripped" / "sub_1" / "ses_1" / "ss_t2s.nii.gz")
    refused(["case sub_1_ses_1", "swi|t2s", "twice"], tmp_path, 1)
    for name in ("ss_t2s.nii.gz", "ss_swi.nii.gz"):
        (tmp_path / "skull_stripped" / "sub_1" / "ses_1" / name).unlink()
    refused(["case sub_1_ses_1", "'swi|t2s' is missing", "ss_swi.nii.gz or ss_t2s.nii.gz"], tmp_path, 1)


@pytest.mark.parametrize(
    "label, words",
    [
        ("2", "got the label 2, wanted 0 or 1"),
        ("yes", "'yes', wanted a number"),
        ("", "wanted a number"),
        ("nan", "'nan', wanted a number"),
        ("0_1", "'0_1', wanted a number"),
        ("\u0661", "wanted a number"),
    ],
)
def test_bad_class_labels(tmp_path, label, words):
    task1_case(tmp_path, "sub_1", label=label)
    refused(["case sub_1_ses_1", "label.txt", words], tmp_path, 1)


def test_missing_labels_and_masks(tmp_path):
    task1_case(tmp_path, "sub_1")
    refused(["case sub_1_ses_1", "no label", "label.txt"], tmp_path, 1)
    with pytest.raises(config.UserError) as caught:
        listed(tmp_path, 1, kind="segmentation")
    masked, raw = "labels_masked/sub_1/ses_1/seg_masked.nii.gz", "labels/sub_1/ses_1/seg.nii.gz"
    assert str(caught.value) == f"case sub_1_ses_1: no mask, wanted {tmp_path}/{masked} or {tmp_path}/{raw}"
    for name in ("t1", "t2"):
        write(tmp_path / "preprocessed_2" / "sub_1" / "ses_1" / f"ss_{name}.nii.gz")
    refused(["no mask, wanted another data.source: this layout has none"], tmp_path, 3, kind="segmentation")


def test_contradicting_labels(tmp_path):
    task1_case(tmp_path, "sub_1", label="0", mask=1)
    refused(["case sub_1_ses_1", "label.txt says 0", "seg_masked.nii.gz says 1"], tmp_path, 1)


def test_a_label_may_begin_with_the_mark_of_its_encoding(tmp_path):
    task1_case(tmp_path, "sub_1", label="\ufeff1\r\n")
    assert listed(tmp_path, 1)[0].target == 1.0


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
@pytest.mark.parametrize(
    "background, lesion, target",
    [(1e-9, 1e-9, 0.0), (-1e-5, 1.00005, 1.0), (0.0, 0.5, "0.5"), (0.0, 0.9998, "0.9998"), (0.001, 3.0, "0.001")],
)
def test_a_mask_holds_whole_numbers(tmp_path, kind, background, lesion, target):
    """A resampled mask that is not quite 0 has no lesion, and one of fractions is none."""
    task1_case(tmp_path, "sub_1")
    array = np.full((2, 2, 2), background, np.float32)
    array[1] = lesion
    write(tmp_path / "labels_masked/sub_1/ses_1/seg_masked.nii.gz", array)
    if isinstance(target, float):
        assert [case.target for case in listed(tmp_path, 1, kind=kind)] == [target]
    else:
        refused(
            ["case sub_1_ses_1: mask: ", f"seg_masked.nii.gz: got the value {target}, wanted whole numbers"],
            tmp_path,
            1,
            kind=kind,
        )


def test_two_cases_of_one_id(tmp_path):
    task1_case(tmp_path, "a_b", "c", label="0")
    task1_case(tmp_path, "a", "b_c", label="0")
    refused(["two cases have the id 'a_b_c'"], tmp_path, 1)


def test_ids_that_some_systems_would_write_to_one_file(tmp_path):
    for subject in ("sub_a", "sub_A"):
        task1_case(tmp_path, subject, label="0")
    if len(os.listdir(tmp_path / "skull_stripped")) == 1:
        pytest.skip("this file system is one of them")
    refused(["the ids 'sub_A_ses_1' and 'sub_a_ses_1', which differ only in capitals", "rename one"], tmp_path, 1)


def test_an_image_of_two_subjects_is_refused_however_it_is_reached(tmp_path):
    task1_case(tmp_path, "sub_1", label="0")
    task1_case(tmp_path, "sub_2", label="1")
    assert len(listed(tmp_path, 1)) == 2
    base = tmp_path / "skull_stripped"
    file = base / "sub_2" / "ses_1" / "ss_adc.nii.gz"
    file.unlink()
    file.symlink_to(base / "sub_1" / "ses_1" / "ss_adc.nii.gz")
    said = [
        "case sub_1_ses_1 of subject 'sub_1' and case sub_2_ses_1 of subject 'sub_2' have the same image",
        str(file),
    ]
    refused(said, tmp_path, 1)
    shutil.rmtree(base / "sub_2")
    (base / "sub_2").symlink_to(base / "sub_1")
    refused(said[:1], tmp_path, 1)
    assert len(listed(tmp_path, 1, labels=False)) == 2, "nothing is trained on"
    assert len(listed(tmp_path, 1, rescan="never")) == 2, "the files are not looked at"
    (base / "sub_2").unlink()
    (base / "sub_1" / "ses_2").symlink_to(base / "sub_1" / "ses_1")
    write(tmp_path / "labels" / "sub_1" / "ses_2" / "label.txt", text="0")
    assert [case.subject for case in listed(tmp_path, 1)] == ["sub_1", "sub_1"]


def test_an_array_of_two_subjects_is_refused(tmp_path):
    arrays(tmp_path, "sub_1")
    assert len({image.path for image in listed(tmp_path, 2)[0].images}) == 1
    (tmp_path / "preprocessed_2" / "sub_2.npy").symlink_to(tmp_path / "preprocessed_2" / "sub_1.npy")
    refused(["case sub_1 of subject 'sub_1' and case sub_2", "which are one file"], tmp_path, 2)


def test_each_folder_is_resolved_once(tmp_path, monkeypatch):
    """60,000 files are in few folders, or few folders deep: each file is looked at, and each folder's path once."""
    for scan in range(30):
        write(tmp_path / f"sub_{scan % 3}" / f"{scan}.nii.gz", text="")
    looked, real = [], os.lstat
    monkeypatch.setattr(os, "lstat", lambda path, *rest, **options: looked.append(path) or real(path, *rest, **options))
    data = config.Data(source="volumes", root=str(tmp_path), channels=("mri",))
    assert len(sources.list_cases(data, wanted(type="mae"))) == 30
    assert len(looked) <= 30 + 4 * len(tmp_path.parts) + 3


def test_subjects_that_are_perhaps_one_are_a_warning(tmp_path):
    log = Log()
    for subject in ("s_1", "S_01", "s-1", "s1", "s_10", "s_1.05", "s_1.5", "p2", "p2.0", "p002", "1_2", "12"):
        task1_case(tmp_path, subject, f"ses_{subject}", label="0")
    listed(tmp_path, 1, log=log)
    ((message, values),) = log.warnings
    assert message.startswith("subjects that differ only in capitals, separators, leading zeros or .0 count as")
    assert values == {"count": 2, "subjects": ["S_01/s-1/s1/s_1", "p002/p2/p2.0"]}


def test_a_derived_folder_that_lacks_sessions_is_refused(tmp_path):
    for subject in ("sub_1", "sub_2", "sub_3"):
        task1_case(tmp_path, subject, label="0", derived=False)
    task1_case(tmp_path, "sub_1")
    refused(["skull_stripped: lacks 2 sessions that", "preprocessed has, as sub_2/ses_1"], tmp_path, 1)
    refused(["skull_stripped: lacks 2"], tmp_path, 1, labels=False)
    for subject in ("sub_2", "sub_3", "sub_4"):  # more than the raw folder has is fine
        task1_case(tmp_path, subject, label="0")
    assert len(listed(tmp_path, 1)) == 4


def test_labels_without_images_are_counted(tmp_path):
    for subject in ("sub_1", "sub_2"):
        task1_case(tmp_path, subject, mask=0, label="0")
    log = Log()
    listed(tmp_path, 1, log=log)
    assert log.warnings == []
    write(tmp_path / "labels" / "sub_3" / "label.txt", text="1")
    write(tmp_path / "labels" / "sub_2" / "ses_2" / "label.txt", text="1")
    for folder in ("labels", "labels_masked"):
        write(tmp_path / folder / "sub_4" / "ses_1" / "seg_masked.nii.gz")
    listed(tmp_path, 1, log=log)
    assert log.warnings == [("labels without images are left out", {"labels": 3, "example": "sub_2/ses_2", "cases": 2})]


def arrays(root, *names):
    (root / "preprocessed_2").mkdir(exist_ok=True)
    for name in names:
        np.save(root / "preprocessed_2" / f"{name}.npy", volumes())


@pytest.mark.parametrize(
    "name, subject",
    [
        ("sub_01_session_2", "sub_01"),
        ("sub_1_ses_1_run_2", "sub_1"),
        ("sub_1_SES_1", "sub_1"),
        ("FOMO2-sub-3-ses-M00_acq-x", "FOMO2-sub-3"),
        ("sub_1_run_2", "sub_1"),
        ("sub_assessed", "sub_assessed"),
    ],
)
def test_an_array_is_of_the_subject_before_its_session(tmp_path, name, subject):
    arrays(tmp_path, name)
    assert [case.subject for case in listed(tmp_path, 2)] == [subject]


def test_subjects_that_are_perhaps_not_recognised_are_a_warning(tmp_path):
    log = Log()
    arrays(tmp_path, "sub_1_day1", "sub_2_day1")
    listed(tmp_path, 2, log=log)
    assert log.warnings == []
    arrays(tmp_path, "sub_2_day2")
    listed(tmp_path, 2, log=log)
    ((message, values),) = log.warnings
    assert message.startswith("cases count as different subjects, though their names begin alike")
    assert values == {"beginnings": 1, "example": ["sub_2_day1", "sub_2_day2"]}
    log.warnings.clear()
    arrays(tmp_path, "sub_3_ses_1", "sub_3_ses_2")  # the others' sessions being told does not tell these
    listed(tmp_path, 2, log=log)
    assert log.warnings == [(message, values)]


def test_arrays_that_are_fewer_than_their_sessions_are_a_warning(tmp_path):
    log = Log()
    arrays(tmp_path, "sub_1_ses_1")
    for subject in ("sub_1", "sub_2"):
        write(tmp_path / "preprocessed" / subject / "ses_1" / "flair.nii.gz")
    listed(tmp_path, 2, log=log)
    ((message, values),) = log.warnings
    assert message.startswith("preprocessed_2 is taken") and values == {"arrays": 1, "sessions": 2}


@pytest.mark.parametrize("name", ["sub\\1", "~sub_1", "sub\n1", "sub_" + "x" * 160, b"sub_\xe9"])
def test_an_id_that_can_name_no_file_is_refused(tmp_path, name):
    subject = os.fsdecode(name)
    try:
        task1_case(tmp_path, subject)
    except OSError:
        pytest.skip("this file system has no such names")
    refused(["got the id", "ses_1", "rename"], tmp_path, 1, labels=False)


def test_groups(tmp_path):
    task1_case(tmp_path, "sub_1", label="0")
    task1_case(tmp_path, "sub_2", label="1")
    table = tmp_path / "groups.csv"
    table.write_text("subject,scanner,group\nsub_1,x,site A\nsub_2,y,site B\nsub_3,y,site B\n")
    assert [case.group for case in listed(tmp_path, 1, groups=str(table))] == ["site A", "site B"]
    for text, words in [
        ("subject,group\nsub_1,A\n", "no line for subject 'sub_2'"),
        ("subject,site\nsub_1,A\n", "no column 'group'"),
        ("subject,group\nsub_1,A\nsub_2,B\nsub_1,B\n", "line 4"),
        ("subject,group\nsub_1,A\nsub_2,\n", "line 3"),
    ]:
        table.write_text(text)
        refused(["groups.csv", words], tmp_path, 1, groups=str(table))
    refused(["absent.csv"], tmp_path, 1, groups=str(tmp_path / "absent.csv"))


@pytest.mark.parametrize("task", ["mae", "dino"])
def test_pretraining_asks_for_no_labels(tmp_path, task):
    for number in (1, 3):
        folder = tmp_path / str(number)
        write(folder / "preprocessed" / "sub_1" / "ses_1" / "t1.nii.gz", text="")
        data = config.Data(source=f"fomo{number}", root=str(folder), channels=("t1",))
        (case,) = sources.list_cases(data, wanted(type=task))
        assert case.target is None and case.mask is None
        with pytest.raises(config.UserError, match="no label, wanted .*label.txt"):
            sources.list_cases(data, wanted(type="regression"))
    arrays(tmp_path, "sub_1")
    data = config.Data(source="fomo2", root=str(tmp_path), channels=("a", "b", "c"))
    assert sources.list_cases(data, wanted(type=task))[0].target is None
    with pytest.raises(config.UserError, match="no label, wanted another data.source: this layout has none"):
        sources.list_cases(data, wanted(type="regression"))
