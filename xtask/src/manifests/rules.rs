//! The rules that schemas cannot express: names that have to agree, within the manifests and with the code.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Context;
use serde_json::Value;

use super::resources::{Resources, Workload, at, list, matches, name};

/// Paths that are for operators, and are published nowhere.
const UNPUBLISHED: [&str; 2] = ["/metrics", "/health/detailed"];
/// Seconds that a replica may take after the turns of its drain have ended.
const AFTER_DRAIN: u64 = 5;
/// CPU that is left for pods on a minikube with 2 CPUs, in thousandths.
const LOCAL_MILLI_CPU: u64 = 1000;

/// Networks in which clients of a gateway may have addresses.
const PRIVATE: [&str; 5] =
    ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"];

/// The names that the code knows, as its own checked documents list them.
pub struct Known {
    /// The environment variables of a replica.
    variables: BTreeSet<String>,
    /// The routes.
    routes: BTreeSet<String>,
    /// The names of the metrics.
    metrics: BTreeSet<String>,
    /// The seconds that turns have in a drain.
    drain: u64,
    /// The version of the workspace.
    version: String,
}

impl Known {
    /// Reads docs/SETTINGS.md (which a test compares with the code), the routes, the metrics and
    /// the version.
    ///
    /// # Errors
    /// Fails where a file cannot be read.
    pub fn read(root: &Path) -> anyhow::Result<Self> {
        let settings = fs::read_to_string(root.join("docs/SETTINGS.md"))?;
        let variables = quoted(&settings, "| `JARVIS_", '`', "JARVIS_");
        let drain = settings.lines().find(|line| line.contains("`JARVIS_DRAIN_TIMEOUT`"));
        let drain =
            drain.and_then(|line| line.split('|').nth(3)?.trim().trim_matches('`').parse().ok());
        let cargo = fs::read_to_string(root.join("Cargo.toml"))?;
        let version = cargo.lines().find_map(|line| line.strip_prefix("version = "));
        let (mut routes, mut metrics) = (BTreeSet::new(), BTreeSet::new());
        visit(&root.join("src"), &mut |text| {
            routes.extend(quoted(text, "path = \"/", '"', "/"));
            metrics.extend(quoted(text, "\"jarvis_", '"', "jarvis_"));
        })?;
        // The pages are not in the description.
        routes.extend(["/app/{part}", "/docs", "/openapi.json"].map(str::to_owned));
        Ok(Self {
            variables,
            routes,
            metrics,
            drain: drain.context("docs/SETTINGS.md has no drain timeout")?,
            version: version.context("Cargo.toml has no version")?.trim_matches('"').to_owned(),
        })
    }

    /// Returns whether a published path, with everything below it, reaches a route.
    fn reaches_a_route(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let below = format!("{path}/");
        path.is_empty() || self.routes.iter().any(|it| it == path || it.starts_with(&below))
    }
}

