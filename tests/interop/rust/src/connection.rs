//! A connection as an application would make it.

use std::error::Error;
use std::{env, fs};

use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use crate::calls::Calls;
use crate::service_config::ServiceConfig;
use crate::stubs::admin_service_client::AdminServiceClient;
use crate::stubs::memory_service_client::MemoryServiceClient;
use crate::stubs::session_service_client::SessionServiceClient;
use crate::stubs::user_service_client::UserServiceClient;

/// The four services on one channel. Their clients are cheap to clone: a clone uses the same connection.
pub struct Recalld {
    pub sessions: SessionServiceClient<Calls>,
    pub memory: MemoryServiceClient<Calls>,
    pub users: UserServiceClient<Calls>,
    pub admin: AdminServiceClient<Calls>,
}

/// What the environment describes; it connects with the first call.
pub fn connect() -> Result<Recalld, Box<dyn Error>> {
    let target = required("RECALLD_TARGET")?;
    let endpoint = match variable("RECALLD_CA_FILE") {
        Some(ca_file) => {
            let trusted = Certificate::from_pem(read(&ca_file)?);
            Endpoint::from_shared(format!("https://{target}"))?
                .tls_config(ClientTlsConfig::new().ca_certificate(trusted))?
        }
        None => Endpoint::from_shared(format!("http://{target}"))?,
    };
    let config: ServiceConfig = serde_json::from_str(&read(&required("RECALLD_SERVICE_CONFIG")?)?)?;
    let calls = Calls::new(endpoint.connect_lazy(), config, variable("RECALLD_API_KEY").as_deref())?;
    Ok(Recalld {
        sessions: SessionServiceClient::new(calls.clone()),
        memory: MemoryServiceClient::new(calls.clone()),
        users: UserServiceClient::new(calls.clone()),
        admin: AdminServiceClient::new(calls),
    })
}

fn read(file: &str) -> Result<String, String> {
    fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))
}

fn required(name: &str) -> Result<String, String> {
    variable(name).ok_or_else(|| format!("{name} is not set"))
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}
