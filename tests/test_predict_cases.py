"""Which cases are predicted: files by the names of their channels, and tables of them."""

import re

import pytest

from fomo.config import Data, UserError
from fomo.prediction.inputs import case_from_channels, cases_from_table


def test_one_file_is_not_two_channels(tmp_path):
    (tmp_path / "link.nii").symlink_to(tmp_path / "a.nii")
    with pytest.raises(UserError, match="a.nii: got it as two channels"):
        case_from_channels(("t1", "t2"), {"t1": f"{tmp_path}/a.nii", "t2": f"{tmp_path}/link.nii"})


def test_wrong_channels_are_refused_with_the_names_wanted():
    channels = ("dwi_b1000", "swi|t2s")
    case = case_from_channels(channels, {"t2s": "b/t2s.nii.gz", "dwi_b1000": "a/dwi.nii.gz"})
    assert [image.path for image in case.images] == ["a/dwi.nii.gz", "b/t2s.nii.gz"] and case.id == "dwi"
    for given, said in (
        ({"dwi": "x", "swi": "y"}, "channel 'dwi' is not one of this checkpoint's, wanted dwi_b1000, swi or t2s"),
        ({"dwi_b1000": "x"}, "swi or t2s: got none"),
        ({"dwi_b1000": "x", "swi": "y", "t2s": "z"}, "got both swi and t2s"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            case_from_channels(channels, given)


def test_bad_tables_are_refused(tmp_path):
    for text, said in (
        ("name,t1\na,b\n", "line 1: got the columns name, t1, wanted id and one for each channel"),
        ("id,t1\n", "no lines below the header"),
        ("id,t1\na,x,y\n", "line 2: got 3 cells, wanted 2"),
        ("id,t1\na,x\na,y\n", "line 3: got the id 'a'"),
        ("id,t1\n../a,x\n", "line 2"),
        ("id,t1\na,\n", "line 2: channel t1: got none"),
    ):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(UserError, match=re.escape(said)):
            cases_from_table(str(tmp_path / "t.csv"), Data(channels=("t1",)))
    with pytest.raises(UserError, match="--cases: cannot read"):
        cases_from_table(str(tmp_path / "none.csv"), Data(channels=("t1",)))


def test_a_table_has_the_columns_of_the_training_table_or_the_usual_ones(tmp_path):
    data = Data(channels=("t1",), id_column="accession", subject_column="patient")
    for header, id, subject in (
        ("accession,t1", "a", "a"),
        ("accession,t1,patient", "a", "c"),
        ("accession,t1,subject", "a", "c"),
        ("id,t1,patient", "a", "c"),
        ("id,t1,accession", "c", "c"),
    ):
        (tmp_path / "t.csv").write_text(f"{header}\na,b.nii{',c' * (header.count(',') - 1)}\n")
        (case,) = cases_from_table(str(tmp_path / "t.csv"), data)
        assert (case.id, case.subject, case.images[0].path) == (id, subject, str(tmp_path / "b.nii")), header
    (tmp_path / "t.csv").write_text("name,t1\na,b.nii\n")
    with pytest.raises(UserError, match="got the columns name, t1, wanted accession or id and one for each channel"):
        cases_from_table(str(tmp_path / "t.csv"), data)
