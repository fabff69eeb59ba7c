"""`nebula explain`: the decision that a gateway would make for a request, and why."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from pydantic import Field
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nebula_router.remote import Answer, Load, Remote
from nebula_router.sources import ConfigError

STDIN: Final = "-"
TIMEOUT_S: Final = 30
WIDTH: Final = 100
"""What the table takes."""
ABSENT: Final = "-"
_MARKS: Final = {"chosen": "►", "runner_up": "2"}
_BY_PRICE: Final = "kv"
"""The policy that takes the cheapest rank."""
_SOURCES: Final = {
    "client": "the client sent them",
    "local": "the gateway's own tokenizer made them",
    "engine": "an engine made them",
    "text": "blocks of the text, as the tokens are not known",
}
_TERMS: Final = {
    "uncached": "what it must compute of the prompt",
    "prefill_backlog": "the prompts before it",
    "decode": "the replies that it writes",
    "pressure": "its full KV cache",
}


class Key(Answer):
    """What the prompt is looked up by."""

    kind: str
    source: str
    why: str | None = None


class Overlap(Answer):
    """Tokens of the prompt that a rank holds, by where they are."""

    gpu: int = 0
    cpu: int = 0
    storage: int = 0


class Terms(Answer):
    """The price, in tokens of prefill work."""

    uncached: float
    prefill_backlog: float
    decode: float
    pressure: float
    total: float


class Rank(Answer):
    """One candidate."""

    engine: str
    rank: int
    status: str
    chosen: bool = False
    runner_up: bool = False
    block_tokens: float | None = None
    """A fraction where the blocks are of text."""
    blocks: int | None = None
    overlap: Overlap = Overlap()
    credit: float = 1.0
    load: Load = Load()
    terms: Terms | None = None

    @property
    def name(self) -> str:
        """As people call it."""
        return f"{self.engine} rank {self.rank}"

    @property
    def price(self) -> tuple[bool, float]:
        """To order by: the cheapest first, those without a price last."""
        return (True, 0.0) if self.terms is None else (False, self.terms.total)


class Choice(Answer):
    """A rank by name."""

    engine: str
    rank: int


class Shadow(Choice):
    """What another policy would have chosen."""

    policy: str


class Explanation(Answer):
    """The whole decision."""

    model: str
    key: Key
    prompt_tokens: int
    ranks: tuple[Rank, ...] = Field(())
    policy: str
    choice: Choice | None = None
    shadow: Shadow | None = None
    text_chars: int | None = None


def explain(remote: Remote, file: str, path: str | None, *, as_json: bool) -> None:
    """Asks the gateway about the request in a file, and prints what it says.

    Raises:
        ConfigError: The file holds no request, or the gateway does not answer.
    """
    body = request(file)
    where = "/route/explain" + (f"?path={quote(path)}" if path else "")
    document = remote.document(where, body)
    explanation = remote.parse(Explanation, where, document)
    if as_json:
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        return
    console = Console()
    console.width = max(console.width, WIDTH)
    show(console, explanation)


def request(file: str) -> bytes:
    """The bytes of a request, as they are.

    Raises:
        ConfigError: There are none, or they are no JSON object.
    """
    place = "standard input" if file == STDIN else file
    try:
        body = sys.stdin.buffer.read() if file == STDIN else Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"{place}: cannot be read: {error.strerror}; - reads standard input") from None
    try:
        document: Any = json.loads(body)
    except ValueError as error:
        raise ConfigError(f"{place}: is not JSON: {error}; a request's body is needed, {_LIKE}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{place}: is not a JSON object; a request's body is needed, {_LIKE}")
    return body


_LIKE: Final = 'such as {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}'


def show(console: Console, explanation: Explanation) -> None:
    """Prints the key, a table of ranks and the reason."""
    for line in _about(explanation):
        console.print(Text(line), soft_wrap=True)
    ranks = sorted(explanation.ranks, key=lambda rank: (*rank.price, rank.engine, rank.rank))
    if ranks:
        console.print()
        console.print(_table(ranks))
        console.print()
    console.print(Text(reason(explanation), "bold"), soft_wrap=True)
    shadow = explanation.shadow
    if shadow is not None:
        same = explanation.choice is not None and (shadow.engine, shadow.rank) == _place(explanation.choice)
        what = "the same" if same else f"{shadow.engine} rank {shadow.rank}"
        console.print(Text(f"In its shadow, the policy {shadow.policy} chooses {what}.", "dim"), soft_wrap=True)


def reason(explanation: Explanation) -> str:
    """Why the chosen rank won, in one sentence."""
    chosen = next((rank for rank in explanation.ranks if rank.chosen), None)
    other = next((rank for rank in explanation.ranks if rank.runner_up), None)
    if chosen is None:
        states = ", ".join(f"{rank.name} is {rank.status}" for rank in explanation.ranks)
        return f"No engine can take it: {states or f'none serves the model {explanation.model}'}."
    if explanation.policy != _BY_PRICE:
        return f"{chosen.name} is the choice of the policy {explanation.policy}, which does not go by this price."
    if other is None:
        return f"{chosen.name} is the only one that can take it."
    if chosen.terms is None or other.terms is None:
        return f"{chosen.name} goes before {other.name}, whose price is not known."
    return f"{chosen.name} {_compared(chosen.terms, other.terms, other.name)}."


def _compared(ours: Terms, theirs: Terms, name: str) -> str:
    won = theirs.total - ours.total
    if abs(won) < 1:
        return f"and {name} cost the same, and chance decided"
    if won < 0:
        return f"costs {_number(-won)} more than {name}, so something else than the price decided"
    gains = {term: getattr(theirs, term) - getattr(ours, term) for term in _TERMS}
    best = max(gains, key=lambda term: gains[term])
    worst = min(gains, key=lambda term: gains[term])
    text = (
        f"wins over {name} by {_number(won)}, most of all by {_TERMS[best]}: "
        f"{_number(getattr(ours, best))} against {_number(getattr(theirs, best))}"
    )
    if -gains[worst] >= won * 0.1:
        text += f", though {_TERMS[worst]} cost {_number(-gains[worst])} more"
    return text


def _about(explanation: Explanation) -> Iterator[str]:
    key = explanation.key
    size = f"{explanation.prompt_tokens:,} prompt tokens"
    if key.kind != "tokens":
        size = f"about {size}"
    if explanation.text_chars:
        size += f", {explanation.text_chars:,} characters"
    yield f"model {explanation.model}, {size}, policy {explanation.policy}"
    source = _SOURCES.get(key.source, key.source)
    yield f"key: {key.kind}, {source}" + (f" ({key.why})" if key.why else "")


def _table(ranks: Sequence[Rank]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("\nengine", no_wrap=True, max_width=24)
    for heading in ("\nrank", "\nstatus"):
        table.add_column(heading, no_wrap=True, justify="right" if heading == "\nrank" else "left")
    tiers = [tier for tier in Overlap.model_fields if tier == "gpu" or any(getattr(r.overlap, tier) for r in ranks)]
    trusted = all(rank.credit == 1 for rank in ranks)
    headings = [f"{'overlap' if tier == 'gpu' else ''}\n{tier}" for tier in tiers]
    headings += [] if trusted else ["\ncredit"]
    headings += ["cost of\nuncached", "\nbacklog", "\ndecode", "\npressure", "\ntotal"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for rank in ranks:
        mark = next((sign for name, sign in _MARKS.items() if getattr(rank, name)), "")
        cells = [f"{getattr(rank.overlap, tier):,}" for tier in tiers]
        cells += [] if trusted else [f"{rank.credit:.2f}"]
        terms = rank.terms
        cells += [ABSENT if terms is None else _number(getattr(terms, term)) for term in (*_TERMS, "total")]
        style = "bold" if rank.chosen else "dim" if terms is None else ""
        table.add_row(mark, Text(rank.engine), str(rank.rank), rank.status, *cells, style=style)
    return table


def _place(choice: Choice) -> tuple[str, int]:
    return choice.engine, choice.rank


def _number(value: float) -> str:
    return f"{value:,.0f}"
