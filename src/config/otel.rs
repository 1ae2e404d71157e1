//! The standard variables of OpenTelemetry that say where spans go, and which.
//!
//! The exporter's library would replace a value that cannot be used by the default, and log that. Here
//! it ends the start, as a wrong setting does.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;

use super::secrets;
use super::url::{http_url, passwords};
use crate::secret::Secret;

/// The path of a collector that takes spans over HTTP, behind a URL that names none.
const PATH: &str = "v1/traces";
/// The longest time that a variable may set, in milliseconds.
const LONGEST: u64 = 60_000;
/// Spans that may wait for the exporter, at most.
const LARGEST_QUEUE: u64 = 1 << 16;

/// A collector of spans, and what it gets.
#[derive(Clone, Debug, PartialEq)]
pub struct Collector {
    /// The URL, over HTTP with its whole path.
    pub url: Url,
    /// The protocol.
    pub protocol: Protocol,
    /// Whether batches are compressed.
    pub is_compressed: bool,
    /// Time limit of one batch.
    pub timeout: Duration,
    /// The batches.
    pub batches: Batches,
    /// The name of the service.
    pub service: String,
    /// More attributes of the service.
    pub resource: Vec<(String, String)>,
    /// The rule by which traces are sampled.
    pub sampling: TraceSampling,
    /// The headers of requests that come from a file. The exporter reads those of the variables itself.
    pub headers: Vec<(String, Secret)>,
    /// Whether spans have the content of conversations.
    pub captures_content: bool,
}

/// How spans are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// Protobuf over HTTP.
    #[default]
    Http,
    /// gRPC.
    Grpc,
}

/// The batches in which spans are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batches {
    /// Spans that wait, at most.
    pub queue: usize,
    /// Spans of one batch, at most.
    pub size: usize,
    /// Time between two batches.
    pub pause: Duration,
}

/// The rule by which traces are sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TraceSampling {
    /// The share of traces that are sampled, 0 to 1.
    pub share: f64,
    /// Whether the flag of a client's trace counts.
    pub follows_client: bool,
    /// Traces a second that clients may have sampled beyond the share.
    pub client_traces: u32,
}

/// The values of the standard variables. The headers of requests are read again by the exporter, unless
/// they come from a file.
#[derive(Clone, Debug)]
pub struct OtelVariables {
    is_on: bool,
    /// The URL of the collector of spans alone, or that of a collector of everything.
    url: Option<(Url, UrlOf)>,
    protocol: Protocol,
    is_compressed: bool,
    timeout: Duration,
    batches: Batches,
    service: Option<String>,
    resource: Vec<(String, String)>,
    share: f64,
    follows_client: bool,
    headers: CollectorHeaders,
}

