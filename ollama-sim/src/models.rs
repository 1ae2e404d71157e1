//! The stored models, their names, and which of them are loaded.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use chrono::{DateTime, Utc};

use crate::hash::fnv;
use crate::model_name::{canonical, with_tag};
use crate::options::KeepAlive;
use crate::sync::lock;

/// A name, and the model behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// The name with its tag.
    pub name: String,
    /// The name under which the weights were created; it is the same for all copies.
    pub origin: String,
    /// The time when the name was created.
    pub modified_at: DateTime<Utc>,
}

impl Model {
    fn new(name: String, origin: String) -> Self {
        Self { name, origin, modified_at: Utc::now() }
    }

    /// Returns the digest, which is the same for all copies.
    pub fn digest(&self) -> String {
        (0_u64..4).fold(String::with_capacity(64), |digest, part| {
            let hash = fnv(0xcbf2_9ce4_8422_2325 ^ part, self.origin.as_bytes());
            digest + &format!("{hash:016x}")
        })
    }

    /// Returns the bytes on disk: invented, but always the same.
    pub fn size(&self) -> u64 {
        600_000_000 + fnv(1, self.origin.as_bytes()) % 400_000_000
    }

    /// Returns whether the model only embeds, and answers nothing.
    pub fn embeds(&self) -> bool {
        self.origin.contains("embed")
    }

    /// Returns whether the model is of an architecture that this Ollama does not know.
    pub fn is_unknown_kind(&self) -> bool {
        self.origin.contains("alien")
    }

    /// Returns whether the model writes on, whatever number of tokens a request allows.
    pub fn is_heedless(&self) -> bool {
        self.origin.contains("heedless")
    }

    /// Returns whether the model takes images.
    pub fn sees(&self) -> bool {
        self.origin.contains("vision")
    }

    /// Returns whether the model reasons before it answers.
    pub fn thinks(&self) -> bool {
        self.origin.contains("think")
    }
}

/// A model in memory.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The model, under the name of its last request.
    pub model: Model,
    /// Context in tokens.
    pub num_ctx: usize,
    /// The time when it is unloaded if no request comes; none is never.
    pub expires_at: Option<DateTime<Utc>>,
}

/// The effect of a request on the models in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// The model was there, with that context.
    Ready,
    /// The model was not there.
    Fresh,
    /// The model was there with another context.
    Reload,
}

/// All models of one server.
pub struct Models {
    known: Mutex<BTreeMap<String, Model>>,
    loaded: Mutex<HashMap<String, Loaded>>,
}

impl Models {
    /// Creates the models by name, then the aliases `NEW=OLD`; an alias may refer to another.
    pub fn new(names: &[String], aliases: &[String]) -> Result<Self, UnknownOrigin> {
        let models = Self { known: Mutex::default(), loaded: Mutex::default() };
        for name in names.iter().map(|n| n.trim()).filter(|n| !n.is_empty()) {
            let key = canonical(name);
            let model = Model::new(with_tag(name), key.clone());
            lock(&models.known).insert(key, model);
        }
        for alias in aliases {
            let unknown = || UnknownOrigin(alias.clone());
            let (new, old) = alias.split_once('=').ok_or_else(unknown)?;
            if !models.copy(old.trim(), new.trim()) {
                return Err(unknown());
            }
        }
        Ok(models)
    }

    /// Returns the model of a name.
    pub fn get(&self, name: &str) -> Option<Model> {
        lock(&self.known).get(&canonical(name)).cloned()
    }

    /// Returns all names, in order.
    pub fn list(&self) -> Vec<Model> {
        lock(&self.known).values().cloned().collect()
    }

    /// Adds a second name; returns false if there is no such model.
    pub fn copy(&self, source: &str, destination: &str) -> bool {
        let mut known = lock(&self.known);
        let Some(origin) = known.get(&canonical(source)).map(|m| m.origin.clone()) else {
            return false;
        };
        known.insert(canonical(destination), Model::new(with_tag(destination), origin));
        true
    }

    /// Removes a name; returns false if it was not there.
    pub fn delete(&self, name: &str) -> bool {
        let name = canonical(name);
        let Some(model) = lock(&self.known).remove(&name) else {
            return false;
        };
        let others = lock(&self.known).values().any(|m| m.origin == model.origin);
        if !others {
            lock(&self.loaded).remove(&model.origin);
        }
        true
    }

    /// Returns the models in memory.
    pub fn loaded(&self) -> Vec<Loaded> {
        let mut loaded = lock(&self.loaded);
        drop_expired(&mut loaded);
        let mut all: Vec<_> = loaded.values().cloned().collect();
        all.sort_by(|a, b| a.model.name.cmp(&b.model.name));
        all
    }

    /// Loads a model, or keeps it loaded.
    pub fn load(&self, model: &Model, num_ctx: usize, keep_alive: KeepAlive) -> Load {
        let mut loaded = lock(&self.loaded);
        drop_expired(&mut loaded);
        let entry = Loaded { model: model.clone(), num_ctx, expires_at: expiry(keep_alive) };
        match loaded.insert(model.origin.clone(), entry) {
            None => Load::Fresh,
            Some(before) if before.num_ctx != num_ctx => Load::Reload,
            Some(_) => Load::Ready,
        }
    }

    /// Keeps a model loaded after a request, for as long as the request wanted. A model that was
    /// loaded with another context meanwhile stays as it is, because that must not count as a
    /// reload.
    pub fn touch(&self, model: &Model, num_ctx: usize, keep_alive: KeepAlive) {
        if let Some(loaded) = lock(&self.loaded).get_mut(&model.origin)
            && loaded.num_ctx == num_ctx
        {
            loaded.expires_at = expiry(keep_alive);
        }
    }

    /// Takes a model out of memory.
    pub fn unload(&self, model: &Model) {
        lock(&self.loaded).remove(&model.origin);
    }
}

/// Returns when a model is unloaded; none is never.
fn expiry(keep_alive: KeepAlive) -> Option<DateTime<Utc>> {
    let KeepAlive::For(time) = keep_alive else {
        return None;
    };
    Utc::now().checked_add_signed(chrono::Duration::from_std(time).ok()?)
}

fn drop_expired(loaded: &mut HashMap<String, Loaded>) {
    let now = Utc::now();
    loaded.retain(|_, l| l.expires_at.is_none_or(|at| at > now));
}

/// The error for an alias that is not `NEW=OLD` with a known OLD.
#[derive(Debug, PartialEq, Eq)]
pub struct UnknownOrigin(String);

impl std::fmt::Display for UnknownOrigin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "alias {:?} is not NEW=OLD with a model that is there", self.0)
    }
}

impl std::error::Error for UnknownOrigin {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_the_same_model() {
        let models = Models::new(&["a".into()], &["b=a".into(), "c=b".into()]).expect("valid");
        let (a, c) = (models.get("a"), models.get("c:latest"));
        assert_eq!(a.map(|m| m.digest()), c.map(|m| m.digest()));
        assert!(Models::new(&["a".into()], &["b=z".into()]).is_err());
    }

    #[test]
    fn another_context_reloads() {
        let models = Models::new(&["a".into()], &[]).expect("valid");
        let a = models.get("a").expect("there");
        let five = KeepAlive::default();
        assert_eq!(models.load(&a, 4096, five), Load::Fresh);
        assert_eq!(models.load(&a, 4096, five), Load::Ready);
        assert_eq!(models.load(&a, 2048, five), Load::Reload);
        models.unload(&a);
        assert_eq!(models.load(&a, 4096, five), Load::Fresh);
    }
}
