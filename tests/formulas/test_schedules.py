import math

import pytest

from debias_ssl.formulas.schedules import Schedule, ema_decay, learning_rate_factor


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("cosine_7_16", (1, math.cos(7 * math.pi / 32), 0.19509)),
        ("cosine", (1, 0.5, 0)),
        ("constant", (1, 1, 1)),
    ],
)
def test_values_at_the_start_the_middle_and_the_end(schedule: Schedule, values: tuple[float, ...]):
    assert [learning_rate_factor(progress, schedule) for progress in (0.0, 0.5, 1.0)] == pytest.approx(values, abs=1e-6)


@pytest.mark.parametrize("schedule", ["cosine_7_16", "cosine", "constant"])
def test_warmup_rises_linearly_and_the_schedule_has_the_rest(schedule: Schedule):
    def factor(progress: float) -> float:
        return learning_rate_factor(progress, schedule, warmup=0.2)

    assert [factor(0.0), factor(0.05), factor(0.1)] == [0, 0.25, 0.5]
    for progress in (0.2, 0.36, 0.6, 1.0):
        assert factor(progress) == pytest.approx(learning_rate_factor((progress - 0.2) / 0.8, schedule))


def test_decay_of_averaged_weights_is_short_at_first():
    assert [ema_decay(step, 0.999) for step in (0, 1, 90)] == [0.1, 2 / 11, 0.91]
    assert ema_decay(10_000, 0.999) == 0.999
    assert ema_decay(5, 0.3) == 0.3
