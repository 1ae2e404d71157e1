//! Whether the network policies allow what the settings need, and nothing that they do not.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::resources::{Resources, at, list, matches, name};

const JARVIS: &str = "app.kubernetes.io/name";
const NAMESPACE: &str = "kubernetes.io/metadata.name";
/// The port of clients, and that of operators.
const PORT: u64 = 10200;
const ADMIN_PORT: u64 = 10201;
/// The settings that hold addresses which a replica connects to.
const URLS: [&str; 4] =
    ["JARVIS_REDIS_URL", "JARVIS_OLLAMA_URLS", "JARVIS_OTLP_URL", "JARVIS_JWKS_URL"];
/// Those of them that need not be set.
const OPTIONAL: [&str; 2] = ["JARVIS_OTLP_URL", "JARVIS_JWKS_URL"];

/// An address that a replica connects to.
#[derive(Debug, PartialEq)]
struct Peer {
    host: String,
    port: u64,
}

/// Returns what is wrong with the network policies of one whole.
pub fn check(resources: &Resources) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut peers = Vec::new();
    for url in URLS {
        let value = resources.variable(url);
        if value.is_none() && !OPTIONAL.contains(&url) {
            wrong.push(format!("{url} is not set"));
        }
        peers.extend(addresses(value.unwrap_or_default()));
    }
    let replica = json!({JARVIS: "jarvis"});
    let egress = rules(resources, &replica, "egress");
    for peer in &peers {
        if !egress.iter().any(|rule| reaches(resources, rule, peer)) {
            wrong.push(format!("no policy lets replicas connect to {}:{}", peer.host, peer.port));
        }
        if let Some(service) = resources.find("Service", &peer.host) {
            let labels = at(service, "/spec/selector");
            let admits = |rule: &&Value| {
                list(&rule["from"]).iter().any(|from| is_pod(from, &replica))
                    && admits_port(resources, rule, labels, peer.port)
            };
            if !rules(resources, labels, "ingress").iter().any(admits) {
                wrong.push(format!("{} does not admit replicas", peer.host));
            }
        }
    }
    for rule in egress {
        let is_names = list(&rule["ports"]).iter().all(|port| port["port"] == 53);
        let is_used = peers.iter().any(|peer| reaches(resources, rule, peer));
        if !is_names && !is_used {
            wrong.push(format!("replicas may connect to {rule}, which no setting names"));
        }
    }
    callers(resources, &mut wrong);
    wrong
}

/// Checks that those who call replicas are admitted, and that nobody is admitted from everywhere.
fn callers(resources: &Resources, wrong: &mut Vec<String>) {
    let mut wanted = Vec::new();
    if resources.of("Ingress").next().is_some() {
        wanted.push(("ingress-nginx".to_owned(), PORT));
    }
    for route in resources.of("HTTPRoute") {
        let parents = list(at(route, "/spec/parentRefs")).iter();
        let namespaces = parents.filter_map(|it| it["namespace"].as_str());
        wanted.extend(namespaces.map(|namespace| (namespace.to_owned(), PORT)));
    }
    if resources.of("ServiceMonitor").next().is_some() {
        wanted.push(("monitoring".to_owned(), ADMIN_PORT));
    }
    let replica = json!({JARVIS: "jarvis"});
    let ingress = rules(resources, &replica, "ingress");
    let is_from = |rule: &Value, namespace: &str, port: u64| {
        let of = |from: &Value| at(from, "/namespaceSelector/matchLabels")[NAMESPACE] == namespace;
        // Operators' port is for Prometheus, and the other one for clients.
        let other = PORT + ADMIN_PORT - port;
        list(&rule["from"]).iter().any(of)
            && admits_port(resources, rule, &replica, port)
            && !admits_port(resources, rule, &replica, other)
    };
    for (namespace, port) in &wanted {
        if !ingress.iter().any(|rule| is_from(rule, namespace, *port)) {
            wrong.push(format!("the namespace {namespace} may not call port {port} of replicas"));
        }
    }
    let proxy = json!({JARVIS: "nginx"});
    let is_from_proxy = |rule: &Value| {
        list(&rule["from"]).iter().any(|from| is_pod(from, &proxy))
            && admits_port(resources, rule, &replica, PORT)
            && !admits_port(resources, rule, &replica, ADMIN_PORT)
    };
    let has_proxy = resources.find("Deployment", "nginx").is_some();
    if has_proxy {
        let to = |rule: &&Value| {
            list(&rule["to"]).iter().any(|to| is_pod(to, &replica))
                && list(&rule["ports"]).iter().any(|port| port["port"] == PORT)
        };
        let connects = rules(resources, &proxy, "egress").iter().any(to);
        if !connects || !ingress.iter().any(|rule| is_from_proxy(rule)) {
            wrong.push("nginx may not call replicas".into());
        }
    }
    for rule in &ingress {
        let is_wanted = wanted.iter().any(|(namespace, port)| is_from(rule, namespace, *port));
        if !(is_wanted || has_proxy && is_from_proxy(rule)) {
            wrong.push(format!("replicas admit {rule}, which nothing needs"));
        }
    }
    let closes = |policy: &&Value| {
        let spec = &policy["spec"];
        let is_all = spec["podSelector"].as_object().is_some_and(serde_json::Map::is_empty);
        is_all
            && list(&spec["policyTypes"]).len() == 2
            && spec["ingress"].is_null()
            && spec["egress"].is_null()
    };
    if resources.of("NetworkPolicy").filter(closes).count() != 1 {
        wrong.push("no policy forbids what the others do not allow".into());
    }
    for policy in resources.of("NetworkPolicy") {
        let selector = at(policy, "/spec/podSelector/matchLabels");
        if resources.selected(selector).is_empty() {
            wrong.push(format!("the policy {} is of no pods", name(policy)));
        }
    }
}

