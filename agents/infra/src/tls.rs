//! Certificates: making them, putting them in place, and looking at what a server shows.

mod certificate;
mod facts;
mod inspect;
mod issue;

pub use certificate::{Certificate, CertificateOutput, CertificateParams};
pub use inspect::{Inspect, InspectOutput, InspectParams};
