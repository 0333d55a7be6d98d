"""The slices source: the join with labels, patients, what a file becomes, and mixing over ranks."""

import collections
import dataclasses
import multiprocessing
import pickle

import numpy as np
import pytest
import torch
import yaml

from fomo import config as config_module
from fomo import folds, kinds, tasks
from fomo.data import loader, slice_files, sources
from fomo.training.step import to_device

LABELS = ("Cardiomegaly", "Lung nodule")
SIZE = (64, 80)


class Warnings(list):
    def warn(self, message, **values):
        self.append((message, values))


@pytest.fixture
def data_set(tmp_path):
    """Function that writes a table of slices with files, and a config; keyword arguments are keys of `data`."""

    def write(
        scans=("train_1_a_1", "train_1_b_1", "train_2_a_1", "valid_3_a_1"), dtype=np.float16, neighbours=0, **data
    ):
        rng = np.random.default_rng(0)
        (tmp_path / "slices").mkdir(exist_ok=True)
        (tmp_path / "splits").mkdir(exist_ok=True)
        lines = ["slice_id,volume_name,file_path,split"]
        for scan in scans:
            for index in range(4):
                pixels = rng.random((2 * neighbours + 1, *SIZE))
                pixels = np.round(255 * pixels).astype(dtype) if dtype == np.uint8 else pixels.astype(dtype)
                np.save(tmp_path / "slices" / f"{scan}_{index}.npy", pixels if neighbours else pixels[0])
                lines.append(f"{scan}_{index},{scan}.nii.gz,../slices/{scan}_{index}.npy,{scan.partition('_')[0]}")
        (tmp_path / "splits" / "all.csv").write_text("\n".join(lines) + "\n")
        (tmp_path / "labels.csv").write_text(
            "VolumeName,Cardiomegaly,Other,Lung nodule\n"
            + "".join(f"{scan}.nii.gz,{i % 2},1,{i // 2 % 2}\n" for i, scan in enumerate(scans))
        )
        content = {
            "task": {"type": "multilabel", "targets": list(LABELS)},
            "data": {
                "source": "slices", "csv": "splits/all.csv", "labels_csv": "labels.csv", "channels": ["ct"],
                "normalize": "none", "patch": [*SIZE, 1], **data,
            },
            "model": {"name": "resnet50"},
            "train": {"batch_size": 4, "workers": 0},
            "augment": {"preset": "none"},
        }  # fmt: skip
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
        return tmp_path / "config.yaml"

    return write


def load(path, *overrides):
    config = kinds.load(path, overrides)
    log = Warnings()
    cases = sources.list_cases(config.data, tasks.wanted(config), log=log)
    return config, sources.prepare(cases, config.data, tasks.wanted(config)), log


def test_cases_have_labels_patients_and_scans(data_set, tmp_path):
    config, cases, _ = load(data_set())
    assert len(cases) == 16
    case = cases[4].case
    assert (case.id, case.subject, case.scan, case.fold) == ("train_1_b_1_0", "train_1", "train_1_b_1.nii.gz", "train")
    assert case.target == (1.0, 0.0) and [c.target for c in cases[8:16:4]] == [(0.0, 1.0), (1.0, 1.0)]
    assert case.images[0].path == str(tmp_path / "slices" / "train_1_b_1_0.npy")
    assert cases[4].target is cases[5].target, "a target is held once for all slices of a scan"
    assert sources.list_cases(config.data, tasks.wanted(config), labels=False)[0].target is None
    own = (tmp_path / "splits" / "all.csv").read_text().splitlines()
    columns = ["Lung nodule,Cardiomegaly", *(f"{i // 4 % 2},1" for i in range(16))]
    (tmp_path / "splits" / "own.csv").write_text("\n".join(f"{a},{b}" for a, b in zip(own, columns)))
    _, cases, _ = load(tmp_path / "config.yaml", "data.labels_csv=none", f"data.csv={tmp_path / 'splits' / 'own.csv'}")
    assert [case.target for case in cases[::4]] == [(1.0, 0.0), (1.0, 1.0)] * 2


