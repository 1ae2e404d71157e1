//! A real Prometheus that scrapes replicas.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use testkit::folder::Folder;
use testkit::programs::find;
use testkit::{Port, Process, Program, eventually};

use super::client::http;
use super::process::LIMIT;

/// Returns what `promtool check metrics` says about an exposition.
pub fn checked_metrics(text: &str) -> String {
    let promtool = find("promtool").expect("promtool: `make test` unpacks Debian's");
    let mut command = Command::new(promtool);
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut check = command.stdout(Stdio::piped()).spawn().expect("promtool");
    check.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("written");
    let output = check.wait_with_output().expect("promtool");
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned()
}

/// A Prometheus, which is killed with the test.
pub struct Prometheus {
    url: String,
    process: Process,
    _port: Port,
    _folder: Folder,
}

/// One result of a query: its labels, and its value, which may be NaN.
pub type Sample = (Value, f64);

impl Prometheus {
    /// Starts a Prometheus that scrapes these addresses (`host:port`) every second, with rules.
    pub async fn start(targets: &[String], rules: &str) -> Self {
        let folder = Folder::temporary().expect("a folder");
        let quoted: Vec<_> = targets.iter().map(|target| format!("{target:?}")).collect();
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: [rules.yml]\n\
             scrape_configs:\n  - job_name: jarvis\n    static_configs: [{{targets: [{}]}}]\n",
            quoted.join(", ")
        );
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, config).expect("a file");
        std::fs::write(folder.path().join("rules.yml"), rules).expect("a file");
        let port = Port::reserve().expect("a port");
        let address = format!("127.0.0.1:{}", port.number());
        let program = find("prometheus").expect("prometheus: `make test` unpacks Debian's");
        let program = Program::new("prometheus", program, folder.path()).args([
            format!("--config.file={}", file.display()),
            format!("--storage.tsdb.path={}", folder.path().join("data").display()),
            format!("--web.listen-address={address}"),
            // Debian's package has its pages elsewhere; the API needs none.
            "--web.console.templates=/nonexistent".to_owned(),
            "--web.console.libraries=/nonexistent".to_owned(),
        ]);
        let process = Process::new(program);
        process.start().unwrap_or_else(|error| panic!("{error:#}"));
        let this = Self { url: format!("http://{address}"), process, _port: port, _folder: folder };
        let ready = format!("{}/-/ready", this.url);
        let is_ready =
            async || http().get(&ready).send().await.is_ok_and(|reply| reply.status().is_success());
        assert!(eventually(LIMIT, is_ready).await, "{}", this.process.epitaph());
        this
    }

    async fn get(&self, path: &str) -> Value {
        let reply = http().get(format!("{}/api/v1/{path}", self.url)).send().await;
        let text = reply.expect("a reply").text().await.expect("a text");
        let reply: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(reply["status"], "success", "{path}: {reply}");
        reply["data"].clone()
    }

    /// Returns the present result of a query.
    pub async fn query(&self, query: &str) -> Vec<Sample> {
        let data = self.get(&format!("query?query={}", urlencoding::encode(query))).await;
        let result = data["result"].as_array().cloned().unwrap_or_default();
        result.iter().map(|each| (each["metric"].clone(), number(&each["value"][1]))).collect()
    }

    /// Returns the results of a query at each second of the last `span`: labels, and seconds from
    /// the beginning with values.
    pub async fn range(&self, query: &str, span: Duration) -> Vec<(Value, Vec<(f64, f64)>)> {
        let end = chrono::Utc::now().timestamp();
        let start = end - i64::try_from(span.as_secs()).expect("a time");
        let query = urlencoding::encode(query);
        let path = format!("query_range?query={query}&start={start}&end={end}&step=1");
        let data = self.get(&path).await;
        let result = data["result"].as_array().cloned().unwrap_or_default();
        let points = |each: &Value| {
            let values = each["values"].as_array().cloned().unwrap_or_default();
            let point = |value: &Value| {
                (value[0].as_f64().unwrap_or_default() - start as f64, number(&value[1]))
            };
            values.iter().map(point).collect()
        };
        result.iter().map(|each| (each["metric"].clone(), points(each))).collect()
    }

    /// Returns the names of the alerts that fire.
    pub async fn firing(&self) -> BTreeSet<String> {
        let data = self.get("alerts").await;
        let alerts = data["alerts"].as_array().cloned().unwrap_or_default();
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        firing
            .filter_map(|alert| alert["labels"]["alertname"].as_str())
            .map(str::to_owned)
            .collect()
    }
}

fn number(value: &Value) -> f64 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or(f64::NAN)
}

/// Returns the dashboard's panels that have queries: their titles and units, and the legend and the
/// expression of each query, over windows of this length.
pub fn panels(window: &str) -> Vec<Panel> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/grafana/dashboards/jarvis.json");
    let text = std::fs::read_to_string(file).expect("a dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let panels = dashboard["panels"].as_array().expect("panels");
    let of = |panel: &Value| {
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        let queries = targets.iter().map(|target| {
            let query = text(&target["expr"]).replace("$__rate_interval", window);
            (text(&target["legendFormat"]), query)
        });
        Panel {
            title: text(&panel["title"]),
            kind: text(&panel["type"]),
            unit: text(&panel["fieldConfig"]["defaults"]["unit"]),
            queries: queries.collect(),
        }
    };
    panels.iter().map(of).collect()
}

/// A panel of the dashboard.
#[derive(Debug)]
pub struct Panel {
    pub title: String,
    /// `row`, `stat` or `timeseries`.
    pub kind: String,
    pub unit: String,
    /// The legend and the expression of each query.
    pub queries: Vec<(String, String)>,
}
