"""End to end: real vLLM engines on the CPU, the gateway as a user starts it, and the ``openai`` client."""
