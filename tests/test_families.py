"""Weights from elsewhere: where a file is from is seen by its content, and every tensor of it is accounted for."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, tool
from make_lightning_fixture import PATH, state_of

from fomo import checkpoint, nets
from fomo.config import UserError

torch.set_num_threads(1)
REFERENCE = ROOT.parent / "shared" / "data" / "reference"


def net(name="resenc_unet_s", channels=1, classes=2, mode="segmentation", seed=0, width=1, **options):
    torch.manual_seed(seed)
    return nets.build(name, channels, classes, mode=mode, width=width, **options)


def write(tmp_path, content):
    torch.save(content, tmp_path / "file.ckpt")
    return str(tmp_path / "file.ckpt")


def total(report):
    """The tensors of the file, by the report: all but the new ones are in it."""
    return sum(report.counts().values()) - len(report.new)


def lightning(state, prefix="model."):
    named = {prefix + name: value for name, value in state.items()}
    return {"state_dict": named, "hyper_parameters": {}, "pytorch-lightning_version": "2.5"}


# ------------------------------------------------------------------------------- the FOMO26 baseline


@pytest.mark.parametrize("mode", ["classification", "regression", "segmentation"])
def test_a_lightning_file_of_the_baseline_fills_every_encoder_tensor(mode):
    """The file holds objects of classes that are not installed."""
    network = net(channels=3, mode=mode)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    report = checkpoint.load_weights(network, PATH)
    wanted = state_of(net(classes=1, skips=False))
    encoder = {name for name in wanted if name.startswith("encoder.")}
    assert {*report.loaded, *report.adapted} == encoder and report.adapted == (network.stem,)
    after = network.state_dict()
    assert all(torch.equal(after[name], wanted[name].float()) for name in report.loaded)
    assert all(torch.equal(after[name], before[name]) for name in report.new)
    assert (report.family, report.part) == ("fomo26", "model._orig_mod.")
    assert len(report.aliases) == len(checkpoint.with_aliases(wanted)) - len(wanted) == 132
    assert total(report) == len(wanted) + 132
    again = net(classes=1, skips=False)
    assert checkpoint.load_weights(again, PATH).counts() == dict(loaded=144, new=0, adapted=0, ignored=0, aliases=132)


def test_a_file_with_real_omegaconf_objects_is_read(tmp_path):
    omegaconf = pytest.importorskip("omegaconf")
    content = lightning(checkpoint.with_aliases(state_of(net())))
    content["hyper_parameters"] = {"config": omegaconf.OmegaConf.create({"lr": 1e-4, "patch": [160, 160, "${lr}"]})}
    report = checkpoint.load_weights(net(seed=1), write(tmp_path, content))
    assert total(report) == len(content["state_dict"]) and len(report.loaded) == 144


def test_reading_it_imports_nothing():
    """In a process of its own: what a file names must not be looked for, even if it is installed."""
    script = f"""
import sys
from fomo import checkpoint, nets
network = nets.build("resenc_unet_s", 1, 1, width=1, skips=False)
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("omegaconf", "lightning", "numpy.core", "antigravity"):
            raise SystemExit("looked for " + name)
sys.meta_path.insert(0, Refuse())
before = set(sys.modules)
checkpoint.load_weights(network, {str(PATH)!r})
print(sorted(name for name in set(sys.modules) - before if not name.startswith("encodings")))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_names_that_differ_where_they_should_be_one_tensor_are_an_error(tmp_path):
    state = checkpoint.with_aliases(state_of(net()))
    name = "encoder.stages.2.blocks.0.conv1.all_modules.0.weight"
    state[name] = state[name] + 1
    model = net(seed=1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match=f"conv1.conv.weight, model.{name} should be one tensor, and they differ"):
        checkpoint.load_weights(model, write(tmp_path, lightning(state)))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_file_with_the_second_names_alone_is_read(tmp_path):
    state = checkpoint.with_aliases(state_of(net()))
    alone = {n: v for n, v in state.items() if ".all_modules." in n or not n.endswith(tuple(ENDS))}
    report = checkpoint.load_weights(net(seed=1), write(tmp_path, lightning(alone)))
    assert len(report.loaded) == len(alone) == 144 and not report.aliases


