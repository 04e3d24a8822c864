//! `muster nats config`: keys for coordinator, agents and outsiders, and the configuration that makes nats-server hold them to it.
//!
//! Seeds are written first, then `users.toml`, then `nats.conf`. After a crash between them, the same command again mends it:
//! a seed without a user is taken up, and what was to be renewed is renewed.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{ErrorKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use muster_bus::subject::is_token;
use nkeys::KeyPair;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;

use super::App;
use crate::{
    args::{NatsCommand, NatsConfigArgs},
    bus::seed,
    error::{CliError, Exit, Result},
    printer::{Block, Table, View},
};

mod server_config;
mod users;

use users::{COORDINATOR, Kind, User, Users};

pub(super) fn run(app: &App, command: &NatsCommand) -> Result<Exit> {
    match command {
        NatsCommand::Config(args) => config(app, args),
    }
}

fn config(app: &App, args: &NatsConfigArgs) -> Result<Exit> {
    let folder = Folder(args.out.clone());
    let mut users = Users::read(&folder.users())?;
    let changes = changes(app, args, &users)?;
    take_server(args, &mut users)?;
    folder.make()?;
    let mut shown = Vec::new();
    for change in &changes {
        let key = match change.what {
            What::Kept => users.key(&change.name).to_owned(),
            What::New => folder.new_seed(&change.name, false)?,
            What::Renewed => folder.new_seed(&change.name, true)?,
            What::Removed => {
                users.of_mut(change.kind).remove(&change.name);
                continue;
            }
        };
        if change.kind == Kind::Coordinator {
            users.coordinator.key.clone_from(&key);
        } else {
            let user = User { namespace: change.namespace.clone(), key: key.clone() };
            users.of_mut(change.kind).insert(change.name.clone(), user);
        }
        shown.push((change, key));
    }
    // Public keys alone: nats-server is another user, and has to read them.
    write(&folder.users(), &users.text()?, 0o644)?;
    write(&folder.config(), &server_config::text(&users)?, 0o644)?;
    // Last: until here the server's configuration has named their keys.
    for change in changes.iter().filter(|change| change.what == What::Removed) {
        folder.forget(&change.name)?;
    }
    print(app, &folder, &users, &shown)?;
    Ok(Exit::Succeeded)
}

/// What becomes of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Kept,
    New,
    Renewed,
    Removed,
}

impl What {
    fn word(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::New => "new",
            Self::Renewed => "renewed",
            Self::Removed => "removed",
        }
    }
}

struct Change {
    name: String,
    kind: Kind,
    namespace: String,
    what: What,
}

/// What is to be done, for all users, before anything is done.
fn changes(app: &App, args: &NatsConfigArgs, users: &Users) -> Result<Vec<Change>> {
    let namespace = &app.settings.namespace;
    let wanted = wanted(args);
    for name in wanted.iter().map(|(_, name)| *name).chain([namespace]) {
        if !is_token(name) {
            return Err(
                CliError::usage("NAME_INVALID", format!("{name:?} is no name")).hint("1 to 63 of a-z, 0-9, _ and -")
            );
        }
    }
    let unknown = |name: &String| *name != COORDINATOR && users.find(name).is_none();
    if let Some(name) = args.renew.iter().chain(&args.remove).find(|name| unknown(name)) {
        return Err(CliError::usage("AGENT_NOT_FOUND", format!("no agent or outsider {name} has a key here"))
            .hint(format!("give an agent one with --agent {name}")));
    }
    if wanted.iter().map(|(_, name)| *name).chain(&args.remove).any(|name| name == COORDINATOR) {
        return Err(CliError::usage("NAME_INVALID", format!("{COORDINATOR} is no agent, and always has a key"))
            .hint(format!("--renew {COORDINATOR} gives it another one")));
    }
    let what = |name: &String, known: bool| match known {
        _ if args.remove.contains(name) => What::Removed,
        false => What::New,
        true if args.renew.contains(name) => What::Renewed,
        true => What::Kept,
    };
    let coordinator = what(&COORDINATOR.to_owned(), !users.coordinator.key.is_empty());
    let (name, kind) = (COORDINATOR.to_owned(), Kind::Coordinator);
    let mut changes = vec![Change { name, kind, namespace: String::new(), what: coordinator }];
    for (kind, name, user) in users.all() {
        let (name, namespace) = (name.clone(), user.namespace.clone());
        changes.push(Change { what: what(&name, true), name, kind, namespace });
    }
    for (kind, name) in wanted {
        // The events of all namespaces are in one stream.
        let namespace = if kind == Kind::Reader { String::new() } else { namespace.clone() };
        match changes.iter().find(|change| change.name == *name) {
            Some(there) if there.kind == kind && there.namespace == namespace => {}
            Some(there) => return Err(taken(there)),
            None => changes.push(Change { name: name.clone(), kind, namespace, what: what(name, false) }),
        }
    }
    Ok(changes)
}

