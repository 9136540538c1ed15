"""What races: one training step of each library, on the same shapes.

Run as a process by :class:`handgrad.benchmark.workers.Worker`; a step is forward, loss, backward
and update of one batch. Batches are drawn in advance and take turns, so that none is in the caches.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.environment import describe_environment, peak_memory_bytes

Array = NDArray[Any]
Step = Callable[[], object]
Workload = Mapping[str, Any]

_BATCHES = 8


def ours(workload: Workload, threads: int, engine: str = "modules") -> Step:
    """Return a step of the NumPy MLP, on its modules or on the graph engine."""
    from threadpoolctl import threadpool_limits

    from numpy_mlp import MLP
    from numpy_mlp.autograd.learner import GraphLearner
    from numpy_mlp.learner import NumpyLearner
    from numpy_mlp.optim import SGD

    threadpool_limits(threads)
    sizes, lr = workload["sizes"], workload["lr"]
    model = MLP(sizes[0], sizes[1:-1], sizes[-1], dtype=np.float32, rng=np.random.default_rng(0))
    optimizer = SGD(list(model.params.values()), lr, momentum=workload["momentum"])
    learner = (GraphLearner if engine == "graph" else NumpyLearner)(model, optimizer)
    batches = _in_turn(workload)

    def step() -> None:
        x, y = next(batches)
        learner.train_step(x, y, lr)

    return step


def textbook(workload: Workload, threads: int) -> Step:
    """Return a step as a textbook writes it: float64, a new array for every result."""
    sizes, lr, momentum = workload["sizes"], workload["lr"], workload["momentum"]
    rng = np.random.default_rng(0)
    weights = [rng.normal(0, np.sqrt(2 / i), (i, o)) for i, o in itertools.pairwise(sizes)]
    biases = [np.zeros(o) for o in sizes[1:]]
    velocities = [
        (np.zeros_like(w), np.zeros_like(b)) for w, b in zip(weights, biases, strict=True)
    ]
    batches = _in_turn(workload, np.float64)

    def step() -> None:
        x, y = next(batches)
        activations = [x]
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            z = activations[-1] @ weight + bias
            activations.append(z if i == len(weights) - 1 else np.maximum(z, 0))
        exp = np.exp(activations[-1] - activations[-1].max(axis=1, keepdims=True))
        p = exp / exp.sum(axis=1, keepdims=True)
        -np.log(p[np.arange(len(y)), y]).mean()
        delta = (p - np.eye(sizes[-1])[y]) / len(y)
        for i in reversed(range(len(weights))):
            dweight, dbias = activations[i].T @ delta, delta.sum(axis=0)
            if i:
                delta = (delta @ weights[i].T) * (activations[i] > 0)
            dw, db = velocities[i]
            velocities[i] = (momentum * dw + dweight, momentum * db + dbias)
            weights[i] = weights[i] - lr * velocities[i][0]
            biases[i] = biases[i] - lr * velocities[i][1]

    return step


def sklearn(workload: Workload, threads: int) -> Step:
    """Return an epoch of scikit-learn's MLPClassifier; :data:`PER_CALL` steps."""
    from sklearn.neural_network import MLPClassifier

    sizes = workload["sizes"]
    model = MLPClassifier(
        sizes[1:-1],
        solver="sgd",
        alpha=0,
        batch_size=workload["batch_size"],
        learning_rate_init=workload["lr"],
        momentum=workload["momentum"],
        nesterovs_momentum=False,
        random_state=0,
    )
    x, y = _data(workload)
    classes = np.arange(sizes[-1])
    return lambda: model.partial_fit(x, y, classes=classes)


def eager(workload: Workload, threads: int, compiled: bool = False, bf16: bool = False) -> Step:
    """Return a step of PyTorch, with its fused SGD; perhaps compiled, or autocast to bfloat16."""
    import torch
    from torch import nn

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(workload["sizes"]):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(
        model.parameters(), workload["lr"], momentum=workload["momentum"], fused=True
    )

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return nn.functional.cross_entropy(model(x), y)

    loss: Any = torch.compile(loss_of) if compiled else loss_of
    batches = ((torch.from_numpy(x), torch.from_numpy(y)) for x, y in _in_turn(workload))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(*next(batches)).backward()
        optimizer.step()

    return step


