"""Cases that lack a channel of data.optional_channels: accepted and said everywhere, and an error without the key."""

import collections
import dataclasses
import pathlib
import shutil

import nibabel
import numpy as np
import pytest
import torch
from conftest import TINY, channel_paths, members_of, tool, write_table

from fomo import checkpoint, kinds, tasks, transforms
from fomo.config import UserError
from fomo.data import cache, listing, loader, sources
from fomo.evaluation import evaluate
from fomo.prediction import inputs, single
from fomo.run_folder import RunFolder
from fomo.runs import crossval
from fomo.runtime import files
from fomo.runtime.log import Log
from fomo.training.fold import train_fold
from fomo.training.restore import restore

OPTIONAL = {"optional_channels": ["swi|t2s"]}
DROPOUT = {"parameters": {"channel_dropout": {"p": 0.8, "channel_p": 0.5}}}


class Lines(Log):
    """A log that keeps what it is told."""

    def __init__(self):
        super().__init__(active=False)
        self.lines = []

    def _write(self, level, event, values, stream):
        self.lines.append((event, values))

    def warnings(self):
        return [values["message"] for event, values in self.lines if event == "warn"]


def remove(root, channel, ids):
    """Remove the files of a channel 'a|b' of some cases."""
    for id in ids:
        paths = channel_paths(pathlib.Path(root), "classification", id)
        for name in channel.split("|"):
            if name in paths:
                pathlib.Path(paths[name]).unlink()


def ids_of(root):
    """The ids of a data set in the layout fomo1."""
    return sorted("_".join(path.parts[-2:]) for path in pathlib.Path(root).glob("preprocessed/*/*"))


@pytest.fixture
def root(scans, tmp_path):
    """A copy of the tiny Task 1, of which the first three cases lack swi|t2s."""
    shutil.copytree(scans("classification"), tmp_path / "root")
    remove(tmp_path / "root", "swi|t2s", ids_of(tmp_path / "root")[:3])
    return tmp_path / "root"


@pytest.fixture
def config_of(tiny_config, root, tmp_path):
    def load(augment=None, **data):
        own = {"source": "fomo1", "root": str(root), "cache": str(tmp_path / "cache"), "spacing_mm": [5.0] * 3, **data}
        return kinds.load(tiny_config("classification", data=own, augment=augment or {}, train={"epochs": 1}))

    return load


def prepared(config, log=None):
    wanted = tasks.wanted(config)
    return sources.prepare(sources.list_cases(config.data, wanted), config.data, wanted, log)


# ------------------------------------------------------------------------------------------ configs


@pytest.mark.parametrize(
    "optional, said",
    [
        (["swi"], "data.optional_channels: got [swi], wanted some of data.channels=[dwi_b1000,flair,adc,swi|t2s]"),
        (["adc", "adc"], "data.optional_channels: got [adc,adc], wanted each channel once"),
        ([*TINY["classification"]], "wanted not all of data.channels"),
    ],
)
def test_a_config_names_some_of_its_channels_and_not_all(config_of, optional, said):
    with pytest.raises(UserError) as caught:
        config_of(optional_channels=optional)
    assert said in str(caught.value)


# ------------------------------------------------------------------------------------------ sources


def test_a_folder_that_lacks_an_optional_channel_is_a_case(config_of, root):
    config = config_of(**OPTIONAL)
    cases = sources.list_cases(config.data, tasks.wanted(config))
    assert [case.missing for case in cases] == [(3,)] * 3 + [()] * 13
    assert len(cases[0].files) == 3 and cases[0].images[3] is None
    log = Lines()
    listing.describe(config, tasks.wanted(config), cases, log)
    assert log.lines[0][1]["missing"] == ["swi|t2s:3"]
    remove(root, "adc", ids_of(root)[-1:])
    with pytest.raises(UserError, match="channel 'adc' is missing"):
        sources.list_cases(config.data, tasks.wanted(config))


