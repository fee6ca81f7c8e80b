"""Usage locks of models, caches and conversations: several threads may run one model, none may change it meanwhile."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vitrail.errors import InputError

_STATE = threading.Condition()
_RUNNING: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()  # calls of generate() per model
_CHANGING: weakref.WeakKeyDictionary[Any, tuple[int, int]] = weakref.WeakKeyDictionary()  # thread, depth
_ALONE: weakref.WeakSet[Any] = weakref.WeakSet()


@contextmanager
def running(model: Any) -> Iterator[None]:
    """Mark `model` as running within the block, which makes `changing` raise; waits for a change in another thread."""
    me = threading.get_ident()
    with _STATE:
        _STATE.wait_for(lambda: _CHANGING.get(model, (me, 0))[0] == me)
        _RUNNING[model] = _RUNNING.get(model, 0) + 1
    try:
        yield
    finally:
        with _STATE:
            _RUNNING[model] -= 1


@contextmanager
def changing(model: Any, what: str) -> Iterator[None]:
    """Mark the modules of `model` as changing within the block: `running` and changes by other threads wait.

    Args:
        model: whose modules change.
        what: name of the change, for the message.

    Raises:
        InputError: generation is running; half of its answer would have other weights.
    """
    me = threading.get_ident()
    with _STATE:
        _STATE.wait_for(lambda: _CHANGING.get(model, (me, 0))[0] == me)
        if _RUNNING.get(model):
            raise InputError(
                f"{what} while generate() runs on this model, in another thread or in a stream that is not closed; wait for "
                "its end, or close the stream."
            )
        _CHANGING[model] = (me, _CHANGING.get(model, (me, 0))[1] + 1)
    try:
        yield
    finally:
        with _STATE:
            depth = _CHANGING.pop(model)[1] - 1
            if depth:
                _CHANGING[model] = (me, depth)
            _STATE.notify_all()


@contextmanager
def alone(thing: Any, what: str) -> Iterator[None]:
    """Hold `thing` exclusively within the block. Raises InputError, naming it `what`, if it is in use."""
    with _STATE:
        if thing in _ALONE:
            raise InputError(
                f"{what} is in use by another call that has not ended; wait for it, or give each thread its own."
            )
        _ALONE.add(thing)
    try:
        yield
    finally:
        with _STATE:
            _ALONE.discard(thing)
