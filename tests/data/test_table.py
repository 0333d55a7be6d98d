"""Tables: what each column becomes, and every mistake is one line that names file, line and column."""

import os

import nibabel
import numpy as np
import pytest
from conftest import wanted

from fomo import config, kinds
from fomo.data import sources, spreadsheet
from fomo.data.cases import Volume, read_volume
from fomo.data.sources import table

HEADER = "id,subject,t1,flair,mask,cohort,gender,age,fold"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    image = nibabel.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.eye(4))
    for name in ("a", "b", "mask"):
        nibabel.save(image, tmp_path / "images" / f"{name}.nii.gz")
    np.save(tmp_path / "images" / "c.npy", np.zeros((2, 2, 2), np.float32))
    return tmp_path


def listed(
    folder,
    *lines,
    kind="classification",
    targets=("cohort",),
    header=HEADER,
    labels=True,
    channels=("t1",),
    classes=3,
    log=None,
    **values,
):
    (folder / "table.csv").write_text("\n".join((header, *lines)) + "\n")
    data = config.Data(source="table", csv=str(folder / "table.csv"), channels=channels, **values)
    return sources.list_cases(data, wanted(type=kind, targets=targets, classes=classes), labels=labels, log=log)


def refused(words, *arguments, **values):
    with pytest.raises(config.UserError) as caught:
        listed(*arguments, **values)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), f"'{word}' is not in: {caught.value}"


A = "a_0,a,images/a.nii.gz,,images/mask.nii.gz,mild,f,61.5,1"
B = "b_0,b,images/b.nii.gz,,images/c.npy,healthy,m,70,1"
C = "b_1,b,images/c.npy,,images/c.npy,severe,m,70.5,x y"


def test_text_labels_folds_subjects_and_paths(folder):
    cases = listed(folder, C, A, "", B, targets=("cohort", "gender"))
    assert [case.id for case in cases] == ["a_0", "b_0", "b_1"] and [case.subject for case in cases] == ["a", "b", "b"]
    assert [case.target for case in cases] == [(1.0, 0.0), (0.0, 1.0), (2.0, 1.0)]
    assert [case.labels for case in cases] == [("mild", "f"), ("healthy", "m"), ("severe", "m")]
    assert [case.fold for case in cases] == ["1", "1", "x y"] and {case.mask for case in cases} == {None}
    assert cases[0].images == (Volume(str(folder / "images" / "a.nii.gz")),)
    array, affine = read_volume(cases[2].images[0])
    assert array.shape == (2, 2, 2) and np.array_equal(affine, np.eye(4))


def test_one_target_is_a_number_and_prediction_needs_no_labels(folder):
    assert [case.target for case in listed(folder, A, B, C)] == [1.0, 0.0, 2.0]
    assert [case.target for case in listed(folder, A, B, C, kind="regression", targets=("age",))] == [61.5, 70.0, 70.5]
    cases = listed(folder, "k,images/a.nii.gz", header="id,t1", labels=False)
    assert (cases[0].id, cases[0].subject, cases[0].target, cases[0].fold) == ("k", "k", None, None)
    [case] = listed(folder, "k,p1,images/a.nii.gz", header="id,subject,t1", labels=False)
    assert case.subject == "p1", "so that prediction knows whom a network was trained on"


def test_numbers_are_sorted_as_numbers_and_zero_and_one_are_themselves(folder):
    lines = [f"c{i},s,images/a.nii.gz,,,{text},,," for i, text in enumerate(("10", "2", "1", "0", "2"))]
    cases = listed(folder, *lines, fold_column=None, classes=4)
    assert [case.target for case in cases] == [3.0, 2.0, 1.0, 0.0, 2.0] and cases[0].labels == ("10",)
    assert table.class_index({"1"}, "") == {"1": 1} and table.class_index({"2", "1"}, "") == {"1": 0, "2": 1}
    assert table.class_index({"b", "10", "9"}, "") == {"10": 0, "9": 1, "b": 2}, "as text where one of them is text"
    refused(["'cohort'", "'1'", "'1.0'"], folder, *(line.replace("10", "1.0") for line in lines), fold_column=None)


def test_more_classes_than_there_should_be_are_named_with_their_lines(folder):
    lines = [f"c{i},s,images/a.nii.gz,,,{text},,,1" for i, text in enumerate(("0", "1", "0", "-1", "1"))]
    refused(
        ["'cohort'", "3 classes", "'-1' (1, first in line 5), '0' (2, first in line 2)", "task.classes=2"],
        folder,
        *lines,
        classes=2,
    )
    assert len(listed(folder, *lines)) == 5