@pytest.mark.parametrize("name", ["SWI.nii.gz", "t2s.mgz"])
def test_a_file_that_looks_like_an_optional_channel_is_not_missing(config_of, root, name):
    config = config_of(**OPTIONAL)
    assert sources.list_cases(config.data, tasks.wanted(config))
    (min(root.glob("preprocessed/*/*")) / name).touch()  # of a case that lacks it
    with pytest.raises(UserError, match=f"{name}, wanted swi.nii.gz or t2s.nii.gz, or no such file"):
        sources.list_cases(config.data, tasks.wanted(config))


def test_without_the_key_the_error_stays(config_of):
    config = config_of()
    with pytest.raises(UserError, match=r"channel 'swi\|t2s' is missing"):
        sources.list_cases(config.data, tasks.wanted(config))


def test_a_table_may_have_blank_cells_or_no_column_at_all(tiny_config, root, tmp_path):
    def listed(columns, optional):
        rows = []
        for number, id in enumerate(ids_of(root)):
            paths = channel_paths(root, "classification", id)
            rows.append({"id": id, "subject": id, "c": number % 2, **{name: paths.get(name, "") for name in columns}})
        data = {"source": "table", "csv": write_table(tmp_path / "t.csv", rows), "root": None}
        data |= {"channels": ["flair", "swi|t2s"], "optional_channels": optional}
        config = kinds.load(tiny_config("classification", task={"targets": ["c"]}, data=data))
        return [case.missing for case in sources.list_cases(config.data, tasks.wanted(config))]

    assert listed(("flair", "swi", "t2s"), ["swi|t2s"]) == [(1,)] * 3 + [()] * 13
    assert listed(("flair",), ["swi|t2s"]) == [(1,)] * 16
    with pytest.raises(UserError, match=r"line 2: column 'swi\|t2s': got blank cells"):
        listed(("flair", "swi", "t2s"), [])
    with pytest.raises(UserError, match="line 2: column 'flair': got .*, wanted a NIfTI file"):
        nowhere = [{"id": "a", "subject": "a", "c": 0, "flair": "nowhere.nii", "swi": ""}]
        write_table(tmp_path / "t.csv", nowhere)
        data = {"source": "table", "csv": str(tmp_path / "t.csv"), "root": None, "channels": ["flair", "swi"]}
        config = kinds.load(
            tiny_config("classification", task={"targets": ["c"]}, data={**data, "optional_channels": ["flair"]})
        )
        sources.list_cases(config.data, tasks.wanted(config))


# -------------------------------------------------------------------------------------- preparation


def test_a_missing_channel_is_the_others_background_and_no_copy_of_another_cases(config_of):
    log = Lines()
    case, *others = prepared(config_of(**OPTIONAL), log)
    image = np.array(case.image())
    assert image.shape[0] == 4 and image[3].min() == image[3].max() == np.float32(np.mean(case.background[:3]))
    assert case.background[:3] == tuple(image[:3].min(axis=(1, 2, 3)).tolist()) and case.outside[3] is None
    assert others[-1].outside == others[-1].background
    assert not [said for said in log.warnings() if "voxels" in said], "equal constants are not copies of a scan"


@pytest.mark.parametrize("rescan", ["always", "never"])
def test_a_file_that_comes_later_is_prepared(config_of, root, scans, rescan):
    config = config_of(**OPTIONAL, rescan=rescan)
    before = prepared(config)
    id = before[0].id
    there = channel_paths(scans("classification"), "classification", id)
    name = "swi" if "swi" in there else "t2s"
    flair = channel_paths(root, "classification", id)["flair"]
    shutil.copy(there[name], pathlib.Path(flair).parent / pathlib.Path(there[name]).name)
    after = prepared(config)
    assert after[0].entry != before[0].entry and after[0].missing == () and np.ptp(after[0].image()[3]) > 1
    assert [case.entry for case in after[1:]] == [case.entry for case in before[1:]]