/// Returns the rules of all policies of pods with these labels.
fn rules<'a>(resources: &'a Resources, labels: &Value, direction: &str) -> Vec<&'a Value> {
    let policies = resources.of("NetworkPolicy");
    let of = policies.filter(|it| matches(at(it, "/spec/podSelector/matchLabels"), labels));
    of.flat_map(|policy| list(&policy["spec"][direction])).collect()
}

/// Returns whether a rule of egress lets pods connect to the peer.
fn reaches(resources: &Resources, rule: &Value, peer: &Peer) -> bool {
    let to = |to: &Value| {
        let mut labels = peer.host.splitn(2, '.');
        let (service, namespace) = (labels.next().unwrap_or_default(), labels.next());
        if let Ok(address) = peer.host.parse::<Ipv4Addr>() {
            return at(to, "/ipBlock/cidr").as_str().is_some_and(|cidr| contains(cidr, address));
        }
        if let Some(namespace) = namespace {
            // A name of the internet has no namespace, and any address that is not private.
            return at(to, "/namespaceSelector/matchLabels")[NAMESPACE] == namespace
                || is_internet(at(to, "/ipBlock"));
        }
        let service = resources.find("Service", service);
        service.is_some_and(|service| is_pod(to, at(service, "/spec/selector")))
    };
    let has_port = list(&rule["ports"]).iter().any(|port| port["port"] == peer.port);
    has_port && list(&rule["to"]).iter().any(to)
}

/// Returns whether a peer of a rule is pods of this namespace with these labels.
fn is_pod(peer: &Value, labels: &Value) -> bool {
    let selector = at(peer, "/podSelector/matchLabels");
    selector.is_object() && peer["namespaceSelector"].is_null() && matches(selector, labels)
}

/// Returns whether a rule of ingress admits this port of pods with these labels.
fn admits_port(resources: &Resources, rule: &Value, labels: &Value, port: u64) -> bool {
    let pods = resources.selected(labels);
    let containers = pods.iter().flat_map(super::resources::Workload::containers);
    let ports: Vec<&Value> = containers
        .flat_map(|container| list(&container["ports"]))
        .filter(|it| it["containerPort"] == port)
        .collect();
    let is_it = |named: &Value| {
        ports.iter().any(|it| it["name"] == named["port"] || it["containerPort"] == named["port"])
    };
    list(&rule["ports"]).iter().any(is_it)
}

/// Returns whether a block is every address but those of private networks.
fn is_internet(block: &Value) -> bool {
    let excepts = |network: &&str| list(&block["except"]).iter().any(|it| it == network);
    block["cidr"] == "0.0.0.0/0"
        && ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"].iter().all(excepts)
}

