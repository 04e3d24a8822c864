//! Servers that are spoken to like Redis, PostgreSQL and HTTP, and say in every error who asks with what.

use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, ensure};
use muster_integration_tests::{canary::holds, lab::psql_program};

/// The protocol that one speaks.
#[derive(Clone)]
pub(crate) enum Tongue {
    Redis,
    /// Also PgBouncer's, and that of its console.
    Postgres,
    /// It is asked without a secret, and knows this one by itself.
    Http(&'static str),
}

/// It serves until the test ends.
pub(crate) struct Parrot {
    address: String,
    turned: Arc<AtomicBool>,
}

impl Parrot {
    pub(crate) fn start(tongue: Tongue) -> Result<Self> {
        Self::listen(tongue, None)
    }

    /// Passes on to a real server until it is turned.
    pub(crate) fn before(upstream: &str, tongue: Tongue) -> Result<Self> {
        Self::listen(tongue, Some(upstream.to_owned()))
    }

    fn listen(tongue: Tongue, upstream: Option<String>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let turned = Arc::new(AtomicBool::new(upstream.is_none()));
        let is_turned = Arc::clone(&turned);
        thread::spawn(move || {
            for caller in listener.incoming().flatten() {
                let (tongue, upstream) = (tongue.clone(), upstream.clone());
                let upstream = upstream.filter(|_| !is_turned.load(Ordering::SeqCst));
                // Who goes away ends the talk; nothing is to be done about it.
                thread::spawn(move || {
                    drop(match upstream {
                        Some(upstream) => pass_on(&caller, &upstream),
                        None => talk(&caller, &tongue),
                    });
                });
            }
        });
        Ok(Self { address, turned })
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// From now on it answers by itself.
    pub(crate) fn turn(&self) {
        self.turned.store(true, Ordering::SeqCst);
    }
}

fn pass_on(caller: &TcpStream, upstream: &str) -> Result<()> {
    let server = TcpStream::connect(upstream)?;
    let (mut from, mut to) = (caller.try_clone()?, server.try_clone()?);
    thread::spawn(move || {
        drop(std::io::copy(&mut from, &mut to));
        // The server may have closed it already.
        let _ = to.shutdown(Shutdown::Both);
    });
    std::io::copy(&mut &server, &mut &*caller)?;
    Ok(caller.shutdown(Shutdown::Both)?)
}

fn talk(caller: &TcpStream, tongue: &Tongue) -> Result<()> {
    match tongue {
        Tongue::Redis => redis(caller),
        Tongue::Postgres => postgres(caller),
        Tongue::Http(secret) => http(caller, secret),
    }
}

fn redis(caller: &TcpStream) -> Result<()> {
    let (mut from, mut to) = (BufReader::new(caller), caller);
    let mut password = String::new();
    let mut line = || -> Result<Option<String>> {
        let mut line = String::new();
        Ok((from.read_line(&mut line)? > 0).then(|| line.trim_end_matches("\r\n").to_owned()))
    };
    while let Some(head) = line()? {
        let count: usize = head.trim_start_matches('*').parse()?;
        let mut words = Vec::new();
        for _ in 0..count {
            // Its length, and itself: no word has a line's end in it.
            line()?;
            words.push(line()?.context("a word")?);
        }
        if words.first().is_some_and(|word| word.eq_ignore_ascii_case("AUTH")) {
            password = words.pop().unwrap_or_default();
            to.write_all(b"+OK\r\n")?;
        } else {
            to.write_all(format!("-ERR nobody asks with {password}\r\n").as_bytes())?;
        }
    }
    Ok(())
}

/// Wants the password in clear; the user `refused`, and who comes to replicate, are sent away with it, and all others may ask and get
/// it as their answer. Who asks what version it is gets to know.
fn postgres(mut caller: &TcpStream) -> Result<()> {
    let mut begin = postgres_body(caller)?;
    // Who asks for encryption first is told that there is none.
    while begin.len() == 4 {
        caller.write_all(b"N")?;
        begin = postgres_body(caller)?;
    }
    say(caller, b'R', &3_u32.to_be_bytes())?;
    let (kind, password) = postgres_message(caller)?;
    ensure!(kind == b'p', "a password is wanted");
    let password = String::from_utf8(password)?.trim_end_matches('\0').to_owned();
    let refused = holds(&begin, b"refused\0");
    if refused || holds(&begin, b"replication\0") {
        return postgres_error(caller, if refused { "28P01" } else { "XX000" }, &password);
    }
    say(caller, b'R', &0_u32.to_be_bytes())?;
    say(caller, b'Z', b"I")?;
    loop {
        let (kind, asked) = postgres_message(caller)?;
        match kind {
            b'Q' if holds(&asked, b"server_version_num") => postgres_row(caller)?,
            b'X' => return Ok(()),
            _ => postgres_error(caller, "XX000", &password)?,
        }
        say(caller, b'Z', b"I")?;
    }
}

fn postgres_body(mut caller: &TcpStream) -> Result<Vec<u8>> {
    let mut length = [0; 4];
    caller.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_be_bytes(length))?.checked_sub(4).context("a length counts itself")?;
    let mut body = Vec::new();
    caller.take(u64::try_from(length)?).read_to_end(&mut body)?;
    ensure!(body.len() == length, "it went away");
    Ok(body)
}

fn postgres_message(mut caller: &TcpStream) -> Result<(u8, Vec<u8>)> {
    let mut kind = [0];
    caller.read_exact(&mut kind)?;
    Ok((kind[0], postgres_body(caller)?))
}

fn say(mut caller: &TcpStream, kind: u8, body: &[u8]) -> Result<()> {
    let length = u32::try_from(body.len() + 4)?.to_be_bytes();
    Ok(caller.write_all(&[&[kind], &length[..], body].concat())?)
}

fn postgres_error(caller: &TcpStream, code: &str, password: &str) -> Result<()> {
    let severity = if code == "28P01" { "FATAL" } else { "ERROR" };
    let body = format!("S{severity}\0V{severity}\0C{code}\0Mnobody asks with {password}\0\0");
    say(caller, b'E', body.as_bytes())
}

/// Version, identifier, size, tablespaces: as `backup.postgres` asks before it copies.
fn postgres_row(caller: &TcpStream) -> Result<()> {
    let program = psql_program()?;
    let major =
        program.ancestors().nth(2).and_then(|folder| folder.file_name()).context("its folder is its version")?;
    let version = format!("{}0000", major.to_string_lossy());
    let values = [version.as_str(), "7", "1000", "0"];
    let count = 4_u16.to_be_bytes();
    let column = [&b"x\0"[..], &[0; 6], &25_u32.to_be_bytes(), &[0xff; 6], &[0; 2]].concat();
    say(caller, b'T', &[&count[..], &column.repeat(values.len())].concat())?;
    let mut row = count.to_vec();
    for value in values {
        row.extend(u32::try_from(value.len())?.to_be_bytes());
        row.extend(value.as_bytes());
    }
    say(caller, b'D', &row)?;
    say(caller, b'C', b"SELECT 1\0")
}

fn http(caller: &TcpStream, secret: &str) -> Result<()> {
    let (mut from, mut to) = (BufReader::new(caller), caller);
    let mut line = String::from("…");
    while !line.trim_end().is_empty() {
        line.clear();
        from.read_line(&mut line)?;
    }
    let body = format!("nobody asks without {secret}");
    let length = body.len();
    let head = format!("HTTP/1.1 503 no {secret}\r\nX-Said: {secret}\r\nLocation: http://u:{secret}@[::1]/\r\n");
    Ok(to.write_all(format!("{head}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}").as_bytes())?)
}
