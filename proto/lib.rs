//! The gRPC contract: code generated from `proto/muster/v1/*.proto`, and its descriptor set.
#![allow(missing_docs, clippy::pedantic, clippy::all, reason = "generated code")]

/// Package `muster.v1`.
pub mod v1 {
    tonic::include_proto!("muster.v1");
}

/// The encoded `FileDescriptorSet` of every file, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/muster.bin"));
