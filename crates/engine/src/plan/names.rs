//! Names of the catalogue in a request (`sdxl-base`, `ip-adapter-sdxl@REVISION`): put to the files that
//! `instantstyle pull` fetched, and back into the request that is stored, with the commit.

use crate::error::Error;
use crate::request::{Reference, Request};
use instantstyle_hub::Cache;
use instantstyle_hub::catalogue::{CATALOGUE, Entry, Kind, find};
use std::path::{Path, PathBuf};

/// The names of one request and what they stand for.
pub(super) struct Names<'a> {
    cache: &'a Cache,
    /// Files and folders, and `NAME@COMMIT`.
    found: Vec<(PathBuf, String)>,
}

impl<'a> Names<'a> {
    pub fn new(cache: &'a Cache) -> Self {
        Names { cache, found: Vec::new() }
    }

    /// Puts files in the place of all names. What is a path already stays: it can be called again.
    ///
    /// # Errors
    /// If something is not here: says what to pull. If a name is of another kind than its field.
    pub fn resolve(&mut self, request: &mut Request) -> Result<(), Error> {
        if let Some(model) = &mut request.model {
            if let Some(path) = self.path("model", Path::new(model.as_str()), Kind::Model)? {
                *model = path.to_string_lossy().into_owned();
            }
        }
        for (i, control) in request.controls.iter_mut().enumerate() {
            self.put(&format!("controls[{i}].model"), &mut control.model, Kind::ControlNet)?;
        }
        // A named one of weight 0 is not asked for, be it here or not.
        request.loras.retain(|l| l.weight != 0.0 || named(&l.file).is_none());
        for (i, lora) in request.loras.iter_mut().enumerate() {
            self.put(&format!("loras[{i}].file"), &mut lora.file, Kind::Lora)?;
        }
        for (i, r) in request.references.iter_mut().enumerate() {
            self.reference(&format!("references[{i}]"), r)?;
        }
        Ok(())
    }

    fn reference(&mut self, field: &str, r: &mut Reference) -> Result<(), Error> {
        let named = r.adapter.as_deref().and_then(named);
        if let Some((entry, _)) = named.filter(|(e, _)| e.kind == Kind::Adapter) {
            // An adapter by name brings its image encoder, and the text tower of subtraction where that is here.
            if r.image_encoder.is_none() {
                r.image_encoder = entry.needs.iter().find(|n| is(n, Kind::ImageEncoder)).map(PathBuf::from);
            }
            let tower = entry.helps.iter().find(|n| is(n, Kind::TextEncoder));
            if r.subtract.is_some() && r.text_encoder.is_none() {
                r.text_encoder = tower.map(PathBuf::from);
            }
        }
        let fields = [
            ("adapter", &mut r.adapter, Kind::Adapter),
            ("image_encoder", &mut r.image_encoder, Kind::ImageEncoder),
            ("text_encoder", &mut r.text_encoder, Kind::TextEncoder),
        ];
        for (name, path, kind) in fields {
            if let Some(path) = path {
                self.put(&format!("{field}.{name}"), path, kind)?;
            }
        }
        Ok(())
    }

    fn put(&mut self, field: &str, path: &mut PathBuf, kind: Kind) -> Result<(), Error> {
        if let Some(there) = self.path(field, path, kind)? {
            *path = there;
        }
        Ok(())
    }

    /// Where what a name stands for is; None for paths.
    fn path(&mut self, field: &str, path: &Path, kind: Kind) -> Result<Option<PathBuf>, Error> {
        let Some((entry, revision)) = named(path) else { return missing(field, path, kind).map(|()| None) };
        if entry.kind != kind {
            return Err(Error::request(
                field,
                format!(
                    "is \"{}\", the name of {}, expected {}",
                    entry.name,
                    entry.kind.title(),
                    kind.title()
                ),
            ));
        }
        let Some(found) = self.cache.find(entry, revision) else {
            let (here, all) = self.cache.count(entry, revision);
            return Err(Error::file(
                path,
                format!(
                    "is not on this machine ({here} of its {all} files are in {}); fetch it with: instantstyle pull {}",
                    self.cache.root().display(),
                    path.display()
                ),
            ));
        };
        self.found.push((found.path.clone(), format!("{}@{}", entry.name, found.commit)));
        Ok(Some(found.path))
    }

