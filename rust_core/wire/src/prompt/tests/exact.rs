//! Prompts as tokens: by the model's own files, by what an engine says, for engines that cut them differently.

use std::path::Path;

use nebula_route::{EngineSpec, Facts, Intake, KeySource, KeySpec, ModelFact, Probe};

use super::*;

const SIZES: [u32; 2] = [16, 32];

/// A router over one engine per key, all of which serve `tiny` and its adapter `tale`.
fn fleet(sources: &[KeySource], ids: bool) -> Router {
    let router = router();
    let spec = |n: usize| EngineSpec {
        name: format!("e{n}"),
        url: "http://e:1".to_owned(),
        ranks: 1,
        ..EngineSpec::default()
    };
    router.set_engines((0..sources.len()).map(spec).collect()).unwrap();
    let base =
        ModelFact { id: "tiny".to_owned(), max_model_len: Some(4_096), ..ModelFact::default() };
    let adapter = ModelFact {
        id: "tale".to_owned(),
        parent: Some("tiny".to_owned()),
        ..ModelFact::default()
    };
    for (n, engine) in router.engines().iter().enumerate() {
        router.probe(engine, Probe::Healthy, 0);
        let models = vec![base.clone(), adapter.clone()];
        router.learn(engine, Facts { models, ..Facts::default() });
        let key = KeySpec { source: sources[n], block: SIZES[n % 2] };
        router.settle(engine, Intake { key, ids });
    }
    router
}

fn models() -> Models {
    let models = Models::new(1 << 20);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/chatml");
    models.load(&["tiny".to_owned()], &folder).unwrap();
    models
}

fn read_by(router: &Router, path: &str, body: &serde_json::Value) -> Prompt {
    let (config, models, aliases) = (config(false), models(), Aliases::new());
    let reader = Reader {
        config: &config,
        aliases: &aliases,
        router,
        models: &models,
        new_bytes: usize::MAX,
    };
    let body = Bytes::from(body.to_string());
    read(at(path), &HeaderMap::new(), body, &reader).unwrap()
}

fn says(text: &str) -> serde_json::Value {
    serde_json::json!({"model": "tiny", "messages": [{"role": "user", "content": text}]})
}

fn ids_of(path: &str, body: &serde_json::Value) -> Vec<u32> {
    let models = models();
    let model = models.find("tiny").unwrap();
    if path == CHAT {
        return model.chat(&body.to_string(), usize::MAX).unwrap().ids;
    }
    let text = body["prompt"].as_str().unwrap();
    model.completion(text, &Details::default(), usize::MAX).unwrap()
}

const CHAT: &str = "/v1/chat/completions";
const COMPLETION: &str = "/v1/completions";

#[test]
fn a_chat_and_a_completion_become_the_tokens_of_the_models_files() {
    let router = fleet(&[KeySource::Local], false);
    let text = "the harbour and the ships of the other shore ".repeat(20);
    let completion = serde_json::json!({"model": "tiny", "prompt": text});
    for (path, body) in [(CHAT, says(&text)), (COMPLETION, completion)] {
        let prompt = read_by(&router, path, &body);
        assert_eq!(prompt.key.origin, Origin::Local);
        assert!(prompt.key.chain().is_exact() && prompt.ask.is_none());
        let ids = serde_json::json!({"model": "tiny", "prompt": ids_of(path, &body)});
        let same = read_by(&router, COMPLETION, &ids);
        assert_eq!(same.key.origin, Origin::Client);
        assert_eq!(same.key.chain(), prompt.key.chain(), "{path}");
    }
}

#[test]
fn every_engine_is_asked_with_its_own_blocks() {
    let router = fleet(&[KeySource::Local, KeySource::Local, KeySource::Text], false);
    let prompt = read_by(&router, CHAT, &says(&"salt ".repeat(300)));
    let engines = router.engines();
    let [small, large, text] = [0, 1, 2].map(|n| prompt.chain_for(&engines[n]));
    assert_eq!(small.hashes().len() / 2, large.hashes().len());
    assert!(small.is_exact() && large.is_exact() && !text.is_exact());
    assert_eq!(prompt.key.other_chains().len(), 2);
}

#[test]
fn an_adapters_blocks_are_its_own_and_its_tokens_those_of_its_base() {
    let router = fleet(&[KeySource::Local], false);
    let body = says(&"ships ".repeat(100));
    let tale = body.to_string().replace("tiny", "tale");
    let base = read_by(&router, CHAT, &body);
    let adapter = read_by(&router, CHAT, &serde_json::from_str(&tale).unwrap());
    assert_eq!(adapter.key.origin, Origin::Local);
    assert_eq!(base.key.chain().prompt_tokens(), adapter.key.chain().prompt_tokens());
    assert_ne!(base.key.chain().hashes()[0], adapter.key.chain().hashes()[0]);
}

