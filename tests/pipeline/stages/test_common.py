"""Work beside the caller's: its order, how far ahead the caller may be, and what becomes of its faults."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from pipeline.stages.common import beside


def test_pieces_are_done_in_order_while_the_caller_goes_on() -> None:
    done: list[int] = []
    may_end = threading.Event()

    def piece(number: int) -> Callable[[], None]:
        def work() -> None:
            assert threading.current_thread() is not threading.main_thread()
            if number == 0:
                assert may_end.wait(60)  # the caller gets on before this is done
            done.append(number)

        return work

    with beside() as start:
        start(piece(0))
        assert done == []
        may_end.set()
        for number in range(1, 5):
            start(piece(number))
            assert len(done) >= number  # never more than one ahead
    assert done == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("later", [0, 1])
def test_a_fault_is_raised_at_the_next_start_or_at_the_end(later: int) -> None:
    done: list[int] = []

    def fails() -> None:
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"), beside() as start:
        start(lambda: done.append(0))
        start(fails)
        for _ in range(later):
            start(lambda: done.append(1))
            pytest.fail("went on")
    assert done == [0]


def test_a_fault_of_the_caller_waits_for_the_piece_at_hand() -> None:
    done: list[int] = []
    with pytest.raises(ValueError, match="ours"), beside() as start:
        start(lambda: done.append(0))
        raise ValueError("ours")
    assert done == [0]
