//! `pgbouncer.configure` and `pgbouncer.probe`: connection pooling.

mod configure;
mod console;
mod ini;
mod probe;
mod settings;

pub use configure::{Configure, ConfigureOutput};
pub use probe::{Probe, ProbeExpect, ProbeOutput, ProbeParams};
pub use settings::{AuthType, ConfigureParams, Database, PoolMode};
