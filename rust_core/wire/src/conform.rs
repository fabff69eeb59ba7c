//! Whether an engine makes of a prompt what is made of it here: asked with a few prompts at its admission and after each
//! restart. Its key follows from the answer, by itself.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use nebula_route::{Engine, EngineId, Facts, Intake, KeySource, KeySpec};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Value, json};

use crate::context::Context;
use crate::models::{Model, Untold};
use crate::prompt::Details;
use crate::remote::{Silence, tokenize};
use crate::tasks::off_thread;

mod canary;

use canary::{CANARIES, Canary};

/// The first vLLM that takes the ids of a chat beside its messages.
const TAKES_IDS: (u32, u32) = (0, 27);

/// What every engine's prompts were found to be.
#[derive(Default)]
pub(crate) struct Conformance {
    reports: Mutex<HashMap<EngineId, Arc<Report>>>,
}

/// What one engine's prompts were found to be.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) state: State,
    /// Where the tokens of its prompts come from.
    pub(crate) source: KeySource,
    /// Why they come from no better place.
    pub(crate) why: Option<String>,
    pub(crate) checks: Vec<Checked>,
    /// Whether prompts go to it as ids.
    pub(crate) takes_ids: bool,
}

/// How it went.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// Every prompt has the same tokens here and there.
    Passed,
    /// One has not.
    Failed,
    /// There is nothing to compare, here or there.
    Unavailable,
}

/// One prompt.
#[derive(Debug, Serialize)]
pub(crate) struct Checked {
    name: &'static str,
    ok: bool,
    /// Whether it was tokenised here.
    #[serde(skip)]
    ours: bool,
    why: Option<String>,
}

// === impl Conformance ===

impl Conformance {
    /// The latest report on an engine.
    pub(crate) fn report(&self, engine: EngineId) -> Option<Arc<Report>> {
        self.reports.lock().get(&engine).cloned()
    }

    /// Forgets engines that left.
    pub(crate) fn retain(&self, kept: impl Fn(EngineId) -> bool) {
        self.reports.lock().retain(|id, _| kept(*id));
    }

    /// Asks an engine, and lets its key follow.
    pub(crate) async fn run(context: &Arc<Context>, engine: &Arc<Engine>) {
        let Some(facts) = engine.facts() else {
            return;
        };
        let (has, said) = (facts.data_parallel_size, engine.spec().ranks);
        if has.is_some_and(|has| has != said) {
            let name = &engine.spec().name;
            tracing::warn!(
                engine = name,
                has,
                said,
                "engine has other ranks than the setting `ranks` says"
            );
        }
        let report = Arc::new(examine(context, engine, &facts).await);
        let before = context.conformance.report(engine.id());
        // A busy engine that does not answer now is still what it was; if it is not, its replies will show.
        let known = before.as_ref().is_some_and(|before| before.state != State::Unavailable);
        if known && report.state == State::Unavailable {
            return;
        }
        if before.is_none_or(|before| before.why != report.why) {
            report.tell(&engine.spec().name);
        }
        context.conformance.reports.lock().insert(engine.id(), report);
        settle(context, engine, context.events.block_size(engine));
    }
}

/// Lets an engine's key follow from what is known of it: where its tokens come from, and the size of its blocks, which its
/// events have told or not.
pub(crate) fn settle(context: &Context, engine: &Engine, told: Option<u32>) {
    let Some(report) = context.conformance.report(engine.id()) else {
        return;
    };
    let block = told.or_else(|| engine.facts().and_then(|facts| facts.block_size));
    let block = block.unwrap_or(context.router.config().token_block_tokens);
    let key = KeySpec { source: report.source, block };
    context.router.settle(engine, Intake { key, ids: report.takes_ids });
}

