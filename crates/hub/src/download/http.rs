//! Requests to the hub. Redirects are followed here, one by one, so that the token goes to the hub alone.

use super::{Error, Settings};
use crate::cache::is_commit;
use crate::catalogue::Entry;
use std::sync::Arc;
use std::time::Duration;
use ureq::http::header::{AUTHORIZATION, LOCATION, RANGE};
use ureq::http::{HeaderMap, Response, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

/// Redirects of one request.
const MOST_REDIRECTS: usize = 10;

/// Why a request gave nothing.
pub(super) enum Failure {
    /// It may go better the next time.
    Again(String),
    /// It will not.
    Final(Error),
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Failure::Final(e)
    }
}

/// What the hub says of a file.
pub(super) struct Head {
    pub commit: String,
    pub hash: String,
    pub bytes: u64,
}

pub(super) struct Http {
    agent: Agent,
    endpoint: Uri,
    root: String,
    authorization: Option<String>,
    tries: u32,
    wait: Duration,
}

impl Http {
    pub fn new(settings: &Settings) -> Result<Self, Error> {
        let endpoint = address(&settings.endpoint).ok_or_else(|| {
            Error::Machine(format!(
                "HF_ENDPOINT is \"{}\", expected an address like {}",
                settings.endpoint,
                crate::catalogue::DEFAULT_ENDPOINT
            ))
        })?;
        let token = settings.token.as_deref();
        if token.is_some_and(|t| !t.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(Error::Machine(
                "HF_TOKEN holds characters that no token has; copy it again from the hub's settings"
                    .to_owned(),
            ));
        }
        // The machine's own certificates count, as they do for its other programs.
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(settings.silence))
            .timeout_recv_response(Some(settings.silence))
            .timeout_per_read(Some(settings.silence))
            .tls_config(tls)
            .user_agent(concat!("instantstyle/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Http {
            agent: config.into(),
            authorization: token.filter(|_| private(&endpoint)).map(|t| format!("Bearer {t}")),
            root: settings.endpoint.trim_end_matches('/').to_owned(),
            endpoint,
            tries: settings.tries,
            wait: settings.wait,
        })
    }

    /// The hash, the size and the commit of a file.
    pub fn head(&self, entry: &Entry, revision: &str, path: &str) -> Result<Head, Error> {
        let mut tries = 0;
        loop {
            match self.head_once(entry, revision, path) {
                Ok(head) => return Ok(head),
                Err(Failure::Final(e)) => return Err(e),
                Err(Failure::Again(why)) => {
                    tries += 1;
                    if tries >= self.tries.min(3) {
                        return Err(Error::Network(why));
                    }
                    std::thread::sleep(self.wait * 2u32.pow(tries - 1));
                }
            }
        }
    }

    fn head_once(&self, entry: &Entry, revision: &str, path: &str) -> Result<Head, Failure> {
        let mut url = self.url(entry, revision, path)?;
        let (mut commit, mut hash, mut bytes) = (None, None, None);
        for _ in 0..=MOST_REDIRECTS {
            let response = self.send(true, &url, 0)?;
            let headers = response.headers();
            commit = commit.or_else(|| text(headers, "x-repo-commit"));
            hash = hash.or_else(|| text(headers, "x-linked-etag"));
            bytes = bytes.or_else(|| text(headers, "x-linked-size"));
            let redirect = response.status().is_redirection();
            // The last stop's own headers count only where the hub has not said what the file is.
            if redirect && (hash.is_none() || bytes.is_none()) {
                url = self.next(&url, headers)?;
                continue;
            }
            if !redirect {
                checked(&response, entry, &url)?;
                hash = hash.or_else(|| text(headers, "etag"));
                bytes = bytes.or_else(|| text(headers, "content-length"));
            }
            let unsaid = |what: &str| Error::Refused {
                url: url.to_string(),
                message: format!("the server does not say the file's {what}; is HF_ENDPOINT a hub?"),
            };
            let commit = commit.filter(|c| is_commit(c)).ok_or_else(|| unsaid("commit (X-Repo-Commit)"))?;
            let hash = hash.map(|h| h.trim_start_matches("W/").trim_matches('"').to_owned());
            let hash = hash.filter(|h| is_hash(h)).ok_or_else(|| unsaid("hash (ETag)"))?;
            let bytes = bytes.and_then(|b| b.parse().ok()).ok_or_else(|| unsaid("size"))?;
            return Ok(Head { commit, hash, bytes });
        }
        Err(Failure::Again(format!("{url}: more than {MOST_REDIRECTS} redirects")))
    }

    /// The content of a file from byte `from` on, if the server can begin there: see the status.
    pub fn get(&self, entry: &Entry, commit: &str, path: &str, from: u64) -> Result<Response<Body>, Failure> {
        let mut url = self.url(entry, commit, path)?;
        for _ in 0..=MOST_REDIRECTS {
            let response = self.send(false, &url, from)?;
            if response.status().is_redirection() {
                url = self.next(&url, response.headers())?;
                continue;
            }
            if response.status().as_u16() != 416 {
                checked(&response, entry, &url)?;
            }
            return Ok(response);
        }
        Err(Failure::Again(format!("{url}: more than {MOST_REDIRECTS} redirects")))
    }

    fn url(&self, entry: &Entry, revision: &str, path: &str) -> Result<Uri, Error> {
        let url = format!("{}/{}/resolve/{revision}/{path}", self.root, entry.repository);
        address(&url).ok_or_else(|| Error::Machine(format!("{url}: is no address; check HF_ENDPOINT")))
    }

    fn send(&self, head: bool, url: &Uri, from: u64) -> Result<Response<Body>, Failure> {
        let request = if head { self.agent.head(url) } else { self.agent.get(url) };
        let mut request = request.header("accept-encoding", "identity");
        if let Some(authorization) = self.authorization.as_ref().filter(|_| same_origin(url, &self.endpoint))
        {
            request = request.header(AUTHORIZATION, authorization);
        }
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        request.call().map_err(|e| Failure::Again(format!("{}: {e}; check the connection", shown(url))))
    }

    /// Where a redirect leads.
    fn next(&self, url: &Uri, headers: &HeaderMap) -> Result<Uri, Error> {
        let refused = |message: String| Error::Refused { url: shown(url), message };
        let to = text(headers, LOCATION.as_str()).ok_or_else(|| refused("redirects to nowhere".into()))?;
        let next = joined(url, &to).ok_or_else(|| refused("redirects to what is no address".into()))?;
        if private(url) && !private(&next) {
            return Err(refused("redirects from HTTPS to an address without it".into()));
        }
        Ok(next)
    }
}

