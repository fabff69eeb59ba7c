"""A control plane in Python: requests with priorities, deadlines and budgets, on the instances that are registered.

manager     ControlPlaneManager, the face
request     what is asked for, and what became of it
instance    an engine that is registered, and its state
decision    where a request goes, and what that will take
policies    in which order, and which instances are preferred
routing     which of those gets it
phases      long prompts here, long replies there
scheduler   the three above, for one request
dispatcher  waiting, running, queued again, over
bell        what wakes the two tasks that the control plane has
ticket      one request on its way
fleet       the registered instances
health      whether an instance takes requests
monitor     what probes found
engines     the router's core behind all this
completion  requests and replies as engines write them
metrics     figures
limits      bounds
errors      what goes wrong
"""

from nebula_router.control_plane.decision import SchedulingDecision
from nebula_router.control_plane.errors import (
    ControlPlaneError,
    DuplicateRequestError,
    QueueFullError,
    RequestFailedError,
    StoppedError,
    UnknownRequestError,
)
from nebula_router.control_plane.instance import (
    DecodingConfig,
    ExecutionInstance,
    ExecutionInstanceType,
    PrefillingConfig,
)
from nebula_router.control_plane.limits import Limits
from nebula_router.control_plane.manager import ControlPlaneManager
from nebula_router.control_plane.metrics import PerformanceMetrics
from nebula_router.control_plane.phases import PDSeparationConfig
from nebula_router.control_plane.policies import Policy, Preference
from nebula_router.control_plane.request import (
    ParallelismType,
    RequestMetadata,
    RequestPriority,
    RequestResult,
    RequestStatus,
)

__all__ = [
    "ControlPlaneError",
    "ControlPlaneManager",
    "DecodingConfig",
    "DuplicateRequestError",
    "ExecutionInstance",
    "ExecutionInstanceType",
    "Limits",
    "PDSeparationConfig",
    "ParallelismType",
    "PerformanceMetrics",
    "Policy",
    "Preference",
    "PrefillingConfig",
    "QueueFullError",
    "RequestFailedError",
    "RequestMetadata",
    "RequestPriority",
    "RequestResult",
    "RequestStatus",
    "SchedulingDecision",
    "StoppedError",
    "UnknownRequestError",
]
