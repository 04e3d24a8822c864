//! The running nginx, for all actions that write one of its files: test, replace, reload, wait, take back.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use muster_agent::{ActionError, Context};
use muster_kit::{
    bound::{blocking, until},
    files::{self, Before},
    params::{absolute, plain},
    process::{self, Server},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// How long one question to nginx may take.
pub(super) const ASK_MS: u64 = 2_000;
const TEST_MS: u64 = 30_000;
/// So much of an answer is read.
const ANSWER_BYTES: u64 = 4096;

/// Where the running nginx has its things.
pub(super) struct Nginx<'a> {
    pub(super) config: &'a Path,
    pub(super) pid_file: &'a Path,
    pub(super) binary: &'a Path,
    pub(super) prefix: Option<&'a PathBuf>,
    /// How long a reload may take until the new configuration answers, in milliseconds.
    pub(super) settle_ms: u64,
}

impl Nginx<'_> {
    /// Refuses paths that could break out of their place in the configuration.
    pub(super) fn validate(&self) -> Result<(), ActionError> {
        let paths = [("config", Some(self.config)), ("pid_file", Some(self.pid_file))];
        for (field, path) in paths.into_iter().chain([("prefix", self.prefix.map(PathBuf::as_path))]) {
            path.map_or(Ok(()), |path| plain_path(field, path))?;
        }
        absolute("binary", self.binary)
    }

    pub(super) fn server(&self) -> Server {
        Server { pid_file: self.pid_file.to_owned(), process: "nginx".into() }
    }

    /// Writes one file, tests the whole configuration and reloads; gives the workers that were there before. What nginx
    /// refuses is taken back before this ends.
    pub(super) async fn put(&self, ctx: &Context, path: &Path, text: String) -> Result<Vec<u32>, ActionError> {
        // Before the file is touched: without nginx it could not be put to work.
        self.server().pid()?;
        let path = path.to_owned();
        let before = blocking(move || {
            let before = Before::of(&path)?;
            before.keep()?;
            files::write(&path, text.as_bytes(), 0o644)?;
            Ok(before)
        })
        .await?;
        ctx.progress("testing the configuration", None);
        if let Err(e) = self.test(ctx, "the configuration, it was taken back").await {
            blocking(move || before.restore()).await?;
            return Err(e);
        }
        ctx.progress("reloading nginx", None);
        let former = self.server().children();
        self.server().reload()?;
        Ok(former)
    }

    /// Puts one file back and reloads; gives the workers that were there before, and the file's text. `None`: nginx does
    /// not run, and will read the file when it starts.
    pub(super) async fn take_back(
        &self,
        ctx: &Context,
        before: Before,
    ) -> Result<Option<(Vec<u32>, String)>, ActionError> {
        let there = blocking(move || {
            before.restore()?;
            before.content()
        })
        .await?;
        let server = self.server();
        let former = server.children();
        if server.pid().is_err() {
            return Ok(None);
        }
        self.test(ctx, "what was there before; undo first what was built on the change").await?;
        let text = String::from_utf8_lossy(&there.unwrap_or_default()).into_owned();
        Ok(server.reload_if_running()?.then_some((former, text)))
    }

    /// Whether nginx takes the configuration. `what` completes the sentence "nginx refuses …".
    ///
    /// # Errors
    /// [`ActionError::Permanent`] with its words when it does not.
    pub(super) async fn test(&self, ctx: &Context, what: &str) -> Result<(), ActionError> {
        let mut args = vec!["-t".into(), "-q".into(), "-c".into(), self.config.display().to_string()];
        if let Some(prefix) = self.prefix {
            args.extend(["-p".into(), prefix.display().to_string()]);
        }
        args.extend(["-e".into(), "stderr".into()]);
        let tested = process::run(ctx, TEST_MS, self.binary, &args).await?;
        if tested.good {
            return Ok(());
        }
        Err(ActionError::permanent(format!("nginx refuses {what}: {}", tested.text)))
    }

    /// Waits until none of the `former` workers takes connections, and what `ask` is answered holds `mark.1`; where that
    /// is `None`, until it holds no mark that begins with `mark.0`.
    pub(super) async fn settled<A>(
        &self,
        ctx: &Context,
        (any, mark): (&str, Option<&str>),
        former: &[u32],
        ask: impl Fn() -> A,
    ) -> Result<(), ActionError>
    where
        A: Future<Output = Result<String, String>>,
    {
        until(ctx, self.settle_ms, 50, "the reloaded nginx", || async {
            if !process::have_left(former) {
                return Err(process::KEPT_WORKERS.into());
            }
            let answer = match tokio::time::timeout(Duration::from_millis(ASK_MS), ask()).await {
                Ok(answer) => answer,
                Err(_) => Err(format!("no answer within {ASK_MS} ms")),
            };
            match (mark, answer) {
                (Some(mark), Ok(answer)) if answer.contains(mark) => Ok(()),
                (Some(_), Ok(_)) => Err("the former configuration still answers".into()),
                (Some(_), Err(why)) => Err(why),
                (None, Ok(answer)) if answer.contains(any) => Err("the former configuration still answers".into()),
                (None, Ok(_) | Err(_)) => Ok(()),
            }
        })
        .await
    }
}

