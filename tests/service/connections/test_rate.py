"""The least rate of a transfer."""

from service.connections.rate import LeastRate


def test_a_window_with_too_few_bytes_fails() -> None:
    rate = LeastRate(bytes_per_s=100, window_s=10.0)
    rate.restart(50.0, 0)
    assert rate.holds(59.0, 0), "the window has not ended"
    assert rate.holds(60.0, 1000)
    assert not rate.holds(70.0, 1999)


def test_a_restart_forgets_the_time_before_it() -> None:
    rate = LeastRate(bytes_per_s=100, window_s=10.0)
    rate.restart(0.0, 0)
    rate.restart(9.0, 5)
    assert rate.holds(18.0, 5)
    assert not rate.holds(19.0, 5)
