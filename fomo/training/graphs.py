"""Forward and backward pass of a network as CUDA graphs, which the CPU starts as a whole.

Without them it starts hundreds of kernels one by one, and a GPU that is done with a small batch waits for it.
"""

import contextlib
import gc

import torch
from torch.autograd.function import once_differentiable

_WARM = 3  # passes before the capture, in which libraries choose and load what they need
_LARGEST = 0.5  # share of the GPU's memory: a graph keeps its own, which validation cannot use
_DIFFERENCE = 0.05  # relative, of outputs and gradients: half precision, sums in another order


class Graphed:
    """Call a network, in training, as graphs that the first call captures.

    Each step must give images of the same shapes to the same trained parameters, and make one backward pass: a second
    one writes its gradients over those of the first. `problem` says why there are no graphs, and the network is called
    as it is; it is None before the first call, and where there are graphs.
    """

    def __init__(self, network):
        self.network, self.problem, self._passes = network, None, None

    def __call__(self, images):
        several = images if isinstance(images, list) else [images]
        if self._passes is None and self.problem is None:
            self._capture(images, several)
        if self._passes is None or [image.shape for image in several] != self._passes.shapes:
            return self.network(images)
        return _nested(
            self._passes.places, _Replay.apply(self._passes, len(several), *several, *self._passes.parameters)
        )

    def _capture(self, images, several):
        device = several[0].device
        # what is tried must leave no trace: a run that is continued gives the same numbers
        state, kept = torch.cuda.get_rng_state(device), [buffer.clone() for buffer in self.network.buffers()]
        stream = torch.cuda.current_stream(device)
        try:
            with _nothing_is_freed():
                self._passes = _Passes(self.network, isinstance(images, list), several)
                self.problem = self._passes.difference(state)
            torch.cuda.empty_cache()
            share = torch.cuda.memory_reserved(device) / torch.cuda.get_device_properties(device).total_memory
            if share > _LARGEST:
                self.problem = f"they keep {share:.0%} of the GPU's memory, wanted at most {_LARGEST:.0%}"
        except RuntimeError as error:  # of a network that waits for the GPU, or for lack of memory
            self.problem = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
            torch.cuda.set_stream(stream)
            generator = torch.cuda.default_generators[device.index]
            generator.graphsafe_set_state(generator.clone_state())  # the old one believes that the capture goes on
        with torch.no_grad():
            for buffer, value in zip(self.network.buffers(), kept):
                buffer.copy_(value)
        torch.cuda.set_rng_state(state, device)
        if self.problem is not None:
            self._passes = None
            torch.cuda.empty_cache()


@contextlib.contextmanager
def _nothing_is_freed():
    """Python frees no garbage: older graphs among it would end the capture."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Passes:
    """The two graphs of a network, and the tensors that they read and write.

    listed: the network takes a list of images.
    """

    def __init__(self, network, listed, images):
        self.network, self.listed = network, listed
        self.shapes = [image.shape for image in images]
        self.images = [image.detach().clone() for image in images]
        self.device = images[0].device
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        state, stream = torch.cuda.get_rng_state(self.device), torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            self.output_gradients = [torch.randn_like(output) for output in self._call()]
            for _ in range(_WARM):
                torch.cuda.set_rng_state(state, self.device)
                outputs = self._call()
                gradients = self._differentiate(outputs)
            self.expected = [tensor.detach().clone() for tensor in (*outputs, *gradients) if tensor is not None]
            del outputs, gradients
        torch.cuda.current_stream(self.device).wait_stream(stream)
        # only this thread must not wait: others move the next batches to pinned memory
        how = {"pool": torch.cuda.graph_pool_handle(), "stream": stream, "capture_error_mode": "thread_local"}
        with torch.cuda.graph(self.forward, **how):
            outputs = self._call()
        with torch.cuda.graph(self.backward, **how):
            self.gradients = self._differentiate(outputs)
        self.outputs = [output.detach() for output in outputs]
        self.fixed = [not output.requires_grad for output in outputs]

    def _call(self):
        """The outputs that are tensors, as a list."""
        dtype, on = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
        # its cache would keep converted weights beyond a graph
        with torch.autocast("cuda", dtype=dtype, enabled=on, cache_enabled=False):
            outputs = self.network(self.images if self.listed else self.images[0])
        found = []
        self.places = _flattened(outputs, found)
        return found

    def _differentiate(self, outputs):
        """The gradients of the parameters, None for those that the outputs do not depend on."""
        trained, given = zip(*(pair for pair in zip(outputs, self.output_gradients) if pair[0].requires_grad))
        return torch.autograd.grad(trained, self.parameters, given, allow_unused=True)

    def difference(self, state):
        """In words how the graphs' results differ from those without; None where they do not.

        state: of random numbers, with which the images were seen without graphs.
        """
        torch.cuda.set_rng_state(state, self.device)
        self.forward.replay()
        self.backward.replay()
        found = [tensor for tensor in (*self.outputs, *self.gradients) if tensor is not None]
        size = torch.stack([torch.linalg.vector_norm(tensor.float()) for tensor in self.expected])
        pairs = zip(found, self.expected, strict=True)
        off = torch.stack([torch.linalg.vector_norm(own.float() - other.float()) for own, other in pairs])
        del self.expected
        outputs = len(self.outputs)
        for what, part in (("outputs", slice(outputs)), ("gradients", slice(outputs, None))):
            relative = float(torch.linalg.vector_norm(off[part]) / torch.linalg.vector_norm(size[part]))
            if not relative <= _DIFFERENCE:
                return f"their {what} differ by {relative:.2g} from those without"
        return None


def _flattened(outputs, found):
    """Append the tensors of nested lists and tuples to `found`; the same nest with their places in it instead."""
    if isinstance(outputs, list | tuple):
        return [_flattened(part, found) for part in outputs]
    if outputs is None:
        return None
    found.append(outputs)
    return len(found) - 1


def _nested(places, tensors):
    """What `_flattened` made flat, of other tensors."""
    if isinstance(places, list):
        return [_nested(part, tensors) for part in places]
    return None if places is None else tensors[places]


class _Replay(torch.autograd.Function):
    """passes, number of images, images and parameters -> the outputs."""

    @staticmethod
    def forward(ctx, passes, count, *tensors):
        ctx.passes, ctx.count = passes, count
        for own, image in zip(passes.images, tensors[:count]):
            own.copy_(image)
        passes.forward.replay()
        outputs = tuple(output.detach() for output in passes.outputs)
        ctx.mark_non_differentiable(*(output for output, fixed in zip(outputs, passes.fixed) if fixed))
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        for own, gradient in zip(ctx.passes.output_gradients, gradients):
            own.copy_(gradient)
        ctx.passes.backward.replay()
        found = (None if gradient is None else gradient.detach() for gradient in ctx.passes.gradients)
        return None, None, *[None] * ctx.count, *found
