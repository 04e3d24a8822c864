//! `nginx.site`: one site of a running nginx.

mod site;
mod template;

pub use site::{Site, SiteOutput};
pub use template::SiteParams;