def convnet(workload: Workload, threads: int, tuned: bool = False) -> Step:
    """Return a step of the assignment's VGG: by PyTorch's defaults, or as our commands do it."""
    import torch

    from torch_models.convnet import ConvNet
    from torch_models.device import choose_precision
    from torch_models.learner import TorchLearner

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    n, device = workload["batch_size"], torch.device("cpu")
    rng = np.random.default_rng(0)
    images = rng.standard_normal((n, 3, 32, 32), dtype=np.float32)
    labels = rng.integers(0, 10, n)
    model = ConvNet(3, 10)
    if not tuned:
        for module in model.modules():
            if isinstance(module, torch.nn.ReLU):
                module.inplace = False  # the default
        optimizer = torch.optim.Adam(model.parameters(), 1e-4)
        x, y = torch.from_numpy(images), torch.from_numpy(labels)

        def step() -> None:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return step
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=True)
    precision, _ = choose_precision("auto", device)
    autocast = torch.bfloat16 if precision == "bf16" else None
    learner = TorchLearner(model, optimizer, device, autocast_dtype=autocast, channels_last=True)
    return lambda: learner.train_step(images, labels, 1e-4)


def numpy_convnet(workload: Workload, threads: int) -> Step:
    """Return a step of a convolutional network in NumPy; see :func:`torch_convnet`."""
    from numpy_mlp.learner import NumpyLearner
    from numpy_mlp.modules import SoftMaxCrossEntropyModule
    from numpy_mlp.muon import Muon
    from numpy_mlp.optim import AdamW
    from numpy_mlp.workspace import Workspace

    model, images, labels = _numpy_convnet(workload, threads)
    if workload["update"]:
        kind = Muon if workload["model"] == "fast" else AdamW
        learner = NumpyLearner(model, kind(model.trained_parameters(), 1e-4))
        return lambda: learner.train_step(images, labels, 1e-4)
    loss, workspace = SoftMaxCrossEntropyModule(), Workspace()

    def step() -> None:
        with workspace.lent_to(model.modules()):
            _, dlogits = loss.loss_and_gradient(model.logits(images), labels)
            model.backward_parameters(dlogits)

    return step


def numpy_layers(workload: Workload, threads: int) -> Step:
    """Return a step that answers with the seconds of each layer, forward and then backward."""
    from numpy_mlp.modules import SoftMaxCrossEntropyModule
    from numpy_mlp.workspace import Workspace

    model, images, labels = _numpy_convnet(workload, threads)
    loss, workspace = SoftMaxCrossEntropyModule(), Workspace()

    def step() -> list[float]:
        with workspace.lent_to(model.modules()):
            x, times = images, [time.perf_counter()]
            for layer in model.chain:
                x = layer.forward(x)
                times.append(time.perf_counter())
            _, dlogits = loss.loss_and_gradient(x, labels)
            back = [time.perf_counter()]
            model.backward_parameters(dlogits, lambda layer: back.append(time.perf_counter()))
        return [*np.diff(times), *np.diff(back)[::-1]]

    return step


def _numpy_convnet(workload: Workload, threads: int) -> tuple[Any, Array, Array]:
    """Return a network, and images and labels for it."""
    from threadpoolctl import threadpool_limits

    from numpy_mlp.convnet import CONVNETS
    from numpy_mlp.parallel import set_num_threads

    threadpool_limits(1)  # for each of the threads that share out the batch
    set_num_threads(threads)
    rng = np.random.default_rng(0)
    model = CONVNETS[workload["model"]]((3, 32, 32), 10, dtype=np.float32, rng=rng)
    return model, *_images(workload)


def _images(workload: Workload) -> tuple[Array, Array]:
    rng, n = np.random.default_rng(0), workload["batch_size"]
    labels: Array = rng.integers(0, 10, size=(n,))
    return rng.standard_normal((n, 3, 32, 32), dtype=np.float32), labels


