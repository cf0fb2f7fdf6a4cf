"""A least rate of a transfer, judged over consecutive windows of time."""


class LeastRate:
    """Compares a growing number of bytes with `bytes_per_s`, once for each window of `window_s` seconds."""

    def __init__(self, bytes_per_s: int, window_s: float) -> None:
        self._bytes_per_s, self._window_s = bytes_per_s, window_s
        self._since, self._bytes = 0.0, 0

    def restart(self, now: float, count: int) -> None:
        """Begin a new window at time `now` and `count` bytes."""
        self._since, self._bytes = now, count

    def holds(self, now: float, count: int) -> bool:
        """Return False if a window has ended in which too few bytes were transferred."""
        if now - self._since < self._window_s:
            return True
        holds = count - self._bytes >= self._bytes_per_s * (now - self._since)
        self.restart(now, count)
        return holds
