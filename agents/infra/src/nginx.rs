//! `nginx.site`: one site of a running nginx. `nginx.upstream`: the servers behind a site.

mod server;
mod site;
mod template;
mod upstream;
mod weights;

pub use site::{Site, SiteOutput};
pub use template::SiteParams;
pub use upstream::{Answered, Upstream, UpstreamOutput};
pub use weights::{Member, State, UpstreamParams};
