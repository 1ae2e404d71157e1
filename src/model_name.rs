//! The name of a model, parsed as Ollama parses it.

use std::fmt;
use std::str::FromStr;

/// The host that Ollama fills in where a name has none; likewise the namespace and the model tag.
const HOST: &str = "registry.ollama.ai";
const NAMESPACE: &str = "library";
const TAG: &str = "latest";
/// Bytes of a name, at most.
const LONGEST: usize = 512;

/// A model's name with Ollama's defaults filled in.
///
/// Two spellings that Ollama takes for one model are equal: the registry's host, its namespace and
/// the model tag may be left out, case does not count, and blanks around it are dropped. The text
/// is the shortest form in lower case, always with a model tag: `tinyllama:latest`,
/// `hf.co/org/model:q4_k_m`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelName(String);

/// Why a text is not a model's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelNameError {
    /// The text is blank.
    #[error("must not be blank")]
    Blank,
    /// The text has more than 512 bytes.
    #[error("must have at most {LONGEST} bytes")]
    TooLong,
    /// A part of the name is empty, or there are too many parts.
    #[error("must be a model's name, as in tinyllama:latest or hf.co/org/model:q4_k_m")]
    Parts,
    /// The text holds a blank, a control character or a character that is not ASCII.
    #[error("must be a model's name, without blanks and in ASCII")]
    Character,
}

impl ModelName {
    /// Parses a name.
    ///
    /// # Errors
    /// Any [`ModelNameError`].
    pub fn parse(text: &str) -> Result<Self, ModelNameError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(ModelNameError::Blank);
        }
        if text.len() > LONGEST {
            return Err(ModelNameError::TooLong);
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ModelNameError::Character);
        }
        let text = text.to_ascii_lowercase();
        let scheme =
            ["https://", "http://"].into_iter().find_map(|scheme| text.strip_prefix(scheme));
        let text = scheme.unwrap_or(&text);
        let (path, tag) = match text.rsplit_once(':') {
            // A colon before a slash is a registry's port.
            Some((path, tag)) if !tag.contains('/') => (path, tag),
            _ => (text, TAG),
        };
        let mut parts = path.rsplitn(3, '/');
        let model = parts.next().unwrap_or_default();
        let (namespace, host) = (parts.next().unwrap_or(NAMESPACE), parts.next().unwrap_or(HOST));
        let is_whole = [model, tag, namespace, host].iter().all(|part| !part.is_empty());
        if !is_whole || host.contains('/') || model.contains(':') || namespace.contains(':') {
            return Err(ModelNameError::Parts);
        }
        Ok(Self(match (host, namespace) {
            (HOST, NAMESPACE) => format!("{model}:{tag}"),
            (HOST, namespace) => format!("{namespace}/{model}:{tag}"),
            (host, namespace) => format!("{host}/{namespace}/{model}:{tag}"),
        }))
    }

    /// Returns whether two texts name one model. A text that is no name equals only itself.
    pub fn same(a: &str, b: &str) -> bool {
        a == b || Self::parse(a).is_ok_and(|name| Self::parse(b) == Ok(name))
    }

    /// Returns the shortest form of the name in lower case, with its model tag.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ModelName {
    type Err = ModelNameError;

    fn from_str(text: &str) -> Result<Self, ModelNameError> {
        Self::parse(text)
    }
}

/// Returns the whole form of a model's name, by which models are compared. One that does not parse, which
/// no host has, stays as it is.
pub fn canonical(model: &str) -> String {
    ModelName::parse(model).map_or_else(|_| model.to_owned(), |name| name.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spellings_that_ollama_takes_for_one_model_are_one_name() {
        for (spellings, name) in [
            (
                &[
                    "tinyllama",
                    "TinyLlama",
                    "TINYLLAMA",
                    "tinyllama:LATEST",
                    " tinyllama\t\n",
                    "library/tinyllama",
                    "Library/TinyLlama:Latest",
                    "registry.ollama.ai/library/tinyllama",
                    "Registry.Ollama.AI/library/tinyllama:latest",
                    "https://registry.ollama.ai/library/tinyllama",
                ][..],
                "tinyllama:latest",
            ),
            (&["tinyllama:1B", "library/TinyLlama:1b"], "tinyllama:1b"),
            (&["Me/Mine", "registry.ollama.ai/me/mine:latest"], "me/mine:latest"),
            (&["hf.co/Org/Model:Q4_K_M", "hf.co/org/model:q4_k_m"], "hf.co/org/model:q4_k_m"),
            (&["Host:5000/a/b", "host:5000/a/b:latest"], "host:5000/a/b:latest"),
        ] {
            for spelling in spellings {
                assert_eq!(ModelName::parse(spelling).expect(spelling).as_str(), name);
            }
        }
        for (one, other) in [
            ("tinyllama", "tinyllama:1b"),
            ("tinyllama", "llama"),
            ("me/tinyllama", "tinyllama"),
            ("hf.co/library/tinyllama", "tinyllama"),
        ] {
            assert!(!ModelName::same(one, other), "{one} {other}");
        }
    }

    #[test]
    fn a_text_that_is_no_name_is_refused_with_the_reason() {
        let long = "x".repeat(LONGEST + 1);
        for (text, reason) in [
            ("", ModelNameError::Blank),
            (" \t", ModelNameError::Blank),
            (&*long, ModelNameError::TooLong),
            ("tiny llama", ModelNameError::Character),
            ("tiny\u{0}llama", ModelNameError::Character),
            ("größe", ModelNameError::Character),
            (":latest", ModelNameError::Parts),
            ("tinyllama:", ModelNameError::Parts),
            ("/tinyllama", ModelNameError::Parts),
            ("a//tinyllama", ModelNameError::Parts),
            ("a/b/c/d", ModelNameError::Parts),
            ("a:b:c", ModelNameError::Parts),
            ("host:5000/a", ModelNameError::Parts),
        ] {
            assert_eq!(ModelName::parse(text), Err(reason), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_parsed_name_parses_to_itself(text in "[ -~]{0,40}|\\PC{0,20}") {
            if let Ok(name) = ModelName::parse(&text) {
                prop_assert_eq!(ModelName::parse(name.as_str()), Ok(name.clone()));
                prop_assert!(ModelName::same(&text, &name.as_str().to_ascii_uppercase()));
                prop_assert!(name.as_str().len() <= LONGEST + TAG.len() + 1);
            }
        }
    }
}
