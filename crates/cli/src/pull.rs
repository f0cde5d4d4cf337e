//! `instantstyle pull`.

use crate::progress::bar;
use crate::{print, say, shown};
use clap::ArgMatches;
use indicatif::ProgressBar;
use instantstyle_engine::Error;
use instantstyle_engine::request::nearest;
use instantstyle_hub::Cache;
use instantstyle_hub::catalogue::{CATALOGUE, DEFAULT_REVISION, Entry, find};
use instantstyle_hub::download::{self, Client, Event, Listing, Settings, Watch};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Between two plain lines of progress.
const EVERY: Duration = Duration::from_secs(10);

/// Runs the subcommand.
pub fn run(arguments: &ArgMatches, stop: Arc<AtomicBool>) -> Result<(), Error> {
    let (as_json, quiet) = (arguments.get_flag("json"), arguments.get_flag("quiet"));
    if arguments.get_flag("list") {
        return list(&Cache::from_env(), as_json);
    }
    let names = arguments.get_many::<String>("name").into_iter().flatten();
    let wanted = wanted(names.map(String::as_str), arguments.get_flag("alone"))?;
    let settings = Settings::from_env();
    let cache = settings.cache.clone();
    let client = Client::new(settings).map_err(|e| told(e, &cache))?;
    let mut watch = Shown::new(quiet, stop);
    let mut listings = Vec::new();
    for (entry, revision) in &wanted {
        let listing = client.look(entry, *revision, &watch).map_err(|e| told(e, &cache))?;
        if let (Some(why), false) = (&listing.unreached, quiet) {
            say(&format!("note: {}: {why}; what is here is used", entry.name));
        }
        listings.push(listing);
    }
    let missing: Vec<&Listing> = listings.iter().filter(|l| l.missing_bytes() > 0).collect();
    if !missing.is_empty() {
        missing.iter().for_each(|l| say(&described(l)));
        agreed(arguments.get_flag("yes"), missing.iter().map(|l| l.missing_bytes()).sum())?;
    }
    for listing in &listings {
        watch.begin(listing);
        client.fetch(listing, &mut watch).map_err(|e| told(e, &cache))?;
        watch.end(listing);
    }
    if as_json {
        let pulled: Vec<Value> = listings.iter().map(|l| report(l, &cache)).collect();
        return print(format!("{:#}\n", json!({ "pulled": pulled })).as_bytes());
    }
    let place = |l: &Listing| match cache.find(l.entry, Some(&l.revision)) {
        Some(found) => format!("{} {}\n", l.entry.name, found.path.display()),
        None => String::new(),
    };
    print(listings.iter().map(place).collect::<String>().as_bytes())
}

type Wanted<'a> = (&'static Entry, Option<&'a str>);

/// The named entries and, unless they are to come alone, what they need.
fn wanted<'a>(names: impl Iterator<Item = &'a str>, alone: bool) -> Result<Vec<Wanted<'a>>, Error> {
    let mut wanted: Vec<Wanted> = Vec::new();
    for name in names {
        let (entry, revision) = find(name).ok_or_else(|| {
            let known: Vec<&str> = CATALOGUE.iter().map(|e| e.name).collect();
            let near = nearest(name, &known).map_or_else(String::new, |n| format!("did you mean {n}? "));
            Error::request(
                "pull",
                format!("there is no model \"{name}\"; {near}instantstyle pull --list shows all"),
            )
        })?;
        let companions = entry.needs.iter().filter(|_| !alone).filter_map(|n| find(n));
        for one in [(entry, revision)].into_iter().chain(companions) {
            if !wanted.contains(&one) {
                wanted.push(one);
            }
        }
    }
    Ok(wanted)
}

/// What is about to be downloaded, and under which licence.
fn described(listing: &Listing) -> String {
    let entry = listing.entry;
    let missing = listing.files.iter().filter(|f| !f.here).count();
    let doubt =
        if entry.unchecked.is_empty() { String::new() } else { format!("\n  note: {}", entry.unchecked) };
    format!(
        "{}: {}\n  from {}, commit {}: {missing} files, {}\n  licence: {}; its text is on that page{doubt}",
        entry.name,
        entry.about,
        entry.page(),
        &listing.commit[..10],
        size(listing.missing_bytes()),
        entry.licence,
    )
}

/// Whether the user takes the licences.
fn agreed(yes: bool, bytes: u64) -> Result<(), Error> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(Error::request(
            "--yes",
            "is needed where nobody can be asked: it accepts the licences shown",
        ));
    }
    let _ = write!(std::io::stderr().lock(), "Download {} under these licences? [y/N] ", size(bytes));
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer);
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" if read.is_ok() => Ok(()),
        _ => Err(Error::Cancelled),
    }
}

fn report(listing: &Listing, cache: &Cache) -> Value {
    let files: Vec<Value> = listing
        .files
        .iter()
        .map(|f| json!({ "path": f.path, "bytes": f.bytes, "hash": f.hash, "fetched": !f.here }))
        .collect();
    json!({
        "name": listing.entry.name,
        "repository": listing.entry.repository,
        "revision": listing.revision,
        "commit": listing.commit,
        "licence": listing.entry.licence,
        "page": listing.entry.page(),
        "path": cache.find(listing.entry, Some(&listing.revision)).map(|f| shown(&f.path)),
        "fetched_bytes": listing.missing_bytes(),
        "files": files,
    })
}