/// What is different in a file, for people; `None` when nothing is.
pub(super) async fn file_differs(path: &Path, wanted: &str) -> Result<Option<String>, ActionError> {
    let asked = path.to_owned();
    Ok(match blocking(move || files::read(&asked)).await? {
        None => Some(format!("{} is not there yet", path.display())),
        Some(there) if there != wanted.as_bytes() => Some(diff(&String::from_utf8_lossy(&there), wanted)),
        Some(_) => None,
    })
}

/// Refuses a path that is relative, or could end its directive.
pub(super) fn plain_path(field: &str, path: &Path) -> Result<(), ActionError> {
    absolute(field, path)?;
    plain(field, &path.to_string_lossy(), "/._-+@")
}

/// The answer to `GET path`, headers included; at most 4 KiB.
pub(super) async fn get(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    host: &str,
    path: &str,
) -> std::io::Result<String> {
    let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The first line that is different, for people.
fn diff(there: &str, wanted: &str) -> String {
    let mut lines = there.lines();
    for (number, wanted) in wanted.lines().enumerate() {
        let there = lines.next().unwrap_or("(end of file)");
        if there != wanted {
            return format!("line {}:\n- {there}\n+ {wanted}", number + 1);
        }
    }
    "lines at the end go away".into()
}

/// The mark in a file that was written here: it begins with `any` and ends at a quote.
pub(super) fn mark_in(text: &str, any: &str) -> Option<String> {
    let start = text.find(any)?;
    let end = text[start..].find('"').map_or(text.len(), |len| start + len);
    Some(text[start..end].to_owned())
}

/// Where this host reaches what listens on `listen`.
pub(super) fn reachable(listen: &str) -> String {
    match listen.rsplit_once(':') {
        None => format!("127.0.0.1:{listen}"),
        Some(("*" | "0.0.0.0", port)) => format!("127.0.0.1:{port}"),
        Some(("[::]", port)) => format!("[::1]:{port}"),
        Some(_) => listen.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_all_addresses_is_asked_on_loopback() {
        assert_eq!(reachable("80"), "127.0.0.1:80");
        assert_eq!(reachable("*:81"), "127.0.0.1:81");
        assert_eq!(reachable("[::]:82"), "[::1]:82");
        assert_eq!(reachable("10.0.0.1:83"), "10.0.0.1:83");
    }

    #[test]
    fn the_first_different_line_is_shown() {
        assert_eq!(diff("a\nb\n", "a\nc\n"), "line 2:\n- b\n+ c");
        assert_eq!(diff("a\n", "a\nc\n"), "line 2:\n- (end of file)\n+ c");
        assert_eq!(diff("a\nb\n", "a\n"), "lines at the end go away");
    }
}