def test_classes_whose_results_would_have_one_name_are_refused(folder):
    first, second = A.replace("mild", "left knee"), B.replace("healthy", "left_knee")
    refused(
        ["'left knee' in column 'cohort' (line 2)", "'left_knee' in column 'cohort' (line 3)", "rename one"],
        folder,
        first,
        second,
    )
    header = HEADER.replace("gender", "cohort_left")
    refused(
        ["column 'cohort'", "column 'cohort_left'", "cohort_left_knee"],
        folder,
        first,
        B.replace(",m,", ",knee,"),
        header=header,
        targets=("cohort", "cohort_left"),
    )
    assert len(listed(folder, first, second, targets=(), kind="mae")) == 2


def test_a_root_that_is_not_used_is_said(folder):
    class Log:
        warn = staticmethod(lambda message, **values: said.append((message, values)))

    said = []
    listed(folder, A, B, root="/elsewhere", log=Log())
    ((message, values),) = said
    assert "data.root is not used" in message and values == {"root": "/elsewhere"}
    said.clear()
    listed(folder, A.replace("a_0", "sub-1_a"), B.replace("b_0", "sub-1_b"), subject_column=None, log=Log())
    ((message, values),) = said
    assert "cases count as different subjects" in message and "data.subject_column" in message


def test_an_image_in_lines_of_two_subjects_is_refused(folder):
    twin = A.replace("a_0,a", "a_9,z").replace("mild", "severe")
    for rescan in ("always", "never"):
        refused(
            ["case a_0 of subject 'a' and case a_9 of subject 'z'", "a.nii.gz", "wanted every file in one"],
            folder,
            A,
            B,
            twin,
            rescan=rescan,
        )
    refused(["case a_0 of subject 'a_0'"], folder, A, B, twin, subject_column=None)
    assert len(listed(folder, A, B, twin.replace("a_9,z", "a_9,a"))) == 3, "of one subject"
    assert len(listed(folder, A, B, twin, labels=False)) == 3, "to predict"


def test_a_mask_in_lines_of_two_subjects_is_refused_unless_it_is_empty(folder):
    masks = dict(kind="segmentation", targets=(), classes=8)
    twin = B.replace("c.npy", "mask.nii.gz")
    same = ["case a_0 of subject 'a' and case b_0 of subject 'b' have the same mask: got", "images/mask.nii.gz"]
    refused(same, folder, A, twin, **masks)
    os.link(folder / "images" / "mask.nii.gz", folder / "images" / "hard.nii.gz")
    refused([*same, "hard.nii.gz, which are one file"], folder, A, B.replace("c.npy", "hard.nii.gz"), **masks)
    empty = A.replace("mask.nii.gz", "c.npy")
    assert len(listed(folder, empty, B, **masks)) == 2, "an empty mask says nothing of a subject"
    leak = ["case a_0: got", "images/a.nii.gz twice, wanted a file for each channel and each mask"]
    refused(leak, folder, A.replace("mask.nii.gz", "a.nii.gz"), B, **masks)


def test_one_file_in_two_channels_of_a_case_is_refused(folder):
    line = "a_0,a,images/a.nii.gz,images/a.nii.gz,,mild,f,61.5,1"
    refused(["case a_0: got", "images/a.nii.gz twice"], folder, line, channels=("t1", "flair"))
    os.link(folder / "images" / "a.nii.gz", folder / "images" / "hard.nii.gz")
    linked = line.replace("images/a.nii.gz,,", "images/hard.nii.gz,,")
    refused(["hard.nii.gz, which are one file twice"], folder, linked, channels=("t1", "flair"))
    assert len(listed(folder, line.replace("images/a.nii.gz,,", "images/b.nii.gz,,"), channels=("t1", "flair"))) == 1


def test_a_scan_twice_one_subjects_is_a_warning(folder):
    said = []
    log = type("Log", (), {"warn": staticmethod(lambda message, **values: said.append((message, values)))})
    listed(folder, A, A.replace("a_0", "a_1"), log=log)
    assert said == [
        ("cases of one subject have the same file: it counts several times", {"cases": 1, "example": ["a_0", "a_1"]})
    ]


