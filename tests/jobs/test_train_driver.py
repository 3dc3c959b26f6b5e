"""What the driver and its workers say to each other, without a cluster."""

import os
import signal

import pytest

from jobs.cli import defer_signals
from jobs.cluster.event_queue import EventQueue
from jobs.events import CheckpointSaved, Event, WorkersStarted


def test_a_board_keeps_what_nobody_has_handled() -> None:
    board = EventQueue.__ray_metadata__.modified_class()
    messages: list[Event] = [WorkersStarted(), CheckpointSaved(1), CheckpointSaved(2)]
    for message in messages[:2]:
        board.post(message)
    assert board.take(0) == messages[:2]
    board.post(messages[2])
    assert board.take(0) == messages  # the first answer was lost on its way
    assert board.take(2) == messages[2:]
    assert board.take(3) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_for_the_end_of_the_block(number: int) -> None:
    before = signal.signal(number, signal.default_int_handler)
    done = []

    def interrupted(step: int) -> None:
        os.kill(os.getpid(), number)
        done.append(step)

    try:
        with pytest.raises(KeyboardInterrupt), defer_signals():
            interrupted(1)
        with pytest.raises(KeyboardInterrupt):  # and afterwards it does not wait
            interrupted(2)
    finally:
        signal.signal(number, before)
    assert done == [1]
