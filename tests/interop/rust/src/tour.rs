//! One walk through the API; each step says what it saw. README.md, "The tour", has every value used here.

use std::collections::HashSet;
use std::error::Error;

use prost_types::{Duration, FieldMask, Timestamp};
use serde_json::{Value, json};
use tonic::{Response, Status};

use crate::connection::Recalld;
use crate::shown::{self, ids, seqs};
use crate::structs::structure;
use crate::stubs::search_memory_request::Scope;
use crate::stubs::*;

const SESSION: &str = "tour-Zürich-東京";
const USER: &str = "user-łódź";
const REQUEST_ID: &str = "5f0c6a52-8d1e-4c55-9f57-0d5a3a1f6b01";
const MESSAGE_ID: &str = "5f0c6a52-8d1e-4c55-9f57-0d5a3a1f6b02";

type Seen = Result<Value, Box<dyn Error>>;

/// Every step in its order, by name.
pub async fn tour(recalld: &mut Recalld) -> Seen {
    Ok(merged([
        write_and_read(recalld).await?,
        user_and_metadata(recalld).await?,
        search(recalld).await?,
        list(recalld).await?,
        stream(recalld).await?,
        refusals(recalld).await?,
        delete_and_revive(recalld).await?,
        purge(recalld).await?,
    ]))
}

async fn write_and_read(recalld: &mut Recalld) -> Seen {
    let memory = &mut recalld.memory;
    let request = AddMemoryRequest {
        session_id: SESSION.into(),
        messages: messages(),
        metadata: Some(structure(metadata())),
        request_id: REQUEST_ID.into(),
        ..Default::default()
    };
    let added = memory.add_memory(request.clone()).await?.into_inner();
    let repeated = memory.add_memory(request).await?.into_inner();
    let read = GetMemoryRequest { session_id: SESSION.into(), ..Default::default() };
    let whole = memory.get_memory(read.clone()).await?.into_inner();
    let newest = memory.get_memory(GetMemoryRequest { last_n: 2, ..read }).await?.into_inner();
    let mut reread = Vec::new();
    for AddedMessage { message_id, .. } in added.messages.clone() {
        let request = GetMessageRequest { session_id: SESSION.into(), message_id };
        reread.extend(memory.get_message(request).await?.into_inner().message);
    }
    let times: Vec<_> = added.messages.iter().map(|message| instant(message.create_time)).collect();
    let message_ids: HashSet<_> = added.messages.iter().map(|message| &message.message_id).collect();
    let details = json!({
        "keeps_message_id": added.messages[0].message_id == MESSAGE_ID,
        "distinct_message_ids": message_ids.len(),
        "whole_microseconds": times.iter().all(|time| time.is_some_and(|(_, nanos)| nanos % 1_000 == 0)),
        "create_times_in_order": times.is_sorted(),
    });
    Ok(json!({
        "add": merged([shown::added(&added), details]),
        "repeat": merged([shown::added(&repeated), json!({ "same_answer": repeated == added })]),
        "get_memory": shown::memory(&whole),
        "newest": { "seqs": seqs(newest.messages.iter().map(|message| message.seq)) },
        "get_message": {
            "same_as_get_memory": reread == whole.messages,
            "same_create_times": reread.iter().map(|message| instant(message.create_time)).eq(times),
            "update_time_is_create_time": reread.iter().all(|message| message.update_time == message.create_time),
        },
    }))
}

async fn user_and_metadata(recalld: &mut Recalld) -> Seen {
    let request = CreateUserRequest {
        user_id: USER.into(),
        email: "ada@example.com".into(),
        first_name: "Ada".into(),
        last_name: "Łódzka".into(),
        metadata: Some(structure(json!({ "plan": "pro" }))),
    };
    let created = recalld.users.create_user(request).await?.into_inner().user.unwrap_or_default();
    let update = UpdateSessionRequest { session_id: SESSION.into(), ..Default::default() };
    let attach = UpdateSessionRequest { user_id: USER.into(), ..update.clone() };
    let attached = updated(recalld, attach).await?;
    let merge = UpdateSessionRequest { metadata: Some(structure(patch())), ..update.clone() };
    let merged = updated(recalld, merge).await?;
    let late = UpdateSessionRequest {
        metadata: Some(structure(json!({ "late": true }))),
        etag: attached.etag.clone(),
        ..update
    };
    Ok(json!({
        "create_user": shown::user(&created),
        "attach": shown::session(&attached),
        "merge": { "session": shown::session(&merged), "etag_changed": merged.etag != attached.etag },
        "etag_mismatch": refused(recalld.sessions.update_session(late).await)?,
    }))
}