@pytest.mark.parametrize(
    "column, cells", [("Lung nodule", "01"), ("patient", "ab"), ("site", "ab"), ("volume_name", ("a", "a.nii"))]
)
def test_the_lines_of_a_volume_agree(data_set, tmp_path, column, cells):
    path, csv = data_set(), tmp_path / "splits" / "all.csv"
    columns = {
        "slice_id": ("a_0", "a_1"),
        "volume_name": "aa",
        "patient": "pp",
        "site": "ss",
        "Cardiomegaly": "11",
        "Lung nodule": "00",
    }
    columns = {**columns, "file_path": ["../slices/train_1_a_1_0.npy"] * 2, column: cells}
    csv.write_text("\n".join(",".join(line) for line in zip(*((name, *values) for name, values in columns.items()))))
    with pytest.raises(
        config_module.UserError, match=f"lines 2 and 3: column '{column}': got '{cells[0]}' and '{cells[1]}'"
    ):
        load(path, "data.labels_csv=none", "data.fold_column=site")


def test_a_fold_column_that_is_named_is_not_replaced(data_set):
    path = data_set()
    assert load(path)[1][0].case.fold == "train" and load(path, "data.fold_column=none")[1][0].case.fold is None
    with pytest.raises(config_module.UserError, match=r"no column 'site' \(data.fold_column\)"):
        load(path, "data.fold_column=site")


@pytest.mark.parametrize("name", ["", "../../escaped", "/escaped", ".hidden"])
def test_a_slice_id_cannot_leave_the_run_folder(data_set, tmp_path, name):
    path, csv = data_set(), tmp_path / "splits" / "all.csv"
    csv.write_text(csv.read_text().replace("train_1_b_1_0,", f"{name},", 1))
    with pytest.raises(config_module.UserError, match="line 6: got the slice_id .* files are named by it"):
        load(path)


def test_folds_keep_patients_together_and_spread_the_labels(data_set):
    scans = [f"train_{patient}_{scan}_1" for patient in range(24) for scan in "ab"]
    _, cases, _ = load(data_set(scans))
    cases = [case.case for case in cases]
    splits = folds.kfold(
        [c.id for c in cases], [c.subject for c in cases], [c.target for c in cases], 3, 0.2, seed=0, kind="multilabel"
    )
    subject = {case.id: case.subject for case in cases}
    target = {case.id: case.target for case in cases}
    for split in splits:
        parts = {part: {subject[name] for name in names} for part, names in split.items()}
        assert not (parts["train"] & parts["test"] or parts["train"] & parts["val"] or parts["val"] & parts["test"])
        shares = np.mean([target[name] for name in split["test"]], axis=0)
        assert np.abs(shares - 0.5).max() <= 0.13


def test_volumes_without_labels_are_an_error_or_counted(data_set, tmp_path):
    path = data_set()
    table = (tmp_path / "labels.csv").read_text().splitlines()
    (tmp_path / "labels.csv").write_text("\n".join([*table[:-1], "valid_3_a_1.nii.gz,,1,"]))
    with pytest.raises(
        config_module.UserError, match=r"no labels for 1 volumes \(valid_3_a_1.nii.gz\).*missing_labels=drop"
    ):
        load(path)
    _, cases, log = load(path, "data.missing_labels=drop")
    assert len(cases) == 12 and log[0][1] == {"volumes": 1, "slices": 4, "of": 16, "names": "valid_3_a_1.nii.gz"}
    (tmp_path / "labels.csv").write_text("\n".join(table).replace("train_2_a_1.nii.gz,0", "train_2_a_1.nii.gz,-1"))
    with pytest.raises(config_module.UserError, match="train_2_a_1: column 'Cardiomegaly': got '-1', wanted 0 or 1"):
        load(path)
    with pytest.raises(config_module.UserError, match="no column 'Emphysema'"):
        load(path, "task.targets=[Emphysema]")


def test_names_without_a_patient_need_a_column(data_set, tmp_path):
    path = data_set(["ct1", "ct2"])
    with pytest.raises(config_module.UserError, match="the patient of ct1.nii.gz is not known"):
        load(path)
    lines = (tmp_path / "splits" / "all.csv").read_text().splitlines()
    lines = [lines[0] + ",patient", *(line + ",anna" for line in lines[1:])]
    (tmp_path / "splits" / "all.csv").write_text("\n".join(lines))
    assert {case.subject for case in load(path)[1]} == {"anna"}


