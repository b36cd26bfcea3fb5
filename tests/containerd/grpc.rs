//! gRPC over a Unix socket: calls with one message each way, one after the other.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use h2::client::SendRequest;
use http::{HeaderMap, Request};
use nix::errno::Errno;
use percent_encoding::percent_decode;
use prost::Message;
use prost::bytes::Bytes;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

/// gRPC's names of its codes, from 0.
const CODES: &str = "OK Canceled Unknown InvalidArgument DeadlineExceeded NotFound AlreadyExists PermissionDenied \
    ResourceExhausted FailedPrecondition Aborted OutOfRange Unimplemented Internal Unavailable DataLoss Unauthenticated";

/// Why a call failed; displayed as Go's gRPC displays it.
#[derive(Debug)]
pub struct Status {
    code: String,
    message: String,
}

impl Status {
    fn new(code: &str, message: impl fmt::Display) -> Status {
        Status { code: code.to_owned(), message: message.to_string() }
    }

    /// What the end of an answer says; `None` where it says nothing.
    fn of(headers: &HeaderMap) -> Option<Result<(), Status>> {
        let text = |name| headers.get(name).map(|value| percent_decode(value.as_bytes()).decode_utf8_lossy());
        let code = text("grpc-status")?;
        let name = code.parse().ok().and_then(|number: usize| CODES.split_whitespace().nth(number));
        Some(match name {
            Some("OK") => Ok(()),
            name => Err(Status::new(name.unwrap_or(&code), text("grpc-message").unwrap_or_default())),
        })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rpc error: code = {} desc = {}", self.code, self.message)
    }
}

impl From<h2::Error> for Status {
    fn from(error: h2::Error) -> Status {
        Status::new("Unavailable", error)
    }
}

/// A connection to a server.
pub struct Client {
    runtime: Runtime,
    requests: SendRequest<Bytes>,
    timeout: Duration,
}

impl Client {
    /// Connects; each call may take the time given.
    pub fn connect(socket: &Path, timeout: Duration) -> Result<Client, Status> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(unavailable)?;
        let requests = runtime.block_on(async {
            let stream = UnixStream::connect(socket).await.map_err(|error| {
                let why = error.raw_os_error().map(|raw| Errno::from_raw(raw).desc().to_lowercase());
                let why = why.unwrap_or_else(|| error.to_string());
                let dialing = format!("transport: Error while dialing: dial unix {}: connect: {why}", socket.display());
                Status::new("Unavailable", format_args!("connection error: desc = {dialing:?}"))
            })?;
            let (requests, connection) = h2::client::handshake(stream).await?;
            tokio::spawn(connection);
            Ok::<_, Status>(requests)
        })?;
        Ok(Client { runtime, requests, timeout })
    }

    /// Calls a method, named as in the path of its HTTP request.
    pub fn call<A: Message + Default>(&self, method: &str, question: &impl Message) -> Result<A, Status> {
        let answer =
            async { tokio::time::timeout(self.timeout, exchange(self.requests.clone(), method, question)).await };
        let late = |_| Err(Status::new("DeadlineExceeded", "context deadline exceeded"));
        let answer = self.runtime.block_on(answer).unwrap_or_else(late)?;
        A::decode(answer.as_slice()).map_err(|error| Status::new("Internal", error))
    }
}

async fn exchange(requests: SendRequest<Bytes>, method: &str, question: &impl Message) -> Result<Vec<u8>, Status> {
    let request = Request::post(format!("http://localhost{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .map_err(unavailable)?;
    let (answer, mut body) = requests.ready().await?.send_request(request, false)?;
    body.send_data(framed(question).into(), true)?;

    let (head, mut body) = answer.await?.into_parts();
    let mut data = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        data.extend(chunk);
    }
    // Where there is no message, the status can stand in the head.
    let trailers = body.trailers().await?;
    let status = trailers.as_ref().and_then(Status::of).or_else(|| Status::of(&head.headers));
    status.unwrap_or_else(|| Err(unavailable(format!("an answer without a status: {}", head.status))))?;
    // Uncompressed (one octet), and the length (four).
    data.get(5..).map(<[u8]>::to_vec).ok_or_else(|| unavailable("an answer without a message"))
}

/// A message with its frame: not compressed, and its length.
fn framed(message: &impl Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&[0], length.to_be_bytes().as_slice(), &message].concat()
}

fn unavailable(why: impl fmt::Display) -> Status {
    Status::new("Unavailable", why)
}
