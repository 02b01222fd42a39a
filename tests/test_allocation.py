"""The allocator's setting."""

import platform

from stagewright.allocation import keep_freed_memory


def test_glibc_takes_the_setting() -> None:
    assert keep_freed_memory() is (platform.libc_ver()[0] == "glibc")
