//! The names of models.

/// Returns the shortest form of a name, with its tag and in lower case: the registry's host, its namespace
/// and the tag may be left out, and case does not count.
pub fn canonical(name: &str) -> String {
    let name = with_tag(name.trim()).to_ascii_lowercase();
    let name = name.strip_prefix("https://").or(name.strip_prefix("http://")).unwrap_or(&name);
    let name = name.strip_prefix("registry.ollama.ai/").unwrap_or(name);
    name.strip_prefix("library/").unwrap_or(name).to_owned()
}

/// Returns a name as it is spelled, with its tag.
pub fn with_tag(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') { name.to_owned() } else { format!("{name}:latest") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_ollamas_defaults_and_no_case() {
        assert_eq!(canonical("a"), "a:latest");
        assert_eq!(canonical(" A:Latest "), "a:latest");
        assert_eq!(canonical("library/a"), "a:latest");
        assert_eq!(canonical("registry.ollama.ai/library/a:latest"), "a:latest");
        assert_eq!(canonical("registry.ollama.ai/me/a"), "me/a:latest");
        assert_eq!(canonical("hf.co/Org/Model:Q4_K_M"), "hf.co/org/model:q4_k_m");
        assert_eq!(canonical("a:b"), "a:b");
        assert_eq!(canonical("host:80/x/a"), "host:80/x/a:latest");
    }
}
