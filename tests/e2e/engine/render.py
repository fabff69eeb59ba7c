"""Renders chat requests as an engine does: vLLM's own validation and preparation, then ``transformers``.

Run by the engines' own Python: ``python render.py``, a JSON line in and one out. A line has ``template``,
``special_tokens`` and ``request``; the answer has ``text``, or ``error`` where the engine refuses. A line without
``request`` asks for the ``format`` of a message's content.
"""

import json
import os
import sys
from types import SimpleNamespace
from typing import Any

# vLLM prints as it starts; the answers must stay alone on their way.
ANSWERS = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)

# These live in the engines' environment, not in the project's.
from tokenizers import Tokenizer, models  # type: ignore[import-not-found]  # noqa: E402
from transformers import PreTrainedTokenizerFast  # type: ignore[import-not-found]  # noqa: E402
from vllm.entrypoints.openai.chat_completion.protocol import (  # type: ignore[import-not-found]  # noqa: E402
    ChatCompletionRequest,
)
from vllm.renderers.chat_utils import parse_chat_messages  # type: ignore[import-not-found]  # noqa: E402
from vllm.renderers.hf import (  # type: ignore[import-not-found]  # noqa: E402
    _detect_content_format,
    safe_apply_chat_template,
)
from vllm.renderers.params import merge_kwargs  # type: ignore[import-not-found]  # noqa: E402

MODEL_CONFIG = SimpleNamespace(multimodal_config=None, enable_prompt_embeds=False, hf_config=SimpleNamespace())


def render(template: str, special_tokens: dict[str, str], body: dict[str, Any]) -> str:
    """The prompt, by the steps of ``OnlineRenderer.render_chat`` and ``HfRenderer.render_messages``."""
    request = ChatCompletionRequest.model_validate(body)
    tools = None if request.tools is None else [tool.model_dump() for tool in request.tools]
    params = request.build_chat_params(template, "auto").with_defaults(
        merge_kwargs(None, {"tools": tools, "tokenize": False})
    )
    conversation, _, _ = parse_chat_messages(
        request.messages, MODEL_CONFIG, content_format=_detect_content_format(template, default="string")
    )
    words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **special_tokens)
    arguments = params.get_apply_chat_template_kwargs()
    return str(safe_apply_chat_template(MODEL_CONFIG, tokenizer, conversation, **arguments))


def answer(line: dict[str, Any]) -> dict[str, str]:
    if "request" not in line:
        return {"format": _detect_content_format(line["template"], default="string")}
    try:
        return {"text": render(line["template"], line["special_tokens"], line["request"])}
    except Exception as error:  # noqa: BLE001  whatever it is, the engine answers 400 or 500
        return {"error": f"{type(error).__name__}: {error}"}


for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), file=ANSWERS, flush=True)
