//! Redis and model hosts over TLS, with certificates that are made for each test.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::process::Command;

use serde_json::json;
use support::client::{get, post, until_ok};
use support::eventually;
use support::process::{LIMIT, Process, jarvis, ollama_sim};
use support::redis::RedisServer;
use support::tls::{Certificates, Front, text};
use testkit::Port;

const CHAT: &str = "/api/v1/chat/";

/// A Redis that also listens with TLS, and refuses clients without a certificate there.
struct TlsRedis {
    redis: RedisServer,
    url: String,
    _port: Port,
}

impl TlsRedis {
    fn start(certificates: &Certificates) -> Self {
        let port = Port::reserve().expect("a port");
        let number = port.number().to_string();
        let server = &certificates.server;
        let redis = RedisServer::start_with(&[
            "--tls-port",
            &number,
            "--tls-cert-file",
            text(&server.certificate),
            "--tls-key-file",
            text(&server.key),
            "--tls-ca-cert-file",
            text(&certificates.authority),
            "--tls-auth-clients",
            "yes",
        ]);
        let url = redis.url().replacen("redis://", "rediss://", 1);
        let url = url.replace(&redis.port().to_string(), &number);
        Self { redis, url, _port: port }
    }
}

async fn turn(replica: &Process) -> u16 {
    post(replica, CHAT, &json!({"message": "[[tokens=3]] hi"})).await.status
}

/// Waits until the health of a replica has named this trouble, and checks that it is not ready.
async fn until_trouble(replica: &Process, service: &str) -> String {
    let mut trouble = String::new();
    let found = eventually(LIMIT, async || {
        let detailed = get(replica, "/health/detailed").await.body;
        detailed["problems"][service].as_str().unwrap_or_default().clone_into(&mut trouble);
        !trouble.is_empty()
    });
    assert!(found.await, "no trouble");
    trouble
}

#[tokio::test]
async fn redis_is_used_over_tls_with_an_authority_and_a_client_certificate_of_its_own() {
    let (certificates, ollama) = (Certificates::make(), ollama_sim(&["--rate", "0"]));
    let redis = TlsRedis::start(&certificates);
    let client = &certificates.client;
    let authority = ("JARVIS_REDIS_CA_FILE", text(&certificates.authority));
    let certificate = ("JARVIS_REDIS_CERT_FILE", text(&client.certificate));
    let key = ("JARVIS_REDIS_KEY_FILE", text(&client.key));
    let replica = jarvis(&redis.url, &ollama.url, &[authority, certificate, key]);
    until_ok(&replica, "/health/ready").await;
    assert_eq!(turn(&replica).await, 200);
    let clients = redis.redis.cli(&["CLIENT", "LIST"]);
    // The test itself uses the port without TLS, as the default user.
    let of_replica = clients.lines().filter(|line| line.contains("user=jarvis"));
    let plain = format!("laddr=127.0.0.1:{} ", redis.redis.port());
    assert!(of_replica.clone().count() > 1, "{clients}");
    assert!(!of_replica.into_iter().any(|line| line.contains(&plain)), "{clients}");
    // It comes back after an outage, too.
    redis.redis.restart();
    assert!(eventually(LIMIT, async || turn(&replica).await == 200).await);
    // Without the certificate Redis refuses, and without the authority the replica does.
    let others = Certificates::make();
    let foreign = ("JARVIS_REDIS_CA_FILE", text(&others.authority));
    for settings in [&[authority][..], &[foreign, certificate, key]] {
        let replica = jarvis(&redis.url, &ollama.url, settings);
        until_trouble(&replica, "redis").await;
        assert_eq!(get(&replica, "/health/ready").await.status, 503, "{settings:?}");
    }
}

#[test]
fn certificates_that_cannot_work_are_refused_with_64_and_no_key_is_shown() {
    let certificates = Certificates::make();
    let (client, server) = (&certificates.client, &certificates.server);
    let authority = text(&certificates.authority);
    let (certificate, key) = (text(&client.certificate), text(&client.key));
    let secret = std::fs::read_to_string(&client.key).expect("a key");
    let secret = secret.lines().nth(1).expect("a line of the key").to_owned();
    let rediss = ("JARVIS_REDIS_URL", "rediss://127.0.0.1:1");
    let empty = certificates.write("empty.pem", "");
    for (settings, part) in [
        (&[("JARVIS_REDIS_CA_FILE", authority)][..], "rediss://"),
        (&[rediss, ("JARVIS_REDIS_CERT_FILE", certificate)], "belong together"),
        (&[rediss, ("JARVIS_REDIS_KEY_FILE", key)], "belong together"),
        (&[rediss, ("JARVIS_REDIS_CA_FILE", "/nothing")], "cannot read /nothing"),
        (&[rediss, ("JARVIS_REDIS_CA_FILE", text(&empty))], "no certificate"),
        (&[rediss, ("JARVIS_REDIS_CA_FILE", key)], "no certificate"),
        (&[rediss, ("JARVIS_REDIS_KEY_FILE", certificate)], "no private key"),
        (&[("JARVIS_OLLAMA_CA_FILE", text(&empty))], "no certificate"),
        (
            &[
                rediss,
                ("JARVIS_REDIS_CA_FILE", authority),
                ("JARVIS_REDIS_CERT_FILE", text(&server.certificate)),
                ("JARVIS_REDIS_KEY_FILE", key),
            ],
            "client certificate",
        ),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_jarvis"))
            .arg("serve")
            .env("JARVIS_LISTEN", "127.0.0.1:0")
            .envs(settings.iter().copied())
            .output()
            .expect("jarvis");
        let printed = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{settings:?}: {printed}");
        assert!(printed.contains(part), "{settings:?}: {printed}");
        assert!(!printed.contains(&secret), "{printed}");
    }
}

