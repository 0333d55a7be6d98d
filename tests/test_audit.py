"""The shortcut audit: planted shortcuts are found, clean data raise no alarm, and other runs stand beside the run's."""

import json
import math
import pathlib
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
from conftest import wanted, write_table
from report_runs import Page, read

from fomo import folds, kinds, tasks
from fomo.config import UserError
from fomo.data import facts, sources
from fomo.evaluation import audit, rivals
from fomo.pages.page import join
from fomo.report import shortcuts
from fomo.runs import crossval, maps, units
from fomo.tasks import Results


def study(config, signal, planted, n=40, seed=0, spread=1.0):
    """What the audit finds for a network with some signal, and facts of which the first may tell the label.

    spread: of the facts, in whose place 0 makes all cases equal.
    """
    task, rng = tasks.build(config), np.random.default_rng(seed)
    number = task.reads == "number"
    target = rng.uniform(20, 80, n) if number else rng.permutation(np.arange(n) % 2).astype(float)
    told = (target - target.mean()) / target.std()
    ids = [f"c{i:03}" for i in range(n)]
    cases = [SimpleNamespace(id=id, subject=id, target=value) for id, value in zip(ids, target)]
    known = [
        {
            "voxels": {"mm": spread * float(rng.normal() + planted * told[i])},
            "files": {"bytes": spread * float(rng.normal()), "type": "a"},
            "site": {"site": "north"},
        }
        for i in range(n)
    ]
    splits = folds.kfold(ids, ids, target.tolist(), 5, 0.2, 0, kind="continuous" if number else "class")
    fold = {id: place for place, split in enumerate(splits, start=1) for id in split["test"]}
    rows = []
    for i, id in enumerate(ids):
        score = signal * told[i] + rng.normal()
        answer = (
            {"prediction": 50 + 17 * score / max(signal, 1), "training_mean": 50.0}
            if number
            else {"probability": 1 / (1 + np.exp(-score))}
        )
        answer |= {} if number else {"decision": int(score > 0)}
        row = {
            "id": id,
            "subject": id,
            "fold": fold[id],
            "loss": 1.0,
            "target": target[i] if number else int(target[i]),
        }
        rows.append({**row, **answer})
    found = audit.audit(task, Results(rows), cases, known, splits)
    return found, {rival["name"]: rival for rival in found["rivals"]}


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_planted_shortcut_is_found_and_a_better_network_is_said_to_be_better(task, tiny_config):
    config = kinds.load(tiny_config(task))
    found, rivals = study(config, signal=1.0, planted=3.0)
    assert list(rivals) == ["voxels", "files", audit.ALL] and found["constant"] == ["site"]
    assert rivals["voxels"]["finds"] == audit.AS_MUCH and rivals["voxels"]["features"] == 1
    assert rivals["files"]["finds"] == audit.NOTHING and rivals["files"]["features"] == 1  # all have one type
    sign = 1 if found["higher_is_better"] else -1
    assert rivals["voxels"]["gain"] == pytest.approx(sign * (found["value"] - rivals["voxels"]["value"]), abs=1e-9)
    assert rivals["voxels"]["gain_low"] <= rivals["voxels"]["gain"] <= rivals["voxels"]["gain_high"]
    assert rivals["voxels"]["low"] <= rivals["voxels"]["value"] <= rivals["voxels"]["high"]
    assert rivals["voxels"]["p_chance"] == pytest.approx(3 * 1 / 500)  # of none of 499 permutations, for 3 rivals
    found, rivals = study(config, signal=6.0, planted=0.8, n=60)
    assert rivals["voxels"]["finds"] == audit.LESS and rivals["voxels"]["gain"] > 0


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_clean_facts_raise_no_alarm_whatever_the_network_reaches(task, tiny_config):
    config = kinds.load(tiny_config(task, eval={"bootstrap": 0}))
    alarms = [
        rival["finds"]
        for seed in range(4)
        for signal in (0.0, 2.0)
        for rival in study(config, signal, planted=0.0, seed=seed)[1].values()
    ]
    assert alarms.count(audit.NOTHING) >= len(alarms) - 1