def torch_convnet(workload: Workload, threads: int) -> Step:
    """Return a step of the same network in PyTorch: eager, float32, channels-last.

    A whole step, with Muon's update for the fast network and Adam's for the other; or, where
    ``update`` is false, the gradients of the parameters alone.
    """
    import torch

    from torch_models.convnet import ConvNet
    from torch_models.fast import FastConvNet
    from torch_models.muon import Muon

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    is_fast = workload["model"] == "fast"
    model: torch.nn.Module = FastConvNet(3, 10, 32) if is_fast else ConvNet(3, 10)
    model = model.to(memory_format=torch.channels_last)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = Muon(trained, 1e-4) if is_fast else torch.optim.Adam(trained, 1e-4, fused=True)
    images, labels = map(torch.from_numpy, _images(workload))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        x = images.contiguous(memory_format=torch.channels_last)
        torch.nn.functional.cross_entropy(model(x), labels).backward()  # type: ignore[no-untyped-call]
        if workload["update"]:
            optimizer.step()

    return step


def matmul(workload: Workload, threads: int) -> Step:
    """Return a product of two square matrices in single precision: as fast as it gets."""
    n = workload["n"]
    a, b = (np.random.default_rng(0).random((n, n), dtype=np.float32) for _ in range(2))
    out = np.empty_like(a)
    return lambda: np.matmul(a, b, out=out)


def copy(workload: Workload, threads: int) -> Step:
    """Return a copy of memory, larger than any cache, by all threads."""
    from concurrent.futures import ThreadPoolExecutor

    source = np.ones(workload["n_bytes"] // 4, np.float32)
    target = np.ones_like(source)
    pool = ThreadPoolExecutor(threads)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    return lambda: list(pool.map(lambda part: np.copyto(*part), parts))


# bf16 is what NumPy cannot have; tuned_convnet, that VGG as ``train-convnet`` trains it.
CONTENDERS: dict[str, Callable[[Workload, int], Step]] = {
    "ours": ours,
    "graph": partial(ours, engine="graph"),
    "textbook": textbook,
    "sklearn": sklearn,
    "eager": eager,
    "compiled": partial(eager, compiled=True),
    "bf16": partial(eager, bf16=True),
    "convnet": convnet,
    "tuned_convnet": partial(convnet, tuned=True),
    "numpy_convnet": numpy_convnet,
    "numpy_layers": numpy_layers,
    "torch_convnet": torch_convnet,
    "matmul": matmul,
    "copy": copy,
}

PER_CALL = {"sklearn": _BATCHES}
"""Steps in a call, where it is not one."""

IN_PARTS = {"numpy_layers"}
"""Those whose steps answer with their seconds themselves, a list."""


def _data(workload: Workload) -> tuple[Array, Array]:
    rng = np.random.default_rng(1)
    n = _BATCHES * workload["batch_size"]
    x = rng.standard_normal((n, workload["sizes"][0]), dtype=np.float32)
    return x, rng.integers(0, workload["sizes"][-1], n)


def _in_turn(workload: Workload, dtype: type = np.float32) -> Iterator[tuple[Array, Array]]:
    """Yield the batches, over and over."""
    x, y = _data(workload)
    parts = (np.array_split(a, _BATCHES) for a in (x.astype(dtype), y))
    return itertools.cycle(list(zip(*parts, strict=True)))


def _about() -> dict[str, Any]:
    """Return the matrix library in use, for a line of the report."""
    blas = describe_environment()["blas"]
    if "torch" in sys.modules or not blas:
        return {"core": None, "peak_memory": peak_memory_bytes()}
    return {"blas": blas[0].pop("name"), **blas[0], "peak_memory": peak_memory_bytes()}


def main() -> None:
    """Say what this contender is, then run as many steps as each line of the input asks for."""
    task = json.loads(sys.argv[1])
    name = task["contender"]
    try:
        step = CONTENDERS[name](task["workload"], task["threads"])
        step()  # what is compiled, is compiled now
    except Exception as error:  # a compiler that is missing, say: the others go on
        print(json.dumps({"missing": str(error).partition("\n")[0]}), flush=True)
        return
    print(json.dumps(_about()), flush=True)
    for line in sys.stdin:
        seconds: list[object] = []
        for _ in range(int(line)):
            start = time.perf_counter()
            parts = step()
            spent = (time.perf_counter() - start) / PER_CALL.get(name, 1)
            seconds.append(parts if name in IN_PARTS else spent)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
