"""data.where: scans of a tree are chosen by its tables, or by their names, and what the tables lack is said."""

import numpy as np
import pytest

from fomo import config, kinds
from fomo.config import UserError
from fomo.data import sources, spreadsheet
from fomo.data.cases import Wanted
from fomo.data.sources import selection

SCANS = (
    "PT001_A/sub-01/ses-01/t1w",
    "PT001_A/sub-01/ses-01/flair",
    "PT001_A/sub-01/ses-02/t1w",
    "PT002_B/ds01/sub-01/ses-01/sub-01_ses-01_run-2_T1w",
    "PT002_B/ds01/sub-02/ses-01/sub-02_ses-01_T2w",
)


class Log:
    def __init__(self):
        self.warnings = []

    def warn(self, said, **values):
        self.warnings.append((said, values))


@pytest.fixture
def tree(tmp_path):
    """A tree as FOMO300K's: its tables, by data set, subject and session; one scan has no line."""
    for number, name in enumerate(SCANS):
        path = tmp_path / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.full((4, 4, 4), number, np.float32))
    lines = ["dataset\tparticipant_id\tsession_id\tfilename\tMagneticFieldStrength\tSeriesDescription"]
    for name, tesla in zip(SCANS[:4], ("3", "1.5", "3", "n/a")):
        *dataset, subject, session, file = name.split("/")
        name = file if dataset[0] == "PT001_A" else f"{subject}/{session}/{file}"
        lines.append("\t".join(["/".join(dataset), subject, session, f"{name}.nii.gz", tesla, "a, b; c"]))
    (tmp_path / "mri_info.tsv").write_text("\n".join(lines) + "\n")
    people = ["dataset\tparticipant_id\tsession_id\tsex\tage"]
    people += ["PT001_A\tsub-01\tses-01\tF\t40", "PT001_A\tsub-01\tses-02\tF\t42"]
    people += ["PT002_B/ds01\tsub-01\tses-01\tM\tn/a", "PT002_B/ds01\tsub-02\tses-01\tf\t60"]
    (tmp_path / "participants.tsv").write_text("\n".join(people) + "\n")
    return tmp_path


def chosen(root, where, log=None, **more):
    data = config.Data(source="volumes", root=str(root), channels=("mri",), where=where, **more)
    cases = sources.list_cases(data, Wanted("nothing", pretraining=True), log=log)
    names = {case.images[0].path[len(str(root)) + 1 :].removesuffix(".npy") for case in cases}
    return [SCANS.index(name) for name in sorted(names, key=SCANS.index)]


@pytest.mark.parametrize(
    "where, wanted",
    [
        ("modality=t1w|t2w", [0, 2, 3, 4]),
        ("modality=FLAIR", [1]),
        ("modality!=t1w", [1, 4]),
        ("MagneticFieldStrength=3", [0, 2]),
        ("MagneticFieldStrength=3, modality=t1w, age=40", [0]),
        ("sex=f", [0, 1, 2, 4]),
        ("age!=n/a|60", [0, 1, 2]),
        ("dataset=PT002_B/ds01", [3]),
    ],
)
def test_conditions(tree, where, wanted):
    assert chosen(tree, where) == wanted


def test_scans_without_a_line_are_left_out_and_counted(tree):
    log = Log()
    assert chosen(tree, "MagneticFieldStrength!=1.5", log) == [0, 2, 3]
    [(said, values)] = [(said, values) for said, values in log.warnings if "without a line" in said]
    assert values["scans"] == 1 and SCANS[4] in values["example"] and values["table"].endswith("mri_info.tsv")


def test_without_tables_the_names_tell_the_sequence(tree):
    for name in ("mri_info.tsv", "participants.tsv"):
        (tree / name).unlink()
    assert chosen(tree, "modality=t1w") == [0, 2, 3]
    with pytest.raises(UserError, match="got the column 'age', wanted a column of mri_info.tsv or participants.tsv"):
        chosen(tree, "age=40")


def test_mistakes_are_named(tree):
    with pytest.raises(UserError, match="got the column 'Age'.*participants.tsv has dataset, participant_id"):
        chosen(tree, "Age=40")
    with pytest.raises(UserError, match="data.where: got modality=bold, which none of the 5 scans"):
        chosen(tree, "modality=bold")
    (tree / "mri_info.csv").write_text("dataset,age\na,1\n")
    with pytest.raises(UserError, match="mri_info.tsv and .*mri_info.csv, wanted one"):
        chosen(tree, "age=40")
    (tree / "mri_info.csv").unlink()
    (tree / "mri_info.tsv").write_text("dataset\tfilename\na\tb\tc\n")
    with pytest.raises(UserError, match="mri_info.tsv: line 2: got 3 cells, wanted 2"):
        chosen(tree, "dataset=a")


@pytest.mark.parametrize("where", ["t1w", "modality=", "=t1w", "a=b|", "a=b=c", "a=b,,c=d", ""])
def test_a_condition_that_is_none_is_refused_before_anything_is_read(tmp_path, where):
    (tmp_path / "c.yaml").write_text("task: {type: mae}\ndata: {source: volumes, root: x, channels: [mri]}\n")
    kinds.load(tmp_path / "c.yaml", ["data.where='modality=t1w|t2w'"])
    with pytest.raises(UserError, match="data.where: got .*wanted COLUMN=VALUE"):
        kinds.load(tmp_path / "c.yaml", [f"data.where='{where}'"])


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("t1w.nii.gz", "t1w"),
        ("a/sub-1_T2w.NII", "t2w"),
        ("sub-1_ses-2_bold_run-3.nii", "bold"),
        ("flair_2.npy", "flair"),
    ],
)
def test_names_of_sequences(name, wanted):
    assert selection.modality(name) == wanted


def test_tables_of_tabs_are_read_as_those_of_commas(tmp_path):
    (tmp_path / "a.tsv").write_text('id\tt1\n1\t"x, y"\n')
    (tmp_path / "a.csv").write_text('id,t1\n1,"x, y"\n')
    rows = [
        spreadsheet.read_rows(str(tmp_path / name), {"data.id_column": "id"}, "data.csv") for name in ("a.tsv", "a.csv")
    ]
    assert rows[0] == rows[1] == [spreadsheet.Row(2, {"id": "1", "t1": "x, y"})]
    (tmp_path / "b.csv").write_text("id\tt1\n1\tx\n")
    with pytest.raises(UserError, match="separated by tabs, wanted commas: .*or let its name end in .tsv"):
        spreadsheet.read_rows(str(tmp_path / "b.csv"), {}, "data.csv")