def test_two_cases_of_the_same_file_in_another_channel_have_entries_of_their_own(config_of):
    config = config_of(**OPTIONAL)
    case = sources.list_cases(config.data, tasks.wanted(config))[-1]
    image = case.images[0]
    one, other = (dataclasses.replace(case, images=images) for images in ((image, None), (None, image)))
    stamps = [cache._stamps(cache._sources(each, False)) for each in (one, other)]
    assert stamps[0] != stamps[1]


def test_a_dropped_channel_is_what_a_missing_one_is(config_of, root):
    """To the last bit: a network that has learned with dropped channels meets nothing else at prediction."""
    config = config_of(**OPTIONAL)
    whole = prepared(config)[-1]
    remove(root, "swi|t2s", [whole.id])
    lacking = prepared(config)[-1]
    assert lacking.id == whole.id and lacking.shape == whole.shape
    parameters = {"channel_dropout": {"p": 1.0, "channel_p": 1.0}}
    augment = transforms.build("none", whole.shape, parameters)
    image = torch.from_numpy(np.array(whole.image()))[None]
    for seed in range(8):
        [plan] = augment.draw(np.random.default_rng(seed), 1, 4, [whole.outside])
        dropped = augment.apply({"image": image}, [plan])["image"][0]
        kept = (set(range(4)) - set(plan["channel_dropout"])).pop()
        assert len(plan["channel_dropout"]) == 3
        for c in range(4):
            same = image[0, c] if c == kept else torch.full_like(image[0, c], whole.background[kept])
            assert torch.equal(dropped[c], same)
    only = {"absent": {3: float(np.mean(whole.background[:3]))}, "channel_dropout": {3: {}}}
    dropped = augment.apply({"image": image}, [only])["image"][0]
    assert torch.equal(dropped, torch.from_numpy(np.array(lacking.image())))


# ----------------------------------------------------------------------------------------- training


def test_training_refuses_a_channel_that_no_case_has_and_warns_of_what_is_not_taught(config_of, root, scans):
    config, log = config_of(**OPTIONAL), Lines()
    cases = sources.list_cases(config.data, tasks.wanted(config))
    assert not loader.drops_channels(config) and loader.drops_channels(config_of(DROPOUT, **OPTIONAL))
    assert loader.drops_channels(config_of({"preset": "strong"}))
    listing.check_optional(config.data, cases, False, log)
    assert not log.lines, "some cases lack it"
    with pytest.raises(UserError, match=r"no case has the channel 'swi\|t2s', wanted at least one"):
        listing.check_optional(config.data, cases[:3], True, log)
    listing.check_optional(config.data, cases[3:], True, log)
    assert not log.lines, "dropout teaches it"
    listing.check_optional(config.data, cases[3:], False, log)
    assert ["augment.parameters={channel_dropout: {p: 0.5}}" in said for said in log.warnings()] == [True]


def test_training_cases_that_all_lack_what_others_have_are_warned_of(config_of, tmp_path):
    config = config_of(DROPOUT, **OPTIONAL)
    listed = prepared(config)
    log = Lines()
    fold = RunFolder(tmp_path / "fresh").fold(1)
    with pytest.raises(UserError):  # of one class
        train_fold(config, {"train": listed[:1], "val": listed[3:5], "test": []}, fold, log)
    said = "no training case has an optional channel, of which the network learns nothing"
    assert log.warnings()[:1] == [said]


@pytest.fixture
def run_of(config_of):
    """Function: augmentation -> the run folder of a cross-validation with optional swi|t2s."""

    def run(augment):
        config = config_of(augment, **OPTIONAL)
        crossval.run(config)
        return pathlib.Path(config.output) / config.name

    return run