/// The headers of requests to the collector.
#[derive(Clone, Debug, Default)]
struct CollectorHeaders {
    /// Where they come from a file: its path, and they.
    of_file: Option<(PathBuf, Vec<(String, Secret)>)>,
    /// All values, which may hold a token, and the parts of each.
    secrets: Vec<Secret>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UrlOf {
    Traces,
    Everything,
}

impl Default for OtelVariables {
    fn default() -> Self {
        Self {
            is_on: true,
            url: None,
            protocol: Protocol::Http,
            is_compressed: false,
            timeout: Duration::from_secs(10),
            batches: Batches { queue: 2048, size: 512, pause: Duration::from_secs(5) },
            service: None,
            resource: Vec::new(),
            share: 1.0,
            follows_client: true,
            headers: CollectorHeaders::default(),
        }
    }
}

impl OtelVariables {
    /// Reads the variables. One that is blank counts as not set.
    ///
    /// # Errors
    /// The variable that is wrong, and what is expected. A value that may hold a secret is not quoted.
    pub(super) fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let read = Variables(variable);
        read.refuse_unsupported()?;
        let queue = read.number("OTEL_BSP_MAX_QUEUE_SIZE", 2048, 1, LARGEST_QUEUE)?;
        let largest_batch = format!("1 to the queue's size, {queue}");
        let size =
            read.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", queue.min(512), 1, LARGEST_QUEUE)?;
        if size > queue {
            return Err(wrong("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", &largest_batch));
        }
        let pause = read.number("OTEL_BSP_SCHEDULE_DELAY", 5000, 1, LONGEST)?;
        let of_batch = read.number("OTEL_BSP_EXPORT_TIMEOUT", 30_000, 1, LONGEST)?;
        let (name, timeout) = read.of_traces("TIMEOUT");
        let timeout = number(&name, timeout.as_deref(), 10_000, 1, LONGEST)?;
        let (share, follows_client) = read.sampler()?;
        let (name, compression) = read.of_traces("COMPRESSION");
        one_of(&name, compression.as_deref(), &["none", "gzip"])?;
        let protocol = match read.of_traces("PROTOCOL") {
            (name, Some(protocol)) => {
                one_of(&name, Some(&protocol), &["http/protobuf", "grpc"])?;
                if protocol == "grpc" { Protocol::Grpc } else { Protocol::Http }
            }
            (_, None) => Protocol::default(),
        };
        let exporter = read.of("OTEL_TRACES_EXPORTER");
        one_of("OTEL_TRACES_EXPORTER", exporter.as_deref(), &["otlp", "none"])?;
        let disabled = read.of("OTEL_SDK_DISABLED").map(|text| text.to_ascii_lowercase());
        one_of("OTEL_SDK_DISABLED", disabled.as_deref(), &["true", "false"])?;
        let is_off = disabled.as_deref() == Some("true") || exporter.as_deref() == Some("none");
        Ok(Self {
            is_on: !is_off,
            url: read.url()?,
            protocol,
            is_compressed: compression.as_deref() == Some("gzip"),
            timeout: Duration::from_millis(timeout.min(of_batch)),
            batches: Batches {
                queue: queue as usize,
                size: size as usize,
                pause: Duration::from_millis(pause),
            },
            service: read.of("OTEL_SERVICE_NAME"),
            resource: read.pairs("OTEL_RESOURCE_ATTRIBUTES")?,
            share,
            follows_client,
            headers: read.headers()?,
        })
    }

    /// Returns the collector, at this URL where one is given; none where there is none, or spans are
    /// switched off.
    pub(super) fn collector(
        &self,
        given: Option<&Url>,
        client_traces: u32,
        captures_content: bool,
    ) -> Option<Collector> {
        let url = match (given, &self.url) {
            (Some(url), _) if url.path() == "/" => self.with_path(url),
            (Some(url), _) | (None, Some((url, UrlOf::Traces))) => url.clone(),
            (None, Some((url, UrlOf::Everything))) => self.with_path(url),
            (None, None) => return None,
        };
        self.is_on.then(|| Collector {
            url,
            protocol: self.protocol,
            is_compressed: self.is_compressed,
            timeout: self.timeout,
            batches: self.batches,
            service: self.service.clone().unwrap_or_else(|| "jarvis".to_owned()),
            resource: self.resource.clone(),
            sampling: TraceSampling {
                share: self.share,
                follows_client: self.follows_client,
                client_traces,
            },
            headers: self
                .headers
                .of_file
                .iter()
                .flat_map(|(_, headers)| headers)
                .cloned()
                .collect(),
            captures_content,
        })
    }

    /// Checks the protocol together with the URL of another setting.
    ///
    /// # Errors
    /// Where the URL has a password, and the protocol has no place for it.
    pub(super) fn check(&self, given: Option<&Url>) -> Result<(), String> {
        let url = given.or(self.url.as_ref().map(|(url, _)| url));
        let has_password =
            url.is_some_and(|url| !url.username().is_empty() || url.password().is_some());
        if self.protocol == Protocol::Grpc && has_password {
            return Err("the URL of a collector over grpc has no user name and no password; set \
                OTEL_EXPORTER_OTLP_HEADERS"
                .to_owned());
        }
        Ok(())
    }

    /// Returns what no log line may hold.
    pub(super) fn secrets(&self) -> Vec<String> {
        let of_url = self.url.iter().flat_map(|(url, _)| passwords(url.as_str()));
        let of_headers = self.headers.secrets.iter().map(|secret| secret.expose().to_owned());
        of_headers.chain(of_url).collect()
    }

    /// Returns the file that the headers come from.
    pub(super) fn header_file(&self) -> Option<&Path> {
        self.headers.of_file.as_ref().map(|(path, _)| path.as_path())
    }

    fn with_path(&self, url: &Url) -> Url {
        let mut url = url.clone();
        if self.protocol == Protocol::Http {
            url.set_path(&format!("{}/{PATH}", url.path().trim_end_matches('/')));
        }
        url
    }
}

/// The variables of the environment.
struct Variables<F>(F);

