//! The rendered resources, and ways to find what they name.

use serde_json::{Map, Value};

/// The resources of one whole.
pub struct Resources(Vec<Value>);

/// A workload and the pods that it makes.
pub struct Workload<'a> {
    /// The resource.
    pub resource: &'a Value,
    /// The labels of its pods.
    pub labels: &'a Value,
    /// The specification of its pods.
    pub pod: &'a Value,
}

impl Resources {
    /// Creates the set of these documents.
    pub const fn new(documents: Vec<Value>) -> Self {
        Self(documents)
    }

    /// Returns the resources of this kind.
    pub fn of<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter(move |resource| resource["kind"] == kind)
    }

    /// Returns the resource of this kind and name.
    pub fn find<'a>(&'a self, kind: &'a str, name: &'a str) -> Option<&'a Value> {
        self.of(kind).find(|resource| self::name(resource) == name)
    }

    /// Returns all workloads.
    pub fn workloads(&self) -> Vec<Workload<'_>> {
        let resources = self.of("Deployment").chain(self.of("StatefulSet"));
        let workload = |resource| {
            let template = &at(resource, "/spec/template");
            let labels = at(template, "/metadata/labels");
            Workload { resource, labels, pod: at(template, "/spec") }
        };
        resources.map(workload).collect()
    }

    /// Returns the workloads whose pods have these labels; all where the selector is empty.
    pub fn selected(&self, selector: &Value) -> Vec<Workload<'_>> {
        let mut workloads = self.workloads();
        workloads.retain(|workload| matches(selector, workload.labels));
        workloads
    }

    /// Returns the value of a variable that the pods of jarvis get.
    pub fn variable(&self, name: &str) -> Option<&str> {
        let maps = self.of("ConfigMap").chain(self.of("Secret"));
        maps.filter_map(|map| map["data"][name].as_str()).map(str::trim).next()
    }
}

impl Workload<'_> {
    /// Returns the containers, the first ones first.
    pub fn containers(&self) -> Vec<&Value> {
        let kinds = ["initContainers", "containers"];
        kinds.iter().flat_map(|kind| list(&self.pod[kind])).collect()
    }

    /// Returns whether the pods listen on this port, by its name or its number.
    pub fn listens_on(&self, port: &Value) -> bool {
        let ports = self.containers();
        let mut ports = ports.iter().flat_map(|container| list(&container["ports"]));
        ports.any(|it| it["name"] == *port || it["containerPort"] == *port)
    }
}

/// Returns the name of a resource.
pub fn name(resource: &Value) -> &str {
    at(resource, "/metadata/name").as_str().unwrap_or_default()
}

/// Returns the value at a JSON pointer, or null.
pub fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

/// Returns the items of a list; none where there is no list.
pub fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Returns whether labels have all that a selector names.
pub fn matches(selector: &Value, labels: &Value) -> bool {
    let empty = Map::new();
    let wanted = selector.as_object().unwrap_or(&empty);
    wanted.iter().all(|(key, value)| labels[key] == *value)
}
