//! What every call gets, whatever the client it is made with: the credential, a deadline, and retries.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue, InvalidHeaderValue};
use http::{Request, Response, request};
use http_body::Frame;
use http_body_util::{BodyExt, Full};
use prost::bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout_at};
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tower::{Service, ServiceExt};

use crate::service_config::{Attempts, ServiceConfig};

const LONGEST_CALL: Duration = Duration::from_secs(10);

/// A channel for the generated clients. `Request::set_timeout` makes a call's deadline shorter.
#[derive(Clone)]
pub struct Calls {
    channel: Channel,
    config: Arc<ServiceConfig>,
    credential: Option<HeaderValue>,
}

impl Calls {
    pub fn new(channel: Channel, config: ServiceConfig, api_key: Option<&str>) -> Result<Self, InvalidHeaderValue> {
        let credential = api_key.map(|key| format!("Bearer {key}").parse()).transpose()?;
        let config = Arc::new(config);
        Ok(Calls { channel, config, credential })
    }

    async fn carry_out(self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (mut head, body) = request.into_parts();
        let message = body.collect().await?.to_bytes(); // kept, to be sent again
        let config = self.config.of(head.uri.path());
        let configured = config.and_then(|config| config.timeout).map(|timeout| timeout.0);
        let timeouts = [Some(LONGEST_CALL), configured, timeout_of(&head.headers)];
        let deadline = Instant::now() + timeouts.into_iter().flatten().min().unwrap_or(LONGEST_CALL);
        let mut attempts = Attempts::new(config.and_then(|config| config.retry_policy.as_ref()));
        if let Some(credential) = self.credential {
            head.headers.insert(AUTHORIZATION, credential);
        }
        loop {
            if attempts.failed() > 0 {
                head.headers.insert("grpc-previous-rpc-attempts", attempts.failed().into());
            }
            let attempt = attempt(self.channel.clone(), head.clone(), message.clone(), deadline);
            let outcome = timeout_at(deadline, attempt).await.unwrap_or_else(|_| Err(expired()));
            // A status in the headers means that nothing else came. After the headers of an answer, it is too late.
            let pause = match &outcome {
                Ok(response) => Status::from_header_map(response.headers()).and_then(|it| attempts.pause_after(&it)),
                Err(status) => attempts.pause_after(status),
            };
            match pause {
                Some(pause) if Instant::now() + pause < deadline => sleep(pause).await,
                _ => return outcome.map(|response| response.map(|body| Timed::body(body, deadline))),
            }
        }
    }
}

async fn attempt(
    channel: Channel,
    mut head: request::Parts,
    message: Bytes,
    deadline: Instant,
) -> Result<Response<Body>, Status> {
    // Rounded up, for tonic watches this header too, and says CANCELLED when the time is over.
    let milliseconds = (deadline - Instant::now()).as_millis() + 1;
    head.headers.insert("grpc-timeout", format!("{milliseconds}m").parse().expect("digits and a letter"));
    let request = Request::from_parts(head, Body::new(Full::new(message)));
    channel.oneshot(request).await.map_err(|error| match Instant::now() < deadline {
        true => broken(Status::from_error(error.into())),
        false => expired(),
    })
}

impl Service<Request<Body>> for Calls {
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<Body>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(())) // each attempt waits for the channel
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().carry_out(request))
    }
}

/// The body of a response, until the deadline. Those of tonic end with the headers, which a stream outlives.
struct Timed {
    body: Body,
    deadline: Pin<Box<Sleep>>,
}

impl Timed {
    fn body(body: Body, deadline: Instant) -> Body {
        Body::new(Timed { body, deadline: Box::pin(sleep_until(deadline)) })
    }
}

impl http_body::Body for Timed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame.map(|frame| frame.map_err(broken)));
        }
        ready!(self.deadline.as_mut().poll(context));
        Poll::Ready(Some(Err(expired())))
    }
}

/// The status of an error below gRPC. That of a broken connection is UNKNOWN in tonic, UNAVAILABLE everywhere else.
fn broken(status: Status) -> Status {
    if status.code() != Code::Unknown {
        return status;
    }
    let mut unavailable = Status::unavailable("the connection is broken");
    unavailable.set_source(Arc::new(status));
    unavailable
}

fn expired() -> Status {
    Status::deadline_exceeded("the deadline has passed")
}

/// What `Request::set_timeout` has set.
fn timeout_of(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("grpc-timeout")?.to_str().ok()?;
    let (amount, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    let amount: u64 = amount.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}
