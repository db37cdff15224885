"""The Hugging Face hub: whether it is there, and what it answers."""

import errno
import os
import queue
import threading
from collections.abc import Callable

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # nothing is sent anywhere
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")

ANSWER_SECONDS = 4  # a hub that has not answered by then counts as out of reach
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
REFUSALS = (401, 403, 404)  # answers about what was asked for; others are about the hub


def within_seconds(request: Callable[[], str], seconds: float = ANSWER_SECONDS) -> str:
    """What `request` returns or raises; TimeoutError if it takes longer.

    A request's own timeout holds for each address and each read, so a thread keeps the time.
    """
    answers: queue.SimpleQueue = queue.SimpleQueue()

    def ask():
        try:
            answers.put(request())
        except Exception as error:  # handed on to whoever waits
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds} seconds") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def http_status(error: BaseException | None) -> int | None:
    """The status of the HTTP answer that led to an error, None where no answer did."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return status
        error = error.__cause__
    return None
