//! A conversation as the JSON of a request.
//!
//! What was said so far is kept as it is sent, so that a turn costs what it adds and one copy of the whole.

use bytes::Bytes;
use nebula_sim::workload::{Message, Turn};
use serde_json::{Map, Value};

use crate::config::{Config, Endpoint};

/// What was said so far: members of the list `messages`, or the inside of the string `prompt`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Transcript {
    json: Vec<u8>,
}

/// What stands around the transcript in the body of every request.
#[derive(Debug)]
pub(crate) struct Form {
    endpoint: Endpoint,
    /// Up to the transcript.
    head: Vec<u8>,
    /// From behind the transcript to the number of tokens.
    middle: Vec<u8>,
}

// === impl Transcript ===

impl Transcript {
    /// Takes in what a turn adds.
    ///
    /// # Cost
    /// O(bytes of the turn).
    pub(crate) fn ask(&mut self, turn: &Turn, endpoint: Endpoint) {
        let mut text = String::new();
        for message in &turn.messages {
            text.clear();
            message.text(&mut text);
            self.say(message.role.name(), &text, endpoint);
        }
    }

    /// Takes in what the server replied.
    pub(crate) fn answer(&mut self, text: &str, endpoint: Endpoint) {
        self.say("assistant", text, endpoint);
    }

    /// What was said, as it is sent.
    pub(crate) fn json(&self) -> &[u8] {
        &self.json
    }

    fn say(&mut self, role: &str, text: &str, endpoint: Endpoint) {
        // Writing into memory cannot fail, and a text is always JSON.
        let quoted = serde_json::to_vec(text).unwrap_or_default();
        match endpoint {
            Endpoint::Completions => {
                self.json.extend_from_slice(&quoted[1..quoted.len() - 1]);
            }
            Endpoint::Chat => {
                if !self.json.is_empty() {
                    self.json.push(b',');
                }
                self.json.extend_from_slice(format!(r#"{{"role":"{role}","content":"#).as_bytes());
                self.json.extend_from_slice(&quoted);
                self.json.push(b'}');
            }
        }
    }
}

// === impl Form ===

impl Form {
    pub(crate) fn new(config: &Config) -> Form {
        let mut fields = Map::new();
        fields.insert("model".to_owned(), config.model.clone().into());
        fields.extend(config.body.clone());
        if config.ignore_eos {
            fields.insert("ignore_eos".to_owned(), true.into());
        }
        if config.stream {
            fields.insert("stream".to_owned(), true.into());
            let options = serde_json::json!({"include_usage": true});
            fields.insert("stream_options".to_owned(), options);
        }
        let fields = Value::Object(fields).to_string();
        // All fields but the last brace, which comes behind the transcript and the number of tokens.
        let open = &fields[..fields.len() - 1];
        let (transcript, close, tokens) = match config.endpoint {
            Endpoint::Chat => ("messages\":[", "]", "max_completion_tokens"),
            Endpoint::Completions => ("prompt\":\"", "\"", "max_tokens"),
        };
        Form {
            endpoint: config.endpoint,
            head: format!("{open},\"{transcript}").into_bytes(),
            middle: format!("{close},\"{tokens}\":").into_bytes(),
        }
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    /// The body of a request for `tokens` more tokens.
    pub(crate) fn body(&self, transcript: &Transcript, tokens: u32) -> Bytes {
        let json = &transcript.json;
        let mut body = Vec::with_capacity(self.head.len() + json.len() + self.middle.len() + 12);
        body.extend_from_slice(&self.head);
        body.extend_from_slice(json);
        body.extend_from_slice(&self.middle);
        body.extend_from_slice(tokens.to_string().as_bytes());
        body.push(b'}');
        body.into()
    }

    /// What one message alone asks, for requests that are no part of the workload.
    pub(crate) fn of(&self, message: Message) -> Transcript {
        let mut transcript = Transcript::default();
        let turn = Turn { messages: vec![message], output_tokens: 1, think: 0 };
        transcript.ask(&turn, self.endpoint);
        transcript
    }
}

#[cfg(test)]
mod tests {
    use nebula_sim::workload::{Piece, Role};
    use serde_json::json;

    use super::*;
    use crate::config::Pace;

    fn form(endpoint: Endpoint, stream: bool) -> Form {
        let body = json!({"temperature": 0, "seed": 7});
        Form::new(&Config {
            base_url: "http://a".to_owned(),
            endpoint,
            path: "/v1".to_owned(),
            headers: Vec::new(),
            session_header: None,
            model: "a \"model\"".to_owned(),
            body: body.as_object().cloned().unwrap(),
            stream,
            ignore_eos: stream,
            checksum: false,
            pace: Pace::AtOnce,
            max_concurrency: None,
            timeout_ms: 1,
            connect_timeout_ms: 1,
            ready_timeout_ms: 0,
            warmups: 0,
            percentiles: Vec::new(),
            seed: 0,
        })
    }

    fn turn(messages: &[(Role, &str)]) -> Turn {
        let message = |&(role, text): &(Role, &str)| Message::new(role, Piece::Text(text.into()));
        Turn { messages: messages.iter().map(message).collect(), output_tokens: 5, think: 0 }
    }

    fn asked(endpoint: Endpoint, stream: bool) -> Value {
        let form = form(endpoint, stream);
        let mut transcript = Transcript::default();
        transcript
            .ask(&turn(&[(Role::System, "be\nbrief"), (Role::User, " say \"hi\"")]), endpoint);
        transcript.answer(" hü\u{7}", endpoint);
        transcript.ask(&turn(&[(Role::Tool, " 4")]), endpoint);
        serde_json::from_slice(&form.body(&transcript, 5)).unwrap()
    }

    #[test]
    fn a_chat_repeats_what_was_said() {
        let messages = json!([
            {"role": "system", "content": "be\nbrief"},
            {"role": "user", "content": " say \"hi\""},
            {"role": "assistant", "content": " hü\u{7}"},
            {"role": "tool", "content": " 4"},
        ]);
        let expected = json!({"model": "a \"model\"", "temperature": 0, "seed": 7, "messages": messages,
            "max_completion_tokens": 5, "ignore_eos": true, "stream": true,
            "stream_options": {"include_usage": true}});
        assert_eq!(asked(Endpoint::Chat, true), expected);
    }

    #[test]
    fn a_prompt_is_all_of_it_in_a_row() {
        let expected = json!({"model": "a \"model\"", "temperature": 0, "seed": 7,
            "prompt": "be\nbrief say \"hi\" hü\u{7} 4", "max_tokens": 5});
        assert_eq!(asked(Endpoint::Completions, false), expected);
    }

    #[test]
    fn a_request_of_its_own_holds_one_message() {
        let form = form(Endpoint::Chat, true);
        let transcript = form.of(Message::new(Role::User, Piece::Text("hi".into())));
        assert_eq!(transcript.json(), br#"{"role":"user","content":"hi"}"#);
    }
}
