"""What is frozen when, to the bit, and the learning rates and decays of what is not."""

import copy

import pytest
import torch

from fomo import checkpoint, kinds, losses, nets
from fomo.config import UserError
from fomo.nets import norm
from fomo.report.run import read_log
from fomo.run_folder import RunFolder
from fomo.runs import crossval
from fomo.training import optimization
from fomo.training.clock import Clock
from fomo.training.step import train_step

CPU = torch.device("cpu")
LONG = {"train": {"epochs": 9}, "optim": {"weight_decay": 0.1}}


def load(tiny_config, **sections):
    return kinds.load(tiny_config(**sections))


class Task:
    def loss(self, outputs, batch):
        return losses.cross_entropy(outputs, batch["target"])


def make_network():
    torch.manual_seed(0)
    return nets.build("unet_b", 1, 2, mode="classification", width=2)


def make_slices(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(count, 2, 64, 64, 1, generator=generator)
    return {"image": image, "target": (torch.arange(count) % 3 == 0).long(), "id": [f"case{i}" for i in range(count)]}


def slices_network(name):
    """Its features are not zero, as those of an untrained one are, nearly."""
    torch.manual_seed(0)
    network = nets.build(name, 2, 2, mode="classification", width=4, dropout=0.2, attention="cbam")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def test_layer_decay_slows_earlier_stages_and_norms_and_biases_do_not_decay(tiny_config):
    config = load(tiny_config, finetune={"layer_decay": 0.5}, optim={"weight_decay": 0.1})
    network = make_network()
    optimizer = optimization.build_optimizer(config, network, CPU)
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(group_of) == len(list(network.parameters()))
    scale = {name: group_of[id(p)]["lr_scale"] for name, p in network.named_parameters()}
    decay = {name: group_of[id(p)]["weight_decay"] for name, p in network.named_parameters()}
    assert scale["decoder.fc.weight"] == 1 and scale["encoder.encoder_conv4.conv1.conv.weight"] == 0.5
    assert scale["encoder.in_conv.conv1.conv.weight"] == 0.5**5
    assert decay["encoder.in_conv.conv1.conv.weight"] == 0.1
    assert decay["encoder.in_conv.conv1.conv.bias"] == decay["encoder.in_conv.conv1.norm.weight"] == 0


@pytest.mark.parametrize("strategy", ["full", "gradual", "decoder_first", "frozen_encoder", "head_only"])
def test_what_each_strategy_freezes(tiny_config, tmp_path, strategy):
    config = load(
        tiny_config,
        finetune={"strategy": strategy, "unfreeze_epoch": 3},
        train={"epochs": 4},
        weights={"path": str(tmp_path / "w.pt")},
    )
    network = make_network()
    for epoch in range(4):
        optimization.freeze(network, optimization.frozen_prefixes(config, network, epoch))
        encoder = {p.requires_grad for p in network.encoder.parameters()}
        head = {p.requires_grad for p in network.decoder.fc.parameters()}
        assert head == {True}
        assert encoder == {strategy == "full" or (strategy in ("gradual", "decoder_first") and epoch >= 2)}


@pytest.mark.parametrize("name, stages", [("unet_b", 5), ("resenc_unet_s", 6), ("suprem_unet3d", 4), ("resnet50", 5)])
def test_the_first_stages_stay_frozen_whatever_the_strategy_unfreezes(tiny_config, tmp_path, name, stages):
    network = nets.build(name, 1, 2, mode="classification", width=4)
    weights = {"path": str(tmp_path / "w.pt")}
    for count in (0, 1, 3, stages):
        for strategy in ("full", "gradual", "stagewise"):
            finetune = {"frozen_stages": count, "strategy": strategy, "unfreeze_epoch": 2, "unfreeze_every": 1}
            config = load(tiny_config, finetune=finetune, weights=weights, **LONG)
            optimization.freeze(network, optimization.frozen_prefixes(config, network, 8))
            wanted = tuple(prefix for stage in network.stages[:count] for prefix in stage)
            assert all(p.requires_grad != name.startswith(wanted) for name, p in network.named_parameters())
    first = optimization.frozen_prefixes(config, network, 0)
    assert len(set(first)) == len(first) and not [one for one in first if one.startswith(tuple(set(first) - {one}))]
    config = load(tiny_config, finetune={"frozen_stages": stages + 1}, weights=weights)
    with pytest.raises(
        UserError, match=f"frozen_stages: got {stages + 1}, wanted at most {stages}, the encoder stages"
    ):
        optimization.always_frozen(config, network)


def test_random_stages_are_not_frozen(tiny_config):
    with pytest.raises(UserError, match="finetune.frozen_stages: got 2, wanted 0 while weights.path is none"):
        load(tiny_config, finetune={"frozen_stages": 2})


@pytest.mark.parametrize("strategy", ["full", "frozen_encoder"])
def test_the_log_names_what_is_frozen_and_it_does_not_move(tiny_config, tmp_path, strategy):
    start = nets.build("unet_b_lw_dec", 1, 1, width=2)
    checkpoint.save(tmp_path / "w.pt", {"model": start.state_dict()})
    finetune = {"strategy": strategy, **({"frozen_stages": 2} if strategy == "full" else {})}
    sections = {"finetune": finetune, "weights": {"path": str(tmp_path / "w.pt")}, "train": {"epochs": 1}}
    channels = {"data": {"channels": ["t1"]}}
    crossval.run(kinds.load(tiny_config("regression", **sections, **channels)), one_split=True)
    [line] = [event for event in read_log(tmp_path / "runs" / "run" / "log.txt") if event["event"] == "freeze"]
    names = "encoder." if strategy == "frozen_encoder" else "encoder.in_conv,encoder.encoder_conv1"
    assert line["frozen"].strip("[]()").replace(" ", "") == names, line
    trained = checkpoint.load(RunFolder(str(tmp_path / "runs" / "run")).fold(1).best)["model"]
    shared = [name for name in start.state_dict() if name in trained and name.startswith("encoder.")]
    same = {name for name in shared if torch.equal(trained[name], start.state_dict()[name])}
    assert same == {name for name in shared if name.startswith(tuple(names.split(",")))}


@pytest.mark.parametrize("strategy", ["decoder_first", "frozen_encoder"])
def test_a_new_decoder_is_trained_on_a_frozen_encoder(tiny_config, tmp_path, strategy):
    config = load(
        tiny_config,
        finetune={"strategy": strategy, "unfreeze_epoch": 3},
        train={"epochs": 4},
        weights={"path": str(tmp_path / "w.pt")},
    )
    network = nets.build("resenc_unet_s", 1, 2, width=1)
    optimization.freeze(network, optimization.frozen_prefixes(config, network, 1))
    assert all(p.requires_grad == name.startswith("decoder.") for name, p in network.named_parameters())


def rates(tiny_config, **sections):
    """The learning rate of each step of a training with 10 steps per epoch."""
    config = load(tiny_config, **sections)
    clock = Clock(config, 10)
    return [optimization.current_lr(config, step, clock, []) for step in range(10 * config.train.epochs)]


def test_decoder_first_has_two_warm_ups_and_then_a_cosine(tiny_config):
    """By the scheduler of the FOMO26 baseline, written with torch's."""
    finetune, train = {"strategy": "decoder_first", "unfreeze_epoch": 4}, {"epochs": 9}
    optim = {"lr": 1e-2, "warmup_epochs": 2, "cosine_stretch": 1, "min_lr": 0}
    found = rates(tiny_config, finetune=finetune, train=train, optim=optim)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1e-2)
    lr = torch.optim.lr_scheduler
    alone = lr.LambdaLR(optimizer, lambda step: 0.001 + 0.999 * step / 30)
    both = lr.LinearLR(optimizer, start_factor=0.001, total_iters=20)
    schedule = lr.SequentialLR(optimizer, [alone, both, lr.CosineAnnealingLR(optimizer, T_max=40)], [30, 50])
    wanted = []
    for _ in range(90):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert found == pytest.approx(wanted, rel=1e-6)
    assert found[30] == pytest.approx(1e-5) and found[29] > 0.9e-2 and max(found[31:]) == found[50] == 1e-2