fn contains(cidr: &str, address: Ipv4Addr) -> bool {
    let Some((network, bits)) = cidr.split_once('/') else { return false };
    let (Ok(network), Ok(bits)) = (network.parse::<Ipv4Addr>(), bits.parse::<u32>()) else {
        return false;
    };
    let mask = u32::MAX.checked_shl(32 - bits.min(32)).unwrap_or(0);
    u32::from(network) & mask == u32::from(address) & mask
}

/// Returns the addresses in a setting: URLs separated by commas, each with more nodes in its query.
fn addresses(setting: &str) -> Vec<Peer> {
    let mut peers = Vec::new();
    for url in setting.split(',').filter(|url| !url.is_empty()) {
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        let (authority, query) = rest.split_once('?').unwrap_or((rest, ""));
        let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let nodes = query.split('&').filter_map(|part| part.strip_prefix("node="));
        for node in std::iter::once(authority).chain(nodes) {
            let node = node.split(['/', ';']).next().unwrap_or_default();
            let (host, port) = match node.rsplit_once(':') {
                Some((host, port)) => (host, port.parse().unwrap_or_default()),
                None => (node, default_port(scheme)),
            };
            peers.push(Peer { host: host.to_owned(), port });
        }
    }
    peers
}

/// Returns the port of a URL that names none.
fn default_port(scheme: &str) -> u64 {
    match scheme {
        "https" => 443,
        "http" => 80,
        _ => 6379,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_of_a_setting_is_found_and_no_password() {
        let hosts = |setting| -> Vec<String> {
            addresses(setting).iter().map(|it| format!("{}:{}", it.host, it.port)).collect()
        };
        assert_eq!(hosts("redis://jarvis:a@redis:6379"), ["redis:6379"]);
        assert_eq!(hosts("http://a:1;slots=2,http://10.0.0.1:2/x"), ["a:1", "10.0.0.1:2"]);
        assert_eq!(
            hosts("redis-sentinel://u:p@h:1?node=i:2&sentinelServiceName=m"),
            ["h:1", "i:2"]
        );
        assert_eq!(hosts("https://issuer.example.com/keys"), ["issuer.example.com:443"]);
        assert_eq!(hosts("http://a/x,rediss://b"), ["a:80", "b:6379"]);
        assert!(hosts("").is_empty());
    }

    #[test]
    fn an_issuer_needs_a_policy_that_reaches_the_internet_and_no_private_network() {
        let wrong = |block: Value, port: u64| {
            let map = json!({"kind": "ConfigMap", "metadata": {"name": "jarvis"}, "data": {
                "JARVIS_JWKS_URL": "https://issuer.example.com/keys"}});
            let pods = json!({"matchLabels": {JARVIS: "jarvis"}});
            let egress = json!([{"to": [{"ipBlock": block}], "ports": [{"port": port}]}]);
            let policy = json!({"kind": "NetworkPolicy", "metadata": {"name": "jarvis-to-issuer"},
                "spec": {"podSelector": pods, "policyTypes": ["Egress"], "egress": egress}});
            let wrong = check(&Resources::new(vec![map, policy]));
            wrong
                .into_iter()
                .filter(|it| it.contains("issuer") || it.contains("no setting"))
                .count()
        };
        let private = json!(["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"]);
        let internet = json!({"cidr": "0.0.0.0/0", "except": private});
        // The policy is of no pods here, which is said in any case.
        assert_eq!(wrong(internet.clone(), 443), 1);
        assert_eq!(wrong(internet, 80), 3);
        assert_eq!(wrong(json!({"cidr": "0.0.0.0/0"}), 443), 3);
    }

    #[test]
    fn an_address_is_in_its_network_only() {
        let is_in = |cidr, address: &str| contains(cidr, address.parse().expect("an address"));
        assert!(is_in("192.0.2.0/24", "192.0.2.9"));
        assert!(!is_in("192.0.2.0/24", "192.0.3.9"));
        assert!(is_in("0.0.0.0/0", "192.0.3.9"));
        assert!(!is_in("nonsense", "192.0.3.9"));
    }
}
