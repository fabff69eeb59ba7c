//! The prompts that an engine is asked with: each shows another way in which two renderings can differ.

/// One of them.
pub(super) struct Canary {
    pub(super) name: &'static str,
    /// A request without its model.
    pub(super) json: &'static str,
}

pub(super) const CANARIES: [Canary; 7] = [
    Canary {
        name: "plain",
        json: r#"{"prompt": "The quick brown fox, 12345 times:\n\n\tdef jump(self, over=\"dog\"):  # twice\n"}"#,
    },
    Canary {
        name: "unicode",
        json: r#"{"prompt": "Grüße, Zoë! e\u0301 \u00e9 東京は晴れ Привет שלום 👩‍👩‍👧 \u200b\u00a0½ ﬁ İstanbul"}"#,
    },
    Canary {
        name: "chat",
        json: r#"{"messages": [
            {"role": "system", "content": "You are terse.  "},
            {"role": "user", "content": " What is 2+2?\n"},
            {"role": "assistant", "content": "4"},
            {"role": "user", "content": "And 3+3?"}]}"#,
    },
    Canary {
        name: "chat without a system message",
        json: r#"{"messages": [{"role": "user", "content": "Hello there"}]}"#,
    },
    Canary {
        name: "chat in unicode",
        json: r#"{"messages": [{"role": "user", "content": "Übersetze: 猫が好き — \"naïve\" 🐈‍⬛"}]}"#,
    },
    Canary {
        name: "chat in parts",
        json: r#"{"messages": [{"role": "user", "content": [
            {"type": "text", "text": "First part"}, {"type": "text", "text": "and a second"}]}]}"#,
    },
    Canary {
        name: "chat with tools",
        json: r#"{"messages": [
            {"role": "user", "content": "Weather in Paris?"},
            {"role": "assistant", "content": null, "tool_calls": [{"id": "call_abcdef123", "type": "function",
                "function": {"name": "weather", "arguments": "{\"city\": \"Paris\", \"days\": 2}"}}]},
            {"role": "tool", "tool_call_id": "call_abcdef123", "content": "{\"celsius\": 21.5}"},
            {"role": "user", "content": "And tomorrow?"}],
          "tools": [{"type": "function", "function": {"name": "weather", "description": "Tells the weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Where"},
                "days": {"type": "integer", "default": 1}}, "required": ["city"]}}}]}"#,
    },
];