impl<F: Fn(&str) -> Option<String>> Variables<F> {
    fn of(&self, name: &str) -> Option<String> {
        let value = (self.0)(name)?;
        let value = value.trim();
        (!value.is_empty()).then(|| value.to_owned())
    }

    /// Refuses the variables whose silent neglect would send spans over a connection that the operator
    /// did not mean.
    fn refuse_unsupported(&self) -> Result<(), String> {
        for what in ["CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY", "INSECURE"] {
            if let (name, Some(_)) = self.of_traces(what) {
                return Err(format!(
                    "{name} is not supported: the URL's scheme decides about TLS, and the system's \
                     certificates are trusted; leave the variable out"
                ));
            }
        }
        Ok(())
    }

    /// Returns the variable of the exporter that holds for spans, and its name.
    fn of_traces(&self, what: &str) -> (String, Option<String>) {
        let name = format!("OTEL_EXPORTER_OTLP_TRACES_{what}");
        if let Some(value) = self.of(&name) {
            return (name, Some(value));
        }
        let name = format!("OTEL_EXPORTER_OTLP_{what}");
        let value = self.of(&name);
        (name, value)
    }

    fn number(&self, name: &str, default: u64, least: u64, most: u64) -> Result<u64, String> {
        number(name, self.of(name).as_deref(), default, least, most)
    }

    fn url(&self) -> Result<Option<(Url, UrlOf)>, String> {
        for (name, of) in [
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", UrlOf::Traces),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", UrlOf::Everything),
        ] {
            if let Some(text) = self.of(name) {
                let url =
                    http_url(&text).map_err(|why| format!("invalid value for {name}: {why}"))?;
                return Ok(Some((url, of)));
            }
        }
        Ok(None)
    }

    /// Returns the share of traces that are sampled, and whether the flag of a client's trace counts.
    fn sampler(&self) -> Result<(f64, bool), String> {
        const NAME: &str = "OTEL_TRACES_SAMPLER";
        let Some(sampler) = self.of(NAME) else { return Ok((1.0, true)) };
        let (name, follows_client) = match sampler.strip_prefix("parentbased_") {
            Some(name) => (name, true),
            None => (sampler.as_str(), false),
        };
        let share = match name {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => self.share()?,
            _ => {
                let expected =
                    "always_on, always_off, traceidratio or one of them behind parentbased_";
                return Err(wrong(NAME, expected));
            }
        };
        Ok((share, follows_client))
    }

    fn share(&self) -> Result<f64, String> {
        const NAME: &str = "OTEL_TRACES_SAMPLER_ARG";
        let Some(text) = self.of(NAME) else { return Ok(1.0) };
        let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
        share.ok_or_else(|| wrong(NAME, "a number from 0 to 1"))
    }

    /// Returns the pairs of a variable, with their values decoded.
    fn pairs(&self, name: &str) -> Result<Vec<(String, String)>, String> {
        pairs(name, &self.of(name).unwrap_or_default())
    }

    /// Reads and checks the headers of requests: from a variable, or from the file that the variable with
    /// `_FILE` behind its name names.
    fn headers(&self) -> Result<CollectorHeaders, String> {
        let (name, of_variable) = self.of_traces("HEADERS");
        let (file_name, file) = self.of_traces("HEADERS_FILE");
        let text = match (&of_variable, &file) {
            // The exporter would send both.
            (Some(_), Some(_)) => {
                return Err(format!("{name} and {file_name} are both set; keep one"));
            }
            (Some(text), None) => text.clone(),
            (None, Some(path)) => secrets::read(path)
                .map_err(|why| format!("invalid value for {file_name}: {why}"))?,
            (None, None) => return Ok(CollectorHeaders::default()),
        };
        let name = if file.is_some() { file_name } else { name };
        let (mut headers, mut secrets) = (Vec::new(), Vec::new());
        for (header, value) in pairs(&name, text.trim())? {
            let is_header = axum::http::HeaderName::try_from(&header).is_ok()
                && axum::http::HeaderValue::try_from(&value).is_ok();
            if !is_header {
                return Err(wrong(&name, "names and values that HTTP allows"));
            }
            // A token stands behind the name of its scheme.
            secrets.extend(value.split(' ').map(Secret::new));
            secrets.push(Secret::new(value.as_str()));
            headers.push((header, Secret::new(value)));
        }
        let of_file = file.map(|path| (PathBuf::from(path), headers));
        Ok(CollectorHeaders { of_file, secrets })
    }
}

