//! Many AddMemory calls, each repeated under its request_id until it is known to have succeeded.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::calls::Calls;
use crate::stubs::memory_service_client::MemoryServiceClient;
use crate::stubs::{AddMemoryRequest, Message};

const CONCURRENCY: usize = 16;
const SESSIONS: usize = 10;
const GIVE_UP: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Makes the calls and gives how many the server acknowledged; an error is one that no repetition mends.
pub async fn load(memory: &MemoryServiceClient<Calls>, calls: usize) -> Result<usize, Status> {
    stream::iter(0..calls)
        .map(|number| add(memory.clone(), request(number)))
        .buffer_unordered(CONCURRENCY)
        .try_fold(0, async |count, acknowledged| Ok(count + usize::from(acknowledged)))
        .await
}

fn request(number: usize) -> AddMemoryRequest {
    let message = |role: &str, content| Message { role: role.into(), content, ..Default::default() };
    AddMemoryRequest {
        session_id: format!("load-{}", number % SESSIONS),
        messages: vec![message("user", format!("question {number}")), message("assistant", format!("answer {number}"))],
        request_id: Uuid::new_v4().to_string(),
        ..Default::default()
    }
}

/// Whether the server acknowledged the request in time.
async fn add(mut memory: MemoryServiceClient<Calls>, request: AddMemoryRequest) -> Result<bool, Status> {
    let give_up = Instant::now() + GIVE_UP;
    let mut pause = FIRST_PAUSE;
    loop {
        match memory.add_memory(request.clone()).await {
            Ok(_) => return Ok(true),
            Err(status) if !worth_repeating(status.code()) => return Err(status),
            Err(_) if Instant::now() + pause > give_up => return Ok(false),
            Err(_) => {}
        }
        sleep(pause.mul_f64(fastrand::f64())).await; // spread out, so that refused callers do not come back all at once
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

/// The outcome is unknown, or the server asks to come again.
fn worth_repeating(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::ResourceExhausted | Code::Aborted | Code::DeadlineExceeded)
}
