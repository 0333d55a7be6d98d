"""The graphs of a network's passes, with stand-ins that replay by doing the work again; `test_gpu` has real ones."""

import contextlib
import types

import pytest
import torch

from fomo import nets
from fomo.training import graphs


class Recorded:
    """A stand-in for torch.cuda.CUDAGraph: what was captured is called again, into the same tensors."""

    def __init__(self):
        self.again = None

    def replay(self):
        self.again()


@pytest.fixture
def cuda(monkeypatch):
    """torch.cuda as far as graphs use it, on the CPU; its `broken` says what a replay adds to the first output."""
    faked = types.SimpleNamespace(broken=0.0, refuses=False, share=0.1, replays=0)

    @contextlib.contextmanager
    def graph(one, **how):
        assert how["capture_error_mode"] == "thread_local"
        if faked.refuses:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        yield
        passes = faked.passes

        def forward():
            faked.replays += 1
            with torch.enable_grad():
                passes.again = passes._call()
            with torch.no_grad():
                for own, new in zip(passes.outputs, passes.again):
                    own.copy_(new + faked.broken)

        def backward():
            with torch.enable_grad():
                gradients = passes._differentiate(passes.again)
            for own, new in zip(passes.gradients, gradients):
                if own is not None:
                    own.copy_(new)

        one.again = forward if one is passes.forward else backward

    plain = graphs._Passes._call

    def call(passes):
        faked.passes = passes
        return plain(passes)

    generator = types.SimpleNamespace(clone_state=lambda: 0, graphsafe_set_state=lambda state: None)
    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        "CUDAGraph": Recorded,
        "graph": graph,
        "Stream": lambda device: stream,
        "stream": lambda one: contextlib.nullcontext(),
        "current_stream": lambda device=None: stream,
        "set_stream": lambda one: None,
        "graph_pool_handle": lambda: None,
        "empty_cache": lambda: None,
        "memory_reserved": lambda device: faked.share * 100,
        "get_device_properties": lambda device: types.SimpleNamespace(total_memory=100),
        "get_rng_state": lambda device: torch.get_rng_state(),
        "set_rng_state": lambda state, device: torch.set_rng_state(state),
        "default_generators": {None: generator},
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(graphs._Passes, "_call", call)
    return faked


def train(graphed, steps=4, **options):
    """(losses, buffers) of a network, called as graphs or as it is."""
    torch.manual_seed(0)
    network = nets.build("suprem_unet3d", 1, 2, width=4, **options).train()
    forward = graphs.Graphed(network) if graphed else network
    optimizer, found = torch.optim.SGD(network.parameters(), lr=0.1), []
    for step in range(steps):
        torch.manual_seed(step)
        image = torch.randn(2, 1, 16, 16, 16)
        output = forward(image)
        loss = torch.nn.functional.cross_entropy(output, (image[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found, [buffer.clone() for buffer in network.buffers()], forward


def test_a_training_is_the_same(cuda):
    (own, own_buffers, forward), (plain, buffers, _) = train(True), train(False)
    assert forward.problem is None and cuda.replays == 5  # one of them is the comparison
    assert own == pytest.approx(plain, abs=1e-5) and own[-1] < own[0]
    assert all(torch.allclose(a.float(), b.float(), atol=1e-4) for a, b in zip(own_buffers, buffers, strict=True))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"broken": 1.0}, "their outputs differ by"),
        ({"refuses": True}, "RuntimeError: operation not permitted when stream is capturing"),
        ({"share": 0.8}, "they keep 80% of the GPU's memory, wanted at most 50%"),
    ],
)
def test_without_graphs_it_is_trained_as_it_is_and_the_reason_is_kept(cuda, change, said):
    vars(cuda).update(change)
    (own, own_buffers, forward), (plain, buffers, _) = train(True, steps=2), train(False, steps=2)
    assert forward.problem.startswith(said) and own == plain
    assert all(torch.equal(a, b) for a, b in zip(own_buffers, buffers, strict=True))


def test_lists_go_in_and_out_fixed_outputs_have_no_gradient_and_other_shapes_are_seen_as_they_are(cuda):
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.unused = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)

        def forward(self, views):
            with torch.no_grad():
                fixed = self.layer(views[1])
            return [self.layer(views[0])], fixed, None  # as maps, numbers of a case, and what there is none of

    network, views = Two(), [torch.randn(4, 3), torch.randn(5, 3)]
    forward = graphs.Graphed(network)
    (trained,), fixed, none = forward(views)
    assert none is None
    assert forward.problem is None and trained.requires_grad and not fixed.requires_grad
    trained.square().sum().backward()
    (expected,) = torch.autograd.grad(network(views)[0][0].square().sum(), network.layer.weight)
    torch.testing.assert_close(network.layer.weight.grad, expected)
    assert network.unused.weight.grad is None
    replays = cuda.replays
    assert forward([torch.randn(6, 3), torch.randn(5, 3)])[0][0].shape == (6, 2) and cuda.replays == replays
