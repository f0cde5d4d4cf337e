//! Downloads against a hub on this machine: whole, cut, damaged, redirected, refused.

use instantstyle_hub::catalogue::{Entry, find};
use instantstyle_hub::download::{Client, Error, Event, Listing, Settings, Watch};
use instantstyle_hub::{Cache, Found};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use testkit::hub::{COMMIT, Fault, Hub, hash};

/// Collects what is told; asks to stop after so many bytes.
#[derive(Default)]
struct Told {
    files: Vec<String>,
    bytes: Vec<u64>,
    notices: Vec<String>,
    stop_at: Option<u64>,
}

impl Watch for Told {
    fn event(&mut self, event: Event) {
        match event {
            Event::File(path) => self.files.push(path.to_owned()),
            Event::Bytes(n) => self.bytes.push(n),
            Event::Notice(text) => self.notices.push(text.to_owned()),
        }
    }

    fn cancelled(&self) -> bool {
        self.stop_at.is_some_and(|n| self.bytes.last().is_some_and(|b| *b >= n))
    }
}

const CONFIG: &str = "models/image_encoder/config.json";
const WEIGHTS: &str = "models/image_encoder/model.safetensors";

struct Place {
    hub: Hub,
    folder: TempDir,
    weights: Vec<u8>,
}

impl Place {
    fn new() -> Self {
        let hub = Hub::start();
        // Longer than a few reads, and no repetition that a wrong offset could hide behind.
        let weights: Vec<u8> =
            (0u32..300_000).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        hub.put("h94/IP-Adapter", CONFIG, b"{\"a\": 1}\n", false);
        hub.put("h94/IP-Adapter", WEIGHTS, &weights, true);
        Place { hub, folder: tempfile::tempdir().expect("a folder"), weights }
    }

    fn cache(&self) -> Cache {
        Cache::at(self.folder.path().join("hub"))
    }

    fn settings(&self) -> Settings {
        let mut settings = Settings::new(self.hub.address.clone(), self.cache());
        (settings.tries, settings.wait) = (3, Duration::from_millis(1));
        settings
    }

    fn pull_with(&self, settings: Settings, told: &mut Told) -> Result<Listing, Error> {
        let client = Client::new(settings)?;
        let listing = client.look(entry(), None, told)?;
        client.fetch(&listing, told)?;
        Ok(listing)
    }

    fn pull(&self) -> (Result<Listing, Error>, Told) {
        let mut told = Told::default();
        (self.pull_with(self.settings(), &mut told), told)
    }

    /// Everything is there, right, and nothing else is.
    fn check(&self) {
        let Found { commit, path } = self.cache().find(entry(), None).expect("everything is here");
        assert_eq!(commit, COMMIT);
        assert_eq!(fs::read(path.join("config.json")).expect("readable"), b"{\"a\": 1}\n");
        assert!(
            fs::read(path.join("model.safetensors")).expect("readable") == self.weights,
            "the weights differ"
        );
        let mut blobs = names(&self.repository().join("blobs"));
        blobs.sort();
        let mut want = vec![hash(b"{\"a\": 1}\n", false), hash(&self.weights, true)];
        want.sort();
        assert_eq!(blobs, want, "blobs by their hashes, nothing unfinished");
    }

    fn repository(&self) -> PathBuf {
        self.cache().root().join("models--h94--IP-Adapter")
    }

    fn incomplete(&self) -> PathBuf {
        self.repository().join("blobs").join(format!("{}.incomplete", hash(&self.weights, true)))
    }
}

fn entry() -> &'static Entry {
    find("image-encoder-vit-h").expect("an entry").0
}

fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder)
        .map(|d| d.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default()
}

