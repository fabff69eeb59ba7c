"""Instance types: long prompts to some instances, long replies to others. No KV cache moves between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nebula_router.control_plane.errors import unknown
from nebula_router.control_plane.instance import ExecutionInstanceType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nebula_router.control_plane.instance import ExecutionInstance
    from nebula_router.control_plane.request import RequestMetadata

DEFAULT_MAX_TOKENS: Final = 512
"""Tokens that a request asks for where it does not say."""

_CHARS_PER_TOKEN: Final = 4
_BUSY: Final = 0.8
_POLICIES: Final = ("adaptive", "threshold")


@dataclass(frozen=True, slots=True)
class PDSeparationConfig:
    """When a prompt counts as long, and how strictly requests keep to the instances meant for them."""

    routing_policy: str = "adaptive"
    """`threshold`: another type only while none of the right one takes the request; `adaptive`: also while all of
    those are at a load of 0.8 or more."""
    prefilling_threshold_input_tokens: int = 800
    prefilling_threshold_ratio: float = 4.0
    """Tokens of the prompt per token of the reply."""

    def __post_init__(self) -> None:
        """Refuse a policy that is not known."""
        if self.routing_policy not in _POLICIES:
            raise unknown("routing policy", self.routing_policy, _POLICIES)

    def phase(self, request: RequestMetadata) -> ExecutionInstanceType:
        """Return which phase weighs most: prefilling above either threshold, else decoding.

        Source: `len(prompt) // 4 > 800 or input / output > 4`, the rule of sageLLM's control plane.
        """
        prompt = prompt_tokens(request)
        is_long = prompt > self.prefilling_threshold_input_tokens
        reply = request.max_tokens or DEFAULT_MAX_TOKENS
        if is_long or prompt / reply > self.prefilling_threshold_ratio:
            return ExecutionInstanceType.PREFILLING
        return ExecutionInstanceType.DECODING

    def suited(
        self, instances: Sequence[ExecutionInstance], phase: ExecutionInstanceType
    ) -> Sequence[ExecutionInstance]:
        """Return the instances of the phase's own type or, where those are not to be had, general ones, or all."""
        own = {phase, ExecutionInstanceType.HYBRID}
        for kinds in (own, {ExecutionInstanceType.GENERAL}):
            found = [instance for instance in instances if instance.instance_type in kinds]
            if found and not (self.routing_policy == "adaptive" and _all_busy(found)):
                return found
        return instances


def prompt_tokens(request: RequestMetadata) -> int:
    """Return the length of a request's prompt, estimated where it is text."""
    if isinstance(request.prompt, list):
        return len(request.prompt)
    chars = len(request.prompt or "") + sum(_chars(message.get("content")) for message in request.messages or ())
    return chars // _CHARS_PER_TOKEN


def _chars(content: object) -> int:
    """Length of a message's text; what else it holds counts for nothing."""
    if isinstance(content, list):
        return sum(len(part.get("text") or "") for part in content if isinstance(part, dict))
    return len(content) if isinstance(content, str) else 0


def _all_busy(instances: Sequence[ExecutionInstance]) -> bool:
    return all(instance.current_load >= _BUSY for instance in instances)
