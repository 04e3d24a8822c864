//! The sample service with two sides under a service manager (runit), behind nginx.

use std::{
    fs,
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::{
    DOMAIN,
    nginx::Nginx,
    port::free_port,
    process::{RunAs, Server, Start, program, run, wait_until},
    service::beside,
    tls::Certificates,
};

/// The first release; it takes the requests, on blue. Green is down.
pub const FIRST: &str = "1.0.0";
/// The next one; it is in the folder of releases and runs nowhere.
pub const NEXT: &str = "1.1.0";

/// An nginx in front of blue and green, which are children of runit and of nobody else.
#[derive(Debug)]
pub struct BlueGreen {
    /// In front.
    pub nginx: Nginx,
    // Held for their end.
    _managers: [Server; 2],
    addresses: [String; 2],
    second_door: String,
    dir: PathBuf,
}

/// The header by which an answer through the second door is told from one through the first.
pub const SECOND_DOOR: &str = "X-Second-Door";

impl BlueGreen {
    /// Starts it in `dir`.
    pub fn start(dir: &Path) -> Result<Self> {
        Self::start_with(dir, &[])
    }

    /// The same, with more arguments for the service.
    pub fn start_with(dir: &Path, more: &[&str]) -> Result<Self> {
        let addresses = [format!("127.0.0.1:{}", free_port()?), format!("127.0.0.1:{}", free_port()?)];
        let binary = beside("sample-service")?;
        for release in [FIRST, NEXT] {
            let folder = dir.join("releases").join(release);
            fs::create_dir_all(&folder)?;
            std::os::unix::fs::symlink(&binary, folder.join("sample-service"))?;
        }
        let managers = [manager(dir, "blue", &addresses[0], more)?, manager(dir, "green", &addresses[1], more)?];
        script(
            &dir.join("start-side"),
            "set -e\nmkdir -p sides\nprintf %s \"$3\" >\"sides/$1/release\"\nexec sv -w 20 restart \"$PWD/sides/$1\"",
            dir,
        )?;
        script(&dir.join("stop-side"), "exec sv -w 20 down \"$PWD/sides/$1\"", dir)?;
        fs::create_dir_all(dir.join("nginx/sites"))?;
        let upstream = format!("# as it was found\nupstream revenue_engine {{\n  server {};\n}}\n", addresses[0]);
        fs::write(dir.join("nginx/sites/upstream.conf"), upstream)?;
        let certificates = Certificates::make(&dir.join("tls"), &Nginx::user()?, DOMAIN, 60)?;
        let second_door = format!("127.0.0.1:{}", free_port()?);
        let second = format!(
            "server {{\n  listen {second_door};\n  server_name {DOMAIN};\n  location / {{ proxy_pass \
             http://revenue_engine; add_header {SECOND_DOOR} yes; }}\n}}\n"
        );
        fs::write(dir.join("nginx/sites/second.conf"), second)?;
        let nginx = Nginx::start(&dir.join("nginx"), DOMAIN, &certificates, "revenue_engine")?;
        let made = Self { nginx, _managers: managers, addresses, second_door, dir: dir.to_owned() };
        run(&RunAs::same(), dir, &made.start_program(), &["blue", &made.addresses[0], FIRST])?;
        wait_until(Duration::from_secs(20), || Ok(TcpStream::connect(&made.addresses[0]).map(drop)?))?;
        Ok(made)
    }

    /// `host:port` of blue.
    pub fn blue(&self) -> &str {
        &self.addresses[0]
    }

    /// `host:port` of green.
    pub fn green(&self) -> &str {
        &self.addresses[1]
    }

    /// `host:port` of another way in, beside nginx' HTTP; its answers have [`SECOND_DOOR`].
    pub fn second_door(&self) -> &str {
        &self.second_door
    }

    /// Holds a folder for each release.
    pub fn releases(&self) -> PathBuf {
        self.dir.join("releases")
    }

    /// The file that names the side.
    pub fn upstream_file(&self) -> PathBuf {
        self.dir.join("nginx/sites/upstream.conf")
    }

    /// Takes a side's name, address and release, and asks the service manager to run that.
    pub fn start_program(&self) -> PathBuf {
        self.dir.join("start-side")
    }

    /// Takes a side's name.
    pub fn stop_program(&self) -> PathBuf {
        self.dir.join("stop-side")
    }

    /// Stops a side, by its name.
    pub fn stop(&self, side: &str) -> Result<()> {
        run(&RunAs::same(), &self.dir, &self.stop_program(), &[side]).map(drop)
    }
}

/// The service manager of one side, which is down until somebody asks for it.
fn manager(dir: &Path, side: &str, address: &str, more: &[&str]) -> Result<Server> {
    let folder = dir.join("sides").join(side);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("down"), "")?;
    let run =
        "release=$(cat release)\nexec \"../../releases/$release/sample-service\" --release \"$release\" --listen ";
    script(&folder.join("run"), &format!("{run}{address} {}", more.join(" ")), &folder)?;
    ensure!(program("sv", "runit")?.is_file(), "sv is a program");
    let runsv = program("runsv", "runit")?;
    let args = [folder.display().to_string()];
    let run_as = RunAs::same();
    let start =
        Start { name: "runsv", program: &runsv, args: &args, dir: &folder, run_as: &run_as, stop: Signal::TERM };
    let mut server = Server::start(&start)?;
    let ready = folder.join("supervise/ok");
    server.ready(Duration::from_secs(10), || {
        ensure!(ready.exists(), "it does not take orders yet");
        Ok(())
    })?;
    Ok(server)
}

pub(super) fn script(path: &Path, body: &str, folder: &Path) -> Result<()> {
    fs::write(path, format!("#!/bin/sh\ncd {} || exit 1\n{body}\n", folder.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).context("a script can't be made executable")
}