def test_no_rival_is_made_of_what_is_equal_in_all_cases(tiny_config):
    found, rivals = study(kinds.load(tiny_config("classification")), signal=1.0, planted=0.0, spread=0.0)
    assert rivals == {} and found["constant"] == ["voxels", "files", "site"]
    audited = {**found, "part": "", "runs": [], "groups": []}
    run = SimpleNamespace(complete=True, folder=SimpleNamespace(audited=lambda: {"audits": [audited]}))
    page = Page(join(shortcuts.section(run)).text)
    assert "No rival: nothing that is known" in page.text and "equal in all cases: voxels, files, site." in page.text


def test_missing_numbers_and_texts_become_features():
    known = [{"f": {"size": 1.0, "type": "a"}}, {"f": {"size": None, "type": "b"}}, {"f": {"size": 3.0, "type": "a"}}]
    known += [{"f": {"size": 2.0, "type": None}}]
    features = rivals.features_of(known)["f"]
    assert features.tolist() == [[1, 0, 1], [2, 1, 0], [3, 0, 1], [2, 0, 0]]  # the type b has one case only


def test_facts_are_those_of_the_files(tiny_config):
    config = kinds.load(tiny_config("regression"))
    cases = sources.prepare(sources.list_cases(config.data, wanted("regression")), config.data, wanted("regression"))
    found = facts.of_case(cases[0], config.data.channels)
    image = nibabel.load(cases[0].case.images[0].path)
    ras = nibabel.as_closest_canonical(image)
    grid = found["voxel size and matrix"]
    assert [grid[f"matrix {axis}"] for axis in "xyz"] == list(ras.shape)
    assert [grid[f"voxel {axis} (mm)"] for axis in "xyz"] == pytest.approx(ras.header.get_zooms(), abs=1e-4)
    true = np.count_nonzero(np.asarray(image.dataobj)) * np.prod(image.header.get_zooms()) / 1000
    assert found["volume of the head"]["ml"] == pytest.approx(true, rel=0.2)
    assert found["files"]["t1: orientation"] == "".join(nibabel.aff2axcodes(image.affine))
    assert found["files"]["t1: type"] == "int16"
    size = pathlib.Path(cases[0].case.images[0].path).stat().st_size
    assert found["files"]["t1: log of bytes"] == pytest.approx(np.log(size))
    assert found["intensities of t1"]["percentile 5"] < found["intensities of t1"]["percentile 95"]


def test_the_head_is_found_in_noise():
    rng, grid = np.random.default_rng(0), np.indices((30, 30, 30)) - 14.5
    ball = (grid**2).sum(0) < 100
    seen = (10 * ball + rng.uniform(0.8, 3, ball.shape))[None]
    assert np.mean(facts._head(seen, [0.0]) == ball) > 0.98
    assert np.array_equal(facts._head((10.0 * ball)[None], [0.0]), ball)


def test_labels_are_dealt_to_subjects(tiny_config):
    config = kinds.load(tiny_config("classification"))
    plain = sources.list_cases(config.data, wanted())
    config = kinds.load(tiny_config("classification", data={"shuffle_labels": 3}))
    dealt = sources.list_cases(config.data, wanted())
    assert [case.id for case in dealt] == [case.id for case in plain]
    assert [case.target for case in dealt] != [case.target for case in plain]
    assert dealt == sources.list_cases(config.data, wanted()), "the same seed deals the same labels"
    of_subject = {}
    for case in dealt:
        assert of_subject.setdefault(case.subject, case.target) == case.target
    first = {case.subject: case.target for case in reversed(plain)}
    assert sorted(of_subject.values()) == sorted(first.values())
    for task, key in (("segmentation", {"data": {"shuffle_labels": 1}}), ("segmentation", {"audit": {"shuffled": 1}})):
        with pytest.raises(UserError, match="its labels are masks"):
            kinds.load(tiny_config(task, **key))