/// An absolute address of HTTP.
fn address(text: &str) -> Option<Uri> {
    let uri: Uri = text.parse().ok()?;
    let http = matches!(uri.scheme_str(), Some("http" | "https"));
    (http && uri.host().is_some_and(|h| !h.is_empty())).then_some(uri)
}

/// True where nobody can listen: HTTPS, or this machine.
fn private(url: &Uri) -> bool {
    url.scheme_str() == Some("https") || matches!(url.host(), Some("127.0.0.1" | "localhost" | "[::1]"))
}

fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |u: &Uri| u.port_u16().unwrap_or(if u.scheme_str() == Some("https") { 443 } else { 80 });
    let host = |u: &Uri| u.host().map(str::to_ascii_lowercase);
    a.scheme_str() == b.scheme_str() && host(a) == host(b) && port(a) == port(b)
}

/// RFC 3986, section 5.2, as far as servers use it in `Location`.
fn joined(base: &Uri, to: &str) -> Option<Uri> {
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    if to.starts_with("//") {
        address(&format!("{scheme}:{to}"))
    } else if to.starts_with('/') {
        address(&format!("{scheme}://{authority}{to}"))
    } else if to.split('/').next().is_some_and(|first| first.contains(':')) {
        address(to)
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        address(&format!("{scheme}://{authority}{folder}/{to}"))
    }
}

/// Without the query, in which storage servers carry their signatures.
fn shown(url: &Uri) -> String {
    format!(
        "{}://{}{}",
        url.scheme_str().unwrap_or(""),
        url.authority().map_or("", |a| a.as_str()),
        url.path()
    )
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned)
}

/// SHA-256 or SHA-1 in hexadecimal.
fn is_hash(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// What a status means, in words.
fn checked(response: &Response<Body>, entry: &Entry, url: &Uri) -> Result<(), Failure> {
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let code = text(response.headers(), "x-error-code").unwrap_or_default();
    let page = entry.page();
    let message = match (status.as_u16(), code.as_str()) {
        (401, _) => format!(
            "needs an account (401): log in at {page}, accept the licence there, make a token and set HF_TOKEN to it"
        ),
        (403, _) => format!("the account of HF_TOKEN has no access (403): accept the licence at {page}"),
        (404, "RevisionNotFound") => format!("there is no such revision; {page} has a list"),
        (404, _) => format!("there is no such file or repository (404); see {page}"),
        (429 | 500.., _) => {
            return Err(Failure::Again(format!("{}: the server answers {status}; try later", shown(url))));
        }
        _ => format!("the server answers {status}"),
    };
    Err(Failure::Final(Error::Refused { url: shown(url), message }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_joined() {
        let base: Uri = "https://hub.example:8443/a/b?c=d".parse().expect("an address");
        for (to, want) in [
            ("/x/y", "https://hub.example:8443/x/y"),
            ("y?z", "https://hub.example:8443/a/y?z"),
            ("//other.example/y", "https://other.example/y"),
            ("http://other.example:1/y", "http://other.example:1/y"),
        ] {
            assert_eq!(joined(&base, to).map(|u| u.to_string()).as_deref(), Some(want), "{to}");
        }
        for to in ["ftp://x/y", "javascript:x", "file:///etc/x"] {
            assert_eq!(joined(&base, to), None, "{to}");
        }
    }

    #[test]
    fn origins_are_told_apart() {
        let of = |text: &str| text.parse::<Uri>().expect("an address");
        let hub = of("https://hub.example/x");
        assert!(same_origin(&hub, &of("https://HUB.example:443/y")));
        for other in [
            "http://hub.example/x",
            "https://hub.example:444/",
            "https://cdn.hub.example/",
            "https://hub.example.org/",
        ] {
            assert!(!same_origin(&hub, &of(other)), "{other}");
        }
        assert!(
            private(&hub)
                && private(&of("http://127.0.0.1:5/"))
                && !private(&of("http://127.0.0.1.example/"))
        );
    }
}
