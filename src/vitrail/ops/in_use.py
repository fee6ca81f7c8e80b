"""Which models, caches and conversations are in use: several threads may ask one model, nobody changes it meanwhile."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vitrail.errors import InputError

_STATE = threading.Condition()
_RUNNING: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()  # calls of generate() on a model
_CHANGING: weakref.WeakKeyDictionary[Any, tuple[int, int]] = weakref.WeakKeyDictionary()  # thread, depth
_ALONE: weakref.WeakSet[Any] = weakref.WeakSet()


@contextmanager
def running(model: Any) -> Iterator[None]:
    """Inside, `model` answers: `changing` refuses. Waits until a change in another thread is done."""
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
    """Inside, the modules of `model` change: `running` waits, as do changes by other threads.

    Raises InputError, which calls the change `what`, where an answer is being made: half of it would have other weights.
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
    """Inside, nobody else uses `thing`. Raises InputError, which calls it `what`, where somebody does."""
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
