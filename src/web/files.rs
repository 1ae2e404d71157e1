//! The files of the page, as the build has put them into the binary.

use std::sync::LazyLock;

use axum::body::Bytes;
use axum::http::{HeaderMap, header};

use crate::digest::sha256_hex;

/// A file in each encoding.
struct EmbeddedFile {
    name: &'static str,
    plain: &'static [u8],
    brotli: &'static [u8],
    gzip: &'static [u8],
}

/// The files, which the build script lists.
const EMBEDDED: &[EmbeddedFile] = include!(concat!(env!("OUT_DIR"), "/page.rs"));

static FILES: LazyLock<Vec<StaticFile>> =
    LazyLock::new(|| EMBEDDED.iter().map(StaticFile::new).collect());

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// Not at all.
    Plain,
    /// By gzip.
    Gzip,
    /// By Brotli.
    Brotli,
}

impl Encoding {
    /// Returns the best encoding that a request accepts. One that is named with the quality 0 is not.
    pub(super) fn accepted(headers: &HeaderMap) -> Self {
        let values = headers.get_all(header::ACCEPT_ENCODING).iter();
        let mut best = Self::Plain;
        for range in values.filter_map(|value| value.to_str().ok()).flat_map(|it| it.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let encoding = match parts.next() {
                Some("br") => Self::Brotli,
                Some("gzip") => Self::Gzip,
                _ => continue,
            };
            let quality = parts.find_map(|part| part.strip_prefix("q=")?.parse::<f32>().ok());
            if quality.is_none_or(|quality| quality > 0.0) && best != Self::Brotli {
                best = encoding;
            }
        }
        best
    }

    /// Returns its name in `Content-Encoding`.
    pub(super) fn name(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Gzip => Some("gzip"),
            Self::Brotli => Some("br"),
        }
    }
}

/// A file of the page, whose bytes all responses share.
pub(super) struct StaticFile {
    file: &'static EmbeddedFile,
    /// Its type.
    pub(super) content_type: &'static str,
    /// Its entity tags: a compressed body is another one than a plain one.
    tags: [String; 3],
}

impl StaticFile {
    fn new(file: &'static EmbeddedFile) -> Self {
        let content_type = match file.name.rsplit_once('.').map(|(_, kind)| kind) {
            Some("html") => "text/html; charset=utf-8",
            Some("js") => "text/javascript; charset=utf-8",
            Some("css") => "text/css; charset=utf-8",
            Some("svg") => "image/svg+xml",
            _ => "text/plain; charset=utf-8",
        };
        let digest = sha256_hex(file.plain);
        let tag = |encoding: &str| format!("\"{}{encoding}\"", &digest[..16]);
        Self { file, content_type, tags: [tag(""), tag("-gzip"), tag("-br")] }
    }

    /// Returns its bytes in an encoding.
    pub(super) fn bytes(&self, encoding: Encoding) -> Bytes {
        Bytes::from_static(match encoding {
            Encoding::Plain => self.file.plain,
            Encoding::Gzip => self.file.gzip,
            Encoding::Brotli => self.file.brotli,
        })
    }

    /// Returns its entity tag in an encoding, with the quotes.
    pub(super) fn tag(&self, encoding: Encoding) -> &str {
        &self.tags[encoding as usize]
    }
}

/// Returns the file of this name.
pub(super) fn named(name: &str) -> Option<&'static StaticFile> {
    FILES.iter().find(|file| file.file.name == name)
}

/// Returns the file that has this name in another release: the same but for the digest.
pub(super) fn of_another_release(name: &str) -> Option<&'static StaticFile> {
    let wanted = without_digest(name)?;
    FILES.iter().find(|file| without_digest(file.file.name) == Some(wanted))
}

/// Splits a name like `main-0123456789ab.js` into its beginning and its end.
fn without_digest(name: &str) -> Option<(&str, &str)> {
    let (stem, kind) = name.rsplit_once('.')?;
    let (stem, digest) = stem.rsplit_once('-')?;
    let is_digest = digest.len() == 12 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_digest.then_some((stem, kind))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use axum::http::HeaderValue;

    use super::*;

    /// The bytes that a first chat may cost: the page, its script, its style and its icon.
    const FIRST_CHAT: usize = 100 * 1024;

    fn accepted(value: &'static str) -> Encoding {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(value));
        Encoding::accepted(&headers)
    }

    #[test]
    fn the_best_encoding_that_is_accepted_is_chosen() {
        assert_eq!(accepted("gzip, deflate, br, zstd"), Encoding::Brotli);
        assert_eq!(accepted("br, gzip"), Encoding::Brotli);
        assert_eq!(accepted("gzip, br;q=0"), Encoding::Gzip);
        assert_eq!(accepted("identity"), Encoding::Plain);
        assert_eq!(Encoding::accepted(&HeaderMap::new()), Encoding::Plain);
    }

    #[test]
    fn everything_that_a_first_chat_needs_is_at_most_100_kb_in_either_encoding() {
        for encoding in [Encoding::Brotli, Encoding::Gzip] {
            let sizes: Vec<_> = FILES
                .iter()
                // The licences, and what is loaded with the first formula.
                .filter(|file| !file.file.name.starts_with("licenses-"))
                .filter(|file| !file.file.name.starts_with("math-"))
                .map(|file| (file.file.name, file.bytes(encoding).len()))
                .collect();
            let all: usize = sizes.iter().map(|(_, size)| size).sum();
            println!("{encoding:?}: {all} bytes in all, {sizes:?}");
            assert!(all <= FIRST_CHAT, "{encoding:?}: {all} bytes, {sizes:?}");
        }
    }

    #[test]
    fn every_part_that_the_page_names_is_there_and_has_its_own_content_in_each_encoding() {
        let page = named("index.html").expect("the page");
        let text = std::str::from_utf8(page.file.plain).expect("a text");
        let names: Vec<_> =
            text.split("\"/app/").skip(1).filter_map(|it| it.split('"').next()).collect();
        assert!(names.len() >= 4, "{names:?}");
        for name in names {
            assert!(named(name).is_some(), "{name}");
        }
        for file in FILES.iter() {
            let mut plain = Vec::new();
            let gzip = flate2::read::GzDecoder::new(file.file.gzip).read_to_end(&mut plain);
            gzip.expect("gzip");
            assert_eq!(plain, file.file.plain, "{}", file.file.name);
            plain.clear();
            let brotli = brotli::Decompressor::new(file.file.brotli, 4096).read_to_end(&mut plain);
            brotli.expect("Brotli");
            assert_eq!(plain, file.file.plain, "{}", file.file.name);
        }
    }

    #[test]
    fn a_part_of_another_release_is_answered_by_this_ones_and_nothing_else_is() {
        let script = of_another_release("main-0123456789ab.js").expect("a script");
        assert!(script.file.name.starts_with("main-"));
        for name in [
            "main.js",
            "main-0123456789ab.css",
            "index.html",
            "main-x.js",
            "../main-0123456789ab.js",
        ] {
            assert!(of_another_release(name).is_none(), "{name}");
        }
    }
}
