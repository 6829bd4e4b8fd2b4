//! What the tour saw, as JSON: the shapes that README.md defines.

use serde_json::{Value, json};
use tonic::Status;
use tonic_types::StatusExt;

use crate::service_config::code_name;
use crate::structs::object;
use crate::stubs::{AddMemoryResponse, GetMemoryResponse, Message, Session, User};

pub fn session(seen: &Session) -> Value {
    json!({
        "session_id": seen.session_id,
        "user_id": seen.user_id,
        "metadata": seen.metadata.as_ref().map(object),
        "message_count": seen.message_count.to_string(),
        "last_seq": seen.last_seq.to_string(),
        "has_delete_time": seen.delete_time.is_some(),
        "has_purge_time": seen.purge_time.is_some(),
    })
}

pub fn message(seen: &Message) -> Value {
    json!({
        "session_id": seen.session_id,
        "seq": seen.seq.to_string(),
        "role": seen.role,
        "content": seen.content,
        "metadata": seen.metadata.as_ref().map(object),
        "token_count": seen.token_count,
    })
}

pub fn user(seen: &User) -> Value {
    json!({
        "user_id": seen.user_id,
        "email": seen.email,
        "first_name": seen.first_name,
        "last_name": seen.last_name,
        "metadata": seen.metadata.as_ref().map(object),
        "has_delete_time": seen.delete_time.is_some(),
    })
}

pub fn added(seen: &AddMemoryResponse) -> Value {
    json!({
        "session_created": seen.session_created,
        "session_undeleted": seen.session_undeleted,
        "seqs": seqs(seen.messages.iter().map(|message| message.seq)),
    })
}

pub fn memory(seen: &GetMemoryResponse) -> Value {
    json!({
        "session": seen.session.as_ref().map(session),
        "messages": seen.messages.iter().map(message).collect::<Value>(),
    })
}

pub fn seqs(seen: impl Iterator<Item = i64>) -> Vec<String> {
    seen.map(|seq| seq.to_string()).collect()
}

pub fn ids(seen: &[Session]) -> Vec<&str> {
    seen.iter().map(|session| session.session_id.as_str()).collect()
}

pub fn error(status: &Status) -> Value {
    let details = status.get_error_details();
    let info = details.error_info();
    let violations = details.bad_request().map_or(&[][..], |bad_request| &bad_request.field_violations);
    json!({
        "code": code_name(status.code()),
        "reason": info.map(|info| &info.reason),
        "domain": info.map(|info| &info.domain),
        "metadata": info.map(|info| &info.metadata),
        "fields": violations.iter().map(|violation| &violation.field).collect::<Vec<_>>(),
        "resource": details.resource_info().map(|resource| json!({
            "type": resource.resource_type,
            "name": resource.resource_name,
        })),
    })
}