async fn examine(context: &Arc<Context>, engine: &Arc<Engine>, facts: &Facts) -> Report {
    let bases: Vec<String> = facts
        .models
        .iter()
        .filter(|model| model.parent.is_none())
        .map(|model| model.id.clone())
        .collect();
    // Exact tokens pay where the engine tells what it holds; elsewhere its text says as much, and costs it nothing.
    let next = if context.events.follows(engine) { KeySource::Engine } else { KeySource::Text };
    let none = |source, why: String| Report {
        state: State::Unavailable,
        source,
        why: Some(why),
        checks: Vec::new(),
        takes_ids: false,
    };
    let Some(base) = bases.first().cloned() else {
        return none(KeySource::Text, "it has no base model".to_owned());
    };
    let Some(folder) = folder(context, facts, &bases) else {
        let why = "no folder with the model's tokenizer is known (setting tokens.model_assets)";
        // An engine that could not be believed anyway is not asked either.
        if next == KeySource::Engine
            && let Err(silence) = tokenize(context, engine, CANARIES[0].body(&base)).await
        {
            return none(KeySource::Text, silence.why());
        }
        return none(next, why.to_owned());
    };
    let asked = tokenize(context, engine, CANARIES[0].body(&base)).await;
    let told = bases.iter().any(|base| context.config.tokens.model_assets.contains_key(base));
    let model = match load(context, bases, folder).await {
        Ok(model) => model,
        Err(why) if asked.is_ok() => return none(next, why),
        Err(why) => return none(KeySource::Text, why),
    };
    let first = match asked {
        Ok(ids) => ids,
        Err(silence) => {
            // Whoever names the model's files is believed where the engine cannot be asked.
            let source = if told { KeySource::Local } else { KeySource::Text };
            return none(source, format!("not compared: {}", silence.why()));
        }
    };
    let checks = match checked(context, engine, &base, &model, first).await {
        Ok(checks) => checks,
        Err(why) => return none(next, format!("not compared: {why}")),
    };
    // What is not tokenised here is asked of the engine, prompt by prompt; only what is and differs is not to be trusted.
    let differs = checks.iter().find(|check| !check.ok && check.ours);
    let why = differs.or_else(|| checks.iter().find(|check| !check.ok)).map(|check| {
        format!("prompt `{}`: {}", check.name, check.why.as_deref().unwrap_or_default())
    });
    let passed = differs.is_none();
    Report {
        state: if passed { State::Passed } else { State::Failed },
        source: if passed { KeySource::Local } else { next },
        takes_ids: passed && context.config.tokens.forward_tokens && takes_ids(facts),
        why,
        checks,
    }
}

/// Every prompt here and there; `first` is what the engine made of the first one.
///
/// # Errors
/// Why the engine does not answer now.
async fn checked(
    context: &Context,
    engine: &Engine,
    base: &str,
    model: &Model,
    first: Vec<u32>,
) -> Result<Vec<Checked>, String> {
    let mut first = Some(first);
    let mut checks = Vec::with_capacity(CANARIES.len());
    for canary in &CANARIES {
        let theirs = match first.take() {
            Some(known) => Ok(known),
            None => tokenize(context, engine, canary.body(base)).await,
        };
        let theirs = match theirs {
            Err(Silence::Unreachable(why)) => {
                return Err(why);
            }
            theirs => theirs.map_err(Silence::why),
        };
        let ours = canary.tokens(model);
        let why = compare(&ours, &theirs).err();
        checks.push(Checked { name: canary.name, ok: why.is_none(), ours: ours.is_ok(), why });
    }
    Ok(checks)
}

/// The folder of the model that an engine serves: as the settings say, or as it says itself.
fn folder(context: &Context, facts: &Facts, bases: &[String]) -> Option<PathBuf> {
    let named = bases.iter().find_map(|base| context.config.tokens.model_assets.get(base));
    let root = facts.models.iter().find(|model| model.parent.is_none());
    let root = root.and_then(|model| model.root.as_ref());
    let readable = |root: &&String| {
        let root = Path::new(root.as_str());
        context.config.tokens.read_engine_root && root.is_absolute() && root.is_dir()
    };
    named.or(root.filter(readable)).map(PathBuf::from)
}