def test_a_warm_up_by_share_is_one_of_so_many_epochs(tiny_config):
    optim = {"lr": 1e-2, "cosine_stretch": 1}
    by_share = rates(tiny_config, train={"epochs": 8}, optim={**optim, "warmup_share": 0.25})
    assert by_share == rates(tiny_config, train={"epochs": 8}, optim={**optim, "warmup_epochs": 2})
    assert by_share[0] == pytest.approx(1e-5) and by_share[20] == 1e-2 and by_share[19] < 1e-2


def test_the_optimizer_and_its_averages_are_as_configured(tiny_config):
    network = make_network()
    adamw = optimization.build_optimizer(load(tiny_config, optim={"betas": [0.9, 0.98]}), network, CPU)
    assert all(group["betas"] == (0.9, 0.98) and "eps" in group for group in adamw.param_groups)
    config = load(tiny_config, optim={"name": "sgd", "momentum": 0.9, "lr": 0.1, "weight_decay": 0.01})
    optimizer = optimization.build_optimizer(config, network, CPU)
    theirs = copy.deepcopy(network)
    decayed = [p for p in theirs.parameters() if p.ndim > 1]
    rest = [p for p in theirs.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": rest}]
    wanted = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    for step in range(3):
        image = torch.randn(2, 1, 32, 16, 16, generator=torch.Generator().manual_seed(step))
        for each, by in ((network, optimizer), (theirs, wanted)):
            by.zero_grad()
            each(image).square().mean().backward()
            by.step()
    assert all(torch.equal(*pair) for pair in zip(network.parameters(), theirs.parameters()))


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0", "unet_b"])
def test_stage_by_stage_from_the_head_down(tiny_config, name):
    finetune = {"strategy": "stagewise", "unfreeze_epoch": 3, "unfreeze_every": 2}
    config = load(tiny_config, finetune=finetune, **LONG)
    network = slices_network(name) if name != "unet_b" else make_network()
    for epoch, trained in ((1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3), (7, 4), (100, len(network.stages))):
        frozen = optimization.frozen_prefixes(config, network, epoch - 1)
        assert frozen == tuple(prefix for stage in network.stages[: len(network.stages) - trained] for prefix in stage)


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0"])
@pytest.mark.parametrize("strategy", ["gradual", "stagewise", "head_only"])
def test_frozen_is_frozen_to_the_bit_and_what_is_not_moves(tiny_config, tmp_path, name, strategy):
    """Parameters and running statistics, over epochs with evaluations between them."""
    finetune = {"strategy": strategy, "unfreeze_epoch": 2, "unfreeze_every": 1}
    config = load(tiny_config, finetune=finetune, weights={"path": str(tmp_path / "w.pt")}, **LONG)
    network = slices_network(name)
    optimizer = optimization.build_optimizer(config, network, CPU)
    autocast, scaler = optimization.precision("off", CPU)
    for epoch in range(4):
        frozen = optimization.frozen_prefixes(config, network, epoch)
        optimization.freeze(network, frozen)
        before = copy.deepcopy(network.state_dict())
        for step in range(2):
            train_step(network, Task(), [make_slices(4, 10 * epoch + step)], optimizer, scaler, autocast, 1.0)
        moved = {n for n, value in network.state_dict().items() if not torch.equal(value, before[n])}
        assert not [n for n in moved if frozen and n.startswith(frozen)]
        assert any(n.startswith(network.head_prefixes) for n in moved)
        assert not [n for n in before if n not in moved and not n.startswith((*frozen, *network.head_prefixes))]
        network.eval()
    assert bool(frozen) == (strategy != "gradual")


def test_the_average_equals_torchs():
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    network = slices_network("resnet50")
    own = optimization.Average(network, 0.9)
    theirs = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for step in range(3):
        network.train()(make_slices(4, step)["image"])  # its running statistics move
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1.1)
        own.update(network)
        theirs.update_parameters(network)
        wanted = theirs.module.state_dict()
        for name, value in own.module.state_dict().items():
            wanted_value = (
                wanted[name] if value.is_floating_point() else network.state_dict()[name]
            )  # counts are not averaged
            assert torch.equal(value, wanted_value), name