@pytest.mark.parametrize("dtype, scale", [(np.uint8, 255), (np.float16, 1), (np.float32, 1)])
def test_a_file_becomes_an_image(data_set, tmp_path, dtype, scale):
    path = data_set(dtype=dtype, neighbours=1)
    stored = np.load(tmp_path / "slices" / "train_1_a_1_0.npy").astype(np.float64) / scale
    _, cases, _ = load(path)
    assert cases[0].shape == (*SIZE, 1) and cases[0].background == (0.0,) and cases[0].geometry is None
    image = cases[0].image()
    assert image.shape == (1, *SIZE, 1) and image.dtype == np.float32
    np.testing.assert_allclose(image[0, :, :, 0], stored[1], atol=1e-6)
    _, around, _ = load(path, "data.neighbours=1", "data.channels=[below,ct,above]")
    np.testing.assert_allclose(around[0].image()[..., 0], stored, atol=1e-6)
    _, three, _ = load(path, "data.channels=[red,green,blue]", "data.normalize=imagenet")
    for channel, mean, deviation in zip(three[0].image()[..., 0], (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)):
        np.testing.assert_allclose(channel, (stored[1] - mean) / deviation, atol=2e-6)
    assert three[0].background[0] == pytest.approx(-0.485 / 0.229)
    _, grey, _ = load(path, "data.normalize=imagenet")
    np.testing.assert_allclose(grey[0].image()[0, :, :, 0], (stored[1] - 0.449) / 0.226, atol=2e-6)


def test_wrong_files_are_one_line_with_the_path(data_set, tmp_path):
    path = data_set()
    first, later = (tmp_path / "slices" / f"{name}.npy" for name in ("train_1_a_1_0", "train_2_a_1_0"))
    with pytest.raises(
        config_module.UserError, match="train_1_a_1_0.npy: got 0 neighbours and 64x80 pixels, wanted 0 .* 96x96"
    ):
        load(path, "data.patch=[96,96,1]")
    with pytest.raises(config_module.UserError, match="got 0 neighbours .* wanted 1 "):
        load(path, "data.neighbours=1", "data.channels=[a,b,c]")
    config, cases, _ = load(path)
    for bad in (b"", b"nonsense", first.read_bytes()[:-7]):
        later.write_bytes(bad)
        with pytest.raises(config_module.UserError, match="train_2_a_1_0.npy: cannot read it as a .npy slice"):
            cases[8].image()
    np.save(later, np.zeros(SIZE))
    with pytest.raises(config_module.UserError, match="got float64 of shape"):
        cases[8].image()
    np.save(later, np.asfortranarray(np.zeros(SIZE, np.float32)))
    with pytest.raises(config_module.UserError, match="cannot read it"):
        cases[8].image()
    workers = dataclasses.replace(config, train=dataclasses.replace(config.train, workers=1))
    with pytest.raises(config_module.UserError) as caught:
        list(loader.batches(workers, tasks.build(workers), cases, 1, loader.Plan(4, 0, 1, 4), 0, 8))
    assert str(caught.value).startswith(str(later)) and "Traceback" not in str(caught.value)
    assert not multiprocessing.active_children(), "a worker that is left would keep the process from ending"
    later.unlink()
    with pytest.raises(config_module.UserError, match="No such file"):
        cases[8].image()


def test_impossible_settings_are_refused(data_set):
    path = data_set()
    for override, named in (
        ("data.normalize=zscore", "data.normalize"),
        ("data.channels=[a,b]", "data.channels"),
        ("data.neighbours=1", "data.channels"),
        ("task.targets=[]", "task.targets"),
        ("data.csv=none", "data.csv"),
        ("train.batch_size=1", "train.batch_size"),
    ):
        with pytest.raises(config_module.UserError, match=f"{named}: "):
            kinds.load(path, [override, "augment.mix=mixup"])