    /// Puts the names back, with the commits that were found.
    pub fn restore(&self, request: &mut Request) {
        if let Some(name) = request.model.as_deref().and_then(|m| self.name(Path::new(m))) {
            request.model = Some(name.to_owned());
        }
        let references = request.references.iter_mut().flat_map(|r| {
            [r.adapter.as_mut(), r.image_encoder.as_mut(), r.text_encoder.as_mut()].into_iter().flatten()
        });
        let loras = request.loras.iter_mut().map(|l| &mut l.file);
        let controls = request.controls.iter_mut().map(|c| &mut c.model);
        for path in references.chain(loras).chain(controls) {
            if let Some(name) = self.name(path) {
                *path = PathBuf::from(name);
            }
        }
    }

    fn name(&self, path: &Path) -> Option<&str> {
        let same = |p: &Path| p == path || p.canonicalize().is_ok_and(|real| real == path);
        self.found.iter().find(|(p, _)| same(p)).map(|(_, name)| name.as_str())
    }
}

fn is(name: &str, kind: Kind) -> bool {
    find(name).is_some_and(|(e, _)| e.kind == kind)
}

/// The entry of a name. An existing path wins over a name.
fn named(path: &Path) -> Option<(&'static Entry, Option<&str>)> {
    find(path.to_str()?).filter(|_| !path.exists())
}

/// Paths that do not exist and look like a name written wrongly.
fn missing(field: &str, path: &Path, kind: Kind) -> Result<(), Error> {
    if path.exists() || path.components().next().is_some_and(|c| c.as_os_str() == crate::model::EMBEDDED) {
        return Ok(());
    }
    let known: Vec<&str> = CATALOGUE.iter().filter(|e| e.kind == kind).map(|e| e.name).collect();
    let last = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    match crate::request::nearest(&last, &known) {
        Some(near) => Err(Error::file(
            path,
            format!(
                "there is no such file or folder ({field}); did you mean the name {near} (instantstyle pull --list)?"
            ),
        )),
        None => Ok(()),
    }
}

