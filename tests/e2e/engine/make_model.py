"""Makes the tiny model that the engines serve, from nothing and without a network.

Run by the engines' own Python: ``python make_model.py FOLDER`` (seconds, 22 MB). A Qwen3 of two layers with random
weights, and a byte-level BPE trained on the standard library. Three choices keep the tests sharp:

- float32 and an untied head, so the greedy choice has one answer whatever else shares the batch;
- only words (a space, then letters) can win the greedy choice, so a reply survives detokenising and tokenising again,
  and the next turn of a conversation really starts with the tokens that the engine holds;
- the chat template shows the tools, so they count as prompt.
"""

import re
import sys
import sysconfig
from pathlib import Path

# These live in the engines' environment, not in the project's.
import torch  # type: ignore[import-not-found]
from tokenizers import (  # type: ignore[import-not-found]
    AddedToken,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM  # type: ignore[import-not-found]

VOCABULARY = 8192
POSITIONS = 32768
WORD = re.compile("\u0120[A-Za-z]{2,}")  # U+0120 stands for a leading space in byte-level BPE
TEMPLATE = """\
{%- if tools -%}
{{- '<|im_start|>system\\nTools:\\n' -}}
{%- for tool in tools -%}{{- tool | tojson + '\\n' -}}{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}{{- message.content -}}{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{{- '<tool_call>\\n' + call.function | tojson + '\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A ChatML tokenizer, trained on the source text of the Python that runs this."""
    library = Path(sysconfig.get_paths()["stdlib"])
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train([str(path) for path in sorted(library.glob("*.py"))[:150]], trainer)
    bpe.add_tokens([AddedToken(text, special=False) for text in ("<tool_call>", "</tool_call>")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_weights(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Random weights, of which only the rows of words are left in the head: every other token scores exactly zero."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=POSITIONS,
            initializer_range=0.1,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
            pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        )
    ).to(torch.float32)
    silent = [token for text, token in tokenizer.get_vocab().items() if not WORD.fullmatch(text)]
    with torch.no_grad():
        model.lm_head.weight[silent] = 0.0
    return model


def main(folder: str) -> None:
    """Writes the model and its tokenizer into ``folder``."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    make_weights(tokenizer).save_pretrained(folder, safe_serialization=True)


if __name__ == "__main__":
    main(sys.argv[1])
