"""benchmarks.lab.switch: when a validation loss says that SFT is done."""

import math
from types import SimpleNamespace

import pytest
import torch
from benchmarks.lab.measure import loss_of
from benchmarks.lab.switch import first_within


@pytest.mark.parametrize(
    ("curve", "step"),
    [
        ({0: 2.0, 25: 1.02, 50: 1.0, 75: 1.5}, 25),  # 1.02 is within 2 % of 1.0
        ({0: 2.0, 25: 1.021, 50: 1.0, 75: 1.5}, 50),
        ({0: 1.0, 25: 3.0}, 0),
        ({0: 8.0, 25: 4.0, 50: 2.0, 75: 1.0}, 75),  # falling to the end
    ],
)
def test_the_first_step_within_two_percent_of_the_minimum(curve, step):
    assert first_within(curve) == step


def test_the_loss_is_a_mean_over_the_tokens_of_all_responses():
    """A model that finds the token after t twice as likely as each of the two others: 1/2, 1/4, 1/4."""

    class Next:
        device = "cpu"

        def __call__(self, input_ids):
            likely = (input_ids + 1) % 3
            weights = torch.ones(*input_ids.shape, 3).scatter(-1, likely[..., None], 2.0)
            return SimpleNamespace(logits=weights.log())

    # [1, 2] after 0: the likely token twice. [1, 0, 0] after 2: three that are not.
    pairs = [([0], [1, 2]), ([0, 2], [1, 0, 0])]
    expected = (2 * math.log(2) + 3 * math.log(4)) / 5
    assert loss_of(Next(), pairs) == pytest.approx(expected, rel=1e-6)
