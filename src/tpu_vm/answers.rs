//! What the TPU API says of a node and of a queued resource.

use serde_json::Value as Json;

/// A TPU VM, as `describe` tells of it (REST reference of the Cloud TPU API v2, `projects.locations.nodes`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Such as `READY`.
    pub state: String,
    /// Such as `HEALTHY`; empty where it isn't told.
    pub health: String,
    /// RFC 3339.
    pub create_time: String,
    /// Of the workers, in their order, in the VM's own network.
    pub addresses: Vec<String>,
    pub has_public_address: bool,
    /// Whether it belongs to a queued resource.
    pub is_queued: bool,
}

impl Node {
    pub fn parse(json: &str) -> Option<Self> {
        let node: Json = serde_json::from_str(json).ok()?;
        let text = |name: &str| node[name].as_str().unwrap_or_default().to_owned();
        let endpoints = node["networkEndpoints"].as_array().map(Vec::as_slice).unwrap_or_default();
        let address = |endpoint: &Json| endpoint["ipAddress"].as_str().unwrap_or_default().to_owned();
        let is_public = |endpoint: &Json| endpoint["accessConfig"]["externalIp"].is_string();
        Some(Self {
            state: node["state"].as_str()?.to_owned(),
            health: text("health"),
            create_time: text("createTime"),
            addresses: endpoints.iter().map(address).collect(),
            has_public_address: endpoints.iter().any(is_public),
            is_queued: node["queuedResource"].is_string(),
        })
    }

    /// Whether it does its work, and costs money.
    pub fn is_ready(&self) -> bool {
        self.state == "READY"
    }

    /// Whether it never comes back by itself.
    pub fn is_gone(&self) -> bool {
        matches!(&*self.state, "PREEMPTED" | "TERMINATED" | "STOPPED")
    }

    /// Whether it is being deleted.
    pub fn is_going(&self) -> bool {
        self.state == "DELETING"
    }

    /// Whether its host is being seen to.
    pub fn is_in_maintenance(&self) -> bool {
        self.health == "UNHEALTHY_MAINTENANCE"
    }

    /// State and health.
    pub fn describe(&self) -> String {
        match &*self.health {
            "" => self.state.clone(),
            health => format!("{}, {health}", self.state),
        }
    }
}

/// A request that waits for its node (`projects.locations.queuedResources`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Queued {
    /// Such as `WAITING_FOR_RESOURCES`.
    pub state: String,
    /// Why it failed.
    pub error: Option<String>,
}

impl Queued {
    pub fn parse(json: &str) -> Option<Self> {
        let queued: Json = serde_json::from_str(json).ok()?;
        let state = &queued["state"];
        let error = state["failedData"]["error"]["message"].as_str();
        Some(Self { state: state["state"].as_str()?.to_owned(), error: error.map(str::to_owned) })
    }

    pub fn is_active(&self) -> bool {
        self.state == "ACTIVE"
    }

    /// Whether nothing comes of it any more: it was preempted, or refused.
    pub fn is_over(&self) -> bool {
        self.state == "SUSPENDED" || self.has_failed()
    }

    /// Whether it was refused, or its time has run out.
    pub fn has_failed(&self) -> bool {
        self.state == "FAILED"
    }

    /// Whether it is being deleted.
    pub fn is_going(&self) -> bool {
        self.state == "DELETING"
    }

    /// Its state, and why.
    pub fn describe(&self) -> String {
        match &self.error {
            None => self.state.clone(),
            Some(error) => format!("{}: {error}", self.state),
        }
    }
}
