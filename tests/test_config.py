"""The config is strict: it accepts what it says, and refuses everything else with the file, the key and the remedy."""

import dataclasses

import pytest
import yaml
from conftest import ROOT

from fomo import config, kinds, tasks
from fomo.config import UserError
from fomo.data import sources


@pytest.fixture
def write(tmp_path):
    def write(text, name="c.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


MINIMAL = "data: {channels: [t1]}\n"


def test_defaults_types_and_scientific_notation(write):
    loaded = kinds.load(write(MINIMAL + "optim: {lr: 1e-4, clip_norm: 1}\n"))
    assert loaded.optim.lr == 1e-4 and type(loaded.optim.lr) is float
    assert loaded.optim.clip_norm == 1.0 and type(loaded.optim.clip_norm) is float
    assert loaded.train == config.Train()
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.seed = 1


def test_bases_are_inherited_key_by_key_and_overridden_from_the_command_line(write):
    write(MINIMAL + "seed: 1\noptim: {lr: 0.1, weight_decay: 0.2}\n", "base.yaml")
    path = write("base: base.yaml\noptim: {lr: 0.3}\n")
    loaded = kinds.load(path, ["optim.weight_decay=3e-4", "data.patch=[32,32,16]", "train.patience=none"])
    assert (loaded.seed, loaded.optim.lr, loaded.optim.weight_decay) == (1, 0.3, 3e-4)
    assert loaded.data.patch == (32, 32, 16) and loaded.train.patience is None


def test_paths_resolve_against_the_file_that_names_them(write, tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "elsewhere").mkdir()
    write(MINIMAL + "output: ../out\n", "sub/base.yaml")
    path = write("base: sub/base.yaml\nweights: {path: w.pt}\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = kinds.load(path, ["data.root=here"])
    assert loaded.output == str(tmp_path / "out")
    assert loaded.weights.path == str(tmp_path / "w.pt")
    assert loaded.data.root == str(tmp_path / "elsewhere" / "here")
    assert loaded.data.cache == str(tmp_path / "out" / "cache")


def test_resolved_config_written_and_read_again_is_the_same(write):
    loaded = kinds.load(write("data: {channels: [a, b], patch: [16, 32, 48], spacing_mm: none}\noptim: {lr: 1e-5}\n"))
    again = kinds.load(write(yaml.safe_dump(config.to_dict(loaded)), "again.yaml"))
    assert again == loaded


@pytest.mark.parametrize(
    "text, said",
    [
        ("optim: {learning_rate: 1}", "unknown key 'optim.learning_rate'"),
        ("optim: {weight_deca: 1}", "did you mean 'optim.weight_decay'?"),
        ("lr: 1", "did you mean 'optim.lr'?"),
        ("optim: 3", "optim: got 3, wanted a section"),
        ("seed: {a: 1}", "wanted a whole number"),
        ("seed: 1.5", "seed: got 1.5 (float), wanted a whole number"),
        ("seed: true", "wanted a whole number"),
        ("seed: 010", "seed: got '010' (str), wanted a whole number"),
        ("seed: 1:30", "seed: got '1:30' (str), wanted a whole number"),
        ("train: {epochs: 1_000}", "train.epochs: got '1_000' (str), wanted a whole number"),
        ("optim: {lr: 1_0}", "optim.lr: got '1_0' (str), wanted a number"),
        ("optim: {lr: 1_0.5}", "optim.lr: got '1_0.5' (str), wanted a number"),
        ("optim: {lr: 1:30.5}", "optim.lr: got '1:30.5' (str), wanted a number"),
        ("seed: -1", "wanted at least 0"),
        ("train: {cuda_graph: yes}", "train.cuda_graph: got 'yes' (str), wanted true or false"),
        ("seed: 0x1f", "seed: got '0x1f' (str), wanted a whole number"),
        ("optim: {lr: fast}", "optim.lr: got 'fast' (str), wanted a number"),
        ("optim: {lr: .nan}", "wanted a finite number"),
        ("optim: {lr: 0}", "wanted more than 0"),
        ("train: {cuda_graph: 1}", "wanted true or false"),
        ("data: {channels: [t1], patch: [32, 32]}", "data.patch: got 2 values"),
        ("data: {channels: [t1], patch: [32, 32, 40]}", "multiples of 16"),
        (
            "data: {channels: [t1], patch: [32, 32, 20]}\nmodel: {name: suprem_unet3d}\neval: {windows: 1}",
            "multiples of 8",
        ),
        ("data: {channels: [t1], patch: [32, 32, 40]}\nmodel: {name: suprem_unet3d}", "eval.windows: got 2, wanted 1"),
        ("data: {channels: [t1], patch: [16, 16, 16]}", "at least one axis of 32"),
        (
            "data: {channels: [t1], patch: [64, 64, 16]}\nmodel: {name: resnet50}",
            "[x, y, 1] with x and y of at least 64",
        ),
        (
            "data: {channels: [t1], patch: [64, 32, 1]}\nmodel: {name: efficientnet_b0}",
            "[x, y, 1] with x and y of at least 64",
        ),
        ("data: {channels: [t1], patch: [64, 64, 1]}", "multiples of 16 for model.name=unet_b"),
        ("model: {attention: cbam}", "model.attention: got cbam, wanted none for model.name=unet_b"),
        ("model: {multiscale: true}", "model.multiscale: got true, wanted false for model.name=unet_b"),
        ("data: {channels: []}", "data.channels"),
        ("data: {channels: [t1, t1]}", "each channel once"),
        ("data: {channels: [t1], source: fomo}", "did you mean 'fomo"),
        ("data: {channels: [t1], source: fomo1}", "data.root: got none"),
        ("task: {type: regression, loss: dice_ce}", "task.loss"),
        ("cv: {folds: 3, folds_to_run: [1, 4]}", "folds from 1 to cv.folds=3"),
        ("cv: {folds_to_run: [0]}", "wanted at least 1"),
        ("cv: {kind: leave_one_group_out}", "data.groups"),
        ("finetune: {strategy: gradual, unfreeze_epoch: 200}", "at most train.epochs=100"),
        ("finetune: {strategy: stagewise, unfreeze_epoch: 101}", "at most train.epochs=100"),
        ("finetune: {strategy: head_only}", "a random encoder would stay random"),
        (
            "finetune: {strategy: frozen_encoder}",
            "got frozen_encoder, wanted full or gradual while weights.path is none",
        ),
        ("finetune: {strategy: decoder_first, unfreeze_epoch: 101}", "at most train.epochs=100"),
        (
            "finetune: {strategy: decoder_first, unfreeze_epoch: 91}\noptim: {warmup_epochs: 11}",
            "optim.warmup_epochs: got 11, wanted at most 10: the epochs from finetune.unfreeze_epoch=91 on",
        ),
        (
            "finetune: {strategy: decoder_first, unfreeze_epoch: 91}\noptim: {warmup_share: 0.2}",
            "optim.warmup_share: got 0.2, wanted at most 0.1, as a share of 100 epochs",
        ),
        ("optim: {warmup_epochs: 101}", "optim.warmup_epochs: got 101, wanted at most train.epochs=100"),
        ("optim: {warmup_epochs: 1, warmup_share: 0.1}", "optim.warmup_share: got 0.1, wanted 0 beside"),
        ("optim: {name: sgd, momentum: 1}", "optim.momentum: got 1, wanted less than 1"),
        ("optim: {name: lion}", "optim.name: got 'lion', wanted one of adamw, sgd"),
        ("data: {channels: [t1], patch: [64, 64, 48]}\nmodel: {name: resenc_unet_b}", "multiples of 32"),
        ("data: {channels: [t1], patch: [32, 32, 32]}\nmodel: {name: resenc_unet_b}", "at least one axis of 64"),
        ("data: {channels: [t1]}\nmodel: {name: resenc_unet_b, skips: false}", "model.skips: got false, wanted true"),
        ("train: {batch_size: 4, micro_batch: 3}", "a divisor of train.batch_size=4"),
        ("name: ../x", "it names a folder"),
        ("name: a\nname: b", "appears twice"),
        ("name: [", "not valid YAML"),
        ("- a", "wanted `key: value` lines"),
        ("name: !!python/object/apply:os.system [true]", "not valid YAML"),
        ("base: c.yaml", "refers back to itself"),
        ("base: missing.yaml", "cannot read the config file"),
    ],
)
def test_a_mistake_is_one_clear_error(write, text, said):
    text = text if "channels" in text or "- a" in text or "name: [" in text else MINIMAL + text
    with pytest.raises(UserError) as caught:
        kinds.load(write(text))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_error_says_which_file_it_is_about(write):
    path = write("")
    with pytest.raises(UserError, match=f"^{path}: data.channels: "):
        kinds.load(path)
    with pytest.raises(UserError, match=f"^{path} and the command line: data.channels: "):
        kinds.load(path, ["seed=1"])
    with pytest.raises(UserError, match="^best.pt: data.channels: "):
        kinds.from_dict({}, "best.pt")
    with pytest.raises(UserError, match=f"^{write('foo: {}')}: unknown key 'foo'"):
        kinds.load(path)


@pytest.mark.parametrize("override", ["optim.lr", "=3", "optim.lr=x", "optim=3", "seed.x=1", "optim.lrr=1"])
def test_bad_overrides_are_errors(write, override):
    with pytest.raises(UserError):
        kinds.load(write(MINIMAL), [override])


def test_help_lists_every_key_with_its_default():
    text = kinds.describe_keys()
    for name, _, value in config.fields(config.Config()):
        line = next(line for line in text.splitlines() if line.strip().startswith(name + "="))
        assert len(line.split(None, 1)[1]) > 10, f"{name} has no explanation"
    assert "optim.lr=auto" in text and "data.patch=[96,96,96]" in text


def test_every_key_is_read_somewhere():
    """No option that is stored and never read."""
    import pathlib
    import re

    root = pathlib.Path(config.__file__).parent
    code = "\n".join(path.read_text() for path in root.parent.rglob("*.py") if path.parent != root)
    for name, _, _ in config.fields(config.Config()):
        assert re.search(rf"[.\"]{name.split('.')[-1]}\b", code), f"{name} is never read"


def test_a_section_of_free_keys_is_inherited_and_overridden_like_any_other(write):
    write(MINIMAL + "augment: {parameters: {rotate: {p: 0.1, degrees: [-5, 5]}}}\n", "base.yaml")
    loaded = kinds.load(write("base: base.yaml\n"), ["augment.parameters.rotate.p=0.7", "augment.parameters.blur.p=1"])
    assert loaded.augment.parameters == {"rotate": {"p": 0.7, "degrees": [-5, 5]}, "blur": {"p": 1}}
    with pytest.raises(UserError, match="augment.parameters: got 3"):
        kinds.load(write(MINIMAL), ["augment.parameters=3"])


def test_identity_ignores_what_changes_no_result(write):
    one = kinds.load(write(MINIMAL))
    two = kinds.load(write(MINIMAL), ["train.workers=7", "output=elsewhere", "cv.folds_to_run=[2]"])
    three = kinds.load(write(MINIMAL), ["optim.lr=1"])
    assert config.identity(one) == config.identity(two)
    assert config.identity(one) != config.identity(three)


def test_off_is_no_false(write):
    assert kinds.load(write(MINIMAL + "train: {amp: off}")).train.amp == "off"


def test_digits_of_a_name_stay_as_they_are_written(write):
    loaded = kinds.load(
        write("data: {channels: [t1], test_folds: [1, 07, 010, 08, 1:30, 1_0, 1_0.5]}\nname: 2026_11_21")
    )
    assert loaded.data.test_folds == ("1", "07", "010", "08", "1:30", "1_0", "1_0.5") and loaded.name == "2026_11_21"
    assert kinds.load(write(yaml.safe_dump(config.to_dict(loaded)))) == loaded


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("data.pattern", "*T1w.nii.gz", "*T1w.nii.gz"),
        ("data.pattern", "[ab]*", "[ab]*"),
        ("data.id_column", "none", "none"),
        ("data.id_column", "null", "null"),
        ("data.id_column", "x #1", "x #1"),
        ("data.fold_column", "none", None),
        ("data.fold_column", "null", None),
        ("data.fold_column", "w: 1/x", "w: 1/x"),
        ("data.fold_column", " 'a b' ", "a b"),
        ("data.fold_column", '"null"', "null"),
        ("data.fold_column", "", None),
        ("data.fold_column", "it's", "it's"),
        ("weights.path", "/w #1/t: 2.pt", "/w #1/t: 2.pt"),
        ("name", "2026_11_21", "2026_11_21"),
        ("name", "2026-11-21", "2026-11-21"),
        ("name", "1_000", "1_000"),
        ("name", "1e5", "1e5"),
        ("name", "yes", "yes"),
        ("train.amp", "off", "off"),
        ("data.test_folds", "[1_0, 010]", ("1_0", "010")),
        ("train.patience", "none", None),
        ("optim.lr", "3e-4 # the best", 3e-4),
    ],
)
def test_text_on_the_command_line_is_taken_as_it_is(write, key, text, value):
    loaded = {name: value for name, _, value in config.fields(kinds.load(write(MINIMAL), [f"{key}={text}"]))}
    assert loaded[key] == value


