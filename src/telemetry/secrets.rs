//! Redacts secrets in logs and errors.

use std::borrow::Cow;
use std::sync::Arc;

/// Texts that no log line and no error may hold.
#[derive(Clone, Default)]
pub struct Secrets(Arc<[String]>);

impl Secrets {
    /// Collects secrets. Secrets of fewer than four bytes are skipped, because they are part of many
    /// words.
    pub fn new(secrets: Vec<String>) -> Self {
        let escaped = secrets.iter().map(|secret| {
            let json = serde_json::Value::from(secret.as_str()).to_string();
            json.trim_matches('"').to_owned()
        });
        let mut all: Vec<String> = escaped.collect();
        all.extend(secrets);
        all.retain(|secret| secret.len() >= 4);
        // The longest comes first, because a shorter one may be a part of it.
        all.sort_unstable_by_key(|secret| std::cmp::Reverse(secret.len()));
        all.dedup();
        Self(all.into())
    }

    /// Returns the text with every secret replaced.
    pub fn redact<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = Cow::Borrowed(text);
        for secret in &*self.0 {
            if text.contains(secret.as_str()) {
                text = Cow::Owned(text.replace(secret.as_str(), "***"));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_redacted_plain_and_json_escaped_and_the_longest_first() {
        let secrets =
            Secrets::new(vec!["pass".to_owned(), "pass\"word".to_owned(), "abc".to_owned()]);
        assert_eq!(secrets.redact("pass, pass\"word, abc"), "***, ***, abc");
        assert_eq!(secrets.redact(r#"{"a":"pass\"word"}"#), r#"{"a":"***"}"#);
        assert!(matches!(secrets.redact("nothing"), Cow::Borrowed(_)));
    }
}
