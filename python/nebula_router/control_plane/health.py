"""Whether an instance takes requests: a state machine over probes and requests.

```
     healthy probe            failure                `threshold` failed probes in a row
new --------------> healthy -----------> unhealthy -------------------------------------> removed
 |                     ^                  ^     |                                            |
 |    failed probe     |                  |     | healthy probe                              |
 +----------------------------------------+     |                                            |
                       +------------------------+--------------------------------------------+
```

An instance gets requests while it is healthy. An unhealthy one keeps those that it has; a removed one loses them. So a
failed request makes it unhealthy and never removes it: others may still be answered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nebula_router.control_plane.instance import ExecutionInstance


@dataclass(slots=True)
class InstanceHealth:
    """One instance's health; it alone writes `is_healthy`, and `is_available` only to take it back what it took."""

    instance: ExecutionInstance
    threshold: int
    failures: int = 0
    """Failed probes in a row."""
    is_new: bool = True
    """Whether no probe has told anything yet."""
    is_removed: bool = False

    def failed(self) -> bool:
        """Note a failed probe; return whether this one removes the instance."""
        self.failures += 1
        self.is_new = False
        self.instance.is_healthy = False
        if self.is_removed or self.failures < self.threshold:
            return False
        self.is_removed = True
        self.instance.is_available = False
        return True

    def rest(self) -> None:
        """Send nothing until the next healthy probe: a request failed, or there is no room."""
        self.instance.is_healthy = False

    def recovered(self) -> bool:
        """Note a healthy probe; return whether the instance takes requests again."""
        changed = self.is_new or self.is_removed or not self.instance.is_healthy
        self.is_new = False
        if self.is_removed:
            self.is_removed = False
            self.instance.is_available = True
        self.failures = 0
        self.instance.is_healthy = True
        return changed
