//! Compresses the parts of the page (`web/dist`), so that a request costs no more than a copy of them.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::{env, fs};

/// The best that each encoding can do: the parts are compressed once, and sent often.
const BROTLI_QUALITY: u32 = 11;
const BROTLI_WINDOW: u32 = 22;

fn main() -> io::Result<()> {
    let variable = |name: &str| env::var(name).map_err(io::Error::other);
    let parts = Path::new(&variable("CARGO_MANIFEST_DIR")?).join("web/dist");
    let out = PathBuf::from(variable("OUT_DIR")?);
    println!("cargo::rerun-if-changed={}", parts.display());
    let mut paths: Vec<PathBuf> = fs::read_dir(&parts)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    paths.sort();
    let mut list = String::from("&[\n");
    for path in paths {
        println!("cargo::rerun-if-changed={}", path.display());
        let name =
            path.file_name().and_then(|name| name.to_str()).ok_or(io::ErrorKind::InvalidData)?;
        let content = fs::read(&path)?;
        let [brotli, gzip] = ["br", "gz"].map(|kind| out.join(format!("{name}.{kind}")));
        fs::write(&brotli, in_brotli(&content)?)?;
        fs::write(&gzip, in_gzip(&content)?)?;
        let _ = writeln!(list, "    EmbeddedFile {{\n        name: {name:?},");
        for (field, file) in [("plain", &path), ("brotli", &brotli), ("gzip", &gzip)] {
            let file = file.to_str().ok_or(io::ErrorKind::InvalidData)?;
            let _ = writeln!(list, "        {field}: include_bytes!({file:?}),");
        }
        list.push_str("    },\n");
    }
    list.push_str("]\n");
    fs::write(out.join("page.rs"), list)
}

fn in_brotli(content: &[u8]) -> io::Result<Vec<u8>> {
    let mut writer =
        brotli::CompressorWriter::new(Vec::new(), 1 << 16, BROTLI_QUALITY, BROTLI_WINDOW);
    writer.write_all(content)?;
    writer.flush()?;
    Ok(writer.into_inner())
}

fn in_gzip(content: &[u8]) -> io::Result<Vec<u8>> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    writer.write_all(content)?;
    writer.finish()
}