def all_samples(config, cases, plans, workers=0):
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, workers=workers))
    found = {}
    for plan in plans:
        for batch in loader.batches(config, tasks.build(config), cases, 1, plan, 0, 4):
            assert len(batch["image"]) == len(batch["target"]) == plan.micro_batch
            for i, slot in enumerate(batch["slot"]):
                found[slot] = {k: v[i] for k, v in batch.items()}
    return found


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
def test_mixed_samples_are_the_same_for_any_ranks_and_workers_and_mixed_as_said(data_set, kind):
    path = data_set()
    config, cases, _ = load(path, f"augment.mix={kind}", "augment.mix_p=0.7", "augment.preset=slices")
    plain = all_samples(*load(path, "augment.preset=slices")[:2], [loader.Plan(4, 0, 1, 4)])
    one = all_samples(config, cases, [loader.Plan(4, 0, 1, 4)])
    for other in (
        all_samples(config, cases, [loader.Plan(4, rank, 2, 1) for rank in range(2)]),
        all_samples(config, cases, [loader.Plan(4, 0, 1, 2)], workers=2),
    ):
        for slot, sample in one.items():
            for name in ("image", "target", "partner_target", "own_share"):
                assert torch.equal(sample[name], other[slot][name]), name
    partners = collections.Counter()
    for slot, sample in one.items():
        share = float(sample["own_share"])
        step = range(4 * (slot // 4), 4 * (slot // 4) + 4)
        assert torch.equal(sample["target"], plain[slot]["target"]), "the own target stays"
        if share == 1:
            assert torch.equal(sample["image"], plain[slot]["image"])
            continue
        own, image = plain[slot]["image"], sample["image"]
        matches = []
        for partner in set(step) - {slot}:
            there = plain[partner]["image"]
            if kind == "mixup":
                fits = torch.allclose(image, share * own + (1 - share) * there, atol=1e-5)
            else:
                kept = float((image == own).float().mean())
                fits = bool(((image == own) | (image == there)).all()) and kept == pytest.approx(share, abs=0.35)
            if fits:
                matches.append(partner)
        assert len(matches) == 1
        assert torch.equal(sample["partner_target"], plain[matches[0]]["target"])
        partners[matches[0] - step[0]] += 1
    assert 5 <= sum(partners.values()) <= 15 and len(partners) > 2


def test_an_image_is_not_copied_around_with_its_case(data_set):
    _, cases, _ = load(data_set())
    assert len(pickle.dumps(cases)) < 16 * 500
    assert slice_files.patient_of("valid_12_a_1.nii.gz") == "valid_12" and slice_files.patient_of("case_12.nii") is None
    assert slice_files.stem("a.b.nii.gz") == slice_files.stem("a.b.nii") == slice_files.stem("a.b") == "a.b"


def test_a_slice_that_is_three_channels_is_augmented_once_and_then_as_if_it_had_been_three(data_set):
    path = data_set()
    for normalize in ("none", "imagenet"):
        options = ["augment.preset=slices", "augment.mix=cutmix", f"data.normalize={normalize}"]
        config, cases, _ = load(path, *options, "data.channels=[red,green,blue]")
        one = all_samples(*load(path, *options[:2])[:2], [loader.Plan(4, 0, 1, 4)])
        three = all_samples(config, cases, [loader.Plan(4, 0, 1, 4)])
        scaling = cases[0].reading.scaling
        for slot, sample in one.items():
            for channel, (mean, deviation) in zip(three[slot]["image"], scaling):
                torch.testing.assert_close(channel, (sample["image"][0] - mean) / deviation)
    plain = all_samples(
        *load(path, "data.channels=[red,green,blue]", "data.normalize=imagenet")[:2], [loader.Plan(4, 0, 1, 4)]
    )
    by_id = {case.id: case for case in cases}
    for sample in plain.values():
        np.testing.assert_allclose(sample["image"].numpy(), by_id[sample["id"]].image(), atol=1e-6)


def test_a_batch_that_is_augmented_after_the_loader_is_the_same(data_set, monkeypatch):
    """As on a GPU: partners and plans come along, and the engine augments, mixes and repeats."""
    config, cases, _ = load(
        data_set(),
        "augment.preset=slices",
        "augment.mix=cutmix",
        "augment.mix_p=1",
        "data.channels=[a,b,c]",
        "data.normalize=imagenet",
    )
    usual = loader.read_batch(config, tasks.build(config), cases, 1, [0, 1])
    monkeypatch.setattr(loader, "augments_on_gpu", lambda config: True)
    left = loader.read_batch(config, tasks.build(config), cases, 1, [0, 1])
    assert left["image"].shape == (4, 1, *SIZE, 1) and len(left["plans"]) == 4
    done = to_device(left, torch.device("cpu"), tasks.build(config).augmentation())
    assert sorted(done) == sorted(usual) and torch.equal(done["image"], usual["image"])
    assert done["image"].shape == (2, 3, *SIZE, 1)