ENDS = [f".{layer}.{kind}" for layer in ("conv", "norm_op") for kind in ("weight", "bias")]


def test_second_names_are_those_of_the_original(shared_data):
    for case in torch.load(REFERENCE / "resenc_unet.pt", weights_only=True).values():
        both = checkpoint.with_aliases(case["state"])
        assert both.keys() == case["state"].keys() | case["aliases"].keys()
        assert all(both[alias] is both[name] for alias, name in case["aliases"].items())
    plain = net("unet_b").state_dict()
    assert checkpoint.with_aliases(plain).keys() == plain.keys()


@pytest.mark.parametrize("pooling, warned", [("average", True), ("maximum", False)])
def test_a_classifier_of_the_baseline_asks_for_its_own_pooling(tmp_path, pooling, warned):
    state = checkpoint.with_aliases(state_of(net(mode="classification")))
    path = write(tmp_path, lightning(state))
    report = checkpoint.load_weights(net(mode="classification", seed=1, skip_pooling=pooling), path)
    assert bool(report.doubts) == warned and total(report) == len(state) and not report.new
    assert not checkpoint.load_weights(net(mode="classification"), PATH).doubts  # pretrained: by the average


def test_an_export_for_the_baseline_fits_its_class_strictly(tmp_path, shared_data):
    """By the names, and by the names that say a tensor again, of the original at full size; here narrow."""
    pretrained = net("resenc_unet_b", classes=1, skips=False, seed=3)
    checkpoint.save(str(tmp_path / "best.pt"), {"model": pretrained.state_dict()})
    tool("export", tmp_path / "best.pt", "--output", tmp_path / "w.ckpt", "--for", "baseline")
    state = torch.load(tmp_path / "w.ckpt", weights_only=True)["state_dict"]
    names = {name.removeprefix("model.") for name in state}
    full = json.loads((REFERENCE / "resenc_unet_names.json").read_text())
    shapes = full["resenc_unet_b pretraining 1->1 without skips"]["shapes"]
    aliases = torch.load(REFERENCE / "resenc_unet.pt", weights_only=True)["pretraining_without_skips"]["aliases"]
    assert names == shapes.keys() | aliases.keys() and len(state) == len(names) == 256 + 244
    assert all(torch.equal(state[f"model.{alias}"], state[f"model.{name}"]) for alias, name in aliases.items())
    for mode, skips in (("segmentation", True), ("classification", True), ("segmentation", False)):
        options = {} if skips else {"skips": False}
        model = net("resenc_unet_b", mode=mode, classes=1, seed=4, **options)
        report = checkpoint.load_weights(model, tmp_path / "w.ckpt")
        assert total(report) == 500 and report.family == "fomo26" and len(report.aliases) == 244
        assert {name for name in model.state_dict() if name.startswith("encoder.")} <= set(report.loaded)
    with pytest.raises(SystemExit):
        tool("export", tmp_path / "best.pt", "--output", tmp_path / "x", "--for", "baseline", "--prefix", "a.")


# ------------------------------------------------------------------------------- nnU-Net and OpenMind


def as_nnunet(state, last=4):
    """The same tensors under nnU-Net's names, each layer twice and the encoder again below the decoder."""
    named = {}
    for name, value in state.items():
        if name.startswith("decoder.ds_out_convs."):
            continue
        new = name.replace("norm_op", "norm").replace("stem.conv1", "stem.convs.0")
        new = new.replace("decoder.upsample_layers", "decoder.transpconvs")
        new = new.replace("decoder.out_conv", f"decoder.seg_layers.{last}")
        if "decoder.decoder_convs" in new:
            new = new.replace("decoder.decoder_convs", "decoder.stages").replace(".conv1.", ".convs.0.")
        seconds = {new, new.replace(".conv.", ".all_modules.0.").replace(".norm.", ".all_modules.1.")}
        named |= {second: value for second in sorted(seconds)}
        if new.startswith("encoder."):
            named |= {f"decoder.{second}": value for second in sorted(seconds)}
    return named


