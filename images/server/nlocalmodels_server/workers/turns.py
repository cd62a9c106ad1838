"""Whose turn it is to compute: the models' processes share the cores in time slices, each with all threads.

ggml's threads wait for each other by spinning, so two models that compute at once starve each other. A process therefore
computes a step only in its turn. The turn goes to whoever has computed least lately; who had it last counts as one slice less,
so that a slice is several steps long where steps are short.

The turn is a robust mutex of POSIX in memory that all processes share: the kernel passes it on when its holder is killed. A
holder that hangs is passed over after `PATIENCE_SECONDS`. The rest of that memory is advice and may be wrong for a moment.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
import time
from collections.abc import Callable
from types import TracebackType

log = logging.getLogger(__name__)

SLICE_NS = 50_000_000
PATIENCE_SECONDS = 5.0
NUM_PLACES = 1024
# A wish holds so long without being renewed: who was killed or stopped while waiting stands in nobody's way.
_WISH_NS = 50_000_000
_RENEWAL_NS = 20_000_000
# So long after a step its process is expected to want another.
_LINGER_NS = 2_000_000
_PAUSE_SECONDS = 0.0003
# A step counts so much at most: one during which the machine stood still must not keep its process away for as long.
MAX_CHARGE_NS = 1_000_000_000
# Who was away for longer has not saved up what it did not compute.
_AWAY_NS = 50_000_000

# Words of 8 bytes. The mutex has the first 16; pthread_mutex_t takes 40 to 48 bytes.
_HOLD_NUMBER, _LAST_HOLDER, _NUM_USED_PLACES, _FIRST_PLACE = 16, 17, 18, 32
_NUM_BYTES = 8 * (_FIRST_PLACE + 2 * NUM_PLACES)
_PTHREAD_PROCESS_SHARED = _PTHREAD_MUTEX_ROBUST = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


# What may block lets other threads run; what takes nanoseconds keeps the interpreter's lock, which is slow to get back.
_blocking, _quick = ctypes.CDLL(None), ctypes.PyDLL(None)


class TurnTable:
    """The parent's side: makes the shared memory and gives each process a place in it.

    `is_shared` says whether several models are served, so that a process has to expect others.
    """

    def __init__(self) -> None:
        self.is_shared = False
        self.fd = os.memfd_create("turns")
        os.ftruncate(self.fd, _NUM_BYTES)
        self._memory = mmap.mmap(self.fd, _NUM_BYTES)
        self._words = memoryview(self._memory).cast("q")
        self._taken: set[int] = set()
        attributes = ctypes.create_string_buffer(64)
        mutex = ctypes.c_char.from_buffer(self._memory)
        for code in (
            _quick.pthread_mutexattr_init(attributes),
            _quick.pthread_mutexattr_setpshared(attributes, _PTHREAD_PROCESS_SHARED),
            _quick.pthread_mutexattr_setrobust(attributes, _PTHREAD_MUTEX_ROBUST),
            _quick.pthread_mutex_init(ctypes.byref(mutex), attributes),
        ):
            if code != 0:
                raise OSError(code, f"no robust mutex could be made ({os.strerror(code)}); the server needs glibc on Linux")

    def take_place(self) -> int:
        """Returns a place that no other process has; `give_back` follows when its process has ended.

        Raises:
            OSError: there is none.
        """
        place = next((place for place in range(NUM_PLACES) if place not in self._taken), None)
        if place is None:
            raise OSError(errno.EAGAIN, f"more than {NUM_PLACES} processes cannot take turns; serve fewer models")
        self._taken.add(place)
        self._words[_NUM_USED_PLACES] = max(self._words[_NUM_USED_PLACES], place + 1)
        return place

    def give_back(self, place: int) -> None:
        self._taken.discard(place)

    def close(self) -> None:
        self._words.release()
        self._memory.close()
        os.close(self.fd)


class Turn:
    """A process's side: `with turn:` around a step waits for its turn and ends it. For one thread.

    Args:
        while_waiting: called now and then, since who waits does not hang.
    """

    def __init__(
        self,
        fd: int,
        place: int,
        patience_seconds: float = PATIENCE_SECONDS,
        while_waiting: Callable[[], None] = lambda: None,
    ) -> None:
        self._place = place
        self._while_waiting = while_waiting
        self._patience_ns = int(patience_seconds * 1e9)
        self._memory = mmap.mmap(fd, _NUM_BYTES)
        self._words = memoryview(self._memory).cast("q")
        self._mutex = ctypes.byref(ctypes.c_char.from_buffer(self._memory))
        self._computed = _FIRST_PLACE + 2 * place
        self._wish = self._computed + 1
        self._is_held = False
        self._started_ns = self._left_ns = 0
        # The hold that this process waits for, since when, and the one that it waits for no longer.
        self._awaited_hold = self._stuck_hold = -1
        self._awaited_since_ns = 0

    def __enter__(self) -> None:
        now_ns = time.monotonic_ns()
        if now_ns - self._left_ns > _AWAY_NS:
            self._words[self._computed] = max(self._words[self._computed], self._most_computed() - SLICE_NS)
        self._is_held = self._acquire(now_ns)
        self._started_ns = time.monotonic_ns()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._left_ns = time.monotonic_ns()
        self._words[self._computed] += min(MAX_CHARGE_NS, self._left_ns - self._started_ns)
        self._words[self._wish] = self._left_ns + _LINGER_NS
        if self._is_held:
            self._is_held = False
            _quick.pthread_mutex_unlock(self._mutex)

    def _acquire(self, now_ns: int) -> bool:
        """Waits for the turn. Returns False if it must go without, beside a holder that hangs."""
        words = self._words
        while True:
            words[self._wish] = now_ns + _WISH_NS
            if self._is_next(now_ns):
                code = self._lock(now_ns)
                if code == errno.EOWNERDEAD:
                    _quick.pthread_mutex_consistent(self._mutex)
                    code = 0
                now_ns = time.monotonic_ns()
                if code == 0:
                    if self._is_next(now_ns):
                        words[self._wish] = 0
                        words[_HOLD_NUMBER] += 1
                        words[_LAST_HOLDER] = self._place
                        return True
                    _quick.pthread_mutex_unlock(self._mutex)
                elif code not in (errno.EBUSY, errno.ETIMEDOUT) or self._is_stuck(now_ns):
                    return False
            self._while_waiting()
            time.sleep(_PAUSE_SECONDS)
            now_ns = time.monotonic_ns()

    def _lock(self, now_ns: int) -> int:
        code = _quick.pthread_mutex_trylock(self._mutex)
        if code != errno.EBUSY or self._words[_HOLD_NUMBER] == self._stuck_hold:
            return int(code)
        until = _Timespec(*divmod(now_ns + _RENEWAL_NS, 1_000_000_000))
        return int(_blocking.pthread_mutex_clocklock(self._mutex, time.CLOCK_MONOTONIC, ctypes.byref(until)))

    def _is_next(self, now_ns: int) -> bool:
        """Whether nobody who wants to compute comes before."""
        words, last, own = self._words, self._words[_LAST_HOLDER], self._place
        own_key = (words[self._computed] - (SLICE_NS if own == last else 0), own)
        for place in range(words[_NUM_USED_PLACES]):
            index = _FIRST_PLACE + 2 * place
            key = (words[index] - (SLICE_NS if place == last else 0), place)
            if place != own and words[index + 1] > now_ns and key < own_key:
                return False
        return True

    def _is_stuck(self, now_ns: int) -> bool:
        """Whether the same hold has lasted longer than is reasonable."""
        hold = self._words[_HOLD_NUMBER]
        if hold == self._stuck_hold:
            return True
        if hold != self._awaited_hold:
            self._awaited_hold, self._awaited_since_ns = hold, now_ns
        if now_ns - self._awaited_since_ns < self._patience_ns:
            return False
        log.warning("another model has computed one step for more than %.0f s; going on beside it", self._patience_ns / 1e9)
        self._stuck_hold = hold
        return True

    def _most_computed(self) -> int:
        return max(self._words[_FIRST_PLACE + 2 * place] for place in range(self._words[_NUM_USED_PLACES]))