#[test]
fn what_only_an_engine_can_say_is_asked_and_taken() {
    let router = fleet(&[KeySource::Engine], false);
    let body = says(&"late ".repeat(100));
    let mut prompt = read_by(&router, CHAT, &body);
    assert_eq!((prompt.key.origin, prompt.key.chain().is_exact()), (Origin::Text, false));
    let ask = prompt.ask.take().unwrap();
    let asked: serde_json::Value = serde_json::from_slice(&ask.body).unwrap();
    assert_eq!(asked, body, "no more than the engine reads");
    let ids = ids_of(CHAT, &body);
    prompt.key.take(&ids, router.config());
    assert_eq!((prompt.key.origin, prompt.key.chain().is_exact()), (Origin::Engine, true));
    assert_eq!(prompt.key.chain().prompt_tokens() as usize, ids.len());
}

#[test]
fn what_an_engine_would_tokenise_otherwise_on_another_path_stays_text() {
    let router = fleet(&[KeySource::Engine], false);
    for more in [
        serde_json::json!({"reasoning_effort": "high"}),
        serde_json::json!({"truncate_prompt_tokens": 5}),
        serde_json::json!({"tool_choice": "none"}),
    ] {
        let mut body = says("x");
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        assert!(read_by(&router, CHAT, &body).ask.is_none(), "{more}");
    }
}

#[test]
fn a_prompt_with_media_is_exact_up_to_them_and_goes_on_by_their_content() {
    let router = fleet(&[KeySource::Local], true);
    let of = |data: &str, after: &str| {
        let url = format!("data:image/png;base64,{}", data.repeat(1_000));
        let content = serde_json::json!([
            {"type": "text", "text": "look at this ".repeat(30)},
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": after},
        ]);
        let messages = serde_json::json!([
            {"role": "system", "content": "the harbour and the ships ".repeat(30)},
            {"role": "user", "content": content},
        ]);
        read_by(&router, CHAT, &serde_json::json!({"model": "tiny", "messages": messages}))
    };
    let after = "and tell me more ".repeat(30);
    let [one, again, other] = [of("A", &after), of("A", &after), of("B", &after)];
    let alike = |a: &Prompt, b: &Prompt| {
        let (a, b) = (a.key.chain().hashes(), b.key.chain().hashes());
        a.iter().zip(b).take_while(|(a, b)| a == b).count()
    };
    assert!(!one.key.chain().is_exact() && one.body_with_ids.is_none());
    assert_eq!(alike(&one, &again), one.key.chain().hashes().len());
    let shared = alike(&one, &other);
    assert!(shared > 5 && shared < one.key.chain().hashes().len(), "{shared}");
}

#[test]
fn ids_go_along_where_the_reply_stays_the_same() {
    let with = |path: &str, more: serde_json::Value, ids: bool| {
        let router = fleet(&[KeySource::Local], ids);
        let mut body = if path == CHAT {
            says("hello")
        } else {
            serde_json::json!({"model": "tiny", "prompt": "hello"})
        };
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let ids = ids_of(path, &body);
        let sent = read_by(&router, path, &body).body_with_ids?;
        Some((serde_json::from_slice::<serde_json::Value>(&sent).unwrap(), ids))
    };
    let none = serde_json::json!({});
    let (chat, ids) = with(CHAT, none.clone(), true).unwrap();
    assert_eq!(chat["kv_transfer_params"]["prompt_token_ids"], serde_json::json!(ids));
    assert_eq!(chat["messages"], says("hello")["messages"]);
    let (completion, ids) = with(COMPLETION, none.clone(), true).unwrap();
    assert_eq!(completion, serde_json::json!({"model": "tiny", "prompt": ids}));
    assert!(with(CHAT, none, false).is_none(), "the engine takes none");
    for more in [
        serde_json::json!({"echo": true}),
        serde_json::json!({"suffix": "x"}),
        serde_json::json!({"truncate_prompt_tokens": 5}),
        serde_json::json!({"max_tokens": 4_096}),
    ] {
        assert!(with(COMPLETION, more.clone(), true).is_none(), "{more}");
    }
}

#[test]
fn a_batch_is_routed_by_the_tokens_of_its_first_prompt() {
    let router = fleet(&[KeySource::Local], true);
    let text = "stories from the shore ".repeat(40);
    let one = read_by(&router, COMPLETION, &serde_json::json!({"model": "tiny", "prompt": text}));
    let batch = serde_json::json!({"model": "tiny", "prompt": [text, "another one"]});
    let batch = read_by(&router, COMPLETION, &batch);
    assert_eq!(batch.key.chain().hashes(), one.key.chain().hashes());
    assert!(!batch.key.chain().is_exact() && batch.body_with_ids.is_none());
}

#[test]
fn what_is_new_and_long_is_not_tokenised_on_the_spot() {
    let (router, config, models) = (fleet(&[KeySource::Local], false), config(false), models());
    let aliases = Aliases::new();
    let ask = |new_bytes: usize, text: &str| {
        let reader = Reader {
            config: &config,
            aliases: &aliases,
            router: &router,
            models: &models,
            new_bytes,
        };
        let body = Bytes::from(says(text).to_string());
        let prompt = read(at(CHAT), &HeaderMap::new(), body, &reader).unwrap();
        (prompt.cold, prompt.key.origin)
    };
    let text = "what nobody has said before ".repeat(40);
    assert_eq!(ask(500, &text), (true, Origin::Text));
    assert_eq!(ask(usize::MAX, &text), (false, Origin::Local));
    assert_eq!(ask(500, &text), (false, Origin::Local), "now it is known");
}
