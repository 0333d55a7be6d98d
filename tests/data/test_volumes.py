"""Volumes: every scan of a tree or a list is found once, with a safe id and the subject of the layout."""

import os

import nibabel
import numpy as np
import pytest
from conftest import wanted

from fomo import config
from fomo.data import sources
from fomo.data.cases import read_volume


def listed(root=None, **values):
    data = config.Data(source="volumes", root=root and str(root), channels=("mri",), **values)
    return sources.list_cases(data, wanted())


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def test_bids_and_fomo60k_names_give_the_subject(tmp_path):
    touch(tmp_path, "ds1/sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", "ds1/sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz")
    touch(tmp_path, "ds2/sub-01/anat/sub-01_T1w.nii", "ds2/sub_7/ses_1/flair.npy", "ds2/flat/sub-9_T2w.nii.gz")
    touch(tmp_path, ".hidden/sub-01/x.nii.gz", "ds1/sub-01/.x.nii.gz", "ds1/sub-01/notes.txt", "ds2/participants.tsv")
    cases = listed(tmp_path)
    assert {case.id: case.subject for case in cases} == {
        "ds1_sub-01_ses-1_anat_sub-01_ses-1_T1w": "ds1_sub-01",
        "ds1_sub-01_ses-2_anat_sub-01_ses-2_T1w": "ds1_sub-01",
        "ds2_sub-01_anat_sub-01_T1w": "ds2_sub-01",
        "ds2_sub_7_ses_1_flair": "ds2_sub_7",
        "ds2_flat_sub-9_T2w": "ds2_flat_sub-9",
    }
    assert all(case.target is None and case.mask is None and len(case.images) == 1 for case in cases)


def test_without_such_names_the_top_folder_or_the_scan_is_the_subject(tmp_path):
    touch(tmp_path, "ann/old/t1.nii.gz", "ann/new/t1.nii.gz", "bob.nii.gz")
    assert {case.id: case.subject for case in listed(tmp_path)} == {
        "ann_old_t1": "ann",
        "ann_new_t1": "ann",
        "bob": "bob",
    }


def test_the_pattern_leaves_out_what_is_no_scan(tmp_path):
    touch(tmp_path, "sub-1/T1w.nii.gz", "sub-1/seg.nii.gz")
    assert [case.id for case in listed(tmp_path, pattern="*T1w.nii*")] == ["sub-1_T1w"]
    with pytest.raises(config.UserError, match="data.pattern: got \\*FLAIR"):
        listed(tmp_path, pattern="*FLAIR*")


def test_ids_are_unique_and_short_enough_for_a_file_name(tmp_path):
    touch(tmp_path, "a_b/c.nii.gz", "a/b_c.nii.gz", f"{'x' * 200}/{'y' * 200}.nii.gz")
    ids = [case.id for case in listed(tmp_path)]
    assert len(set(ids)) == 3 and all(len(id) <= 150 for id in ids) and sum(id.startswith("a_b_c-") for id in ids) == 2
    assert ids == [case.id for case in listed(tmp_path)]


def test_ids_differ_in_more_than_capitals(tmp_path):
    touch(tmp_path, "sub-0/x.nii.gz", "sub-0/X.nii.gz", "sub-0/y.nii.gz")
    if len(os.listdir(tmp_path / "sub-0")) == 2:
        pytest.skip("this file system does not tell them apart")
    ids = [case.id for case in listed(tmp_path)]
    assert (
        len({id.lower() for id in ids}) == 3
        and "sub-0_y" in ids
        and sum(id.lower().startswith("sub-0_x-") for id in ids) == 2
    )


def test_a_cycle_of_links_is_walked_once(tmp_path):
    root = tmp_path / "data"
    touch(root, "sub-1/ses-1/a.nii.gz", "sub-2/b.nii.gz")
    touch(tmp_path, "other/in/c.nii.gz", "far/sub-3/d.nii.gz")
    (root / "sub-1" / "loop").symlink_to(root)
    (root / "sub-1" / "ses-1" / "up").symlink_to("..")
    (root / "link").symlink_to(tmp_path / "other" / "in")  # followed
    (tmp_path / "other" / "in" / "back").symlink_to(tmp_path / "other")
    (root / "far").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "sub-3" / "home").symlink_to(root)
    assert {os.path.relpath(case.images[0].path, root) for case in listed(root)} == {
        "sub-1/ses-1/a.nii.gz", "sub-2/b.nii.gz", "link/c.nii.gz", "far/sub-3/d.nii.gz"
    }  # fmt: skip
    (tmp_path / "alias").symlink_to(root)
    assert len(listed(tmp_path / "alias")) == 4