async fn search(recalld: &mut Recalld) -> Seen {
    let umbrella = SearchMemoryRequest { query: "umbrella".into(), ..Default::default() };
    let of_user = SearchMemoryRequest { scope: Some(Scope::UserId(USER.into())), ..umbrella.clone() };
    let of_role = SearchMemoryRequest {
        scope: Some(Scope::SessionId(SESSION.into())),
        roles: vec!["user".into()],
        ..umbrella.clone()
    };
    let everywhere = found(recalld, umbrella).await?;
    let seen = json!({
        "everywhere": messages_of(&everywhere).map(shown::message).collect::<Value>(),
        "scores_positive": everywhere.iter().all(|result| result.score > 0.0),
        "of_user": seqs_of(&found(recalld, of_user.clone()).await?),
        "of_role": seqs_of(&found(recalld, of_role).await?),
    });
    let detach = UpdateSessionRequest {
        session_id: SESSION.into(),
        update_mask: Some(FieldMask { paths: vec!["user_id".into()] }),
        ..Default::default()
    };
    let detached = updated(recalld, detach).await?;
    let of_user_afterwards = seqs_of(&found(recalld, of_user).await?);
    Ok(json!({
        "search": seen,
        "detach": { "session": shown::session(&detached), "of_user": of_user_afterwards },
    }))
}

async fn list(recalld: &mut Recalld) -> Seen {
    let mut create_times = Vec::new();
    for number in 1..=5 {
        let request = CreateSessionRequest {
            session_id: format!("page-{number}"),
            metadata: Some(structure(json!({ "kind": "page", "number": number }))),
            ..Default::default()
        };
        let session = recalld.sessions.create_session(request).await?.into_inner().session;
        create_times.extend(session.and_then(|session| session.create_time));
    }
    let third = create_times[2];
    let mut later = third;
    later.nanos += 1_000;
    later.normalize();
    let from = |time| SessionFilter { create_time_from: Some(time), ..pages() };
    let to = |time| SessionFilter { create_time_to: Some(time), ..pages() };
    Ok(json!({
        "list_sessions": { "pages": listed(recalld, pages(), 2).await? },
        "create_time_filter": {
            "from_third": listed(recalld, from(third), 0).await?.concat(),
            "from_a_microsecond_later": listed(recalld, from(later), 0).await?.concat(),
            "to_third": listed(recalld, to(third), 0).await?.concat(),
            "to_a_microsecond_later": listed(recalld, to(later), 0).await?.concat(),
        },
    }))
}

async fn stream(recalld: &mut Recalld) -> Seen {
    let sessions = &mut recalld.sessions;
    let request = StreamSessionsRequest { chunk_size: 2, filter: Some(pages()), ..Default::default() };
    let whole = chunks(sessions.stream_sessions(request.clone()).await?).await?;
    let mut broken = sessions.stream_sessions(request.clone()).await?.into_inner();
    let first = broken.message().await?.ok_or("a stream without a chunk")?;
    drop(broken); // cancels the call
    let resume = StreamSessionsRequest { resume_token: first.resume_token, ..request };
    let rest = chunks(sessions.stream_sessions(resume).await?).await?;
    let ids_of = |chunk: &StreamSessionsResponse| json!(ids(&chunk.sessions));
    Ok(json!({
        "stream_sessions": { "chunks": whole.iter().map(ids_of).collect::<Value>() },
        "resume_stream": { "before": ids(&first.sessions), "after": rest.iter().map(ids_of).collect::<Value>() },
    }))
}

async fn refusals(recalld: &mut Recalld) -> Seen {
    let memory = &mut recalld.memory;
    let append = |expected_last_seq| AddMemoryRequest {
        messages: vec![message("user", "Only if nobody else wrote.")],
        expected_last_seq: Some(expected_last_seq),
        ..to_session()
    };
    let nameless = AddMemoryRequest { messages: vec![message("user", ""), message("", "Who?")], ..to_session() };
    Ok(json!({
        "seq_mismatch": refused(memory.add_memory(append(3)).await)?,
        "seq_mismatch_at_zero": refused(memory.add_memory(append(0)).await)?,
        "seq_match": shown::added(memory.add_memory(append(4)).await?.get_ref()),
        "invalid_field": refused(memory.add_memory(nameless).await)?,
    }))
}

async fn delete_and_revive(recalld: &mut Recalld) -> Seen {
    let Recalld { sessions, memory, .. } = recalld;
    let delete = DeleteSessionRequest { session_id: SESSION.into(), ..Default::default() };
    let get = GetSessionRequest { session_id: SESSION.into(), ..Default::default() };
    let read = GetMemoryRequest { session_id: SESSION.into(), ..Default::default() };
    let write = AddMemoryRequest { messages: vec![message("user", "I am back.")], ..to_session() };
    Ok(json!({
        "delete_session": sessions.delete_session(delete).await?.get_ref().session.as_ref().map(shown::session),
        "not_found": refused(sessions.get_session(get).await)?,
        "memory_of_deleted": shown::memory(memory.get_memory(read.clone()).await?.get_ref()),
        "revive": shown::added(memory.add_memory(write).await?.get_ref()),
        "memory_of_revived": shown::memory(memory.get_memory(read).await?.get_ref()),
    }))
}