fn wanted(args: &NatsConfigArgs) -> Vec<(Kind, &String)> {
    let agents = args.agents.iter().map(|name| (Kind::Agent, name));
    let signallers = args.signallers.iter().map(|name| (Kind::Signaller, name));
    agents.chain(signallers).chain(args.readers.iter().map(|name| (Kind::Reader, name))).collect()
}

fn taken(there: &Change) -> CliError {
    let article = if there.kind == Kind::Agent { "an" } else { "a" };
    let place = if there.namespace.is_empty() { String::new() } else { format!(" in namespace {}", there.namespace) };
    let message = format!("{article} {} {} has a key{place}", there.kind.word(), there.name);
    CliError::usage("NAME_TAKEN", message)
        .hint("call it something else: users of one name would hear each other's replies")
}

fn take_server(args: &NatsConfigArgs, users: &mut Users) -> Result<()> {
    if let Some(listen) = &args.listen {
        users.listen.clone_from(listen);
    }
    if let (Some(cert), Some(key)) = (&args.tls_cert, &args.tls_key) {
        let absolute = |path: &Path| std::path::absolute(path).map_err(|e| CliError::file(path, "name", &e));
        (users.tls_cert, users.tls_key) = (absolute(cert)?, absolute(key)?);
    }
    users.check()
}

/// Where everything is written.
struct Folder(PathBuf);

impl Folder {
    fn users(&self) -> PathBuf {
        self.0.join("users.toml")
    }

    fn config(&self) -> PathBuf {
        self.0.join("nats.conf")
    }

    fn seed(&self, name: &str) -> PathBuf {
        self.0.join("seeds").join(format!("{name}.nk"))
    }

    fn make(&self) -> Result<()> {
        let seeds = self.0.join("seeds");
        let make = || {
            fs::create_dir_all(&self.0)?;
            match DirBuilder::new().mode(0o700).create(&seeds) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
                made => made,
            }
        };
        make().map_err(|e| CliError::file(&seeds, "make", &e))
    }

    /// The public key of a seed that is made, unless a run of before was cut off after it had made one.
    fn new_seed(&self, name: &str, another: bool) -> Result<String> {
        let path = self.seed(name);
        if !another && path.exists() {
            let pair = KeyPair::from_seed(seed(&path)?.expose_secret()).map_err(|_| no_key())?;
            return Ok(pair.public_key());
        }
        let pair = KeyPair::new_user();
        let seed = SecretString::from(pair.seed().map_err(|_| no_key())?);
        write(&path, &format!("{}\n", seed.expose_secret()), 0o600)?;
        Ok(pair.public_key())
    }

    fn forget(&self, name: &str) -> Result<()> {
        let path = self.seed(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(CliError::file(&path, "delete", &e)),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Whole, or not at all, and on disk.
fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    let new = path.with_extension("new");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    write().map_err(|e| CliError::file(path, "write", &e))
}

fn no_key() -> CliError {
    CliError::failed("NKEY_FAILED", "no key can be made: the system gives no random numbers")
}

fn print(app: &App, folder: &Folder, users: &Users, shown: &[(&Change, String)]) -> Result<()> {
    let seed_of = |name: &str| Some(folder.seed(name)).filter(|path| path.exists()).map(|p| p.display().to_string());
    let config = folder.config().display().to_string();
    let value = json!({
        "config": config,
        "users": shown.iter().map(|(change, key)| json!({
            "name": change.name,
            "kind": change.kind.word(),
            "namespace": change.namespace,
            "key": key,
            "seedFile": seed_of(&change.name),
            "change": change.what.word(),
        })).collect::<Vec<_>>(),
    });
    let rows = shown.iter().map(|(change, key)| {
        let seed = seed_of(&change.name).unwrap_or_else(|| "elsewhere".to_owned());
        let (kind, namespace) = (change.kind.word().to_owned(), change.namespace.clone());
        vec![change.name.clone(), kind, namespace, change.what.word().to_owned(), key.clone(), seed]
    });
    app.printer.value(&value, || {
        let fields = vec![("Config", config.clone()), ("Listen", users.listen.clone())];
        let table = Table::new(&["USER", "IS", "NAMESPACE", "KEY IS", "PUBLIC KEY", "SEED"], "").rows(rows);
        View::new(vec![Block::Fields(fields), Block::Table(table)])
    })?;
    app.printer.note(&format!("start it: nats-server -c {config}; one that runs: nats-server --signal reload=PID"));
    if users.is_exposed() {
        app.printer.note("warning: others on the network can read what is said: give --tls-cert and --tls-key");
    }
    Ok(())
}