def nnunet_file(tmp_path, case, **more):
    return write(tmp_path, {"network_weights": case["state"], "trainer_name": "nnUNetTrainer", **more})


@pytest.mark.parametrize("name", ["segmentation", "segmentation_deep_supervision"])
def test_a_file_of_nnunet_gives_its_outputs(shared_data, tmp_path, name):
    case = torch.load(REFERENCE / "nnunet_resenc.pt", weights_only=True)[name]
    deep = "deep" in name
    finest = case["y"][0] if deep else case["y"]
    network = net("resenc_unet_b", case["x"].shape[1], finest.shape[1], seed=5, deep_supervision=deep)
    report = checkpoint.load_weights(network, nnunet_file(tmp_path, case))
    assert report.family == "nnunet" and total(report) == len(case["state"]) == 956
    bottleneck = ("decoder.ds_out_convs.0.weight", "decoder.ds_out_convs.0.bias")
    assert report.new == (bottleneck if deep else ())
    assert len(report.ignored) == (0 if deep else 8)
    with torch.backends.mkldnn.flags(enabled=False):
        outputs = network(case["x"])
        for got, wanted in zip(outputs if deep else [outputs], case["y"] if deep else [case["y"]]):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(network.encoder(case["x"])[-1], case["bottleneck"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["classification", "regression", "segmentation"])
def test_openmind_fills_the_encoder_of_every_task(tmp_path, mode):
    state = as_nnunet(state_of(net(classes=1)))
    content = {"network_weights": state, "citations": [], "nnssl_adaptation_plan": {"key_to_encoder": "encoder"}}
    network = net(channels=2, classes=3, mode=mode, seed=1)
    report = checkpoint.load_weights(network, write(tmp_path, content))
    assert report.family == "openmind" and total(report) == len(state) and report.adapted == (network.stem,)
    head = {name for name in network.state_dict() if name.startswith(network.head_prefixes)}
    assert set(report.new) == head
    assert {name for name in network.state_dict() if name.startswith("encoder.")} == {*report.loaded, network.stem} - {
        name for name in report.loaded if name.startswith("decoder.")
    }


def test_a_second_copy_of_the_encoder_that_differs_is_an_error(tmp_path):
    state = as_nnunet(state_of(net()))
    name = "decoder.encoder.stages.0.blocks.0.conv1.conv.bias"
    state[name] = state[name] + 1
    with pytest.raises(UserError, match=f"{name} should be one tensor, and they differ"):
        checkpoint.load_weights(net(seed=1), write(tmp_path, {"network_weights": state}))


# --------------------------------------------------------------------------------- the replaced systems


def test_the_teacher_is_taken_before_the_student_unless_asked(tmp_path):
    """What the OAI example writes of DINO."""
    teacher, student = (net("suprem_unet3d", mode="classification", seed=seed, width=2).state_dict() for seed in (1, 2))
    content = {
        **{f"student_backbone.{name}": value for name, value in student.items()},
        **{f"teacher_backbone.{name}": value for name, value in teacher.items()},
        "student_head.last.weight": torch.ones(3, 3),
        "teacher_head.last.weight": torch.ones(3, 3),
    }
    path = write(tmp_path, lightning(content, ""))
    for part, wanted, prefix in ((None, teacher, "teacher_backbone."), ("student", student, "student_backbone.")):
        network = net("suprem_unet3d", mode="classification", seed=3, width=2)
        report = checkpoint.load_weights(network, path, part=part)
        assert (report.family, report.part) == ("dino", prefix) and total(report) == len(content)
        assert all(torch.equal(network.state_dict()[name], wanted[name]) for name in report.loaded)
    with pytest.raises(UserError, match="weights.part: got pupil, wanted one of student_backbone., teacher_backbone."):
        checkpoint.load_weights(network, path, part="pupil")
    plain = write(tmp_path, network.state_dict())
    with pytest.raises(UserError, match="weights.part: got pupil, wanted none, as nothing stands before the network's"):
        checkpoint.load_weights(network, plain, part="pupil")


def test_several_networks_without_a_teacher_are_asked_about(tmp_path):
    one, two = (net("unet_b", mode="regression", seed=seed).state_dict() for seed in (1, 2))
    content = {**{f"model.{n}": v for n, v in one.items()}, **{f"ema.{n}": v for n, v in two.items()}}
    path = write(tmp_path, lightning(content, ""))
    network = net("unet_b", mode="regression")
    with pytest.raises(UserError, match="weights.part: got none, wanted one of ema., model."):
        checkpoint.load_weights(network, path)
    report = checkpoint.load_weights(network, path, part="ema.")
    assert report.part == "ema." and total(report) == len(content) and len(report.ignored) == len(one)
    assert torch.equal(network.state_dict()[network.stem], two[network.stem])


@pytest.mark.parametrize("name", ["unet_b", "suprem_unet3d"])
def test_the_classifier_of_the_oai_example_loads(tmp_path, name):
    state = net(name, mode="classification", seed=1, width=2).state_dict()
    content = {f"_model.backbone.{key}": value for key, value in state.items()}
    content["_model.heads.0.weight"] = torch.ones(2, 2)
    network = net(name, mode="classification", seed=2, width=2)
    report = checkpoint.load_weights(network, write(tmp_path, lightning(content, "")))
    assert report.part == "_model.backbone." and report.ignored == ("_model.heads.0.weight",)
    assert total(report) == len(content) and len(report.loaded) == len(state)


def numbered(name):
    """Names as Sequential(*network.children()) gives them to torchvision's networks."""
    children = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc"]
    first, rest = name.split(".", 1)
    return f"{0 if first == 'features' else children.index(first)}.{rest}"


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0"])
@pytest.mark.parametrize("style", ["backbone.", "model.backbone.", "encoder.", "numbered"])
def test_backbones_of_slices_load_by_name_or_number(tmp_path, name, style):
    """VLM3D's files have a classifier beside them; RadImageNet's are numbered, too."""
    state = net(name, 3, 5, "classification", seed=1, width=4).state_dict()
    body = {key: value for key, value in state.items() if not key.startswith(("fc.", "classifier."))}
    prefix = "backbone." if style == "numbered" else style
    content = {prefix + (numbered(key) if style == "numbered" else key): value for key, value in body.items()}
    content |= {"classifier.1.weight": torch.ones(18, 7), "classifier.1.bias": torch.ones(18)}
    network = net(name, 3, 2, "classification", seed=2, width=4)
    report = checkpoint.load_weights(network, write(tmp_path, lightning(content, "")))
    assert set(report.loaded) == set(body) and total(report) == len(content) and report.part == prefix
    assert report.family == ("numbered" if style == "numbered" else "lightning")
    assert set(report.ignored) == {"classifier.1.weight", "classifier.1.bias"}
    assert all(torch.equal(network.state_dict()[key], body[key]) for key in body)


def test_a_network_of_another_kind_is_refused_with_its_names(tmp_path):
    path = write(tmp_path, lightning({"backbone.blocks.0.attn.qkv.weight": torch.ones(3)}, ""))
    with pytest.raises(UserError, match="none of its 1 tensors is in the network: it has backbone.blocks.0.attn"):
        checkpoint.load_weights(net("resnet50", 3, 2, "classification", width=4), path)


def test_subjects_that_are_no_names_are_left_out(tmp_path):
    content = {"model": state_of(net()), "config": {}, "subjects": ["a", {"b": 1}, 3]}
    report = checkpoint.load_weights(net(seed=1), write(tmp_path, content))
    assert (report.family, report.subjects) == ("fomo", ("a",))


def test_the_fixture_is_small():
    assert os.path.getsize(PATH) < 100_000