async fn load(
    context: &Arc<Context>,
    bases: Vec<String>,
    folder: PathBuf,
) -> Result<Arc<Model>, String> {
    let context = Arc::clone(context);
    let load = move || context.models.load(&bases, &folder);
    off_thread(load).await.unwrap_or_else(|error| Err(error.to_string()))
}

/// Equal tokens, or no tokens here and there.
fn compare(
    ours: &Result<Vec<u32>, String>,
    theirs: &Result<Vec<u32>, String>,
) -> Result<(), String> {
    match (ours, theirs) {
        (Ok(ours), Ok(theirs)) if ours == theirs => Ok(()),
        (Ok(ours), Ok(theirs)) => {
            let at = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
            let id = |ids: &[u32]| ids.get(at).map_or("none".to_owned(), u32::to_string);
            Err(format!(
                "token {at} is {} here and {} in the engine ({} and {} tokens)",
                id(ours),
                id(theirs),
                ours.len(),
                theirs.len()
            ))
        }
        (Err(_), Err(_)) => Ok(()),
        (Err(why), Ok(_)) => Err(format!("not tokenised here: {why}")),
        (Ok(_), Err(why)) => Err(format!("not tokenised by the engine: {why}")),
    }
}

fn takes_ids(facts: &Facts) -> bool {
    let version = facts.version.as_deref().unwrap_or_default();
    let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
    let parsed = (parts.next().flatten(), parts.next().flatten());
    matches!(parsed, (Some(major), Some(minor)) if (major, minor) >= TAKES_IDS)
}

// === impl Report ===

impl Report {
    fn tell(&self, engine: &str) {
        let (state, source) = (self.state, self.source);
        let why = self.why.as_deref();
        if state == State::Failed {
            tracing::warn!(engine, ?source, why, "engine tokenises otherwise than its files say");
        } else {
            tracing::info!(engine, ?state, ?source, why, "engine's prompts");
        }
    }
}

// === impl Canary ===

impl Canary {
    /// What the engine is asked.
    fn body(&self, model: &str) -> Bytes {
        let mut body = self.request();
        body["model"] = Value::from(model);
        body.to_string().into()
    }

    /// What is made of it here.
    fn tokens(&self, model: &Model) -> Result<Vec<u32>, String> {
        let body = self.request();
        match &body["prompt"] {
            Value::String(prompt) => model.completion(prompt, &Details::default(), usize::MAX),
            _ => model.chat(&body.to_string(), usize::MAX).map(|tokens| tokens.ids),
        }
        .map_err(|untold| match untold {
            Untold::Cold => "it is too long".to_owned(),
            Untold::Never(why) => why,
        })
    }

    fn request(&self) -> Value {
        serde_json::from_str(self.json).unwrap_or(json!({"prompt": self.json}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_named() {
        let ours = Ok(vec![1, 2, 3]);
        assert!(compare(&ours, &Ok(vec![1, 2, 3])).is_ok());
        let why = compare(&ours, &Ok(vec![1, 5])).unwrap_err();
        assert_eq!(why, "token 1 is 2 here and 5 in the engine (3 and 2 tokens)");
        assert!(compare(&Err("x".into()), &Err("y".into())).is_ok(), "both refuse");
        assert!(compare(&Err("x".into()), &ours).is_err());
    }

    #[test]
    fn engines_take_ids_from_0_27_on() {
        let of = |version: &str| {
            takes_ids(&Facts { version: Some(version.to_owned()), ..Facts::default() })
        };
        assert!(of("0.27.0") && of("0.32.0+cpu") && of("1.0"));
        assert!(!of("0.26.9") && !of("dev") && !of(""));
    }

    #[test]
    fn every_canary_is_a_request() {
        for canary in &CANARIES {
            let request = canary.request();
            assert!(
                request["messages"].is_array() || request["prompt"].is_string(),
                "{}",
                canary.name
            );
        }
        assert!(
            CANARIES[0].request()["prompt"].is_string(),
            "the first tells whether it tokenises at all"
        );
    }
}