def test_a_run_finds_another_voxel_size_of_the_positives_and_runs_what_it_is_compared_with(
    tiny_config, tmp_path, monkeypatch
):
    shape = {"phantom_cases": 24, "root": str(tmp_path / "heads"), "cache": str(tmp_path / "cache")}
    groups = write_table(
        tmp_path / "groups.csv",
        [{"subject": f"sub_{i:03}", "group": "north" if i % 5 < 3 else "south"} for i in range(1, 23)],
    )
    config = kinds.load(tiny_config("classification", name="clean", data={**shape, "groups": groups}))
    crossval.run(config)
    clean = tmp_path / "runs" / "clean"
    assert "voxel size and matrix alone" not in (clean / "log.txt").read_text()
    positives = {case.id for case in sources.list_cases(config.data, wanted()) if case.target == 1}
    for path in (tmp_path / "heads").glob("*/*/*/*/*.nii.gz"):
        if "_".join(path.parts[-3:-1]) in positives:
            image = nibabel.load(path)
            nibabel.save(
                nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine @ np.diag([1.3, 1.3, 1.3, 1])), path
            )
    asked = {"shuffled": 1, "other_folds": True}
    config = kinds.load(tiny_config("classification", data={**shape, "groups": groups}, audit=asked))
    crossval.run(config)
    run = tmp_path / "runs" / "run"
    content, log = json.loads((run / "audit" / "audit.json").read_text()), (run / "log.txt").read_text()
    [found] = content["audits"]
    [rival] = [one for one in found["rivals"] if one["name"] == "voxel size and matrix"]
    assert rival["value"] > 0.95 and rival["finds"] == audit.AS_MUCH
    assert 'rival="voxel size and matrix"' in log and "voxel size and matrix alone" in log
    assert {one["name"] for one in found["runs"]} == {"shuffled_1", "other_folds"}
    assert [one["group"] for one in found["groups"]] == ["north", "south"]
    assert sum(one["cases"] for one in found["groups"]) == 24
    assert "group of the subject" in {one["name"] for one in found["rivals"]}
    shuffled = json.loads((run / "audit" / "shuffled_1" / "summary.json").read_text())
    own = next(one for one in found["runs"] if one["name"] == "shuffled_1")
    assert own["value"] == shuffled["metrics"][found["metric"]]["pooled"]
    splits = json.loads((run / "audit" / "other_folds" / "splits.json").read_text())
    tested = [{splits["cases"][id]["group"] for id in split["test"]} for split in splits["folds"]]
    assert sorted(tested, key=str) == [{"north"}, {"south"}]
    page = Page(read(run / "report.html"))
    assert page.table("Rivals on the same folds")[2][0].text == "voxel size and matrix"
    assert "Not shown to be better than what is known without looking: " in page.text
    assert [row[0].text for row in page.table("The same network, trained anew")[1:]] == [
        "this run", "other folds: by groups where these are at random, or at random", "shuffled labels, 1"
    ]  # fmt: skip
    before = {path: path.stat().st_mtime_ns for path in run.rglob("best.pt")}
    monkeypatch.setattr(audit, "audit", None)
    crossval.run(config)  # nothing is trained again, the facts are not read again, no rival is fitted again
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("best.pt")}
    log = (run / "log.txt").read_text()
    assert log.count("facts of the files") == log.count("INFO audit kept=") == 1
    assert json.loads((run / "audit" / "audit.json").read_text()) == content


def test_columns_of_a_table_are_rivals(tmp_path, phantom_root, tiny_config):
    from fomo.runs import audit as runs_audit

    table = write_table(
        tmp_path / "table.csv",
        [
            {"id": "a", "subject": "a", "Site": "x", "sex": "f", "t1": ""},
            {"id": "b", "subject": "b", "Site": "n/a", "sex": "m", "t1": ""},
        ],
    )
    data = {"source": "table", "csv": table, "channels": ["t1"], "root": None}
    config = kinds.load(tiny_config("classification", data=data, task={"type": "classification", "targets": ["sex"]}))
    assert runs_audit.columns_of(config, []) == {"Site": {"a": "x", "b": None}}
    asked = {"columns": ["sex"]}
    config = kinds.load(
        tiny_config("classification", data=data, task={"type": "classification", "targets": ["sex"]}, audit=asked)
    )
    with pytest.raises(UserError, match="audit.columns: got sex, which is learned"):
        runs_audit.columns_of(config, [])
    asked = {"columns": ["clinic"]}
    config = kinds.load(
        tiny_config("classification", data=data, task={"type": "classification", "targets": ["sex"]}, audit=asked)
    )
    with pytest.raises(UserError, match="clinic"):
        runs_audit.columns_of(config, [])
    config = kinds.load(tiny_config("classification", audit={"other_folds": True}))
    with pytest.raises(UserError, match="audit.other_folds"):
        runs_audit.check(config, sources.list_cases(config.data, wanted()))