/// Returns the pairs of a list, with their values decoded.
fn pairs(name: &str, text: &str) -> Result<Vec<(String, String)>, String> {
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    let pair = |entry: &str| {
        let (key, value) = entry.split_once('=')?;
        let value = urlencoding::decode(value.trim()).ok()?;
        let is_key = !key.trim().is_empty();
        is_key.then(|| (key.trim().to_owned(), value.into_owned()))
    };
    entries.map(pair).collect::<Option<_>>().ok_or_else(|| {
        wrong(name, "name=value and commas between them, with values percent-encoded in UTF-8")
    })
}

fn one_of(name: &str, value: Option<&str>, known: &[&str]) -> Result<(), String> {
    match value {
        Some(value) if !known.contains(&value) => Err(wrong(name, &known.join(" or "))),
        _ => Ok(()),
    }
}

fn number(
    name: &str,
    text: Option<&str>,
    default: u64,
    least: u64,
    most: u64,
) -> Result<u64, String> {
    let Some(text) = text else { return Ok(default) };
    let number = text.parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| wrong(name, &format!("a whole number from {least} to {most}")))
}

fn wrong(name: &str, expected: &str) -> String {
    format!("invalid value for {name}: expected {expected}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<OtelVariables, String> {
        OtelVariables::read(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    fn collector(variables: &[(&str, &str)], given: Option<&str>) -> Option<Collector> {
        let given = given.map(|url| url.parse().expect("a URL"));
        read(variables).expect("variables").collector(given.as_ref(), 1, false)
    }

    #[test]
    fn the_address_of_a_collector_is_found_as_the_specification_says() {
        const ALL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
        const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
        const GRPC: (&str, &str) = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
        for (variables, given, url) in [
            (&[][..], Some("http://c:4318"), "http://c:4318/v1/traces"),
            (&[], Some("http://c:4318/otlp"), "http://c:4318/otlp"),
            (&[(ALL, "http://c:4318")], None, "http://c:4318/v1/traces"),
            (&[(ALL, "http://c:4318/otlp/")], None, "http://c:4318/otlp/v1/traces"),
            (&[(TRACES, "http://c:4318/")], None, "http://c:4318/"),
            (&[(ALL, "http://a:1"), (TRACES, "http://b:2/x")], None, "http://b:2/x"),
            (&[(ALL, "http://a:1")], Some("http://c:4318"), "http://c:4318/v1/traces"),
            (&[(ALL, "https://c:4317"), GRPC], None, "https://c:4317/"),
            (&[GRPC], Some("http://c:4317"), "http://c:4317/"),
        ] {
            let found = collector(variables, given).expect("a collector");
            assert_eq!(found.url.as_str(), url, "{variables:?} {given:?}");
        }
        assert_eq!(collector(&[], None), None);
        assert_eq!(collector(&[(ALL, "  ")], None), None);
        for off in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert_eq!(collector(&[(ALL, "http://c:1"), off], Some("http://c:1")), None, "{off:?}");
        }
    }

    #[test]
    fn the_variables_of_spans_count_before_those_of_everything() {
        let found = collector(
            &[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:1"),
                ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
                ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
                ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
                ("OTEL_EXPORTER_OTLP_TIMEOUT", "3000"),
                ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "2000"),
                ("OTEL_BSP_SCHEDULE_DELAY", "100"),
                ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
                ("OTEL_SERVICE_NAME", "chat"),
                ("OTEL_RESOURCE_ATTRIBUTES", "team=a%20b, tier = 1"),
                ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
                ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ],
            None,
        );
        let expected = Collector {
            url: "http://c:1/".parse().expect("a URL"),
            protocol: Protocol::Grpc,
            is_compressed: true,
            timeout: Duration::from_secs(2),
            batches: Batches { queue: 100, size: 100, pause: Duration::from_millis(100) },
            service: "chat".to_owned(),
            resource: [("team", "a b"), ("tier", "1")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec(),
            sampling: TraceSampling { share: 0.25, follows_client: true, client_traces: 1 },
            headers: Vec::new(),
            captures_content: false,
        };
        assert_eq!(found, Some(expected));
    }

    #[test]
    fn each_sampler_has_a_share_and_follows_the_client_or_not() {
        for (sampler, share, follows_client) in [
            ("always_on", 1.0, false),
            ("always_off", 0.0, false),
            ("traceidratio", 0.5, false),
            ("parentbased_always_on", 1.0, true),
            ("parentbased_always_off", 0.0, true),
            ("parentbased_traceidratio", 0.5, true),
        ] {
            let read =
                read(&[("OTEL_TRACES_SAMPLER", sampler), ("OTEL_TRACES_SAMPLER_ARG", "0.5")]);
            let read = read.expect(sampler);
            assert_eq!((read.share, read.follows_client), (share, follows_client), "{sampler}");
        }
    }

    #[test]
    fn a_wrong_value_is_refused_with_the_name_of_its_variable_and_without_a_secret() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://ann:Secret@c"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://ann:Secret@"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "GRPC"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/Secret"),
            ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "/Secret"),
            ("OTEL_EXPORTER_OTLP_INSECURE", "true"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "Secret"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a b=Secret"),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a=%ffSecret"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=Secret%0A"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_TRACES_SAMPLER", "parentbased_jaeger_remote"),
            ("OTEL_SDK_DISABLED", "yes"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a"),
            ("OTEL_BSP_SCHEDULE_DELAY", "0"),
            ("OTEL_BSP_SCHEDULE_DELAY", "-1"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "70000"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "3000"),
            ("OTEL_BSP_EXPORT_TIMEOUT", "x"),
        ] {
            let refused = read(&[(name, value)]).expect_err(name);
            assert!(refused.contains(name) && !refused.contains("Secret"), "{refused}");
        }
        let share = |share| {
            read(&[("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", share)])
        };
        for wrong in ["-0.1", "1.1", "NaN", "x"] {
            assert!(share(wrong).expect_err(wrong).contains("OTEL_TRACES_SAMPLER_ARG"));
        }
        let grpc = read(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]).expect("variables");
        let url = "http://ann:Secret@c:1".parse().expect("a URL");
        let refused = grpc.check(Some(&url)).expect_err("a password");
        assert!(refused.contains("OTEL_EXPORTER_OTLP_HEADERS") && !refused.contains("Secret"));
    }

    #[test]
    fn the_values_of_headers_are_secrets() {
        let headers = ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20Secret1,x=Secret2");
        let secrets = read(&[headers]).expect("variables").secrets();
        for secret in ["Secret1", "Secret2", "Bearer Secret1"] {
            assert!(secrets.iter().any(|known| known == secret), "{secrets:?}");
        }
    }

    #[test]
    fn headers_may_come_from_a_file_and_from_one_place_only() {
        let folder = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
        std::fs::create_dir(&folder).expect("a folder");
        let file = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).expect("a file");
            path.to_str().expect("a path").to_owned()
        };
        let good = file("good", "authorization=Bearer%20Secret1, x=100%25\n");
        let bad = file("bad", "Secret");
        let url = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:1");
        for name in ["OTEL_EXPORTER_OTLP_HEADERS_FILE", "OTEL_EXPORTER_OTLP_TRACES_HEADERS_FILE"] {
            let variables = read(&[url, (name, &good)]).expect("variables");
            let collector = variables.collector(None, 1, false).expect("a collector");
            let headers: Vec<_> =
                collector.headers.iter().map(|(name, value)| (&**name, value.expose())).collect();
            assert_eq!(headers, [("authorization", "Bearer Secret1"), ("x", "100%")]);
            assert_eq!(variables.header_file().and_then(Path::to_str), Some(&*good));
            assert!(variables.secrets().iter().any(|secret| secret == "Secret1"));
            let shown = format!("{variables:?} {collector:?}");
            assert!(!shown.contains("Secret1"), "{shown}");
            for (given, expected) in [
                (&[(name, &*bad)][..], "name=value"),
                (&[(name, "/nothing")], "cannot read"),
                (&[(name, &good), ("OTEL_EXPORTER_OTLP_HEADERS", "a=Secret")], "both set"),
                (&[(name, &good), ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a=Secret")], "both set"),
            ] {
                let refused = read(given).expect_err("a refusal");
                assert!(refused.contains(name) && refused.contains(expected), "{refused}");
                assert!(!refused.contains("Secret"), "{refused}");
            }
        }
        // The exporter reads those of a variable itself.
        let of_variable = ("OTEL_EXPORTER_OTLP_HEADERS", "a=b");
        assert_eq!(collector(&[url, of_variable], None).expect("a collector").headers, []);
        std::fs::remove_dir_all(folder).expect("removed");
    }
}
