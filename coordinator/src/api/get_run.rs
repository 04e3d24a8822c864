//! `GetRun`, the most asked method, from encoded bytes.
//!
//! A run with a given sequence number never changes, so its encoded answer is kept under both and sent again without
//! another conversion. The answer is the same, byte for byte, as that of the generated service.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::{BufMut as _, Bytes};
use muster_engine::{ids::RunId, run::Run};
use muster_proto::v1 as pb;
use prost::Message as _;
use tonic::{
    Request, Response, Status,
    body::Body,
    codec::{Codec, EncodeBuf, Encoder},
    codegen::BoxFuture,
    server::{Grpc, UnaryService},
};
use tonic_prost::{ProstCodec, ProstDecoder};

use crate::{
    api::{
        convert::{names, run},
        error::from_control,
    },
    control::Control,
};

/// Kept at most; then it begins anew.
const CACHE_BYTES: usize = 4 * 1024 * 1024;
/// A larger answer is not kept.
const ENTRY_BYTES: usize = 128 * 1024;
/// What an entry takes besides its bytes, about.
const ENTRY_OVERHEAD: usize = 160;

/// The method.
#[derive(Clone)]
pub(super) struct GetRun {
    control: Arc<dyn Control>,
    cache: Arc<Mutex<Cache>>,
}

#[derive(Default)]
struct Cache {
    runs: HashMap<RunId, (u64, Bytes)>,
    size: usize,
}

impl GetRun {
    pub(super) fn new(control: Arc<dyn Control>) -> Self {
        Self { control, cache: Arc::default() }
    }

    /// Answer one HTTP request.
    pub(super) async fn answer(self, request: http::Request<Body>, message_bytes: usize) -> http::Response<Body> {
        Grpc::new(RawCodec).max_decoding_message_size(message_bytes).unary(self, request).await
    }

    fn encoded(&self, run: &Run) -> Bytes {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((seq, bytes)) = cache.runs.get(&run.id)
            && *seq == run.seq
        {
            return bytes.clone();
        }
        drop(cache);
        let bytes = Bytes::from(run::run(run).encode_to_vec());
        if bytes.len() <= ENTRY_BYTES {
            cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            cache.keep(&run.id, run.seq, bytes.clone());
        }
        bytes
    }
}

impl Cache {
    fn keep(&mut self, id: &RunId, seq: u64, bytes: Bytes) {
        if self.size > CACHE_BYTES {
            self.runs.clear();
            self.size = 0;
        }
        self.size += bytes.len() + ENTRY_OVERHEAD;
        if let Some((_, old)) = self.runs.insert(id.clone(), (seq, bytes)) {
            self.size -= old.len() + ENTRY_OVERHEAD;
        }
    }
}

impl UnaryService<pb::GetRunRequest> for GetRun {
    type Response = Bytes;
    type Future = BoxFuture<Response<Bytes>, Status>;

    fn call(&mut self, request: Request<pb::GetRunRequest>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let (namespace, id) = names::run("name", &request.get_ref().name)?;
            let run = this.control.run(&namespace, &id).await.map_err(from_control)?;
            let answer = match this.control.quarantine(&id) {
                None => this.encoded(&run),
                Some(why) => Bytes::from(run::quarantined(&run, &why).encode_to_vec()),
            };
            Ok(Response::new(answer))
        })
    }
}

/// Decodes as usual, and sends bytes that are a message already.
struct RawCodec;

struct RawEncoder;

impl Encoder for RawEncoder {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.reserve(item.len());
        buf.put(item);
        Ok(())
    }
}

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = pb::GetRunRequest;
    type Encoder = RawEncoder;
    type Decoder = ProstDecoder<pb::GetRunRequest>;

    fn encoder(&mut self) -> RawEncoder {
        RawEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<pb::Run, pb::GetRunRequest>::default().decoder()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_bounded_and_keeps_the_last_of_a_run() {
        let mut cache = Cache::default();
        let bytes = Bytes::from(vec![0; ENTRY_BYTES]);
        for n in 0..1_000 {
            cache.keep(&RunId::from(n.to_string()), 1, bytes.clone());
            let kept: usize = cache.runs.values().map(|(_, b)| b.len() + ENTRY_OVERHEAD).sum();
            assert_eq!(kept, cache.size);
            assert!(kept <= CACHE_BYTES + ENTRY_BYTES + ENTRY_OVERHEAD, "{kept} bytes are kept");
        }
        let id = RunId::from("one");
        for seq in 1..100 {
            cache.keep(&id, seq, bytes.slice(..10));
        }
        assert_eq!(cache.runs[&id].0, 99);
    }
}