/// Removes the last of the pages, and the messages that the revived session had before.
async fn purge(recalld: &mut Recalld) -> Seen {
    let Recalld { sessions, admin, .. } = recalld;
    let delete = DeleteSessionRequest { session_id: "page-5".into(), ..Default::default() };
    sessions.delete_session(delete).await?;
    let get = GetSessionRequest { session_id: "page-5".into(), show_deleted: true };
    let deleted = sessions.get_session(get.clone()).await?.into_inner().session;
    let request = PurgeRequest { older_than: Some(Duration::default()), batch_size: 2, ..Default::default() };
    let progress = chunks(admin.purge(request).await?).await?;
    let (end, before) = progress.split_last().ok_or("a purge without a response")?;
    Ok(json!({
        "show_deleted": deleted.as_ref().map(shown::session),
        "purge": {
            "sessions": end.sessions.to_string(),
            "messages": end.messages.to_string(),
            "users": end.users.to_string(),
            "several_responses": !before.is_empty(),
            "never_goes_back": progress.is_sorted_by_key(|seen| seen.sessions + seen.messages + seen.users),
            "only_the_last_is_done": end.done && !before.iter().any(|seen| seen.done),
        },
        "purged": refused(sessions.get_session(get).await)?,
    }))
}

fn metadata() -> Value {
    json!({
        "string": "Größe",
        "empty": "",
        "integer": 42,
        "negative": -7,
        "fraction": 0.1,
        "largest": 9_007_199_254_740_991_i64,
        "yes": true,
        "no": false,
        "nothing": null,
        "nested": { "inner": { "kept": "yes", "gone": "soon" }, "empty": {} },
        "list": [1, "two", null, false, [3.5], { "four": 4 }, []],
    })
}

fn patch() -> Value {
    json!({
        "integer": null,
        "nested": { "inner": { "gone": null, "added": 1.5 } },
        "list": ["replaced"],
        "new": { "ключ": "значение" },
    })
}

fn messages() -> Vec<Message> {
    let first = "Grüße aus Zürich, 東京, 🗼👩\u{200d}👩\u{200d}👧, e\u{301}, שלום, مرحبا";
    vec![
        Message {
            message_id: MESSAGE_ID.into(),
            metadata: Some(structure(json!({ "languages": ["de", "ja", "he", "ar"] }))),
            token_count: 42,
            ..message("user", first)
        },
        Message {
            metadata: Some(structure(json!({ "model": { "name": "tiny", "temperature": 0.25 } }))),
            ..message("assistant", "Take an umbrella.")
        },
        message("user", ""),
        message("наблюдатель", "one\ntwo\t\"three\" \\ four"),
    ]
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into(), ..Default::default() }
}

fn to_session() -> AddMemoryRequest {
    AddMemoryRequest { session_id: SESSION.into(), ..Default::default() }
}

fn pages() -> SessionFilter {
    SessionFilter { metadata: Some(structure(json!({ "kind": "page" }))), ..Default::default() }
}

async fn updated(recalld: &mut Recalld, request: UpdateSessionRequest) -> Result<Session, Status> {
    Ok(recalld.sessions.update_session(request).await?.into_inner().session.unwrap_or_default())
}

async fn found(recalld: &mut Recalld, request: SearchMemoryRequest) -> Result<Vec<SearchResult>, Status> {
    Ok(recalld.memory.search_memory(request).await?.into_inner().results)
}

fn seqs_of(results: &[SearchResult]) -> Vec<String> {
    seqs(messages_of(results).map(|message| message.seq))
}

fn messages_of(results: &[SearchResult]) -> impl Iterator<Item = &Message> {
    results.iter().filter_map(|result| result.message.as_ref())
}

/// The session_ids of each page, to the last.
async fn listed(recalld: &mut Recalld, filter: SessionFilter, page_size: i32) -> Result<Vec<Vec<String>>, Status> {
    let mut request = ListSessionsRequest { page_size, filter: Some(filter), ..Default::default() };
    let mut pages = Vec::new();
    loop {
        let page = recalld.sessions.list_sessions(request.clone()).await?.into_inner();
        pages.push(page.sessions.into_iter().map(|session| session.session_id).collect());
        if page.next_page_token.is_empty() {
            return Ok(pages);
        }
        request.page_token = page.next_page_token;
    }
}

/// All the messages of a streaming call.
async fn chunks<T>(response: Response<tonic::Streaming<T>>) -> Result<Vec<T>, Status> {
    let mut stream = response.into_inner();
    let mut chunks = Vec::new();
    while let Some(chunk) = stream.message().await? {
        chunks.push(chunk);
    }
    Ok(chunks)
}

/// What a call is refused with.
fn refused<T>(outcome: Result<T, Status>) -> Seen {
    match outcome {
        Ok(_) => Err("a call succeeded that should have been refused".into()),
        Err(status) => Ok(shown::error(&status)),
    }
}

/// A time that compares.
fn instant(time: Option<Timestamp>) -> Option<(i64, i32)> {
    time.map(|time| (time.seconds, time.nanos))
}

/// The members of all the objects in one.
fn merged<const N: usize>(objects: [Value; N]) -> Value {
    objects.iter().filter_map(Value::as_object).flatten().map(|(name, value)| (name.clone(), value.clone())).collect()
}