@pytest.mark.parametrize("other", ["Mu\u0308ller", "M\u00fcller\u200b", "M\u00fcl\u00adler"])
def test_subjects_that_look_the_same_are_refused(folder, other):
    line = A.replace("a_0,a,", "a_0,M\u00fcller,")
    words = ["subjects: got", r"M\xfcller' (case a_0)", "(case b_0), which look the same", ascii(other)]
    refused(words, folder, line, B.replace("b_0,b,", f"b_0,{other},"))


def test_segmentation_takes_the_mask_and_its_presence(folder):
    cases = listed(folder, A, B, kind="segmentation", targets=(), classes=8)
    assert [case.target for case in cases] == [1.0, 0.0] and cases[1].mask.path.endswith("c.npy")
    refused(
        ["line 2", "'mask'", "blank"],
        folder,
        A.replace(",images/mask.nii.gz,mild", ",,mild"),
        kind="segmentation",
        targets=(),
    )


def test_several_labels_at_once(folder):
    header = "id,subject,t1,Lung nodule,Effusion"
    cases = listed(
        folder,
        "a,a,images/a.nii.gz,1,0",
        "b,b,images/b.nii.gz,0.0,0",
        header=header,
        kind="multilabel",
        targets=("Lung nodule", "Effusion"),
    )
    assert [case.target for case in cases] == [(1.0, 0.0), (0.0, 0.0)] and cases[0].labels == ()
    assert listed(folder, "a,a,images/a.nii.gz,1,0", header=header, kind="multilabel", targets=("Effusion",))[
        0
    ].target == (0.0,)
    refused(
        ["line 2", "'Effusion'", "'2'", "0 or 1"],
        folder,
        "a,a,images/a.nii.gz,1,2",
        header=header,
        kind="multilabel",
        targets=("Effusion",),
    )


def test_pretraining_needs_no_target_and_takes_those_that_are_there(folder):
    assert [case.target for case in listed(folder, A, B, kind="mae", targets=())] == [None, None]
    cases = listed(folder, A, B.replace("healthy", ""), C, kind="dino", targets=("cohort",))
    assert [case.target for case in cases] == [0.0, None, 1.0] and [case.labels for case in cases] == [
        ("mild",),
        (),
        ("severe",),
    ]


def test_alternatives_take_the_one_that_is_filled(folder):
    swapped = B.replace("images/b.nii.gz,", ",images/b.nii.gz")
    cases = listed(folder, A, swapped, channels=("t1|flair",))
    assert [os.path.basename(case.images[0].path) for case in cases] == ["a.nii.gz", "b.nii.gz"]
    refused(
        ["line 2", "t1 and flair", "one of them"],
        folder,
        A.replace("gz,,", "gz,images/b.nii.gz,"),
        channels=("t1|flair",),
    )
    refused(["line 2", "'t1|flair'", "blank"], folder, A.replace("images/a.nii.gz,,", ",,"), channels=("t1|flair",))
    refused(["no column 'flare'", "did you mean 'flair'"], folder, A, channels=("flare|t9",))


@pytest.mark.parametrize(
    "words, line",
    [
        (["line 3", "'id'", "'a_0' as in line 2"], "a_0,b,images/b.nii.gz,,,healthy,m,70,1"),
        (["line 3", "'id'", "'../b'"], "../b,b,images/b.nii.gz,,,healthy,m,70,1"),
        (["line 3", "'id'", "'.b'"], ".b,b,images/b.nii.gz,,,healthy,m,70,1"),
        (["line 3", "'id'"], f"{'x' * 300},b,images/b.nii.gz,,,healthy,m,70,1"),
        (["line 3", "'id'", "blank"], ",b,images/b.nii.gz,,,healthy,m,70,1"),
        (["line 3", "'subject'", "blank"], "b,,images/b.nii.gz,,,healthy,m,70,1"),
        (["line 3", "'t1'", "blank"], "b,b,,,,healthy,m,70,1"),
        (["line 3", "'t1'", "nope.nii", "does not exist"], "b,b,images/nope.nii,,,healthy,m,70,1"),
        (["line 3"], "b,b,images/\0.nii,,,healthy,m,70,1"),  # Python 3.10 refuses it before the column is known
        (["line 3", "'cohort'", "blank"], "b,b,images/b.nii.gz,,,,m,70,1"),
        (["line 3", "'cohort'", "'NaN'"], "b,b,images/b.nii.gz,,,NaN,m,70,1"),
        *(
            (["line 3", "'cohort'", f"'{text}'", "missing"], f"b,b,images/b.nii.gz,,,{text},m,70,1")
            for text in ("None", "-", "?", "#N/A", "NULL")
        ),
        (["line 3", "'fold'", "blank", "data.fold_column=none"], "b,b,images/b.nii.gz,,,healthy,m,70,"),
        (["line 3", "got 8 cells", "wanted 9"], "b,b,images/b.nii.gz,,,healthy,m,70"),
    ],
)
def test_a_wrong_line_is_named(folder, words, line):
    refused(["table.csv", *words], folder, A, line)