def test_a_name_that_is_not_text_is_refused(tmp_path):
    try:
        touch(tmp_path, os.fsdecode(b"sub_\xe9/t1.nii.gz"))
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(config.UserError, match="got the id .*sub_.*t1.*rename"):
        listed(tmp_path)


def test_a_folder_of_dicom_files_is_one_scan(tmp_path):
    touch(tmp_path, "sub-1/t1/1.dcm", "sub-1/t1/2.dcm", "sub-1/t2/IM.IMA", "sub-1/notes/README")
    (tmp_path / "sub-1/plain").mkdir()
    (tmp_path / "sub-1/plain/IM0001").write_bytes(bytes(128) + b"DICM")
    assert [case.id for case in listed(tmp_path)] == ["sub-1_plain", "sub-1_t1", "sub-1_t2"]


def test_the_root_may_be_a_scan_itself(tmp_path):
    touch(tmp_path, "ct/1.dcm", "ct/DICOMDIR", "ct/more/2.dcm", "cd/DICOMDIR", "cd/images/1.dcm")
    (tmp_path / "cd" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    for root, ids in (("ct", ["ct", "more"]), ("ct/more", ["more"]), ("cd", ["images"])):
        cases = listed(f"{tmp_path / root}/")
        assert [case.id for case in cases] == ids
        for case in cases:
            assert os.path.samefile(
                case.images[0].path, tmp_path / root / (case.id if case.id != os.path.basename(root) else "")
            ), root


def test_suffixes_in_capitals_are_read(tmp_path):
    array = np.zeros((64, 64, 64), np.float32)
    for name in ("a.NII.GZ", "b.NII"):
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / name)
    with open(tmp_path / "c.NPY", "wb") as file:
        np.save(file, array)
    cases = listed(tmp_path)
    assert [case.id for case in cases] == ["a", "b", "c"]
    assert all(read_volume(case.images[0])[0].shape == array.shape for case in cases)


def test_a_list_of_paths(tmp_path):
    touch(tmp_path, "scans/sub-1/a.nii.gz", "scans/sub-2/b.nii.gz", "scans/c/d.nii.gz")
    paths = tmp_path / "list.txt"
    paths.write_text("# FOMO\nscans/sub-1/a.nii.gz\n\nscans/sub-2/b.nii.gz\n" + f"{tmp_path}/scans/c/d.nii.gz\n")
    cases = listed(csv=str(paths))
    assert {case.id: case.subject for case in cases} == {"sub-1_a": "sub-1", "sub-2_b": "sub-2", "c_d": "c"}
    paths.write_text("sub-1/a.nii.gz\n")
    (case,) = listed(tmp_path / "scans", csv=str(paths))
    assert case.id == "sub-1_a" and case.images[0].path == str(tmp_path / "scans/sub-1/a.nii.gz")
    with pytest.raises(config.UserError, match="line 1: .*not below data.root"):
        paths.write_text("../list.txt\n")
        listed(tmp_path / "scans", csv=str(paths))
    for text, words in (("x.nii\n", "line 1: .*x.nii', which does not exist"), ("# no\n", "no paths")):
        paths.write_text(text)
        with pytest.raises(config.UserError, match=words):
            listed(csv=str(paths))
    paths.write_text("scans/c/d.nii.gz\nscans/../scans/c/d.nii.gz\n")
    with pytest.raises(config.UserError, match="line 2: .*as in line 1"):
        listed(csv=str(paths))


def test_what_cannot_be_listed_or_read_is_one_line(tmp_path):
    with pytest.raises(config.UserError, match="not a folder"):
        listed(tmp_path / "nowhere")
    with pytest.raises(config.UserError, match="no cases found"):
        listed(tmp_path)
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2, 3)), np.eye(4)), tmp_path / "four.nii.gz")
    np.save(tmp_path / "four.npy", np.zeros((2, 2, 2, 3)))
    for case in listed(tmp_path):
        with pytest.raises(ValueError, match="four.*got shape .*wanted .*x, y, z"):
            read_volume(case.images[0])


def test_formats_that_are_not_read_are_counted(tmp_path):
    said = []
    log = type("Log", (), {"warn": staticmethod(lambda message, **values: said.append((message, values)))})
    touch(tmp_path, "a/scan.nii.gz", "a/scan.mgz", "b/scan.hdr", "b/scan.img", "b/notes.txt", "b/.hidden.mgz")
    data = config.Data(source="volumes", root=str(tmp_path), channels=("mri",))
    assert len(sources.list_cases(data, wanted(), log=log)) == 1
    [(message, values)] = said
    assert message == "files of formats that are not read are left out" and values["files"] == 3
    assert values["example"] == os.path.join("a", "scan.mgz") and "mri_convert" in values["format"]
