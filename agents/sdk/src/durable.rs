//! Small files that survive a crash.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

/// Put `bytes` at `path`: after a crash it holds either what was there before or all of `bytes`. On disk at return.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("a file needs a folder"))?;
    let draft = path.with_extension("draft");
    let mut file = File::create(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::{env, process::Command};

    use super::*;

    /// Where the test writes when it runs itself under `strace`.
    const TRACED: &str = "MUSTER_TEST_WRITES_TO";

    #[test]
    fn bytes_are_on_disk_before_they_have_their_name_and_the_name_at_return() {
        if let Some(path) = env::var_os(TRACED) {
            return write(Path::new(&path), b"{}").unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let (folder, trace) = (dir.path().join("spool"), dir.path().join("trace"));
        fs::create_dir(&folder).unwrap();
        let test = "durable::tests::bytes_are_on_disk_before_they_have_their_name_and_the_name_at_return";
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-y", "-e", "trace=write,fsync,fdatasync,rename,renameat,renameat2", "-o"]);
        strace.arg(&trace).arg(env::current_exe().unwrap()).args(["--exact", test]);
        let traced =
            strace.env(TRACED, folder.join("1.json")).output().expect("strace is missing: apt-get install strace");
        assert!(traced.status.success(), "{traced:?}");
        let trace = fs::read_to_string(trace).unwrap();
        let done = |call: &str, of: &str, result: &str| {
            trace.lines().position(|line| line.contains(call) && line.contains(of) && line.ends_with(result))
        };
        let written = done("write(", "/spool/1.draft>", " = 2");
        let synced = done("sync(", "/spool/1.draft>)", " = 0");
        let named = done("rename", "/spool/1.draft\"", " = 0");
        let name_synced = done("sync(", "/spool>)", " = 0");
        let in_order = written.is_some() && written < synced && synced < named && named < name_synced;
        assert!(in_order, "{trace}");
    }
}