def test_attention_inside_the_mask_is_measured():
    mask = np.zeros((4, 4, 4), bool)
    mask[0] = True
    image, heat = np.ones((1, 4, 4, 4)), np.zeros((4, 4, 4))
    image[0, 3], heat[:2] = 0, 1.0
    found = maps._inside([heat, np.zeros_like(heat)], mask, image, (0.0,))
    assert found["inside"][0] == pytest.approx(0.5) and np.isnan(found["inside"][1])
    assert found["chance"] == pytest.approx(16 / 48)


def test_the_audit_says_how_much_of_the_maps_lies_in_the_masks(tiny_config, tmp_path):
    config = kinds.load(tiny_config("classification", eval={"saliency": 8, "bootstrap": 50}, train={"epochs": 1}))
    crossval.run(config)
    run = tmp_path / "runs" / "run"
    seen = json.loads((run / "audit" / "audit.json").read_text())["attention"]
    masked = [case for case in sources.list_cases(config.data, wanted()) if case.mask and case.target == 1]
    assert 0 < seen["cases"] <= len(masked) and 0 <= seen["inside"] <= 1 and 0 < seen["chance"] < 0.1
    assert f"Of the Grad-CAM maps of {seen['cases']} case" in Page(read(run / "report.html")).text


SEVERAL = {
    "multilabel": ("multilabel", ["Lung nodule", "Emphysema", "Rare"]),
    "multiregression": ("regression", ["age", "weight", "height"]),
    "multitarget": ("classification", ["cohort", "gender"]),
}


def several(name, tiny_config, n=60, seed=0, planted=4.0):
    """(what the audit finds, task) for a network of several answers, of which facts tell the second one."""
    type, targets = SEVERAL[name]
    sections = {"data": {"phantom_layout": "table", "channels": ["t1"]}, "model": {"name": "unet_b"}}
    config = kinds.load(tiny_config(type, task={"targets": targets}, **sections))
    task, rng = tasks.build(config), np.random.default_rng(seed)
    classes = {"multilabel": (2, 2, 1), "multiregression": (0, 0, 0), "multitarget": (3, 2)}[name]
    columns = [rng.permutation(np.arange(n) % count) if count else rng.uniform(20, 80, n) for count in classes]
    truth = np.array(columns, float).T
    ids = [f"c{i:03}" for i in range(n)]
    labels = [tuple(f"k{value:g}" for value in row) if name == "multitarget" else () for row in truth]
    cases = [
        SimpleNamespace(id=id, subject=id, target=tuple(row), labels=text) for id, row, text in zip(ids, truth, labels)
    ]
    task.inspect(cases)
    told = (truth[:, 1] - truth[:, 1].mean()) / truth[:, 1].std()
    known = [
        {"voxels": {"mm": float(rng.normal() + planted * z)}, "files": {"bytes": float(rng.normal())}} for z in told
    ]
    splits = folds.kfold(ids, ids, told.tolist(), 5, 0.2, 0, kind="continuous")
    fold = {id: place for place, split in enumerate(splits, start=1) for id in split["test"]}
    targets, rows = np.array(task.rival_targets(cases), float), []
    for id, row, own in zip(ids, truth, targets):
        answered = {"id": id, "subject": id, "fold": fold[id], "loss": 1.0, "scan": None}
        for key, value in zip(task.names, row.tolist()):
            answered[f"target_{key}"] = value if type == "regression" else int(value)
            answered |= {f"training_mean_{key}": 50.0, f"training_sd_{key}": 17.0} if type == "regression" else {}
        noise = rng.normal(0, 15 if type == "regression" else 2.0, len(own))
        rows.append(task.rival_row(answered, own + noise))  # as the network's answers
    return audit.audit(task, Results(rows), cases, known, splits), task