@pytest.mark.parametrize(
    "problem, cudnn, last, said",
    [(None, 90100, True, 0), ("no compiler", 90100, False, 1), ("no compiler", 91002, True, 2), (None, 91501, True, 0)],
)
def test_on_a_gpu_instance_norms_decide_on_the_layout(monkeypatch, problem, cudnn, last, said):
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    monkeypatch.setattr(norm, "problem", lambda device: problem)
    for name, device, wanted in (("unet_b", "cuda", last), ("unet_b", "cpu", True), ("suprem_unet3d", "cuda", True)):
        network = nets.build(name, 1, 2, mode="classification", width=4)
        network.to = lambda device: network
        layout = optimization.lay_out(network, torch.device(device))
        assert layout == (torch.channels_last_3d if wanted else torch.contiguous_format)
        large = [
            m
            for m in network.modules()
            if isinstance(m, torch.nn.Conv3d) and max(m.kernel_size) > 1 and m.in_channels > 1
        ]
        assert large and all(m.weight.is_contiguous(memory_format=layout) for m in large)
    assert len(list(optimization.doubts(torch.device("cuda"), "resnet50", "unet_b"))) == said
    of_layout = cudnn < 91500 and cudnn >= 90800
    assert len(list(optimization.doubts(torch.device("cuda"), "suprem_unet3d", "resnet50"))) == of_layout
    assert not list(optimization.doubts(CPU, "unet_b"))


def test_what_is_frozen_drops_nothing():
    network = slices_network("efficientnet_b0")
    optimization.freeze(network, network.encoder_prefixes)
    image = make_slices(4)["image"]
    with torch.no_grad():
        assert torch.equal(network.features(image), network.features(image))
        assert not torch.equal(network(image), network(image))  # the head's own dropout
        optimization.freeze(network, ())
        assert not torch.equal(network.features(image), network.features(image))


def test_frozen_running_statistics_stay_and_others_move():
    network = torch.nn.ModuleDict(
        {"encoder": torch.nn.Sequential(torch.nn.BatchNorm1d(3)), "head": torch.nn.BatchNorm1d(3)}
    )
    optimization.freeze(network, ("encoder.",))
    for part in network.values():
        part(torch.randn(8, 3) + 5)
    assert torch.equal(network["encoder"][0].running_mean, torch.zeros(3))
    assert (network["head"].running_mean > 0.1).all()
