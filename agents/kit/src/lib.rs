//! What the actions of all our agents share: bounded waits, files that are replaced whole and put back, packages read
//! within limits, measurements with units, parameters with a schema, HTTP and TLS, secrets, the programs and servers they start
//! or reload.
//!
//! Files are written whole (temporary file, fsync, rename); what they replace is kept beside them in `.muster-undo/`, under
//! the digest of its content, so that `undo` can put it back byte for byte.

pub mod archive;
pub mod bound;
pub mod files;
pub mod http;
pub mod measure;
pub mod net;
pub mod params;
pub mod process;
pub mod secret;
pub mod user;
