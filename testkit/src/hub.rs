//! A hub on this machine: the part of the protocol that downloads use, with faults on demand. Small files are answered
//! as the hub does, over a relative redirect; large ones (LFS) by a redirect to a storage server, here another port.

use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

/// The commit of every repository.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What goes wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection is cut after so many bytes of the content.
    Cut(usize),
    /// The whole file comes, whatever range was asked for.
    WholeFile,
    /// Other bytes come than the hash says.
    OtherBytes,
    /// A partial answer that begins elsewhere.
    OtherRange,
    /// No byte comes after the headers.
    Silence,
    /// This status, with this `X-Error-Code`, from the hub itself.
    Status(u16, &'static str),
    /// This status from the storage server.
    StorageStatus(u16),
    /// A redirect to this address.
    Redirect(String),
    /// An answer of the hub without this header.
    Without(&'static str),
}

/// One request that came.
#[derive(Clone, Debug)]
pub struct Asked {
    /// `HEAD` or `GET`.
    pub method: String,
    /// The path.
    pub path: String,
    /// Whether the storage server got it.
    pub storage: bool,
    /// Headers by their names in lower case.
    pub headers: HashMap<String, String>,
}

#[derive(Default)]
struct State {
    /// By `owner/name/path`: the content and whether it is large.
    files: HashMap<String, (Vec<u8>, bool)>,
    /// By the end of a path: what goes wrong, and how often still.
    faults: Vec<(String, Fault, usize)>,
    asked: Vec<Asked>,
}

/// A hub that answers until the process ends.
pub struct Hub {
    /// Its address, for `HF_ENDPOINT`.
    pub address: String,
    state: Arc<Mutex<State>>,
}

impl Hub {
    /// Starts it on two free ports of this machine.
    ///
    /// # Panics
    /// If there is no free port.
    pub fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let listen = || TcpListener::bind("127.0.0.1:0").expect("a free port");
        let (hub, storage) = (listen(), listen());
        let address = |l: &TcpListener| format!("http://{}", l.local_addr().expect("an address"));
        let (at, storage_at) = (address(&hub), address(&storage));
        serve(hub, state.clone(), storage_at.clone(), false);
        serve(storage, state.clone(), storage_at, true);
        Hub { address: at, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics with it")
    }

    /// Puts a file into a repository (`owner/name`).
    pub fn put(&self, repository: &str, path: &str, bytes: &[u8], large: bool) {
        self.state().files.insert(format!("{repository}/{path}"), (bytes.to_vec(), large));
    }

    /// Makes the next `times` requests for paths that end so go wrong. Faults of content count for `GET` alone.
    pub fn fault(&self, end: &str, fault: Fault, times: usize) {
        self.state().faults.push((end.to_owned(), fault, times));
    }

    /// What was asked so far; forgotten then.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state().asked)
    }
}

/// The name that the hub gives to a content.
pub fn hash(bytes: &[u8], large: bool) -> String {
    let hex = |b: &[u8]| b.iter().map(|b| format!("{b:02x}")).collect::<String>();
    if large {
        return hex(&Sha256::digest(bytes));
    }
    let mut sha1 = Sha1::new();
    sha1.update(format!("blob {}\0", bytes.len()));
    sha1.update(bytes);
    hex(&sha1.finalize())
}

fn serve(listener: TcpListener, state: Arc<Mutex<State>>, storage_at: String, storage: bool) {
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (state, storage_at) = (state.clone(), storage_at.clone());
            // A client that goes away is no fault here.
            std::thread::spawn(move || drop(answer(&stream, &state, &storage_at, storage)));
        }
    });
}

fn answer(stream: &TcpStream, state: &Mutex<State>, storage_at: &str, storage: bool) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let mut headers = HashMap::new();
    for line in lines.map_while(Result::ok).take_while(|l| !l.is_empty()) {
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.to_lowercase(), value.trim().to_owned());
        }
    }
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let asked = Asked { method, path, storage, headers };
    let reply = {
        let mut state = state.lock().expect("no thread panics with it");
        state.asked.push(asked.clone());
        reply(&mut state, &asked, storage_at)
    };
    let mut out = stream;
    out.write_all(format!("HTTP/1.1 {} x\r\nConnection: close\r\n", reply.status).as_bytes())?;
    for (name, value) in &reply.headers {
        out.write_all(format!("{name}: {value}\r\n").as_bytes())?;
    }
    out.write_all(b"\r\n")?;
    if asked.method != "HEAD" {
        out.write_all(&reply.body)?;
    }
    if reply.silent {
        std::thread::sleep(std::time::Duration::from_secs(5));
    }
    Ok(())
}