fn list(cache: &Cache, as_json: bool) -> Result<(), Error> {
    if as_json {
        let row = |e: &Entry| {
            json!({
                "name": e.name, "about": e.about, "family": e.family, "repository": e.repository, "page": e.page(),
                "licence": e.licence, "megabytes": e.megabytes, "needs": e.needs, "unchecked": e.unchecked,
                "path": cache.find(e, None).map(|f| shown(&f.path)),
            })
        };
        let rows: Vec<Value> = CATALOGUE.iter().map(row).collect();
        return print(format!("{:#}\n", json!({ "cache": shown(cache.root()), "models": rows })).as_bytes());
    }
    let mut text = format!("In {}:\n", cache.root().display());
    for e in CATALOGUE {
        let state = match cache.count(e, None) {
            (0, _) => "-".to_owned(),
            (have, all) if have == all => "here".to_owned(),
            (have, all) => format!("{have}/{all}"),
        };
        text += &format!("{state:5} {:27} {:>8}  {}\n", e.name, size(e.megabytes * 1_000_000), e.about);
    }
    print(text.as_bytes())
}

/// Bytes for people, in the hub's units.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{} kB", bytes.div_ceil(1000)),
        1_000_000..1_000_000_000 => format!("{:.0} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// Whose fault it is.
fn told(e: download::Error, cache: &Cache) -> Error {
    match e {
        download::Error::Refused { url, message } => Error::file(url, message),
        download::Error::Damaged { path, message } => Error::file(path, message),
        download::Error::Offline(message) => Error::file(cache.root(), message),
        download::Error::Network(message) | download::Error::Machine(message) => Error::Machine(message),
        download::Error::Cancelled => Error::Cancelled,
    }
}

/// Progress of one entry after the other: a bar on a terminal, else a line now and then.
struct Shown {
    bar: ProgressBar,
    quiet: bool,
    lines: bool,
    stop: Arc<AtomicBool>,
    name: &'static str,
    all: u64,
    /// When the entry began and how much of it was there at the first word.
    since: (Instant, Option<u64>),
    last: Instant,
}

impl Shown {
    fn new(quiet: bool, stop: Arc<AtomicBool>) -> Self {
        let lines = !std::io::stderr().is_terminal();
        let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} < {eta}";
        let (bar, now) = (bar(quiet || lines, 0, template), Instant::now());
        Shown { bar, quiet, lines: lines && !quiet, stop, name: "", all: 0, since: (now, None), last: now }
    }

    fn begin(&mut self, listing: &Listing) {
        (self.name, self.all) = (listing.entry.name, listing.missing_bytes());
        (self.since, self.last) = ((Instant::now(), None), Instant::now());
        self.bar.reset();
        self.bar.set_length(self.all);
    }

    fn end(&mut self, listing: &Listing) {
        self.bar.finish_and_clear();
        if !self.quiet && self.all > 0 {
            let seconds = self.since.0.elapsed().as_secs_f64();
            let revision =
                if listing.revision == DEFAULT_REVISION { "" } else { &format!("@{}", listing.revision) };
            say(&format!("{}{revision}: {} in {seconds:.0} s, checked", self.name, size(self.all)));
        }
    }
}

impl Watch for Shown {
    fn event(&mut self, event: Event) {
        match event {
            Event::File(path) => self.bar.set_message(format!("{} {path}", self.name)),
            Event::Notice(text) if !self.quiet => self.bar.suspend(|| say(&format!("note: {text}"))),
            Event::Notice(_) => {}
            Event::Bytes(done) => {
                self.bar.set_position(done);
                let begun = *self.since.1.get_or_insert(done);
                if self.lines && self.last.elapsed() >= EVERY {
                    self.last = Instant::now();
                    let rate = done.saturating_sub(begun) as f64 / self.since.0.elapsed().as_secs_f64();
                    let left = (self.all - done.min(self.all)) as f64 / rate.max(1.0);
                    let (done, all) = (size(done), size(self.all));
                    say(&format!(
                        "{}: {done} of {all}, {}/s, {left:.0} s left",
                        self.name,
                        size(rate as u64)
                    ));
                }
            }
        }
    }

    fn cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn companions_come_along_once() {
        let names = |list: &[&'static str], alone| -> Vec<&str> {
            wanted(list.iter().copied(), alone).unwrap().iter().map(|w| w.0.name).collect()
        };
        assert_eq!(
            names(&["ip-adapter-sd15", "ip-adapter-plus-sd15"], false),
            ["ip-adapter-sd15", "image-encoder-vit-h", "ip-adapter-plus-sd15"]
        );
        assert_eq!(names(&["ip-adapter-sd15"], true), ["ip-adapter-sd15"]);
        let wrong = wanted(["sdxl-bas"].into_iter(), false).unwrap_err();
        assert!(wrong.exit_code() == 2 && wrong.to_string().contains("did you mean sdxl-base?"), "{wrong}");
    }

    #[test]
    fn sizes_are_the_hubs() {
        assert_eq!(
            (size(1), size(45_000_000), size(6_940_000_000)),
            ("1 kB".into(), "45 MB".into(), "6.9 GB".into())
        );
    }
}
