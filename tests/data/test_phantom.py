"""The synthetic heads: reproducible, read by the real sources, and without a shortcut to the answer."""

import pathlib

import nibabel
import numpy as np
import pytest
import scipy.ndimage
from conftest import run_command, tool, wanted

from fomo import config
from fomo.data import sources
from fomo.data.cases import read_volume
from fomo.data.phantoms import heads
from fomo.metrics import auroc

CHANNELS = {1: ("dwi_b1000", "flair", "adc", "swi|t2s"), 2: ("dwi_b1000", "flair", "swi|t2s"), 3: ("t1", "t2")}
TYPES = {1: "classification", 2: "segmentation", 3: "regression"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """task number -> (root, cases) of 66 small scans."""
    found = {}
    for number in (1, 2, 3):
        root = tmp_path_factory.mktemp("heads") / f"task{number}"
        heads.make(str(root), number, cases=66, size=24)
        data = config.Data(source=f"fomo{number}", root=str(root), channels=CHANNELS[number])
        found[number] = root, sources.list_cases(data, wanted(type=TYPES[number]))
    return found


def shortcuts(case):
    """What a rule that looks at intensities alone could use, for each channel."""
    values = []
    for image in case.images:
        array, _ = read_volume(image)
        inside = array[array > 0]
        median = np.median(inside)
        values += [inside.mean(), inside.max(), inside.max() / inside.mean(), np.percentile(inside, 99) / median]
        values += [np.percentile(inside, 1) / median, (inside > 1.5 * median).mean(), (inside < 0.5 * median).mean()]
        values += [inside.size]
    return values


def test_same_arguments_same_files_and_another_seed_other_ones(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        heads.make(str(tmp_path / name), 2, cases=3, size=16, seed=seed)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.gz"))
    assert len(files) == 12
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    assert any((tmp_path / "a" / file).read_bytes() != (tmp_path / "c" / file).read_bytes() for file in files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"], "no temporary folder stays"


def test_a_folder_with_content_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("keep")
    with pytest.raises(FileExistsError, match="mine is there already"):
        heads.make(str(tmp_path / "mine"), 3, cases=1, size=16)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"] and (tmp_path / "mine" / "file").read_text() == "keep"


def test_an_interrupted_generation_leaves_nothing(tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(heads._Scan, "image", stop)
    with pytest.raises(KeyboardInterrupt):
        heads.make(str(tmp_path / "a"), 3, cases=1, size=16)
    assert list(tmp_path.iterdir()) == []


def test_cases_sessions_and_labels(made):
    for number, (root, cases) in made.items():
        assert len(cases) == 66 and len({case.subject for case in cases}) == 60
    targets = {number: np.array([case.target for case in cases]) for number, (_, cases) in made.items()}
    assert 26 <= targets[1].sum() <= 40
    assert 60 <= targets[2].sum() <= 64
    assert 20 <= targets[3].min() < 30 and 75 < targets[3].max() < 87
    root, _ = made[1]
    labels = {path.name for path in pathlib.Path(root, "labels").rglob("*.*")}
    assert labels == {"label.txt", "seg.nii.gz"}, "both ways of stating the label occur"


def test_scans_differ_in_orientation_and_voxel_size(made):
    affines = [nibabel.load(case.images[0].path).affine for case in made[1][1]]
    assert len({"".join(nibabel.aff2axcodes(affine)) for affine in affines}) >= 4
    assert len({tuple(np.round(nibabel.affines.voxel_sizes(affine), 2)) for affine in affines}) >= 3
    assert max(nibabel.affines.obliquity(affines[0])) > 0.01


def test_no_intensity_of_a_channel_tells_the_infarct(made):
    cases = made[1][1]
    labels = np.array([case.target for case in cases]) == 1
    table = np.array([shortcuts(case) for case in cases])
    for column in table.T:
        score = auroc(labels, column)
        assert max(score, 1 - score) < 0.7


def test_what_does_tell_the_infarct_is_in_the_image(made):
    """Bright on DWI where dark on ADC: the rule that a network has to find."""
    labels, scores = [], []
    for case in made[1][1]:
        dwi, adc = (read_volume(case.images[channel])[0] for channel in (0, 2))
        inside = dwi > 0
        both = (dwi > 1.5 * np.median(dwi[inside])) & (adc < 0.6 * np.median(adc[inside])) & inside
        labels.append(case.target == 1)
        scores.append(float(both.mean()))
    assert auroc(np.array(labels), np.array(scores)) > 0.95


def test_age_is_not_an_intensity_but_the_share_of_fluid_follows_it(made):
    cases = made[3][1]
    ages = np.array([case.target for case in cases])
    table = np.array([shortcuts(case) for case in cases])
    means = table[:, [0, 8]]
    assert np.abs([np.corrcoef(ages, column)[0, 1] for column in means.T]).max() < 0.6
    assert abs(np.corrcoef(ages, table[:, 7])[0, 1]) < 0.4, "nor is head size"
    assert np.corrcoef(ages, table[:, 6])[0, 1] > 0.7, "dark on T1"


def test_the_tumour_touches_the_surface_and_the_mask_its_voxels(made):
    for case in made[2][1][:20]:
        mask = read_volume(case.mask)[0] > 0
        head = read_volume(case.images[0])[0] > 0
        assert not (mask & ~head).any()
        if case.target:
            grown = np.zeros_like(mask)
            for axis in range(3):
                for step in (-1, 1):
                    grown |= np.roll(mask, step, axis)
            assert (grown & ~head).any(), "extra-axial"


def test_unknown_task(tmp_path):
    with pytest.raises(ValueError, match="task: got 6"):
        heads.make(str(tmp_path / "a"), 6, cases=1, size=16)


def test_what_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(config.UserError, match="cannot make .*file/heads"):
        tool("make_phantoms", 3, tmp_path / "file" / "heads")
    with pytest.raises(SystemExit):
        tool("make_phantoms", 3, tmp_path / "heads", "--seed", -1)
    assert "--seed -1" in capsys.readouterr().err and not (tmp_path / "heads").exists()


def test_tools_make_and_preprocess(tmp_path):
    done = run_command("tools/make_phantoms.py", 3, tmp_path / "heads", "--cases", 3, "--size", 16)
    assert done.returncode == 0, done.stderr
    (tmp_path / "config.yaml").write_text(
        "task: {type: regression}\ndata: {source: fomo3, root: heads, channels: [t1, t2], spacing_mm: [12, 12, 12]}\n"
    )
    done = run_command("tools/preprocess.py", tmp_path / "config.yaml", f"data.cache={tmp_path / 'cache'}")
    assert done.returncode == 0 and "prepared=3 of=3" in done.stdout, done.stderr
    assert sum(path.is_dir() for path in (tmp_path / "cache").iterdir()) == 3


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """(rows of the config's targets, cases) of a table of 66 small scans."""
    root = tmp_path_factory.mktemp("table")
    data = config.Data(
        source="phantom",
        root=str(root),
        phantom_layout="table",
        phantom_cases=66,
        phantom_size=24,
        channels=("t1", "t2"),
    )
    return data, sources.list_cases(data, wanted(targets=("cohort", "gender")))


def test_the_table_has_every_combination_in_every_fold_and_keeps_subjects_together(table):
    data, cases = table
    assert len(cases) == 66 and len({case.subject for case in cases}) == 60
    assert {(case.fold, *case.labels) for case in cases} == {
        (fold, cohort, gender) for fold in "12345" for cohort in ("both", "bright", "dark") for gender in "fm"
    }
    assert {case.target[:1] + case.labels[:1] for case in cases} == {(0.0, "both"), (1.0, "bright"), (2.0, "dark")}
    assert len({(case.subject, case.fold, case.labels) for case in cases}) == 60
    ages = [case.target for case in sources.list_cases(data, wanted(type="regression", targets=("age",)))]
    assert 45 <= min(ages) < 52 and 73 < max(ages) <= 80.5


def test_no_intensity_tells_the_gender_and_no_mean_the_cohort(table):
    _, cases = table
    values = np.array([shortcuts(case) for case in cases])
    male = np.array([case.labels[1] == "m" for case in cases])
    assert max(abs(auroc(male, column) - 0.5) for column in values.T) < 0.25  # 16 looks at 66 scans
    for cohort in ("both", "bright", "dark"):
        chosen = np.array([case.labels[0] == cohort for case in cases])
        assert max(abs(auroc(chosen, values[:, column]) - 0.5) for column in (0, 7, 8, 15)) < 0.25, cohort


def test_the_lesions_look_as_the_cohort_says(table):
    data, cases = table
    cohorts = {case.id: case.labels[0] for case in cases}
    for case in sources.list_cases(data, wanted(type="segmentation", classes=3))[:24]:
        image, mask = read_volume(case.images[0])[0], read_volume(case.mask)[0]
        assert set(np.unique(mask)) == {0, 1, 2} and image[mask > 0].min() > 0, "within the head"
        parts, count = scipy.ndimage.label(mask == 2)
        means = [image[parts == part].mean() / np.median(image[image > 0]) for part in range(1, count + 1)]
        kinds = {"both": (1, 1), "bright": (1, 0), "dark": (0, 1)}[cohorts[case.id]]
        assert (sum(mean > 1.15 for mean in means), sum(mean < 0.7 for mean in means)) == kinds and count == sum(kinds)


def test_pretraining_has_other_heads_without_labels(tmp_path):
    data = config.Data(source="phantom", root=str(tmp_path), phantom_cases=4, phantom_size=16, channels=("flair",))
    tested = sources.list_cases(data, wanted())
    for kind in ("mae", "dino"):
        cases = sources.list_cases(data, wanted(type=kind))
        assert [case.id for case in cases] == [case.id for case in tested] and {case.target for case in cases} == {None}
        for one, other in zip(cases, tested):
            a, b = read_volume(one.images[0])[0], read_volume(other.images[0])[0]
            assert a.shape != b.shape or not np.allclose(a, b)