fn visit(folder: &Path, look: &mut impl FnMut(&str)) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            visit(&path, look)?;
        } else if path.extension().is_some_and(|it| it == "rs") {
            look(&fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

/// Returns what stands behind each `start`, up to `end`, with `prefix` before it.
fn quoted(text: &str, start: &str, end: char, prefix: &str) -> BTreeSet<String> {
    let found = text.split(start).skip(1).filter_map(|rest| rest.split(end).next());
    found.map(|rest| format!("{prefix}{rest}")).collect()
}

/// Returns what is wrong with the resources of one whole.
pub fn check(resources: &Resources, known: &Known) -> Vec<String> {
    let mut wrong = Vec::new();
    selectors(resources, &mut wrong);
    balancers(resources, &mut wrong);
    proxies(resources, &mut wrong);
    files(resources, &mut wrong);
    guards(resources, &mut wrong);
    variables(resources, known, &mut wrong);
    scaling(resources, &mut wrong);
    paths(resources, known, &mut wrong);
    for workload in resources.workloads() {
        containers(&workload, known, &mut wrong);
        volumes(resources, &workload, &mut wrong);
    }
    for rule in resources.of("PrometheusRule") {
        for metric in metrics_in(&rule.to_string()) {
            if !known.metrics.contains(&metric) {
                wrong.push(format!("{} reads {metric}, which is no metric", name(rule)));
            }
        }
    }
    wrong
}

/// Returns the names of jarvis's metrics in a text, without the suffixes of histograms' series.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|letter: char| !letter.is_ascii_lowercase() && letter != '_');
    let metrics = words.filter(|word| word.starts_with("jarvis_"));
    let families = metrics.map(|name| name.strip_suffix("_bucket").unwrap_or(name));
    families.map(str::to_owned).collect()
}

fn selectors(resources: &Resources, wrong: &mut Vec<String>) {
    for workload in resources.workloads() {
        if !matches(at(workload.resource, "/spec/selector/matchLabels"), workload.labels) {
            wrong.push(format!("{} does not select its own pods", name(workload.resource)));
        }
    }
    for budget in resources.of("PodDisruptionBudget") {
        if resources.selected(at(budget, "/spec/selector/matchLabels")).len() != 1 {
            wrong.push(format!("the disruption budget {} is of no workload", name(budget)));
        }
    }
    for service in resources.of("Service") {
        let pods = resources.selected(at(service, "/spec/selector"));
        let ports = list(at(service, "/spec/ports"));
        let listens =
            |it: &Workload<'_>| ports.iter().all(|port| it.listens_on(&port["targetPort"]));
        if pods.len() != 1 || !pods.iter().all(listens) {
            wrong.push(format!("the service {} reaches no port of one workload", name(service)));
        }
    }
    for monitor in resources.of("ServiceMonitor") {
        let selector = at(monitor, "/spec/selector/matchLabels");
        let endpoints = list(at(monitor, "/spec/endpoints"));
        let is_scraped = |service: &&Value| {
            let has = |port: &Value| {
                list(at(service, "/spec/ports")).iter().any(|it| it["name"] == *port)
            };
            matches(selector, at(service, "/metadata/labels"))
                && endpoints.iter().all(|endpoint| has(&endpoint["port"]))
        };
        if resources.of("Service").filter(is_scraped).count() != 1 {
            wrong.push(format!("the monitor {} finds no service with its port", name(monitor)));
        }
    }
}

/// Checks that what is published keeps the addresses of its clients, to which limits belong: with the
/// default policy a node may put its own in their place.
fn balancers(resources: &Resources, wrong: &mut Vec<String>) {
    for service in resources.of("Service").filter(|it| *at(it, "/spec/type") == "LoadBalancer") {
        if *at(service, "/spec/externalTrafficPolicy") != "Local" {
            wrong.push(format!(
                "the service {} hides its clients' addresses: set externalTrafficPolicy to Local",
                name(service)
            ));
        }
    }
}

/// Checks that replicas believe the addresses that their edge names: of a gateway, which appends to what
/// its client sent, no network in which clients may be.
fn proxies(resources: &Resources, wrong: &mut Vec<String>) {
    let has_gateway = resources.of("HTTPRoute").next().is_some();
    let has_edge = has_gateway
        || resources.of("Ingress").next().is_some()
        || resources.find("Deployment", "nginx").is_some();
    let trusted = resources.variable("JARVIS_TRUSTED_PROXIES").unwrap_or_default();
    if has_edge && trusted.is_empty() {
        wrong.push("no proxy is trusted, so all clients have the limits of one".into());
    }
    let is_wide = |network: &&str| PRIVATE.contains(network) || network.ends_with("/0");
    if let Some(wide) = trusted.split(',').find(is_wide).filter(|_| has_gateway) {
        wrong.push(format!("behind a gateway {wide} is trusted, in which clients may be"));
    }
}

/// Checks that each file that a setting names is mounted into the container that reads the setting.
fn files(resources: &Resources, wrong: &mut Vec<String>) {
    let settings = resources.of("ConfigMap").flat_map(|map| {
        let data = map["data"].as_object().into_iter().flatten();
        data.filter(|(key, _)| key.ends_with("_FILE")).map(move |(key, file)| (map, key, file))
    });
    for (map, key, file) in settings {
        let file = file.as_str().unwrap_or_default();
        for workload in resources.workloads() {
            let reads = |container: &&Value| {
                list(&container["envFrom"])
                    .iter()
                    .any(|from| *at(from, "/configMapRef/name") == *name(map))
            };
            for container in workload.containers().into_iter().filter(reads) {
                let mounts = list(&container["volumeMounts"]).iter();
                let mut is_there = mounts.filter_map(|mount| {
                    let path = mount["mountPath"].as_str()?.trim_end_matches('/');
                    let below = file.strip_prefix(path)?.strip_prefix('/')?;
                    Some(has_file(resources, &workload, &mount["name"], below))
                });
                if !is_there.any(|is_there| is_there) {
                    wrong.push(format!("{key} is {file}, which is not mounted"));
                }
            }
        }
    }
}

/// Returns whether a volume has a file, as far as its content is known here.
fn has_file(resources: &Resources, workload: &Workload<'_>, volume: &Value, file: &str) -> bool {
    let volumes = list(&workload.pod["volumes"]);
    let Some(volume) = volumes.iter().find(|it| it["name"] == *volume) else { return false };
    let sources = [("ConfigMap", "/configMap/name"), ("Secret", "/secret/secretName")];
    let known = sources
        .iter()
        .find_map(|(kind, pointer)| Some(resources.find(kind, at(volume, pointer).as_str()?)));
    known.is_none_or(|map| map.is_some_and(|map| !map["data"][file].is_null()))
}

/// Checks that nothing which guards the namespace is deleted with the rest.
fn guards(resources: &Resources, wrong: &mut Vec<String>) {
    for kind in ["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"] {
        for guard in resources.of(kind) {
            wrong.push(format!("the guard {} would be deleted with what it guards", name(guard)));
        }
    }
}

fn variables(resources: &Resources, known: &Known, wrong: &mut Vec<String>) {
    for map in resources.of("ConfigMap").chain(resources.of("Secret")) {
        let keys = map["data"].as_object().into_iter().flat_map(serde_json::Map::keys);
        for key in keys.filter(|key| key.starts_with("JARVIS_")) {
            if !known.variables.contains(key) {
                wrong.push(format!("{} has {key}, which jarvis does not know", name(map)));
            }
        }
    }
    for workload in resources.workloads() {
        for container in workload.containers() {
            let all = list(&container["envFrom"]).iter().chain(list(&container["env"]));
            for source in all {
                let references = [
                    ("ConfigMap", at(source, "/configMapRef")),
                    ("Secret", at(source, "/secretRef")),
                    ("ConfigMap", at(source, "/valueFrom/configMapKeyRef")),
                    ("Secret", at(source, "/valueFrom/secretKeyRef")),
                ];
                for (kind, reference) in references.into_iter().filter(|(_, it)| !it.is_null()) {
                    let map = resources.find(kind, reference["name"].as_str().unwrap_or_default());
                    let has = |map: &Value| {
                        reference["key"].as_str().is_none_or(|key| !map["data"][key].is_null())
                    };
                    if !map.is_some_and(has) {
                        wrong.push(format!(
                            "{} reads {reference}, which is not there",
                            name(workload.resource)
                        ));
                    }
                }
            }
            let parallel = list(&container["env"]).iter();
            let parallel =
                parallel.filter(|it| it["name"] == "OLLAMA_NUM_PARALLEL").collect::<Vec<_>>();
            let is_slots =
                |it: &&Value| at(it, "/valueFrom/configMapKeyRef/key") == "JARVIS_OLLAMA_SLOTS";
            if container["name"] == "ollama"
                && (parallel.len() != 1 || !parallel.iter().all(is_slots))
            {
                wrong.push("OLLAMA_NUM_PARALLEL is not JARVIS_OLLAMA_SLOTS".into());
            }
        }
    }
}

fn scaling(resources: &Resources, wrong: &mut Vec<String>) {
    for scaler in resources.of("HorizontalPodAutoscaler").chain(resources.of("ScaledObject")) {
        let target = at(scaler, "/spec/scaleTargetRef");
        let kind = target["kind"].as_str().unwrap_or_default();
        match resources.find(kind, target["name"].as_str().unwrap_or_default()) {
            None => wrong.push(format!("the autoscaler {} scales nothing", name(scaler))),
            Some(scaled) if !at(scaled, "/spec/replicas").is_null() => {
                wrong.push(format!("{} has replicas beside an autoscaler", name(scaled)));
            }
            Some(_) => {}
        }
    }
}

fn paths(resources: &Resources, known: &Known, wrong: &mut Vec<String>) {
    let mut published = Vec::new();
    for ingress in resources.of("Ingress") {
        for rule in list(at(ingress, "/spec/rules")) {
            for path in list(at(rule, "/http/paths")) {
                let backend = at(path, "/backend/service");
                let service =
                    resources.find("Service", backend["name"].as_str().unwrap_or_default());
                let ports = service.map(|service| list(at(service, "/spec/ports")));
                let has = |port: &Value| port["name"] == *at(backend, "/port/name");
                if !ports.is_some_and(|ports| ports.iter().any(has)) {
                    wrong.push(format!(
                        "the ingress names {backend}, which is no port of a service"
                    ));
                }
                published.push((path["path"].clone(), path["pathType"] == "Exact"));
            }
        }
    }
    for route in resources.of("HTTPRoute") {
        for rule in list(at(route, "/spec/rules")) {
            for backend in list(&rule["backendRefs"]) {
                let service =
                    resources.find("Service", backend["name"].as_str().unwrap_or_default());
                let ports = service.map(|service| list(at(service, "/spec/ports")));
                if !ports.is_some_and(|ports| ports.iter().any(|it| it["port"] == backend["port"]))
                {
                    wrong.push(format!("the route names {backend}, which is no port of a service"));
                }
            }
            for each in list(&rule["matches"]) {
                let path = &each["path"];
                published.push((path["value"].clone(), path["type"] == "Exact"));
            }
        }
    }
    // nginx passes everything on but what its own rules, which a test of the service checks, refuse.
    if published.is_empty() && resources.find("Deployment", "nginx").is_none() {
        wrong.push("nothing is published".into());
    }
    for (path, is_exact) in published {
        let path = path.as_str().unwrap_or_default();
        if !known.reaches_a_route(path) {
            wrong.push(format!("{path} is published, and is no route"));
        }
        let covers = |hidden: &&&str| {
            **hidden == path.trim_end_matches('/')
                || !is_exact && hidden.starts_with(&format!("{}/", path.trim_end_matches('/')))
        };
        for hidden in UNPUBLISHED.iter().filter(covers) {
            wrong.push(format!("{path} publishes {hidden}"));
        }
    }
}

/// Checks that what is mounted is there.
fn volumes(resources: &Resources, workload: &Workload<'_>, wrong: &mut Vec<String>) {
    let owner = name(workload.resource);
    let volumes = list(&workload.pod["volumes"]);
    for volume in volumes {
        let sources = [("ConfigMap", "/configMap/name"), ("Secret", "/secret/secretName")];
        for (kind, pointer) in sources {
            let named = at(volume, pointer).as_str();
            if named.is_some_and(|named| resources.find(kind, named).is_none()) {
                wrong.push(format!("{owner} mounts {volume}, which is not there"));
            }
        }
    }
    let claims = list(at(workload.resource, "/spec/volumeClaimTemplates")).iter().map(name);
    let volumes = volumes.iter().filter_map(|volume| volume["name"].as_str());
    let there: Vec<&str> = claims.chain(volumes).collect();
    for container in workload.containers() {
        for mount in list(&container["volumeMounts"]) {
            if !there.iter().any(|volume| mount["name"] == *volume) {
                wrong.push(format!("{owner} has no volume for {mount}"));
            }
        }
    }
}

fn containers(workload: &Workload<'_>, known: &Known, wrong: &mut Vec<String>) {
    let owner = name(workload.resource);
    for container in workload.containers() {
        if at(container, "/resources/limits/memory").is_null()
            || at(container, "/resources/requests/cpu").is_null()
        {
            wrong.push(format!("a container of {owner} has no limit or no request"));
        }
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            let get = at(container, &format!("/{probe}/httpGet"));
            if !get.is_null() && !workload.listens_on(&get["port"]) {
                wrong.push(format!("the {probe} of {owner} asks a port without a listener"));
            }
            let path = get["path"].as_str().unwrap_or_default();
            if owner == "jarvis" && !known.routes.contains(path) {
                wrong.push(format!("the {probe} of {owner} is no route"));
            }
        }
        let image = container["image"].as_str().unwrap_or_default();
        if owner == "jarvis" && image != format!("jarvis:{}", known.version) {
            wrong.push(format!("the image of {owner} is {image}"));
        }
    }
    if owner == "jarvis" {
        let grace = at(workload.pod, "/terminationGracePeriodSeconds").as_u64().unwrap_or(30);
        let sleep = at(workload.pod, "/containers/0/lifecycle/preStop/sleep/seconds").as_u64();
        if sleep.is_none_or(|sleep| grace < sleep + known.drain + AFTER_DRAIN) {
            wrong.push(format!("{owner} has less than its sleep and its drain to end"));
        }
    }
}