/// The name of a stored request's model without its commit, if it has one.
pub(super) fn title(model: &str) -> Option<&'static str> {
    find(model).map(|(e, _)| e.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use instantstyle_hub::catalogue::DEFAULT_REVISION;
    use std::fs;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// A cache that holds these entries.
    fn cache(names: &[&str]) -> (tempfile::TempDir, Cache) {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::at(folder.path());
        for name in names {
            let (entry, _) = find(name).expect("an entry");
            for file in entry.files {
                let path = cache.snapshot(entry.repository, COMMIT).join(file);
                fs::create_dir_all(path.parent().expect("a folder")).expect("made");
                fs::write(path, "x").expect("written");
            }
            let refs = cache.repository(entry.repository).join("refs");
            fs::create_dir_all(&refs).expect("made");
            fs::write(refs.join(DEFAULT_REVISION), COMMIT).expect("written");
        }
        (folder, cache)
    }

    fn request(json: &str) -> Request {
        Request::from_json(json, Path::new("/no/such/folder")).expect("a sound request")
    }

    #[test]
    fn names_stand_for_what_was_pulled_and_come_back_with_their_commit() {
        let (_folder, cache) = cache(&[
            "sdxl-base",
            "ip-adapter-sdxl",
            "image-encoder-bigg",
            "lcm-lora-sdxl",
            "controlnet-canny-sdxl",
        ]);
        let mut r = request(
            r#"{"model": "sdxl-base", "loras": [{"file": "lcm-lora-sdxl"}, {"file": "other.safetensors"}],
                "controls": [{"model": "controlnet-canny-sdxl", "image": "edges.png"}],
                "references": [{"image": "x.png", "adapter": "ip-adapter-sdxl", "subtract": {"text": "a cat"}}]}"#,
        );
        let mut names = Names::new(&cache);
        names.resolve(&mut r).expect("everything is here");
        names.resolve(&mut r).expect("a second time changes nothing");
        let at = |repository: &str, path: &str| cache.snapshot(repository, COMMIT).join(path);
        assert_eq!(
            Path::new(r.model.as_deref().expect("a model")),
            cache.snapshot("stabilityai/stable-diffusion-xl-base-1.0", COMMIT)
        );
        let reference = &r.references[0];
        assert_eq!(reference.adapter, Some(at("h94/IP-Adapter", "sdxl_models/ip-adapter_sdxl.safetensors")));
        assert_eq!(
            reference.image_encoder,
            Some(at("h94/IP-Adapter", "sdxl_models/image_encoder")),
            "comes with it"
        );
        assert_eq!(reference.text_encoder, None, "bigG's tower is in the model");
        assert_eq!(r.loras[1].file, Path::new("/no/such/folder/other.safetensors"));
        assert_eq!(r.controls[0].model, cache.snapshot("diffusers/controlnet-canny-sdxl-1.0", COMMIT));
        names.restore(&mut r);
        assert_eq!(r.model, Some(format!("sdxl-base@{COMMIT}")));
        assert_eq!(
            r.references[0].image_encoder,
            Some(PathBuf::from(format!("image-encoder-bigg@{COMMIT}")))
        );
        assert_eq!(r.loras[0].file, PathBuf::from(format!("lcm-lora-sdxl@{COMMIT}")));
        assert_eq!(r.controls[0].model, PathBuf::from(format!("controlnet-canny-sdxl@{COMMIT}")));
        // What is stored resolves again.
        let stored = serde_json::to_string(&r).expect("JSON");
        Names::new(&cache).resolve(&mut request(&stored)).expect("the same files");
    }

    #[test]
    fn what_is_missing_is_named_with_what_to_run() {
        let (_folder, cache) = cache(&["ip-adapter-sdxl-vit-h", "image-encoder-vit-h"]);
        let fails = |json: &str| Names::new(&cache).resolve(&mut request(json)).expect_err(json);
        for (json, code, want) in [
            (r#"{"model": "sd15"}"#, 3, "instantstyle pull sd15"),
            (r#"{"model": "sd15@v2"}"#, 3, "instantstyle pull sd15@v2"),
            (r#"{"references": [{"image": "x", "adapter": "ip-adapter-sdxl"}]}"#, 3, "pull ip-adapter-sdxl"),
            (
                r#"{"references": [{"image": "x", "adapter": "ip-adapter-plus-sdxl-vit-h"}]}"#,
                3,
                "pull ip-adapter-plus-sdxl-vit-h",
            ),
            (
                r#"{"references": [{"image": "x", "adapter": "ip-adapter-sdxl-vit-h", "subtract": {"text": "a"}}]}"#,
                3,
                "pull text-encoder-vit-h",
            ),
            (r#"{"model": "lcm-lora-sdxl"}"#, 2, "the name of a LoRA, expected a model"),
            (
                r#"{"controls": [{"model": "controlnet-canny-sd15", "image": "x"}]}"#,
                3,
                "instantstyle pull controlnet-canny-sd15",
            ),
            (r#"{"model": "sdxl-bas"}"#, 3, "did you mean the name sdxl-base"),
        ] {
            let e = fails(json);
            assert!(e.exit_code() == code && e.to_string().contains(want), "{json}: {e}");
        }
        let mut two = request(
            r#"{"references": [{"image": "x", "adapter": "ip-adapter-sdxl-vit-h", "image_encoder": "mine"}]}"#,
        );
        Names::new(&cache).resolve(&mut two).expect("the adapter is here");
        assert_eq!(
            two.references[0].image_encoder,
            Some(PathBuf::from("/no/such/folder/mine")),
            "explicit wins"
        );
    }

    #[test]
    fn an_existing_path_wins_over_a_name() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("sd15")).expect("made");
        let r = Request::from_json(r#"{"model": "sd15"}"#, folder.path()).expect("a request");
        assert_eq!(r.model.as_deref().map(Path::new), Some(folder.path().join("sd15").as_path()));
    }
}