@pytest.mark.parametrize("name", SEVERAL)
def test_of_several_answers_the_one_is_found_that_facts_tell(name, tiny_config):
    found, task = several(name, tiny_config)
    own = {one["name"]: one for one in found["answers"]}
    assert list(own) == [output.name for output in task.rival_outputs()]
    told = {"multilabel": "Emphysema", "multiregression": "weight", "multitarget": "gender k1"}[name]
    assert own[told]["finds"] == audit.AS_MUCH and own[told]["rival"] in ("voxels", audit.ALL)
    assert own[told]["gain_low"] <= own[told]["gain"] <= own[told]["gain_high"] < 0 and own[told]["p"] < 0.05
    assert all(one["finds"] == audit.NOTHING for name, one in own.items() if name not in (told, "Rare"))
    place = list(own).index(told)
    voxels = next(rival for rival in found["rivals"] if rival["name"] == "voxels")
    assert voxels["each"][place] == own[told]["rival_value"] or own[told]["rival"] == audit.ALL
    assert found["metric"].startswith(task.select) and not math.isnan(found["value"])
    if name == "multilabel":
        assert own["Rare"]["cases"] == 0 and math.isnan(own["Rare"]["value"]) and math.isnan(own["Rare"]["p"])
        assert own["Rare"]["finds"] == audit.UNKNOWN
    audited = {**found, "part": "", "runs": [], "groups": []}
    run = SimpleNamespace(complete=True, folder=SimpleNamespace(audited=lambda: {"audits": [audited]}))
    page = Page(join(shortcuts.section(run)).text)
    assert f"Told as well without looking: {told} by " in page.text
    table = page.table("Each answer, within folds")
    assert [row[0].text for row in table[1:]][0] == told and len(table) == 1 + len(own)


@pytest.mark.parametrize("name", SEVERAL)
def test_clean_facts_tell_of_no_answer(name, tiny_config):
    finds = [
        one["finds"]
        for seed in range(3)
        for kind in ("answers", "rivals")
        for one in several(name, tiny_config, seed=seed, planted=0.0)[0][kind]
    ]
    told = [one for one in finds if one in (audit.LESS, audit.AS_MUCH)]
    assert len(told) <= 1 and len(finds) > 15


def test_where_no_fold_tests_both_kinds_nothing_is_said_of_rivals(tiny_config):
    config = kinds.load(tiny_config("classification"))
    task, rng, ids = tasks.build(config), np.random.default_rng(0), [f"c{i}" for i in range(8)]
    cases = [SimpleNamespace(id=id, subject=id, target=float(i % 2)) for i, id in enumerate(ids)]
    rows = [
        {"id": id, "subject": id, "fold": i, "loss": 1.0, "target": i % 2, "probability": 0.4 + i / 100, "decision": 0}
        for i, id in enumerate(ids)
    ]
    known = [{"voxels": {"mm": float(rng.normal())}} for _ in ids]
    splits = [{"train": ids[:i] + ids[i + 1 :], "val": [], "test": [ids[i]]} for i in range(8)]
    found = audit.audit(task, Results(rows), cases, known, splits)
    assert [rival["finds"] for rival in found["rivals"]] == [audit.UNKNOWN]
    audited = {**found, "part": "", "runs": [], "groups": []}
    run = SimpleNamespace(complete=True, folder=SimpleNamespace(audited=lambda: {"audits": [audited]}))
    assert "It cannot be said what rivals tell" in Page(join(shortcuts.section(run)).text).text


def test_a_scan_is_known_by_some_of_its_slices():
    class Slice(SimpleNamespace):
        def image(self):
            return np.full((2, 8, 8, 1), self.value, np.float32)

    def made(id, value, scan):
        own = SimpleNamespace(images=(), files=(SimpleNamespace(path=f"{id}.npy"),))
        known = {"scan": scan, "subject": "p", "target": (1.0,), "labels": (), "missing": (), "geometry": None}
        return Slice(id=id, value=value, case=own, background=(0.0, 0.0), scaling=((0, 1),) * 2, **known)

    slices = [made(f"a_{k:02}", float(k), "a") for k in range(11)] + [made("b_00", 7.0, "b")]
    first, second = units.units_of(slices)
    assert (first.id, second.id, len(first.parts)) == ("a", "b", 11)
    found = first.facts(("ct", "ct again"))
    assert found["number of slices"] == {"slices": 11.0}
    looked = facts.chosen(11)
    assert len(looked) == 5 and looked == sorted(set(looked)) and facts.chosen(1) == [0] and facts.chosen(2) == [0, 1]
    assert (
        found["intensities of ct"]["mean"] == pytest.approx(np.mean(looked)) and "intensities of ct again" not in found
    )
    assert units.of_splits([{"train": ["a_01", "a_00"], "test": ["b_00"]}], [first, second]) == [
        {"train": ["a"], "test": ["b"]}
    ]
    assert first.key() != units.units_of(slices[:10])[0].key()
