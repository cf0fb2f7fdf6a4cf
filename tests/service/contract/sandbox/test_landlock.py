"""Landlock rights for each version of the kernel's interface."""

import ctypes

import pytest

from service.contract.sandbox import landlock

TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15


@pytest.mark.parametrize(
    ("abi", "rights"),
    [
        (1, ((1 << 13) - 1, 0, 0)),
        (2, ((1 << 14) - 1, 0, 0)),
        (3, ((1 << 15) - 1, 0, 0)),
        (4, ((1 << 15) - 1, 3, 0)),
        (5, ((1 << 16) - 1, 3, 0)),
        (6, ((1 << 16) - 1, 3, 3)),
        (7, ((1 << 16) - 1, 3, 3)),
    ],
)
def test_every_right_of_an_abi_is_handled(abi: int, rights: tuple[int, int, int]) -> None:
    assert landlock.handled_rights(abi) == rights
    assert bool(rights[0] & TRUNCATE) == (abi >= 3)
    assert bool(rights[0] & IOCTL_DEV) == (abi >= 5)


def test_the_kernel_knows_these_rights() -> None:
    """A right that the kernel does not know would make the ruleset fail."""
    libc = ctypes.CDLL(None, use_errno=True)
    abi = landlock.abi(libc)
    if not abi:
        pytest.skip("this kernel has no Landlock")
    attributes = (ctypes.c_uint64 * 3)(*landlock.handled_rights(abi))
    assert libc.syscall(landlock.CREATE_RULESET, attributes, ctypes.c_size_t(24), 0) >= 0