def test_a_network_learns_predicts_and_is_evaluated_without_a_channel(run_of, trained, root, tmp_path, capfd):
    run = run_of(DROPOUT)
    said, lacking = (run / "log.txt").read_text(), ids_of(root)[:3]
    assert " data source=fomo1 cases=16" in said and " missing=swi|t2s:3 " in said
    stored = {row["id"]: row for row in files.read_csv(run / "predictions.csv")}
    assert {id: row["missing"] for id, row in stored.items()} == {
        id: "swi|t2s" if id in lacking else "" for id in ids_of(root)
    }
    capfd.readouterr()
    tool("predict", run / "fold_1", "--source", "fomo1", "--root", root, "--output", tmp_path / "out")
    assert 'warn message="cases lack an optional channel: they are answered without it" missing=swi|t2s:3' in (
        capfd.readouterr().out
    )
    rows = {row["id"]: row for row in files.read_csv(tmp_path / "out" / "predictions.csv")}
    tested = {row["id"]: row for row in files.read_csv(run / "fold_1" / "predictions.csv")}
    assert all(rows[id]["probability"] == row["probability"] for id, row in tested.items())
    assert [rows[id]["missing"] for id in lacking] == ["swi|t2s"] * 3 and rows[max(rows)]["missing"] == ""
    for place in (tmp_path / "out", run):
        log = Lines()
        kind, cases, summary = evaluate.evaluate(str(place), str(root), resamples=0, log=log)
        assert summary["lacking_a_channel"] == {"value": 3, "n": 16}
        assert {row["id"] for row in cases if row["missing"]} == set(lacking)
        assert "cases were answered without an optional channel" in log.warnings()


def test_one_case_is_predicted_by_its_files_where_the_checkpoint_allows_it(run_of, trained, root, tmp_path):
    given = channel_paths(root, "classification", ids_of(root)[0])
    arguments = [f"{name}={path}" for name, path in given.items()]
    checkpoint = run_of(DROPOUT) / "fold_1"
    tool("predict", checkpoint, "--input", *arguments, "--id", "a", "--output", tmp_path / "out")
    [row] = files.read_csv(tmp_path / "out" / "predictions.csv")
    assert row["missing"] == "swi|t2s"
    log = Lines()
    alone = single.predict_to_file(members_of(checkpoint), given, str(tmp_path / "a.txt"), log)
    assert f"{alone['probability']!r}" == row["probability"] == (tmp_path / "a.txt").read_text().strip()
    assert log.warnings() == ["cases lack an optional channel: they are answered without it"]
    write_table(tmp_path / "t.csv", [{"id": "b", **given, "swi": ""}])
    tool("predict", checkpoint, "--cases", tmp_path / "t.csv", "--output", tmp_path / "table")
    [other] = files.read_csv(tmp_path / "table" / "predictions.csv")
    assert (other["probability"], other["missing"]) == (row["probability"], "swi|t2s")
    less = {name: path for name, path in given.items() if name != "adc"}
    with pytest.raises(UserError, match="channel adc: got none"):
        single.predict_to_file(members_of(checkpoint), less, str(tmp_path / "b.txt"), log)
    with pytest.raises(UserError, match="channel swi or t2s: got none"):
        single.predict_to_file(members_of(trained("classification") / "fold_1"), given, str(tmp_path / "b.txt"), log)
    with pytest.raises(UserError, match="channel swi or t2s: got none"):
        tool("predict", trained("classification") / "fold_1", "--input", *arguments, "--output", tmp_path / "refused")


def test_only_a_checkpoint_that_has_learned_it_is_tested_without_a_channel(config_of, trained):
    config = config_of(**OPTIONAL)
    other = trained("classification") / "fold_1" / "best.pt"
    content = checkpoint.load(other)
    with pytest.raises(UserError, match=r"was trained with data.optional_channels=\[\], and the config has"):
        restore(content, str(other), config)


