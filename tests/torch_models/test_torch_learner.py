"""The PyTorch learner: the NumPy learner's numbers, exact state, and too little memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import numpy_mlp
from numpy_mlp.autograd.learner import GraphLearner
from numpy_mlp.learner import NumpyLearner
from numpy_mlp.optim import SGD
from torch_models.device import is_out_of_memory
from torch_models.learner import TorchLearner
from torch_models.mlp import MLP


def _learner(
    dropout: float = 0.0, optimizer: Any = torch.optim.SGD, **options: Any
) -> TorchLearner:
    torch.manual_seed(3)
    model = MLP(12, [7], 4, dropout=dropout).double()
    return TorchLearner(model, optimizer(model.parameters(), 0.1, **options), torch.device("cpu"))


def _batch(rng: np.random.Generator, n: int = 6) -> tuple[np.ndarray, np.ndarray]:
    return rng.standard_normal((n, 3, 2, 2)), rng.integers(0, 4, n)


def test_steps_equal_the_numpy_learners(rng: np.random.Generator) -> None:
    theirs = _learner(momentum=0.9)
    model = numpy_mlp.MLP(12, [7], 4)
    ours = NumpyLearner(model, SGD(list(model.params.values()), 0.1, momentum=0.9))
    ours.load_weights(theirs.weights())
    for _ in range(20):
        x, y = _batch(rng)
        loss, correct = theirs.train_step(x, y, 0.05)
        expected = ours.train_step(x, y, 0.05)
        assert float(loss) == pytest.approx(expected[0], rel=1e-10)
        assert int(correct) == expected[1]
    for name, array in theirs.weights().items():
        np.testing.assert_allclose(array, ours.weights()[name], rtol=1e-10, atol=1e-12)
    loss, predicted = theirs.eval_step(x, y)
    expected_loss, expected_classes = ours.eval_step(x, y)
    assert float(loss) == pytest.approx(expected_loss, rel=1e-10)
    np.testing.assert_array_equal(predicted, expected_classes)
    np.testing.assert_allclose(theirs.probabilities(x), ours.probabilities(x), rtol=1e-10)


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (torch.optim.SGD, {}),
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        (torch.optim.Adam, {}),
        (torch.optim.AdamW, {"fused": True}),
    ],
    ids=str,
)
def test_state_goes_on_bit_for_bit(
    optimizer: Any, options: dict[str, Any], rng: np.random.Generator
) -> None:
    one = _learner(0.5, optimizer, **options)
    batches = [_batch(rng) for _ in range(6)]
    for x, y in batches[:3]:
        one.train_step(x, y, 0.1)
    arrays, text = one.state()
    weights = one.weights()
    expected = [float(one.train_step(x, y, 0.1)[0]) for x, y in batches[3:]]
    two = _learner(0.5, optimizer, **options)
    two.load_weights(weights)
    two.load_state(arrays, text)
    assert [float(two.train_step(x, y, 0.1)[0]) for x, y in batches[3:]] == expected
    for name, array in one.weights().items():
        np.testing.assert_array_equal(array, two.weights()[name])


class _SmallMemory(nn.Module):
    """Runs out of memory on batches above a limit."""

    def __init__(self, model: nn.Module, limit: int) -> None:
        super().__init__()
        self.inner, self.limit, self.seen = model, limit, list[int]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("out of memory")
        self.seen.append(len(x))
        out: torch.Tensor = self.inner(x)
        return out


def test_without_memory_gradients_are_accumulated(
    rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, small = _learner(momentum=0.9), _learner(momentum=0.9)
    small._forward = _SmallMemory(small.model, 4)
    for _ in range(3):
        x, y = _batch(rng, n=10)
        loss, correct = small.train_step(x, y, 0.1)
        expected_loss, expected_correct = whole.train_step(x, y, 0.1)
        assert float(loss) == pytest.approx(float(expected_loss), rel=1e-12)
        assert int(correct) == int(expected_correct)
    for name, array in whole.weights().items():
        np.testing.assert_allclose(small.weights()[name], array, rtol=1e-12, atol=1e-14)
    assert small.micro_batch == 3
    assert small._forward.seen == [3, 3, 2, 2] * 3  # and never a single one
    err = capsys.readouterr().err
    assert err.count("out of memory") == 2  # 5 at a time, then 3
    assert "going on with 3 images at a time" in err


def test_one_image_that_does_not_fit_is_an_error(rng: np.random.Generator) -> None:
    learner = _learner()
    learner._forward = _SmallMemory(learner.model, 0)
    with pytest.raises(MemoryError, match="not even one image"):
        learner.train_step(*_batch(rng), 0.1)


def test_evaluation_takes_smaller_pieces_too(rng: np.random.Generator) -> None:
    whole, small = _learner(), _learner()
    small._forward = _SmallMemory(small.model, 4)
    x, y = _batch(rng, n=10)
    loss, predicted = small.eval_step(x, y)
    expected_loss, expected = whole.eval_step(x, y)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-12)
    np.testing.assert_array_equal(predicted, expected)


def test_a_run_that_was_short_of_memory_resumes_as_such(rng: np.random.Generator) -> None:
    whole, first, second = (_learner(dropout=0.5) for _ in range(3))
    batches = [_batch(rng, n=10) for _ in range(4)]
    for learner in (whole, first, second):
        learner._forward = _SmallMemory(learner.model, 4)
    torch.manual_seed(1)
    losses = [float(whole.train_step(*batch, 0.1)[0]) for batch in batches]
    torch.manual_seed(1)
    again = [float(first.train_step(*batch, 0.1)[0]) for batch in batches[:2]]
    weights, state = dict(first.weights()), first.state()
    torch.manual_seed(99)
    second.load_weights(weights)
    second.load_state(*state)
    again += [float(second.train_step(*batch, 0.1)[0]) for batch in batches[2:]]
    assert again == losses
    assert second._forward.seen == [3, 3, 2, 2] * 2


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_every_devices_word_for_it(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_evaluation_keeps_no_graph_and_changes_nothing(rng: np.random.Generator) -> None:
    learner = _learner(0.5)
    before = learner.weights()
    loss, predicted = learner.eval_step(*_batch(rng))
    assert not loss.requires_grad
    assert isinstance(predicted, np.ndarray)
    for name, array in learner.weights().items():
        np.testing.assert_array_equal(array, before[name])


def test_foreign_weights_and_state_are_named() -> None:
    learner = _learner()
    weights = learner.weights()
    for change, message in (
        ({"layers.0.bias": np.ones(3)}, r"layers\.0\.bias has shape \(3,\)"),
        ({"layers.9.bias": np.ones(3)}, r"layers\.9\.bias is not part"),
    ):
        with pytest.raises(ValueError, match=message):
            learner.load_weights({**weights, **change})
    with pytest.raises(ValueError, match=r"layers\.0\.weight is missing"):
        learner.load_weights({})
    with pytest.raises(ValueError, match="does not fit"):
        learner.load_state({"optimizer.0.momentum_buffer": np.ones(3)}, "")
    with pytest.raises(ValueError, match="other"):
        learner.load_state({"other": np.ones(3)}, "")


def test_bf16_autocast_trains_and_returns_float32(rng: np.random.Generator) -> None:
    torch.manual_seed(0)
    model = MLP(12, [64], 4)
    learner = TorchLearner(
        model,
        torch.optim.SGD(model.parameters(), 0.1),
        torch.device("cpu"),
        autocast_dtype=torch.bfloat16,
    )
    x, y = _batch(rng, n=32)
    x[np.arange(32), 0, 0, 0] += 3 * y
    losses = [float(learner.train_step(x.astype(np.float32), y, 0.1)[0]) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]
    loss, _ = learner.eval_step(x.astype(np.float32), y)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("kind", [NumpyLearner, GraphLearner])
def test_smoothing_clipping_and_averaging_are_the_numpy_learners(
    kind: type[NumpyLearner], rng: np.random.Generator
) -> None:
    options: dict[str, Any] = {"label_smoothing": 0.2, "clip_grad_norm": 0.3, "ema": 0.8}
    torch.manual_seed(3)
    twin = MLP(12, [7], 4, norm=torch.nn.BatchNorm1d).double()
    theirs = TorchLearner(
        twin, torch.optim.SGD(twin.parameters(), 0.1), torch.device("cpu"), **options
    )
    model = numpy_mlp.MLP(12, [7], 4, batch_norm=True)
    ours = kind(model, SGD(model.params, 0.1), **options)
    ours.load_weights(theirs.weights())
    assert ours.ema is not None
    ours.ema.load(theirs.weights(), 0)
    start, trained = theirs.weights(), []
    for step in range(12):
        x, y = _batch(rng)
        loss, _ = theirs.train_step(x, y, 0.5)
        assert ours.train_step(x, y, 0.5)[0] == pytest.approx(float(loss), rel=1e-10)
        trained.append({name: array.copy() for name, array in ours.ema.trained.items()})
        if step % 3 == 0:  # evaluation sees the average, and does not disturb the training
            evaluated, predicted = theirs.eval_step(x, y)
            found = ours.eval_step(x, y)
            assert found[0] == pytest.approx(float(evaluated), rel=1e-10)
            np.testing.assert_array_equal(found[1], predicted)
            shown = {name: array.numpy() for name, array in twin.state_dict().items()}
            for name, array in theirs.weights().items():
                np.testing.assert_array_equal(array, shown[name])
    for name, array in theirs.weights().items():
        np.testing.assert_allclose(ours.weights()[name], array, rtol=1e-9, atol=1e-12)
    name = "layers.0.weight"
    average = start[name]
    for t, after in enumerate(trained, start=1):
        decay = min(0.8, t / (t + 9))
        average = decay * average + (1 - decay) * after[name]
    np.testing.assert_allclose(ours.weights()[name], average, rtol=1e-9)


def test_first_layer_is_flat() -> None:
    assert _learner().first_layer().shape == (7, 12)


def test_label_smoothing_is_for_training_only(rng: np.random.Generator) -> None:
    x, y = _batch(rng)
    losses = {}
    for smoothing in (0.0, 0.1):
        learner = _learner()
        learner.label_smoothing = smoothing
        evaluated = float(learner.eval_step(x, y)[0])
        losses[smoothing] = evaluated, float(learner.train_step(x, y, 0.0)[0])
    logits = learner.model(torch.from_numpy(x)).detach()
    uniform = -logits.log_softmax(dim=1).mean()
    assert losses[0.1][0] == losses[0.0][0] == pytest.approx(losses[0.0][1], rel=1e-6)
    assert losses[0.1][1] == pytest.approx(0.9 * losses[0.0][1] + 0.1 * float(uniform), rel=1e-6)
