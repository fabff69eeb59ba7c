"""The kinds of workloads that a simulated or a live fleet is asked to answer, and their parameters with defaults.

Generated sessions arrive as a Poisson process of `rate_per_s`. Lengths are lognormal around their mean with `spread` as
the ratio of standard deviation to mean, at least 1 and at most ten times the mean; pauses are exponential.
"""

from typing import Annotated, Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict, Field

from nebula_router.kinds import Flag

MOST: Final = 10_000_000
"""Of anything that is counted: what is asked for must fit into memory."""

Count = Annotated[int, Field(ge=1, le=MOST)]
Rate = Annotated[float, Field(ge=1e-6, le=1e9)]
Pause = Annotated[float, Field(ge=0, le=1e6)]
Spread = Annotated[float, Field(ge=0, le=2)]

_SPREAD: Final = "Standard deviation of lengths as a share of their mean; 0 makes all equal."
_RATE: Final = "Sessions (chats, tasks or single requests) that begin per second."
_THINK: Final = "Mean pause of a user between a reply and the next message."
_OUTPUT: Final = "Mean length of a reply, in tokens."


class Part(BaseModel):
    """A few values that a command is told, as a whole: names that it does not know are refused."""

    model_config = ConfigDict(allow_inf_nan=False, extra="forbid", frozen=True, validate_default=True)


class Kind(Part):
    """The parameters of one kind of workload."""

    name: ClassVar[str]
    """As it is called on the command line and in the core's document."""
    recorded: ClassVar[bool] = False
    """True where the requests are read from a trace."""
    counts: ClassVar[str] = "requests"
    """The parameter that says how many there are."""

    def source(self, seed: int) -> dict[str, Any]:  # noqa: ARG002 - generators take the fleet's seed
        """The document that the core makes the workload from."""
        return {"kind": self.name, **self.model_dump()}


class MultiTurn(Kind):
    """Chats of several turns under one system prompt."""

    name = "multi_turn"
    counts = "sessions"

    sessions: Count = Field(1000, description="Chats.")
    rate_per_s: Rate = Field(4.0, description=_RATE)
    min_turns: Count = Field(2, description="Fewest turns of a chat; each number up to max_turns is as likely.")
    max_turns: Count = Field(8, description="Most turns of a chat.")
    system_tokens: int = Field(512, ge=0, le=MOST, description="Length of the system prompt, in tokens.")
    user_tokens: Count = Field(128, description="Mean length of a user's message, in tokens.")
    output_tokens: Count = Field(256, description=_OUTPUT)
    think_s: Pause = Field(10.0, description=_THINK)
    spread: Spread = Field(0.6, description=_SPREAD)


class SharedPrefix(Kind):
    """Single requests that begin with one of several system prompts, a few of them far more often than others."""

    name = "shared_prefix"

    requests: Count = Field(4000, description="Requests.")
    rate_per_s: Rate = Field(40.0, description=_RATE)
    prefixes: Count = Field(64, description="Different system prompts.")
    zipf: float = Field(1.0, ge=0, le=10, description="Prompt number k is used in proportion to 1 / k^zipf.")
    prefix_tokens: Count = Field(2048, description="Mean length of a system prompt, in tokens.")
    suffix_tokens: Count = Field(256, description="Mean length of what follows it, in tokens.")
    output_tokens: Count = Field(128, description=_OUTPUT)
    spread: Spread = Field(0.6, description=_SPREAD)


class Agents(Kind):
    """Agents that call tools: the first turn states the task, each further one brings what a tool gave back."""

    name = "agents"
    counts = "tasks"

    tasks: Count = Field(400, description="Tasks.")
    rate_per_s: Rate = Field(1.5, description=_RATE)
    min_steps: Count = Field(4, description="Fewest requests for one task; each number up to max_steps is as likely.")
    max_steps: Count = Field(16, description="Most requests for one task.")
    tool_sets: Count = Field(4, description="Different sets of tools, each as common.")
    system_tokens: Count = Field(3000, description="Mean length of the prompt that describes a set, in tokens.")
    task_tokens: Count = Field(300, description="Mean length of a task, in tokens.")
    tool_result_tokens: Count = Field(800, description="Mean length of what a tool gives back, in tokens.")
    output_tokens: Count = Field(150, description=_OUTPUT)
    tool_s: Pause = Field(2.0, description="Mean time that a tool takes.")
    spread: Spread = Field(0.6, description=_SPREAD)


class Unique(Kind):
    """Single requests that share nothing: what a router must not lose on."""

    name = "unique"

    requests: Count = Field(4000, description="Requests.")
    rate_per_s: Rate = Field(40.0, description=_RATE)
    input_tokens: Count = Field(2048, description="Mean length of a prompt, in tokens.")
    output_tokens: Count = Field(128, description=_OUTPUT)
    spread: Spread = Field(0.6, description=_SPREAD)


class PrefixRepetition(Kind):
    """What `vllm bench serve --dataset-name prefix_repetition` asks: exact lengths, each prefix equally often."""

    name = "prefix_repetition"

    requests: Count = Field(4000, description="Requests.")
    rate_per_s: Rate = Field(40.0, description=_RATE)
    prefix_len: Annotated[Count, Flag("--prefix-len", "--prefix-repetition-prefix-len")] = Field(
        256, description="Length of a prefix, in tokens."
    )
    suffix_len: Annotated[Count, Flag("--suffix-len", "--prefix-repetition-suffix-len")] = Field(
        256, description="Length of what follows it, in tokens."
    )
    num_prefixes: Annotated[Count, Flag("--num-prefixes", "--prefix-repetition-num-prefixes")] = Field(
        10, description="Different prefixes; at most one per request."
    )
    output_len: Annotated[Count, Flag("--output-len", "--prefix-repetition-output-len")] = Field(
        128, description="Length of a reply, in tokens."
    )


class Mooncake(Kind):
    """A trace in Mooncake's format: JSON lines with timestamp, input_length, output_length and hash_ids."""

    name = "mooncake"
    recorded = True

    tokens_per_id: Count = Field(512, description="Tokens that one hash id stands for.")


class ShareGpt(Kind):
    """Recorded chats in the manner of ShareGPT, or as OpenAI's messages; they hold no times."""

    name = "sharegpt"
    recorded = True

    rate_per_s: Rate = Field(4.0, description=_RATE)
    think_s: Pause = Field(10.0, description=_THINK)

    def source(self, seed: int) -> dict[str, Any]:
        """The document that the core makes the workload from."""
        return super().source(seed) | {"seed": seed}


class Decisions(Kind):
    """The gateway's own log, written with log_format = "json" and log_prompt_hashes = true."""

    name = "decisions"
    recorded = True


KINDS: Final[dict[str, type[Kind]]] = {
    kind.name: kind
    for kind in (MultiTurn, SharedPrefix, Agents, Unique, PrefixRepetition, Mooncake, ShareGpt, Decisions)
}
"""By name."""
GENERATORS: Final = tuple(name for name, kind in KINDS.items() if not kind.recorded)
FORMATS: Final = tuple(name for name, kind in KINDS.items() if kind.recorded)
