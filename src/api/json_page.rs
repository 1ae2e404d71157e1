//! The items of a page as JSON: bounded by their bytes as they are sent, which may be six times those that
//! are stored.

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::http::room::PAGE_BYTES;

/// Writes the first items that fit in a page; at least one, however large it is.
pub fn fitting<T: Serialize>(items: impl IntoIterator<Item = T>) -> Vec<Box<RawValue>> {
    let mut written: Vec<Box<RawValue>> = Vec::new();
    let mut left = PAGE_BYTES;
    for item in items {
        // The items have no maps with keys other than text, so this cannot fail.
        let Ok(json) = to_raw_value(&item) else { continue };
        match left.checked_sub(json.get().len() + 1) {
            Some(rest) => left = rest,
            None if written.is_empty() => left = 0,
            None => break,
        }
        written.push(json);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_bounded_by_its_bytes_as_json_and_has_at_least_one_item() {
        // Each character takes six bytes.
        let text = "\u{1}".repeat(PAGE_BYTES / 60);
        let page = fitting(vec![text.as_str(); 20]);
        assert_eq!(page.len(), 9);
        let bytes: usize = page.iter().map(|item| item.get().len() + 1).sum();
        assert!((PAGE_BYTES / 10 * 9..=PAGE_BYTES).contains(&bytes), "{bytes}");
        let large = "x".repeat(2 * PAGE_BYTES);
        assert_eq!(fitting([large.as_str(), "y", large.as_str()]).len(), 1);
        assert_eq!(fitting(["y", large.as_str()]).len(), 1);
        assert_eq!(fitting(["y"; 3]).len(), 3);
        assert!(fitting::<&str>([]).is_empty());
    }
}