def test_masks_are_learned_predicted_and_shown_without_a_first_channel(tiny_config, scans, tmp_path):
    """The header of a mask is that of the first channel that is there; the report shows one that is there."""
    shutil.copytree(scans("segmentation"), tmp_path / "root")
    ids = sorted("_".join(path.parts[-2:]) for path in tmp_path.glob("root/preprocessed/*/*"))
    for id in ids[::2]:
        pathlib.Path(channel_paths(tmp_path / "root", "segmentation", id)["dwi_b1000"]).unlink()
    data = {"source": "fomo2", "root": str(tmp_path / "root"), "cache": str(tmp_path / "cache")}
    data["optional_channels"] = ["dwi_b1000"]
    path = tiny_config("segmentation", data=data, augment={"preset": "strong"}, train={"epochs": 1})
    config = kinds.load(path)
    crossval.run(config)
    run = pathlib.Path(config.output) / "run"
    rows = files.read_csv(run / "predictions.csv")
    assert {row["id"] for row in rows if row["missing"]} == set(ids[::2])
    assert "The images cannot be shown" not in (run / "report.html").read_text()
    tool("predict", run / "fold_1", "--source", "fomo2", "--root", tmp_path / "root", "--output", tmp_path / "out")
    flair = nibabel.load(channel_paths(tmp_path / "root", "segmentation", ids[0])["flair"])
    mask = nibabel.load(tmp_path / "out" / "masks" / f"{ids[0]}.nii.gz")
    assert mask.shape == flair.shape and np.array_equal(mask.affine, flair.affine)
    _, cases, summary = evaluate.evaluate(str(tmp_path / "out"), str(tmp_path / "root"), resamples=0)
    assert summary["lacking_a_channel"]["value"] == len(ids[::2]) == sum(bool(row["missing"]) for row in cases)


def test_a_run_can_be_tested_on_cases_that_all_lack_the_channel(run_of, config_of, root):
    run = run_of(DROPOUT)
    remove(root, "swi|t2s", ids_of(root))
    config = config_of(DROPOUT, **OPTIONAL)
    train = dataclasses.replace(config.train, mode="evaluate", checkpoint=str(run / "fold_1" / "best.pt"))
    crossval.run(dataclasses.replace(config, name="tested", train=train), one_split=True)
    rows = files.read_csv(run.parent / "tested" / "fold_1" / "predictions.csv")
    assert rows and {row["missing"] for row in rows} == {"swi|t2s"}
    with pytest.raises(UserError, match="no case has the channel"):
        crossval.run(dataclasses.replace(config, name="trained"))


def test_samples_of_a_case_without_a_channel_keep_it_empty(config_of):
    """Whatever the augmentation does, and whatever sample is mixed in, which may have the channel."""
    config = config_of({"preset": "strong", "mix": "mixup", "mix_p": 0.5, **DROPOUT}, **OPTIONAL)
    cases = prepared(config)
    samples, collate = loader._reading(config, tasks.build(config), cases, 1)
    seen = collections.Counter()
    for slot in range(0, 96, 4):
        batch = collate([samples[one] for one in range(slot, slot + 4)])
        assert "outside" not in batch
        for id, image, plan in zip(batch["id"], batch["image"], [samples[one]["mix"] for one in batch["slot"]]):
            if plan is None:
                empty = [bool(channel.min() == channel.max()) for channel in image]
                assert not all(empty)
                lacks = next(case for case in cases if case.id == id).missing
                assert all(empty[c] for c in lacks)
                seen["lacking" if lacks else "whole"] += 1
    assert min(seen.values()) > 5


def test_a_table_for_prediction_needs_a_column_of_each_channel(config_of, tmp_path):
    table, columns = tmp_path / "new.csv", ["id", "dwi_b1000", "flair", "adc"]
    table.write_text(",".join([*columns, "SWI"]) + "\na,a.nii,b.nii,c.nii,d.nii\n")
    with pytest.raises(UserError, match="line 1: .* with blank cells where a case lacks it"):
        inputs.cases_from_table(str(table), config_of(**OPTIONAL).data)
    table.write_text(",".join([*columns, "swi"]) + "\na,a.nii,b.nii,c.nii,\n")
    assert inputs.cases_from_table(str(table), config_of(**OPTIONAL).data)[0].missing == (3,)
