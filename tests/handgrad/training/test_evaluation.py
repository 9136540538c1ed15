from __future__ import annotations

import numpy as np

from handgrad.training.evaluation import surest_mistakes


def test_the_surest_mistake_comes_first_and_of_equals_the_first_image() -> None:
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]], np.float32)
    predicted, labels = p.argmax(axis=1), np.array([0, 0, 1, 0, 0])
    mistakes = surest_mistakes(p[predicted != labels], predicted, labels)
    assert mistakes.images.tolist() == [1, 4, 3]
    np.testing.assert_allclose(mistakes.predicted, [0.8, 0.8, 0.7])
    np.testing.assert_allclose(mistakes.true, [0.2, 0.2, 0.3])


def test_there_may_be_none() -> None:
    labels = np.arange(3)
    assert all(
        len(part) == 0 for part in surest_mistakes(np.empty((0, 3), np.float32), labels, labels)
    )
