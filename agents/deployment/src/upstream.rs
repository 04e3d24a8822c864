//! Which side an nginx upstream file names, and the same file with the other one: nothing else in it is touched.

use std::{fs, ops::Range, path::PathBuf};

use muster_agent::{ActionError, Context};
use muster_kit::{
    bound::blocking,
    files,
    params::{absolute, plain},
    process,
    process::Server,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::service::{Side, Sides};

/// The nginx in front of both sides.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nginx {
    /// Absolute path of the file with the service's upstream, which holds one `server ADDRESS`, the one of a side.
    pub upstream_file: PathBuf,
    /// Absolute path of the main configuration.
    pub config: PathBuf,
    /// Absolute path of the running nginx' pid file.
    pub pid_file: PathBuf,
    /// Absolute path of the program.
    #[serde(default = "nginx")]
    pub binary: PathBuf,
    /// Its prefix (`-p`); the built-in one when absent.
    #[serde(default)]
    pub prefix: Option<PathBuf>,
    /// How long a reload may take until the new side answers, in milliseconds.
    #[serde(default = "ten_seconds")]
    #[schemars(range(min = 1, max = 120_000))]
    pub settle_ms: u64,
}

fn nginx() -> PathBuf {
    "/usr/sbin/nginx".into()
}

fn ten_seconds() -> u64 {
    10_000
}

const TEST_MS: u64 = 30_000;

impl Nginx {
    pub(crate) fn validate(&self) -> Result<(), ActionError> {
        for (field, path) in
            [("upstream_file", &self.upstream_file), ("config", &self.config), ("pid_file", &self.pid_file)]
        {
            absolute(field, path)?;
            plain(field, &path.to_string_lossy(), "/._-+@")?;
        }
        if self.settle_ms == 0 || self.settle_ms > 120_000 {
            return Err(ActionError::permanent("settle_ms: it is not within 1 to 120000"));
        }
        self.prefix.iter().try_for_each(|prefix| absolute("prefix", prefix))?;
        absolute("binary", &self.binary)
    }

    pub(crate) fn server(&self) -> Server {
        Server { pid_file: self.pid_file.clone(), process: "nginx".into() }
    }

    /// The side that the file names.
    ///
    /// # Errors
    /// [`ActionError::NeedsPerson`] when it names none of them, or more than one.
    pub(crate) async fn active(&self, sides: &Sides) -> Result<Side, ActionError> {
        let text = self.text().await?;
        self.named(&text, sides).map(|(side, _)| side)
    }

    /// Makes the file name `to`; what it held before, or `None` when it named it already.
    pub(crate) async fn name(&self, sides: &Sides, to: Side) -> Result<Option<String>, ActionError> {
        let text = self.text().await?;
        let (active, place) = self.named(&text, sides)?;
        if active == to {
            return Ok(None);
        }
        self.write(format!("{}{}{}", &text[..place.start], sides.address(to), &text[place.end..])).await?;
        Ok(Some(text))
    }

    /// Makes the file hold this text.
    pub(crate) async fn write(&self, text: String) -> Result<(), ActionError> {
        let path = self.upstream_file.clone();
        blocking(move || files::write(&path, text.as_bytes(), files::mode(&path)?)).await
    }

    /// Whether nginx takes the configuration; what it says where it does not.
    pub(crate) async fn test(&self, ctx: &Context) -> Result<Result<(), String>, ActionError> {
        let mut args = vec!["-t".into(), "-q".into(), "-c".into(), self.config.display().to_string()];
        if let Some(prefix) = &self.prefix {
            args.extend(["-p".into(), prefix.display().to_string()]);
        }
        args.extend(["-e".into(), "stderr".into()]);
        let tested = process::run(ctx, TEST_MS, &self.binary, &args).await?;
        Ok(if tested.good { Ok(()) } else { Err(tested.text) })
    }