/// Returns what is wrong with the requests of the overlay for a small machine.
pub fn fits_two_cpus(resources: &Resources) -> Vec<String> {
    let milli = |text: &str| {
        let milli = text.strip_suffix('m').and_then(|it| it.parse().ok());
        milli.or_else(|| text.parse().ok().map(|cpus: u64| cpus * 1000)).unwrap_or(u64::MAX / 64)
    };
    let replicas = |workload: &Workload<'_>| {
        let scaler = resources.find("HorizontalPodAutoscaler", name(workload.resource));
        let least = scaler.and_then(|it| at(it, "/spec/minReplicas").as_u64());
        least.or_else(|| at(workload.resource, "/spec/replicas").as_u64()).unwrap_or(1)
    };
    let of_pod = |workload: &Workload<'_>| -> u64 {
        let containers = list(&workload.pod["containers"]).iter();
        let cpu = |it: &Value| milli(at(it, "/resources/requests/cpu").as_str().unwrap_or("x"));
        containers.map(cpu).sum()
    };
    let workloads = resources.workloads();
    let sum: u64 = workloads.iter().map(|it| replicas(it) * of_pod(it)).sum();
    let is_too_much = sum > LOCAL_MILLI_CPU;
    is_too_much.then(|| format!("the overlay local requests {sum}m CPU")).into_iter().collect()
}