@pytest.mark.parametrize(
    "override, said",
    [
        ("name=", "name: got None (NoneType), wanted text"),
        ("name=a\0b", "name: not valid YAML"),
        ("name='a' or 'b'", "name: not valid YAML"),
        ("train.epochs=1_000", "train.epochs: got '1_000' (str), wanted a whole number"),
        ("data.channels=*", "data.channels: not valid YAML"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_one_line(write, override, said):
    with pytest.raises(UserError) as caught:
        kinds.load(write(MINIMAL), [override])
    assert str(caught.value).startswith(f"command line: {said}") and "\n" not in str(caught.value)


def test_keys_that_nothing_reads_are_named(write):
    content = """
data: {channels: [t1], source: table, csv: a.csv}
task: {type: multilabel, targets: [a], loss: bce, focal_gamma: 3, mask_ratio: 0.6}
optim: {plateau_patience: 2}
eval: {threshold: half, surface_tolerance_mm: 2}
"""
    loaded = kinds.load(write(content))
    assert list(kinds.unread(loaded)) == ["task.focal_gamma", "optim.plateau_patience", "eval.surface_tolerance_mm"]
    read = ["task.loss=focal", "optim.schedule=plateau", "eval.surface_tolerance_mm=1"]
    assert not list(kinds.unread(kinds.load(write(yaml.safe_dump(config.to_dict(loaded))), read)))
    of_slices = [
        "data.source=slices",
        "data.patch=[64,64,1]",
        "data.normalize=none",
        "model.name=resnet50",
        "task.loss=auto",
    ]
    values = ["data.crop=false", "eval.overlap=0.1", "eval.top_slices=5", "data.crop_position=center"]
    plain = write("data: {channels: [t1], source: table, csv: a.csv}\ntask: {type: multilabel, targets: [a]}\n")
    assert list(kinds.unread(kinds.load(plain, values))) == ["eval.top_slices"]
    assert list(kinds.unread(kinds.load(plain, of_slices + values))) == [
        "data.crop",
        "data.crop_position",
        "eval.overlap",
    ]


ONE_SPLIT = ["data.fold_column=part", "data.test_folds=[b]"]
OF_SLICES = ["data.source=slices", "data.patch=[64,64,1]", "data.normalize=none", "model.name=resnet50"]
LABELS = ["task.type=multilabel", "task.targets=[p,q]", *OF_SLICES]


@pytest.mark.parametrize(
    "given, values, unread",
    [
        ([], ["weights.stem=mean", "weights.part=net."], ["weights.stem", "weights.part"]),
        (["weights.path=w.pt"], ["weights.stem=mean", "weights.part=net."], []),
        (["optim.schedule=constant"], ["optim.min_lr=1e-6"], ["optim.min_lr"]),
        (["optim.schedule=constant", "optim.warmup_epochs=1"], ["optim.min_lr=1e-6"], []),
        (["optim.schedule=plateau"], ["optim.min_lr=1e-6"], []),
        (["train.patience=none"], ["train.min_delta=0.1"], ["train.min_delta"]),
        (["train.patience=none", "optim.schedule=plateau"], ["train.min_delta=0.1"], []),
        (["cv.kind=fold_column"], ["cv.folds=3"], ["cv.folds"]),
        (["cv.kind=leave_one_group_out", "data.groups=g.csv"], ["cv.folds=3"], ["cv.folds"]),
        (ONE_SPLIT, ["cv.folds=3", "cv.kind=fold_column"], ["cv.kind", "cv.folds"]),
        (ONE_SPLIT, ["cv.val_fraction=0.3", "cv.stratify=false"], []),
        (
            [*ONE_SPLIT, "data.val_folds=[a]"],
            ["cv.val_fraction=0.3", "cv.stratify=false"],
            ["cv.val_fraction", "cv.stratify"],
        ),
        (["task.type=mae", "task.targets=[]"], ["cv.folds=3", "cv.stratify=false"], ["cv.folds", "cv.stratify"]),
        (LABELS, ["data.spacing_mm=[2,2,2]", "data.prepare_workers=0"], ["data.spacing_mm", "data.prepare_workers"]),
        (LABELS, ["eval.mirror_axes=[0,2]"], ["eval.mirror_axes=2"]),
        ([], ["eval.mirror_axes=[0,2]"], []),
    ],
)
def test_keys_are_read_or_not_by_the_values_of_others(write, given, values, unread):
    path = write("data: {channels: [t1], source: table, csv: a.csv}\ntask: {type: regression, targets: [age]}\n")
    assert kinds.unread(kinds.load(path, given)) == []
    assert kinds.unread(kinds.load(path, given + values)) == unread


def test_keys_of_a_table_that_phantoms_make_themselves_are_not_read(write):
    path = write("data: {channels: [t1], source: phantom, phantom_layout: table}\ntask: {targets: [gender]}\n")
    columns = ["data.id_column", "data.subject_column", "data.fold_column"]
    assert kinds.unread(kinds.load(path, [f"{name}=other" for name in columns])) == columns


def test_windows_are_read_of_where_a_case_needs_several(write):
    path = write("data: {channels: [t1], source: table, csv: a.csv}\ntask: {type: regression, targets: [age]}\n")
    loaded = kinds.load(path, ["eval.overlap=0.1", "eval.pool_windows=max", "train.patience=none"])
    assert kinds.unread(loaded) == []
    assert kinds.unread(loaded, windows="one") == ["eval.overlap", "eval.pool_windows"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configs_set_nothing_that_they_do_not_read(path):
    assert not list(kinds.unread(kinds.load(path)))


def test_what_a_key_is_for_names_keys_and_values():
    values = {name: (field, value) for name, field, value in config.fields(config.Config())}
    choices = kinds.choices()
    for name, (field, _) in values.items():
        for condition in field.metadata["only"].replace(" or ", " ").split():
            other, wanted = condition.replace("!=", "=").split("=")
            if other == "windows":
                assert wanted == "several"
                continue
            known = choices.get(other) or values[other][0].metadata["choices"]
            plain = {"none", "0", "[]"}  # of keys that may have any value
            assert set(wanted.split("|")) < set(known) if known else wanted in plain, f"{name}: {condition}"
    for kind in (*tasks.TASKS.values(), *sources.SOURCES.values()):
        assert {*kind.keys, *kind.options} <= set(values), kind


def test_a_key_of_older_checkpoints_is_understood():
    for old, tracker in ((True, "tensorboard"), (False, "none")):
        assert config.from_dict({"tensorboard": old, "name": "old"}, "old.pt").tracker == tracker
    assert config.from_dict({"train": {"compile": True, "epochs": 3}}, "old.pt").train.epochs == 3