#[derive(Default)]
struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    silent: bool,
}

fn status(status: u16, code: &str) -> Reply {
    Reply {
        status,
        headers: vec![("X-Error-Code", code.to_owned()), ("Content-Length", "0".to_owned())],
        ..Reply::default()
    }
}

fn reply(state: &mut State, asked: &Asked, storage_at: &str) -> Reply {
    // /owner/name/resolve/REVISION/path, and where the redirects lead: /small/KEY and, on storage, /large/KEY.
    let parts: Vec<&str> = asked.path.trim_start_matches('/').splitn(5, '/').collect();
    if asked.storage || asked.path.starts_with("/small/") {
        let (_, key) = asked.path.trim_start_matches('/').split_once('/').unwrap_or_default();
        return content(state, asked, key);
    }
    let &[owner, name, "resolve", revision, path] = parts.as_slice() else { return status(404, "") };
    let key = format!("{owner}/{name}/{path}");
    let fault = state.faults.iter_mut().find(|(end, fault, n)| {
        let here = matches!(fault, Fault::Status(..) | Fault::Redirect(_) | Fault::Without(_));
        *n > 0 && here && key.ends_with(end.as_str())
    });
    let fault = fault.map(|(_, fault, n)| {
        *n -= 1;
        fault.clone()
    });
    match &fault {
        Some(Fault::Status(code, error)) => return status(*code, error),
        Some(Fault::Redirect(to)) => {
            return Reply { status: 302, headers: vec![("Location", to.clone())], ..Reply::default() };
        }
        _ => {}
    }
    if revision != "main" && revision != COMMIT {
        return status(404, "RevisionNotFound");
    }
    let Some((bytes, large)) = state.files.get(&key) else { return status(404, "EntryNotFound") };
    let mut headers = vec![("X-Repo-Commit", COMMIT.to_owned()), ("Content-Length", "0".to_owned())];
    if *large {
        headers.push(("X-Linked-Etag", format!("\"{}\"", hash(bytes, true))));
        headers.push(("X-Linked-Size", bytes.len().to_string()));
        headers.push(("Location", format!("{storage_at}/large/{key}?signature=secret")));
    } else {
        headers.push(("Location", format!("/small/{key}")));
    }
    if let Some(Fault::Without(name)) = fault {
        headers.retain(|(n, _)| *n != name);
    }
    Reply { status: if *large { 302 } else { 307 }, headers, ..Reply::default() }
}

fn content(state: &mut State, asked: &Asked, key: &str) -> Reply {
    let key = key.split('?').next().unwrap_or_default();
    let Some((bytes, large)) = state.files.get(key) else { return status(404, "") };
    let (mut bytes, large) = (bytes.clone(), *large);
    let mut headers = vec![("ETag", format!("\"{}\"", hash(&bytes, large)))];
    let fault = state.faults.iter_mut().filter(|_| asked.method == "GET").find(|(end, fault, n)| {
        let here = !matches!(fault, Fault::Status(..) | Fault::Redirect(_) | Fault::Without(_));
        *n > 0 && here && key.ends_with(end.as_str())
    });
    let fault = fault.map(|(_, fault, n)| {
        *n -= 1;
        fault.clone()
    });
    if let Some(Fault::StorageStatus(code)) = fault {
        return status(code, "");
    }
    if fault == Some(Fault::OtherBytes) {
        bytes.iter_mut().for_each(|b| *b = b.wrapping_add(1));
    }
    let all = bytes.len();
    let range = asked.headers.get("range").filter(|_| fault != Some(Fault::WholeFile));
    let from = range.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let mut code = 200;
    if let Some(from) = from {
        if from >= all {
            return status(416, "");
        }
        let from = if fault == Some(Fault::OtherRange) { from / 2 } else { from };
        bytes.drain(..from);
        code = 206;
        headers.push(("Content-Range", format!("bytes {from}-{}/{all}", all - 1)));
    }
    headers.push(("Content-Length", bytes.len().to_string()));
    match fault {
        Some(Fault::Cut(n)) => bytes.truncate(n),
        Some(Fault::Silence) => bytes.clear(),
        _ => {}
    }
    Reply { status: code, headers, body: bytes, silent: fault == Some(Fault::Silence) }
}