    async fn text(&self) -> Result<String, ActionError> {
        let path = self.upstream_file.clone();
        let content = blocking(move || files::read(&path)).await?;
        let name = self.upstream_file.display();
        let content = content.ok_or_else(|| {
            ActionError::permanent(format!(
                "{name} is not there; write an upstream with one server into it, and include it"
            ))
        })?;
        String::from_utf8(content).map_err(|_| ActionError::needs_person(format!("{name} is not text; look at it")))
    }

    fn named(&self, text: &str, sides: &Sides) -> Result<(Side, Range<usize>), ActionError> {
        let servers = servers(text);
        let named = match servers.as_slice() {
            [place] => Side::BOTH.into_iter().find(|side| sides.address(*side) == &text[place.clone()]),
            _ => None,
        };
        if let (Some(side), Some(place)) = (named, servers.first()) {
            return Ok((side, place.clone()));
        }
        let found: Vec<&str> = servers.iter().map(|place| &text[place.clone()]).collect();
        Err(ActionError::needs_person(format!(
            "{} names the servers {found:?}; it has to name one, {} or {}: somebody else changed it, put it right",
            self.upstream_file.display(),
            sides.blue,
            sides.green
        )))
    }

    /// Where an unfinished switch is written down: beside the file, under a name that no `include *` takes.
    pub(crate) fn pending_file(&self) -> PathBuf {
        let name = self.upstream_file.file_name().unwrap_or_default().to_string_lossy();
        self.upstream_file.with_file_name(format!(".{name}.muster-switch"))
    }
}

/// A switch that has begun and was not seen to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pending {
    /// What was wanted.
    pub(crate) what: String,
    /// The side that took the requests before.
    pub(crate) from: Side,
    /// The other side was started for it.
    pub(crate) starts: bool,
}

impl Pending {
    pub(crate) async fn read(nginx: &Nginx) -> Result<Option<Self>, ActionError> {
        let path = nginx.pending_file();
        // What can't be read says nothing; the upstream file does.
        Ok(blocking(move || files::read(&path)).await?.and_then(|text| serde_json::from_slice(&text).ok()))
    }

    pub(crate) async fn write(self, nginx: &Nginx) -> Result<(), ActionError> {
        let path = nginx.pending_file();
        blocking(move || files::write(&path, muster_kit::params::output(&self).to_string().as_bytes(), 0o644)).await
    }

    pub(crate) async fn forget(nginx: &Nginx) -> Result<(), ActionError> {
        let path = nginx.pending_file();
        blocking(move || match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(files::failed("remove", &path, &e)),
            _ => Ok(()),
        })
        .await
    }
}

/// Where in the text each `server ADDRESS` has its address.
fn servers(text: &str) -> Vec<Range<usize>> {
    let (mut found, mut words) = (Vec::new(), Vec::<Range<usize>>::new());
    let (mut start, mut comment) = (None, false);
    for (at, c) in text.char_indices().chain([(text.len(), ';')]) {
        let part = !comment && !c.is_whitespace() && !"{};#".contains(c);
        match (start, part) {
            (None, true) => start = Some(at),
            (Some(begin), false) => {
                words.push(begin..at);
                start = None;
            }
            _ => {}
        }
        comment = c == '#' || (comment && c != '\n');
        if !comment && "{};".contains(c) {
            if let [first, address, ..] = words.as_slice()
                && &text[first.clone()] == "server"
            {
                found.push(address.clone());
            }
            words.clear();
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_found_wherever_they_stand() {
        let found = |text: &str| servers(text).into_iter().map(|place| text[place].to_owned()).collect::<Vec<_>>();
        assert_eq!(found("upstream app {\n  server 10.0.0.1:80;\n}\n"), ["10.0.0.1:80"]);
        assert_eq!(found("upstream app{server\n10.0.0.1:80 max_fails=0;keepalive 4;}"), ["10.0.0.1:80"]);
        assert_eq!(
            found("# server 10.0.0.9:80;\nupstream a { server a:1; # server b:1;\n server c:1; }"),
            ["a:1", "c:1"]
        );
        assert_eq!(found("server { listen 80; server_name x; }"), [""; 0]);
        assert_eq!(found(""), [""; 0]);
    }
}