/// Returns what is wrong with compose's file.
pub fn compose(documents: &[Value], known: &Known) -> Vec<String> {
    let mut wrong = Vec::new();
    let services = documents.first().map_or(&Value::Null, |document| &document["services"]);
    let environment = |service: &str, key: &str| &services[service]["environment"][key];
    let slots = environment("jarvis", "JARVIS_OLLAMA_SLOTS");
    if slots.is_null() || slots != environment("ollama", "OLLAMA_NUM_PARALLEL") {
        wrong.push("compose: OLLAMA_NUM_PARALLEL is not JARVIS_OLLAMA_SLOTS".into());
    }
    if services["jarvis"]["image"] != format!("jarvis:{}", known.version) {
        wrong.push("compose: the image has not the version of Cargo.toml".into());
    }
    let keys = services["jarvis"]["environment"].as_object();
    for key in keys.into_iter().flat_map(serde_json::Map::keys) {
        if !known.variables.contains(key) {
            wrong.push(format!("compose: jarvis does not know {key}"));
        }
    }
    // The first service to stop must not be one that the others still need.
    for (service, needed) in [("nginx", "jarvis"), ("jarvis", "redis"), ("jarvis", "ollama")] {
        let depends = &services[service]["depends_on"];
        let is_listed = list(depends).iter().any(|it| it == needed) || !depends[needed].is_null();
        if !is_listed {
            wrong.push(format!("compose: {needed} may be stopped before {service}"));
        }
    }
    let grace = services["jarvis"]["stop_grace_period"].as_str().unwrap_or_default();
    let grace: u64 = grace.trim_end_matches('s').parse().unwrap_or_default();
    if grace < known.drain + AFTER_DRAIN {
        wrong.push("compose: jarvis has less than its drain to end".into());
    }
    wrong
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_file_of_a_setting_that_is_not_mounted_is_named() {
        let wrong = |mount: Value, secret: Value| {
            let map = json!({"kind": "ConfigMap", "metadata": {"name": "jarvis"},
                "data": {"JARVIS_REDIS_CA_FILE": "/etc/jarvis/redis-ca/ca.crt"}});
            let pod = json!({
                "containers": [{"envFrom": [{"configMapRef": {"name": "jarvis"}}],
                    "volumeMounts": [mount]}],
                "volumes": [{"name": "redis-ca", "secret": {"secretName": "redis-ca"}}]});
            let deployment = json!({"kind": "Deployment", "metadata": {"name": "jarvis"},
                "spec": {"template": {"spec": pod}}});
            let secret =
                json!({"kind": "Secret", "metadata": {"name": "redis-ca"}, "data": secret});
            let mut wrong = Vec::new();
            files(&Resources::new(vec![map, deployment, secret]), &mut wrong);
            wrong
        };
        let mount = |path: &str| json!({"name": "redis-ca", "mountPath": path});
        let authority = json!({"ca.crt": "x"});
        assert!(wrong(mount("/etc/jarvis/redis-ca"), authority.clone()).is_empty());
        for path in ["/etc/jarvis/other", "/etc/jarvis/redis", "/tmp"] {
            assert_eq!(wrong(mount(path), authority.clone()).len(), 1, "{path}");
        }
        assert_eq!(wrong(mount("/etc/jarvis/redis-ca"), json!({"tls.crt": "x"})).len(), 1);
        assert_eq!(wrong(json!({}), authority).len(), 1);
    }

    #[test]
    fn a_gateway_trusts_no_network_in_which_clients_may_be_and_every_edge_some() {
        let wrong = |kind: &str, trusted: &str| {
            let edge = json!({"kind": kind, "metadata": {"name": "jarvis"}});
            let map = json!({"kind": "ConfigMap", "metadata": {"name": "jarvis"},
                "data": {"JARVIS_TRUSTED_PROXIES": trusted}});
            let mut wrong = Vec::new();
            proxies(&Resources::new(vec![edge, map]), &mut wrong);
            wrong.len()
        };
        assert_eq!((wrong("Ingress", "10.0.0.0/8"), wrong("Ingress", "")), (0, 1));
        assert_eq!((wrong("HTTPRoute", "10.0.0.0/8"), wrong("HTTPRoute", "10.3.0.0/16")), (1, 0));
    }

    #[test]
    fn a_load_balancer_that_hides_its_clients_addresses_is_named() {
        let wrong = |spec: Value| {
            let service = json!({"kind": "Service", "metadata": {"name": "nginx"}, "spec": spec});
            let mut wrong = Vec::new();
            balancers(&Resources::new(vec![service]), &mut wrong);
            wrong
        };
        let hidden = wrong(json!({"type": "LoadBalancer"}));
        assert!(hidden.len() == 1 && hidden[0].contains("nginx"), "{hidden:?}");
        assert_eq!(
            wrong(json!({"type": "LoadBalancer", "externalTrafficPolicy": "Cluster"})).len(),
            1
        );
        let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"});
        assert!(wrong(local).is_empty() && wrong(json!({"clusterIP": "None"})).is_empty());
    }
}
