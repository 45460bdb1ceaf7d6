"""Forward pass, losses and backward pass as one CUDA graph: on a fast GPU, launching some thousand kernels from Python
takes longer than running them."""

from collections.abc import Callable, Sequence

import torch

from utils.errors import reason
from utils.logging import log

WARMUP = 3  # steps before the capture, in which cuDNN chooses its algorithms


def capture(network, images: torch.Tensor, targets: Sequence[torch.Tensor]) -> Callable | None:
    """Capture `network.add_gradient` as a function that replays its kernels, for batches of this shape.

    From here on, the gradients of the weights stay the same tensors. Each call overwrites them, and also the features
    and labels that the last call returned. Returns None, after a warning, for a model or loss that cannot be captured,
    for example because it waits for a value on the device.
    """
    state, device = network.state, images.device
    images, targets = images.clone(), [x.clone() for x in targets]
    buffers, random = [(x, x.clone()) for x in state.model.buffers()], torch.cuda.get_rng_state(device)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(stream):
            for _ in range(WARMUP):
                state.optimizer.zero_grad(set_to_none=True)
                network.add_gradient(images, targets)
        state.optimizer.zero_grad(set_to_none=True)
        # thread_local: the thread that prefetches images may allocate page-locked memory meanwhile
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            losses, features, labels = network.add_gradient(images, targets)
            values = torch.stack(list(losses.values()))
    except RuntimeError as error:
        log.warning("warning: no CUDA graph (%s); steps are slower without it", reason(error))
        state.optimizer.zero_grad(set_to_none=True)
        graph = None
    torch.cuda.current_stream(device).wait_stream(stream)
    for buffer, before in buffers:  # the warm-up changed batch norm's statistics
        buffer.copy_(before)
    torch.cuda.set_rng_state(random, device)
    if graph is None:
        return None

    def replay(new_images: torch.Tensor, new_targets: Sequence[torch.Tensor]):
        torch._foreach_copy_([images, *targets], [new_images, *new_targets])
        graph.replay()
        return dict(zip(losses, values.clone().unbind(), strict=True)), features, labels

    return replay
