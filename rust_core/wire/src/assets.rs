//! A model's directory -> its tokenizer, special tokens and chat templates, as the engine would read them.
//!
//! The engine reads the directory through transformers, whose fifth major version is followed here rule by rule. Where
//! that library would build a tokenizer that this one cannot prove equal, the directory is refused: no ids are better
//! than other ids.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokenizers::Tokenizer;
use xxhash_rust::xxh3::Xxh3;

mod class;
mod special;
mod templates;
#[cfg(test)]
mod tests;

pub use templates::Templates;

/// What a model's directory says about prompts.
pub struct Assets {
    /// The tokenizer, with the tokens that its configuration adds.
    pub tokenizer: Tokenizer,
    /// `bos_token` and the like, by name: what a chat template knows them by.
    pub special_tokens: BTreeMap<String, String>,
    /// The sources of the chat templates.
    pub templates: Templates,
    /// Names the bytes of all files that were read: two directories with the same one tokenise alike.
    pub fingerprint: u64,
}

/// Why a directory gives no assets.
#[derive(Debug, thiserror::Error)]
pub enum AssetError {
    /// There is a tokenizer, but in no form that is understood here, or none at all.
    #[error("{}: no tokenizer.json: {found}", folder.display())]
    Missing {
        /// The model's directory.
        folder: PathBuf,
        /// What is there in its place.
        found: &'static str,
    },
    /// A file is there and cannot be read.
    #[error("{}: cannot be read: {cause}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A file is not what its name says.
    #[error("{}: {cause}", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What is wrong in it.
        cause: String,
    },
    /// The engine would make something else of these files.
    #[error("{}: {why}", folder.display())]
    Unsupported {
        /// The model's directory.
        folder: PathBuf,
        /// What is in it that may give other ids.
        why: String,
    },
}

/// A directory that remembers what was read from it.
struct Folder<'a> {
    path: &'a Path,
    read: Xxh3,
}

/// Tokenizers in other forms, which transformers converts by rules of its own.
const OTHER_FORMS: [(&str, &str); 5] = [
    ("tekken.json", "tekken.json is a form of Mistral's own"),
    ("tiktoken.model", "tiktoken.model is converted by the engine in a way of its own"),
    (
        "tokenizer.model",
        "tokenizer.model (sentencepiece or tiktoken) is converted by the engine in a way of its own",
    ),
    ("spiece.model", "spiece.model (sentencepiece) is converted by the engine in a way of its own"),
    ("vocab.json", "vocab.json and merges.txt alone do not say how text is split"),
];

// === impl Assets ===

impl Assets {
    /// Reads the directory of a model.
    ///
    /// # Cost
    /// That of parsing `tokenizer.json`: up to a second, and memory of several times its size. Not for an I/O thread.
    ///
    /// # Errors
    /// [`AssetError`] with the file, or with what the engine would do differently.
    pub fn load(dir: &Path) -> Result<Assets, AssetError> {
        let mut folder = Folder { path: dir, read: Xxh3::new() };
        folder.refuse_mistral()?;
        let file = folder.text("tokenizer.json")?.ok_or_else(|| folder.missing())?;
        let mut tokenizer: Tokenizer =
            file.parse().map_err(|cause| folder.malformed("tokenizer.json", cause))?;
        drop(file);
        let config: Map<String, Value> = folder.json("tokenizer_config.json")?.unwrap_or_default();
        let model: Map<String, Value> = folder.json("config.json")?.unwrap_or_default();

        let class = class::of(&config, &model).map_err(|why| folder.unsupported(why))?;
        let special = special::Special::read(&mut folder, &config, &class, &tokenizer)?;
        class.check(&tokenizer, &special).map_err(|why| folder.unsupported(why))?;
        special.add_to(&mut tokenizer, &class).map_err(|why| folder.unsupported(why))?;
        let templates = Templates::read(&mut folder, &config)?;
        Ok(Assets {
            tokenizer,
            special_tokens: special.by_name(),
            templates,
            fingerprint: folder.read.digest(),
        })
    }
}

impl fmt::Debug for Assets {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A vocabulary is no reading matter.
        out.debug_struct("Assets")
            .field("special_tokens", &self.special_tokens)
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

// === impl Folder ===

impl Folder<'_> {
    fn has(&self, name: &str) -> bool {
        self.path.join(name).exists()
    }

    /// The text of a file; nothing if it is not there.
    fn text(&mut self, name: &str) -> Result<Option<String>, AssetError> {
        let file = self.path.join(name);
        let bytes = match fs::read(&file) {
            Ok(bytes) => bytes,
            Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(AssetError::Unreadable { file, cause }),
        };
        self.read.update(name.as_bytes());
        self.read.update(&bytes.len().to_le_bytes());
        self.read.update(&bytes);
        String::from_utf8(bytes).map(Some).map_err(|_| self.malformed(name, "it is not UTF-8"))
    }

    fn json<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, AssetError> {
        let text = self.text(name)?;
        let parse =
            |text: String| serde_json::from_str(&text).map_err(|cause| self.malformed(name, cause));
        text.map(parse).transpose()
    }

    /// The names of the files in a directory of this one that end so, in order, without that end.
    fn names(&self, directory: &str, end: &str) -> Result<Vec<String>, AssetError> {
        let file = self.path.join(directory);
        let entries = match fs::read_dir(&file) {
            Ok(entries) => entries,
            Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(cause) => return Err(AssetError::Unreadable { file, cause }),
        };
        let name = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            name.strip_suffix(end).map(str::to_owned)
        };
        let mut names: Vec<String> = entries.flatten().filter_map(name).collect();
        names.sort();
        Ok(names)
    }

    /// vLLM prefers Mistral's own tokenizer wherever it finds one.
    fn refuse_mistral(&self) -> Result<(), AssetError> {
        let versioned =
            self.names("", "")?.into_iter().find(|name| name.starts_with("tokenizer.model.v"));
        let own = self.has("tekken.json").then(|| "tekken.json".to_owned()).or(versioned);
        match own {
            Some(name) if self.has("tokenizer.json") => Err(self.unsupported(format!(
                "{name} lies beside tokenizer.json, and the engine may read it instead"
            ))),
            _ => Ok(()),
        }
    }

    fn missing(&self) -> AssetError {
        let found = OTHER_FORMS.iter().find(|(name, _)| self.has(name));
        let found = found.map_or("and no tokenizer in another form", |(_, what)| what);
        AssetError::Missing { folder: self.path.to_owned(), found }
    }

    fn malformed(&self, name: &str, cause: impl fmt::Display) -> AssetError {
        AssetError::Malformed { file: self.path.join(name), cause: cause.to_string() }
    }

    fn unsupported(&self, why: String) -> AssetError {
        AssetError::Unsupported { folder: self.path.to_owned(), why }
    }
}
