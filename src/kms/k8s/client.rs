//! Calls to the plugin: each on a connection of its own, which costs nothing
//! on a socket of this host, so that a plugin that was started again is found.

use std::fmt;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use prost::Message;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;
use tower::service_fn;
use uuid::Uuid;

use super::failure::{self, Method};
use super::messages::{StatusRequest, StatusResponse};
use super::socket::Socket;
use crate::kms::call;
use crate::kms::cluster::Failed;

/// The most that an answer may have: twice the limits of the API.
const ANSWER_MAX: usize = 70 * 1024;

/// How much later than ours the plugin's own time is over.
const GRACE: Duration = Duration::from_millis(100);

/// The most that its headers may have. Error messages are in there.
const HEADERS_MAX: u32 = 16 * 1024;

/// The plugin at one socket.
#[derive(Debug)]
pub(super) struct Plugin {
    pub(super) socket: Socket,
    /// How long it may take for an answer.
    pub(super) timeout: Duration,
}

impl fmt::Display for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the KMS plugin at {}", self.socket)
    }
}

/// Why there is no answer.
pub(super) enum Fault {
    /// The plugin refused.
    Refused(Status),
    /// It has been explained already.
    Told(Failed),
}

impl Plugin {
    /// Asks the plugin for something.
    pub(super) async fn ask<Q, A>(&self, method: Method, question: Q) -> Result<A, Fault>
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        let channel = self.connect().await.map_err(Fault::Told)?;
        let mut client = Grpc::new(channel).max_decoding_message_size(ANSWER_MAX);
        let path = match method {
            Method::Status => "/v2.KeyManagementService/Status",
            Method::Encrypt => "/v2.KeyManagementService/Encrypt",
            Method::Decrypt => "/v2.KeyManagementService/Decrypt",
        };
        let mut request = Request::new(question);
        // So that it does not go on when nobody waits for it any more. Who
        // waits here gives up a little before.
        request.set_timeout(self.timeout + GRACE);
        let asked = async {
            client
                .ready()
                .await
                .map_err(|error| Status::unavailable(error.to_string()))?;
            let path = path
                .parse()
                .map_err(|_| Status::internal("it is not a path"))?;
            client.unary(request, path, Checked::default()).await
        };
        let answer = asked.await.map_err(Fault::Refused)?.into_inner();
        answer.map_err(|Undecodable| {
            Fault::Told(failure::malformed("an answer that cannot be read", &self.socket).into())
        })
    }

    /// How the plugin is.
    pub(super) async fn status(&self) -> Result<StatusResponse, Failed> {
        let asked = self.ask(Method::Status, StatusRequest {}).await;
        asked.map_err(|fault| self.explain(fault, Method::Status))
    }

    /// A call that failed, in our terms.
    pub(super) fn explain(&self, fault: Fault, method: Method) -> Failed {
        match fault {
            Fault::Told(failed) => failed,
            Fault::Refused(status) => failure::error(&status, method, &self.socket).into(),
        }
    }

    async fn connect(&self) -> Result<Channel, Failed> {
        let stream = self.socket.connect().await?;
        // The channel asks for a connection once; were it to ask again, the
        // call has failed anyway.
        let stream = Mutex::new(Some(TokioIo::new(stream)));
        let connector = service_fn(move |_| {
            let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
            async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
        });
        let endpoint =
            Endpoint::from_static("http://localhost").http2_max_header_list_size(HEADERS_MAX);
        endpoint
            .connect_with_connector(connector)
            .await
            .map_err(|error| {
                let status = Status::unavailable(error.to_string());
                failure::error(&status, Method::Status, &self.socket).into()
            })
    }
}

/// An id for one request: that under which the caller keeps its record.
pub(super) fn uid() -> String {
    call::correlation().unwrap_or_else(Uuid::new_v4).to_string()
}

/// Protocol Buffers, with an answer that cannot be read told apart from one in
/// which the plugin says that it failed.
struct Checked<Q, A>(ProstCodec<Q, A>);

impl<Q, A> Default for Checked<Q, A>
where
    ProstCodec<Q, A>: Default,
{
    fn default() -> Self {
        Checked(ProstCodec::default())
    }
}

/// An answer that cannot be read.
struct Undecodable;

struct CheckedEncoder<E>(E);
struct CheckedDecoder<D>(D);

impl<Q, A> Codec for Checked<Q, A>
where
    Q: Message + Default + 'static,
    A: Message + Default + 'static,
{
    type Encode = Q;
    type Decode = Result<A, Undecodable>;
    type Encoder = CheckedEncoder<<ProstCodec<Q, A> as Codec>::Encoder>;
    type Decoder = CheckedDecoder<<ProstCodec<Q, A> as Codec>::Decoder>;

    fn encoder(&mut self) -> Self::Encoder {
        CheckedEncoder(self.0.encoder())
    }

    fn decoder(&mut self) -> Self::Decoder {
        CheckedDecoder(self.0.decoder())
    }
}

impl<E: Encoder> Encoder for CheckedEncoder<E> {
    type Item = E::Item;
    type Error = E::Error;

    fn encode(&mut self, item: E::Item, buffer: &mut EncodeBuf<'_>) -> Result<(), E::Error> {
        self.0.encode(item, buffer)
    }
}

impl<D: Decoder> Decoder for CheckedDecoder<D> {
    type Item = Result<D::Item, Undecodable>;
    type Error = D::Error;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, D::Error> {
        match self.0.decode(buffer) {
            Ok(item) => Ok(item.map(Ok)),
            Err(_) => Ok(Some(Err(Undecodable))),
        }
    }
}