#[test]
fn hashes_are_the_published_ones() {
    // FIPS 180-4's example, and git's name for an empty file.
    assert_eq!(hash(b"abc", true), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_eq!(hash(b"", false), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
}

#[test]
fn an_entry_arrives_whole_and_is_not_fetched_again() {
    let place = Place::new();
    let (listing, told) = place.pull();
    let listing = listing.expect("pulled");
    place.check();
    assert_eq!(listing.missing_bytes(), 9 + place.weights.len() as u64);
    assert_eq!(told.files, [CONFIG, WEIGHTS]);
    assert!(
        told.bytes.is_sorted() && told.bytes.last() == Some(&listing.missing_bytes()),
        "progress goes to the end"
    );
    #[cfg(unix)]
    {
        let link = place.cache().snapshot("h94/IP-Adapter", COMMIT).join(WEIGHTS);
        let to = fs::read_link(link).expect("a link");
        assert_eq!(
            to,
            Path::new("../../../../blobs").join(hash(&place.weights, true)),
            "as huggingface_hub links"
        );
    }
    place.hub.asked();
    let (again, told) = place.pull();
    assert_eq!(again.expect("pulled").missing_bytes(), 0);
    assert!(told.files.is_empty());
    assert!(place.hub.asked().iter().all(|a| a.method == "HEAD"), "only looked at");
}

#[test]
fn a_cut_download_goes_on_where_it_was_cut() {
    let place = Place::new();
    place.hub.fault(WEIGHTS, Fault::Cut(500_000), 1);
    place.hub.fault(WEIGHTS, Fault::Cut(300_000), 1);
    let (listing, _) = place.pull();
    listing.expect("pulled");
    place.check();
    let ranges: Vec<Option<String>> = place
        .hub
        .asked()
        .iter()
        .filter(|a| a.storage && a.method == "GET")
        .map(|a| a.headers.get("range").cloned())
        .collect();
    assert_eq!(ranges, [None, Some("bytes=500000-".to_owned()), Some("bytes=800000-".to_owned())]);
}

#[test]
fn what_is_cut_too_often_waits_for_the_next_time() {
    let place = Place::new();
    place.hub.fault(WEIGHTS, Fault::Cut(1000), 1);
    place.hub.fault(WEIGHTS, Fault::Cut(0), 2);
    let (listing, _) = place.pull();
    let Err(Error::Network(message)) = listing else { panic!("{listing:?}") };
    assert!(message.contains("after 3 tries at byte 1000"), "{message}");
    assert_eq!(place.cache().find(entry(), None), None, "not there by half");
    assert!(!place.repository().join("refs/main").exists());
    assert_eq!(fs::metadata(place.incomplete()).expect("kept").len(), 1000);
    place.hub.asked();
    place.pull().0.expect("pulled");
    place.check();
    let first = place.hub.asked().into_iter().find(|a| a.storage && a.method == "GET").expect("a request");
    assert_eq!(first.headers.get("range").map(String::as_str), Some("bytes=1000-"));
}

#[test]
fn a_server_without_ranges_begins_anew() {
    for (fault, what) in [(Fault::WholeFile, "whole file"), (Fault::OtherRange, "another range")] {
        let place = Place::new();
        place.hub.fault(WEIGHTS, Fault::Cut(700_000), 1);
        place.hub.fault(WEIGHTS, fault, 1);
        place.pull().0.unwrap_or_else(|e| panic!("{what}: {e}"));
        place.check();
    }
}

#[test]
fn damaged_files_are_not_kept() {
    let place = Place::new();
    place.hub.fault(WEIGHTS, Fault::OtherBytes, 1);
    let (listing, _) = place.pull();
    let Err(Error::Damaged { message, .. }) = listing else { panic!("{listing:?}") };
    assert!(
        message.contains("arrived damaged") && message.contains(&hash(&place.weights, true)),
        "{message}"
    );
    assert!(!place.incomplete().exists() && place.cache().find(entry(), None).is_none());
    // A small file is checked as git does.
    let place = Place::new();
    place.hub.fault(CONFIG, Fault::OtherBytes, 1);
    assert!(matches!(place.pull().0, Err(Error::Damaged { .. })));
    place.pull().0.expect("pulled");
    place.check();
}

#[test]
fn a_damaged_beginning_is_found_out() {
    for (left, told_so) in [(vec![7; 1000], true), (vec![7; 5_000_000], false)] {
        let place = Place::new();
        fs::create_dir_all(place.repository().join("blobs")).expect("a folder");
        fs::write(place.incomplete(), left).expect("written");
        let (listing, told) = place.pull();
        listing.expect("pulled");
        place.check();
        assert_eq!(told.notices.iter().any(|n| n.contains("begins anew")), told_so);
    }
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let place = Place::new();
    let mut settings = place.settings();
    settings.token = Some("hf_secret".to_owned());
    place.pull_with(settings, &mut Told::default()).expect("pulled");
    let asked = place.hub.asked();
    let sent = |storage: bool| asked.iter().filter(|a| a.storage == storage).collect::<Vec<_>>();
    assert!(sent(false).len() >= 4 && !sent(true).is_empty());
    for a in sent(false) {
        assert_eq!(
            a.headers.get("authorization").map(String::as_str),
            Some("Bearer hf_secret"),
            "{}",
            a.path
        );
    }
    for a in sent(true) {
        assert!(!a.headers.values().any(|v| v.contains("hf_secret")), "{}", a.path);
    }
}

#[test]
fn redirects_lead_to_another_name_and_not_astray() {
    let place = Place::new();
    // A renamed repository.
    place.hub.put("h95/Renamed", CONFIG, b"{\"a\": 1}\n", false);
    place.hub.fault(CONFIG, Fault::Redirect(format!("/h95/Renamed/resolve/main/{CONFIG}")), 1);
    place.pull().0.expect("pulled");
    place.check();
    for to in ["file:///etc/passwd", "ftp://127.0.0.1/x", ""] {
        let place = Place::new();
        place.hub.fault(CONFIG, Fault::Redirect(to.to_owned()), 1);
        let (listing, _) = place.pull();
        assert!(matches!(listing, Err(Error::Refused { .. })), "{to}: {listing:?}");
    }
    let place = Place::new();
    let round = format!("/h94/IP-Adapter/resolve/main/{CONFIG}");
    place.hub.fault(CONFIG, Fault::Redirect(round), 100);
    assert!(matches!(place.pull().0, Err(Error::Network(m)) if m.contains("redirects")));
}

#[test]
fn refusals_say_what_to_do() {
    for (code, error, want) in [
        (401, "GatedRepo", "set HF_TOKEN"),
        (403, "GatedRepo", "accept the licence at https://"),
        (404, "EntryNotFound", "no such file"),
        (404, "RevisionNotFound", "no such revision"),
        (400, "", "answers 400"),
    ] {
        let place = Place::new();
        place.hub.fault(WEIGHTS, Fault::Status(code, error), 1);
        let (listing, _) = place.pull();
        let Err(Error::Refused { url, message }) = listing else { panic!("{code}: {listing:?}") };
        assert!(message.contains(want), "{code}: {message}");
        assert!(url.ends_with(WEIGHTS), "{url}");
        assert!(!message.contains('\n'));
    }
    // The signature of a storage server's address stays out of messages.
    let place = Place::new();
    place.hub.fault(WEIGHTS, Fault::StorageStatus(403), 1);
    let Err(Error::Refused { url, .. }) = place.pull().0 else { panic!("no refusal") };
    assert!(!url.contains("secret"), "{url}");
}

#[test]
fn a_busy_server_is_asked_again() {
    let place = Place::new();
    place.hub.fault(CONFIG, Fault::Status(503, ""), 2);
    place.hub.fault(WEIGHTS, Fault::StorageStatus(429), 2);
    place.pull().0.expect("pulled");
    place.check();
    let place = Place::new();
    place.hub.fault(CONFIG, Fault::Status(503, ""), 100);
    assert!(matches!(place.pull().0, Err(Error::Network(m)) if m.contains("503")));
}

#[test]
fn a_silent_server_is_given_up() {
    let place = Place::new();
    place.hub.fault(WEIGHTS, Fault::Silence, 1);
    let mut settings = place.settings();
    settings.silence = Duration::from_millis(300);
    let start = std::time::Instant::now();
    place.pull_with(settings, &mut Told::default()).expect("pulled at the second try");
    place.check();
    assert!(start.elapsed() < Duration::from_secs(4), "did not wait for the end of the silence");
}

#[test]
fn answers_that_say_too_little_are_refused() {
    for header in ["X-Repo-Commit", "X-Linked-Size"] {
        let place = Place::new();
        place.hub.fault(WEIGHTS, Fault::Without(header), 100);
        let (listing, _) = place.pull();
        // Without a size the storage server is asked, which says it: that is no fault.
        match (header, &listing) {
            ("X-Linked-Size", Ok(_)) => place.check(),
            ("X-Repo-Commit", Err(Error::Refused { message, .. })) => {
                assert!(message.contains("commit"), "{message}")
            }
            _ => panic!("{header}: {listing:?}"),
        }
    }
}

#[test]
fn offline_uses_what_is_there() {
    let place = Place::new();
    let mut settings = place.settings();
    settings.offline = true;
    let (asked, mut told) = (settings.clone(), Told::default());
    let Err(Error::Offline(message)) = place.pull_with(asked, &mut told) else { panic!("nothing is there") };
    assert!(message.contains("0 of the 2 files"), "{message}");
    assert!(place.hub.asked().is_empty(), "the hub was asked");
    place.pull().0.expect("pulled");
    place.hub.asked();
    let listing = place.pull_with(settings, &mut told).expect("everything is there");
    assert_eq!((listing.commit.as_str(), listing.missing_bytes()), (COMMIT, 0));
    assert!(listing.unreached.is_some() && place.hub.asked().is_empty());
    // The same where the hub cannot be reached.
    let mut settings = place.settings();
    settings.endpoint = "http://127.0.0.1:1".to_owned();
    let listing = place.pull_with(settings, &mut told).expect("everything is there");
    assert!(listing.unreached.is_some());
}

#[test]
fn stopping_keeps_what_arrived() {
    let place = Place::new();
    let mut told = Told { stop_at: Some(300_000), ..Told::default() };
    assert!(matches!(place.pull_with(place.settings(), &mut told), Err(Error::Cancelled)));
    let kept = fs::metadata(place.incomplete()).expect("kept").len();
    assert!((200_000..place.weights.len() as u64).contains(&kept), "{kept}");
    assert_eq!(place.cache().find(entry(), None), None);
    place.pull().0.expect("pulled");
    place.check();
}

#[test]
fn a_disk_that_is_too_small_is_seen_before() {
    let place = Place::new();
    let mut told = Told::default();
    let client = Client::new(place.settings()).expect("a client");
    let mut listing = client.look(entry(), None, &told).expect("a listing");
    listing.files[1].bytes = u64::MAX / 2;
    place.hub.asked();
    let result = client.fetch(&listing, &mut told);
    assert!(matches!(&result, Err(Error::Machine(m)) if m.contains("are free")), "{result:?}");
    assert!(place.hub.asked().is_empty() && !place.cache().root().exists());
}

#[test]
fn two_at_once_fetch_a_file_once() {
    let place = Place::new();
    std::thread::scope(|s| {
        let runs: Vec<_> = (0..2).map(|_| s.spawn(|| place.pull().0)).collect();
        runs.into_iter().for_each(|r| drop(r.join().expect("no panic").expect("pulled")));
    });
    place.check();
    let fetched = place.hub.asked().iter().filter(|a| a.method == "GET" && a.storage).count();
    assert_eq!(fetched, 1);
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let place = Place::new();
    for endpoint in ["", "hub", "ftp://127.0.0.1", "http://"] {
        let settings = Settings::new(endpoint, place.cache());
        assert!(matches!(Client::new(settings), Err(Error::Machine(_))), "{endpoint}");
    }
    let mut settings = place.settings();
    settings.token = Some("a b\n".to_owned());
    let Err(Error::Machine(message)) = Client::new(settings) else { panic!("a token with a space") };
    assert!(!message.contains("a b"), "the token is not shown");
}