@pytest.mark.parametrize("text", ["old", "inf", "nan", "", "1_0", "12,5", "0x1", "1e999"])
def test_a_regression_target_is_a_number(folder, text):
    cell = f'"{text}"' if "," in text else text
    refused(
        ["table.csv", "line 3", "'age'", text],
        folder,
        A,
        B.replace("m,70", f"m,{cell}"),
        kind="regression",
        targets=("age",),
    )


def test_a_wrong_header_is_named(folder):
    refused(["line 1", "no column 'Cohort'", "did you mean 'cohort'"], folder, A, targets=("Cohort",))
    refused(
        ["no column 'subject'", "did you mean 'Subject'", "data.subject_column"],
        folder,
        A,
        header=HEADER.replace("subject", "Subject"),
    )
    refused(["'age' twice"], folder, A, header=HEADER.replace("fold", "age"))
    refused(["no lines"], folder)
    refused(["cannot read"], folder, 'b,"open quote')
    for name, content, said in (
        ("latin.csv", "id,größe\n".encode("latin-1"), "it is no UTF-8 .*Latin-1 or another 8-bit code.*'CSV UTF-8'"),
        ("utf16.csv", "id,age\n".encode("utf-16"), "it is no UTF-8 .*UTF-16.*'CSV UTF-8'"),
        ("bare16.csv", "id,age\n".encode("utf-16-le"), "zeros between the letters, which is UTF-16: save it as"),
    ):
        (folder / name).write_bytes(content)
        with pytest.raises(config.UserError, match=f"{name}.*{said}"):
            spreadsheet.read_rows(str(folder / name), {}, "data.csv")
    (folder / "latin.csv").write_bytes(b"id,\xff\n")
    with pytest.raises(config.UserError, match="cannot read"):
        spreadsheet.read_rows(str(folder / "latin.csv"), {}, "data.csv")
    assert [case.subject for case in listed(folder, A, B, subject_column=None)] == ["a_0", "b_0"]


@pytest.mark.parametrize("mark, name", [(";", "semicolons"), ("\t", "tabs")])
@pytest.mark.parametrize("quote", ["", '"'])
def test_another_separator_is_named(folder, mark, name, quote):
    header, line = (mark.join(f"{quote}{cell}{quote}" for cell in text.split(",")) for text in (HEADER, A))
    refused(["table.csv: line 1: ", f"separated by {name}, wanted commas"], folder, line, header=header)


def test_columns_without_a_name_at_the_end_are_left_alone_where_they_are_blank(folder):
    header = HEADER + ",,"
    assert [case.id for case in listed(folder, A + ",,", B + ", ,", header=header)] == ["a_0", "b_0"]
    refused(["line 3: got 'x' below a column without a name"], folder, A + ",,", B + ",,x", header=header)
    refused(["line 2: got 9 cells, wanted 11"], folder, A, B, header=header)
    refused(["column '' twice"], folder, "," + A + ",", header="," + HEADER.replace("age", ""))
    assert len(listed(folder, A + ",note", header=HEADER + ",")) == 1


def test_the_config_says_what_a_table_needs(folder):
    path = folder / "config.yaml"

    def load(**values):
        path.write_text("data: {source: table, channels: [t1], csv: t.csv}\ntask: {targets: [age]}\n")
        return kinds.load(path, [f"{name}={value}" for name, value in values.items()])

    assert load().data.csv == str(folder / "t.csv")
    for name, value in (("csv", "none"), ("source", "fomo1"), ("source", "volumes")):
        with pytest.raises(config.UserError, match=f"data.{name}|data.root"):
            load(**{f"data.{name}": value})
    for kind, targets in (
        ("regression", "[]"),
        ("classification", "[]"),
        ("segmentation", "[a]"),
        ("classification", "[a,a]"),
        ("classification", "[a b,a_b]"),
    ):
        with pytest.raises(config.UserError, match="task.targets"):
            load(**{"task.type": kind, "task.targets": targets})