#[tokio::test]
async fn a_model_host_is_used_over_tls_with_an_authority_of_its_own_and_a_token() {
    let (certificates, ollama) = (Certificates::make(), ollama_sim(&["--rate", "0"]));
    let redis = RedisServer::start();
    let line = "authorization: bearer ollama-t0ken";
    let front = Front::start(&certificates.server, &ollama.url, line).await;
    let authority = ("JARVIS_OLLAMA_CA_FILE", text(&certificates.authority));
    let token = ("JARVIS_OLLAMA_TOKEN", "Ollama-T0ken");
    let replica = jarvis(&redis.url(), &front.url, &[authority, token]);
    until_ok(&replica, "/health/ready").await;
    assert!(eventually(LIMIT, async || turn(&replica).await == 200).await);
    let named = front.url.replace("127.0.0.1", "localhost");
    let named = jarvis(&redis.url(), &named, &[authority, token]);
    until_ok(&named, "/health/ready").await;
    assert!(eventually(LIMIT, async || turn(&named).await == 200).await);
    let heads = front.heads.lock().expect("no panic").clone();
    assert!(
        !heads.is_empty() && heads.iter().all(|head| head.lines().any(|found| found == line)),
        "{heads:?}"
    );
    let others = Certificates::make();
    let foreign = ("JARVIS_OLLAMA_CA_FILE", text(&others.authority));
    let wrong = ("JARVIS_OLLAMA_TOKEN", "another-one");
    for settings in [&[foreign, token][..], &[token], &[authority], &[authority, wrong]] {
        let replica = jarvis(&redis.url(), &front.url, settings);
        until_ok(&replica, "/health/ready").await;
        let trouble = until_trouble(&replica, "ollama").await;
        assert!(!trouble.contains("oken") && !trouble.contains("127.0.0.1"), "{trouble}");
        assert_ne!(turn(&replica).await, 200, "{settings:?}");
    }
}

/// Returns the values that the component adds to the arguments of Redis.
fn arguments_of_component(component: &str) -> Vec<String> {
    let added = component
        .lines()
        .filter_map(|line| line.split_once("/args/-, value: ")?.1.strip_suffix('}'));
    added.map(|value| value.trim_matches('"').to_owned()).collect()
}

#[tokio::test]
async fn the_component_of_kubernetes_serves_redis_over_tls_by_the_files_that_its_script_writes() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = testkit::folder::Folder::temporary().expect("a folder");
    let copy = folder.path().join("root");
    for place in ["deploy", "k8s/components/redis-ca"] {
        std::fs::create_dir_all(copy.join(place)).expect("a folder");
    }
    std::fs::copy(root.join("deploy/redis.acl"), copy.join("deploy/redis.acl")).expect("a copy");
    for script in ["secrets.sh", "redis-tls.sh", "redis-tls.sh"] {
        let ran = Command::new("sh").arg(root.join("deploy").join(script)).arg(&copy).output();
        let ran = ran.expect("sh");
        assert!(ran.status.success(), "{script}: {}", String::from_utf8_lossy(&ran.stderr));
    }
    let written = copy.join("k8s/components/redis-tls/written-by-deploy-redis-tls.sh");
    let url = std::fs::read_to_string(written.join("jarvis.env")).expect("a file");
    assert!(url.starts_with("JARVIS_REDIS_URL=rediss://jarvis:") && url.ends_with("@redis:6379\n"));
    let file = root.join("k8s/components/redis-tls/kustomization.yaml");
    let component = std::fs::read_to_string(file).expect("a file");
    let port = Port::reserve().expect("a port");
    let place = written.display().to_string();
    let arguments: Vec<String> = arguments_of_component(&component)
        .into_iter()
        // The tests themselves use the port without TLS.
        .skip_while(|it| it != "--tls-port")
        .map(|it| if it == "6379" { port.number().to_string() } else { it })
        .map(|it| it.replace("/etc/redis-tls", &place))
        .collect();
    assert!(arguments.len() == 10 && component.contains("value: --port"), "{arguments:?}");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let redis = RedisServer::start_with(&arguments);
    let url = redis.url().replacen("redis://", "rediss://", 1);
    let url = url.replace(&redis.port().to_string(), &port.number().to_string());
    let ollama = ollama_sim(&["--rate", "0"]);
    let authority = copy.join("k8s/components/redis-ca/ca.crt");
    let authority = [("JARVIS_REDIS_CA_FILE", text(&authority))];
    // As localhost, which the certificate names, too.
    for host in ["127.0.0.1", "localhost"] {
        let replica = jarvis(&url.replace("127.0.0.1", host), &ollama.url, &authority);
        until_ok(&replica, "/health/ready").await;
        assert_eq!(turn(&replica).await, 200, "{host}");
    }
    // The probes of the component, where there is a client.
    let Some(client) = testkit::programs::find("redis-cli") else { return };
    let probes: Vec<_> =
        component.lines().filter(|line| line.contains("Probe/exec/command")).collect();
    assert_eq!(probes.len(), 3);
    for probe in probes {
        let (_, words) = probe.split_once("value: [redis-cli, ").expect("a command");
        let words = words.trim_end_matches("]}").split(", ").map(|word| word.trim_matches('\''));
        let words: Vec<_> = words.map(|word| word.replace("/etc/redis-tls", &place)).collect();
        let mut asked = Command::new(&client);
        let asked = asked.args(["-p", &port.number().to_string()]).args(words).output();
        let asked = asked.expect("redis-cli");
        assert_eq!(String::from_utf8_lossy(&asked.stdout).trim(), "PONG", "{probe}");
    }
}
