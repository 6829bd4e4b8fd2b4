//! A gRPC service config, which tonic does not read by itself: the deadline and the retries of each method.

use std::time::Duration;

use serde::Deserialize;
use tonic::{Code, Status};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceConfig {
    method_config: Vec<MethodConfig>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MethodConfig {
    name: Vec<Name>,
    pub timeout: Option<Span>,
    pub retry_policy: Option<RetryPolicy>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Name {
    service: String,
    method: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RetryPolicy {
    max_attempts: u32,
    initial_backoff: Span,
    max_backoff: Span,
    backoff_multiplier: f64,
    retryable_status_codes: Vec<String>,
}

/// A duration as protobuf writes it in JSON: `0.1s`.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
pub struct Span(pub Duration);

impl TryFrom<String> for Span {
    type Error = prost_types::DurationError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse::<prost_types::Duration>()?.try_into().map(Span)
    }
}

impl ServiceConfig {
    /// The entry for a path such as `/recall.v1.MemoryService/AddMemory`; one that names the method comes first.
    pub fn of(&self, path: &str) -> Option<&MethodConfig> {
        let (service, method) = path.strip_prefix('/')?.split_once('/')?;
        let entry = |method| {
            let named = |name: &Name| name.service == service && name.method == method;
            self.method_config.iter().find(|entry| entry.name.iter().any(named))
        };
        entry(method).or_else(|| entry(""))
    }
}

/// The attempts of one call.
pub struct Attempts<'a> {
    policy: Option<&'a RetryPolicy>,
    failed: u32,
    backoff: Duration,
}

impl<'a> Attempts<'a> {
    /// Without a policy there is one attempt.
    pub fn new(policy: Option<&'a RetryPolicy>) -> Self {
        let backoff = policy.map_or(Duration::ZERO, |policy| policy.initial_backoff.0);
        Attempts { policy, failed: 0, backoff }
    }

    /// How many have failed.
    pub fn failed(&self) -> u32 {
        self.failed
    }

    /// How long to wait before the next attempt, now that one has failed; None when there is to be none.
    pub fn pause_after(&mut self, status: &Status) -> Option<Duration> {
        self.failed += 1;
        let policy = self.policy?;
        if self.failed >= policy.max_attempts || !policy.retryable_status_codes.contains(&code_name(status.code())) {
            return None;
        }
        if let Some(pushback) = status.metadata().get("grpc-retry-pushback-ms") {
            self.backoff = policy.initial_backoff.0;
            // A negative number means: do not come back.
            return pushback.to_str().ok()?.parse().ok().map(Duration::from_millis);
        }
        let pause = self.backoff.mul_f64(0.8 + 0.4 * fastrand::f64());
        self.backoff = self.backoff.mul_f64(policy.backoff_multiplier).min(policy.max_backoff.0);
        Some(pause)
    }
}

/// `NOT_FOUND` of `Code::NotFound`: tonic has only the latter.
pub fn code_name(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}
