"""What goes wrong, as exceptions.

```
ControlPlaneError
├── QueueFullError            the queue is at its bound
├── StoppedError              the control plane takes nothing any more
├── DuplicateRequestError     its id is taken        (a ValueError too)
├── UnknownRequestError       no request of that id  (a LookupError too)
└── RequestFailedError        a streamed request did not complete
```
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection


class ControlPlaneError(Exception):
    """Anything that the control plane refuses or could not do."""


class QueueFullError(ControlPlaneError):
    """As many requests wait as may; try again when some have gone."""


class StoppedError(ControlPlaneError):
    """The control plane has stopped."""


class DuplicateRequestError(ControlPlaneError, ValueError):
    """Another request has this id."""


class UnknownRequestError(ControlPlaneError, LookupError):
    """No request has this id, or its result is no longer kept."""


class RequestFailedError(ControlPlaneError):
    """The request failed or was cancelled; what was streamed of it is not the whole reply."""


def unknown(what: str, word: str, known: Collection[str]) -> ValueError:
    """Return the refusal of a name that is not known, with those that are and the nearest of them."""
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    return ValueError(f"{what} {word!r} is not known: known are {', '.join(known)}{hint}")
