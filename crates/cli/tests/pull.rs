//! `pull` and models by name, against a hub on this machine that serves the fixtures under published names.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;
use testkit::fixtures;
use testkit::hub::{COMMIT, Fault, Hub};

struct Machine {
    hub: Hub,
    home: TempDir,
}

impl Machine {
    fn new() -> Self {
        Machine { hub: Hub::start(), home: tempfile::tempdir().expect("a folder") }
    }

    /// With the fixtures `sd15-a`, its adapter, encoder and LoRA as the published ones.
    fn with_models() -> Self {
        let machine = Self::new();
        let put = |repository: &str, path: &str, from: PathBuf| {
            let bytes = std::fs::read(&from).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
            machine.hub.put(repository, path, &bytes, path.ends_with(".safetensors"));
        };
        let model = fixtures().join("models/sd15-a");
        for file in files(&model) {
            let name = file.strip_prefix(&model).expect("inside").to_string_lossy().replace('\\', "/");
            put(
                "stable-diffusion-v1-5/stable-diffusion-v1-5",
                &name.replace(".safetensors", ".fp16.safetensors"),
                file,
            );
        }
        let encoder = fixtures().join("models/vit-a");
        for name in ["config.json", "model.safetensors"] {
            put("h94/IP-Adapter", &format!("models/image_encoder/{name}"), encoder.join(name));
        }
        put(
            "h94/IP-Adapter",
            "models/ip-adapter_sd15.safetensors",
            fixtures().join("adapters/sd15-a-base.safetensors"),
        );
        let control = fixtures().join("controls/sd15-a");
        for file in files(&control) {
            let name = file.file_name().expect("a name").to_string_lossy();
            put(
                "lllyasviel/control_v11p_sd15_canny",
                &name.replace(".safetensors", ".fp16.safetensors"),
                file.clone(),
            );
        }
        let lora = fixtures().join("loras/sd15-a-kohya.safetensors");
        put("latent-consistency/lcm-lora-sdv1-5", "pytorch_lora_weights.safetensors", lora);
        machine
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.run_with(arguments, &[])
    }

    fn run_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_instantstyle"));
        for name in [
            "HF_HUB_CACHE",
            "HUGGINGFACE_HUB_CACHE",
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "HF_TOKEN_PATH",
            "HF_HUB_OFFLINE",
            "TRANSFORMERS_OFFLINE",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "ALL_PROXY",
            "http_proxy",
            "https_proxy",
            "all_proxy",
        ] {
            command.env_remove(name);
        }
        command.env("HF_HOME", self.home.path()).env("HF_ENDPOINT", &self.hub.address);
        command.envs(variables.iter().copied()).args(arguments).output().expect("the program starts")
    }

    fn at(&self, name: &str) -> String {
        self.home.path().join(name).to_string_lossy().into_owned()
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry").path());
    entries.flat_map(|p| if p.is_dir() { files(&p) } else { vec![p] }).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn refused(out: &Output, status: i32, words: &[&str]) {
    let error = text(&out.stderr);
    assert_eq!(out.status.code(), Some(status), "{error}");
    let line = error.lines().find(|l| l.starts_with("error: ")).unwrap_or_else(|| panic!("{error}"));
    words.iter().for_each(|word| assert!(line.contains(word), "no {word:?} in {line}"));
    assert!(!error.contains("panicked"), "{error}");
}

fn done(out: &Output) {
    assert!(out.status.success(), "{}", text(&out.stderr));
}

#[test]
fn pulled_models_paint_the_same_by_name_as_by_path() {
    let machine = Machine::with_models();
    let job = fixtures().join("cases/sd15-a-lora-kohya/job.json");
    let job = job.to_string_lossy();
    let named = |out: &str, latents: &str| {
        machine.run(&[
            "generate",
            "--job",
            &job,
            "--model",
            "sd15",
            "--reference",
            &fixtures().join("images/rings.png").to_string_lossy(),
            "--adapter",
            "ip-adapter-sd15",
            "--lora",
            "lcm-lora-sd15",
            "--lora-weight",
            "0.8",
            "--out",
            &machine.at(out),
            "--save-latents",
            &machine.at(latents),
            "--quiet",
        ])
    };
    // In the order in which a request names them.
    refused(&named("x.png", "x.safetensors"), 3, &["sd15", "0 of its 12 files", "instantstyle pull sd15"]);
    done(&machine.run(&["pull", "sd15", "--yes"]));
    refused(&named("x.png", "x.safetensors"), 3, &["instantstyle pull lcm-lora-sd15"]);
    done(&machine.run(&["pull", "lcm-lora-sd15", "--yes"]));
    done(&machine.run(&["pull", "ip-adapter-sd15", "--alone", "--yes"]));
    refused(&named("x.png", "x.safetensors"), 3, &["instantstyle pull image-encoder-vit-h"]);
    let pulled = machine.run(&["pull", "ip-adapter-sd15", "--yes"]);
    done(&pulled);
    let told = text(&pulled.stdout);
    assert!(
        told.lines().count() == 2 && told.contains("image-encoder-vit-h "),
        "the encoder comes along: {told}"
    );

    done(&named("named.png", "named.safetensors"));
    let by_path = machine.run(&[
        "generate",
        "--job",
        &job,
        "--out",
        &machine.at("path.png"),
        "--save-latents",
        &machine.at("path.safetensors"),
        "--quiet",
    ]);
    done(&by_path);
    let bytes = |name: &str| std::fs::read(machine.at(name)).expect("a file");
    assert!(bytes("named.safetensors") == bytes("path.safetensors"), "the same weights, the same latents");
    // The stored request names the models with their commit, and repeats itself.
    let again = ["generate", "--job", &machine.at("named.png"), "--out", &machine.at("again.png"), "--quiet"];
    done(&machine.run(&again));
    assert!(bytes("named.png") == bytes("again.png"), "repeated to the byte");
    let plan = machine.run(&["generate", "--job", &machine.at("named.png"), "--dry-run", "--json"]);
    let plan: Value = serde_json::from_slice(&plan.stdout).expect("JSON");
    assert_eq!(plan["request"]["model"], format!("sd15@{COMMIT}"));
    assert_eq!(plan["request"]["references"][0]["image_encoder"], format!("image-encoder-vit-h@{COMMIT}"));
}

#[test]
fn a_controlnet_goes_by_name() {
    let machine = Machine::with_models();
    let job = fixtures().join("cases/sd15-a-control-one/job.json");
    let job = job.to_string_lossy();
    let image = fixtures().join("images/blocks.png");
    let image = image.to_string_lossy();
    let run = |out: &str, more: &[&str]| {
        let latents = machine.at(out);
        let base = ["generate", "--job", &job, "--out", &machine.at("x.png"), "--save-latents", &latents];
        machine.run(&[&base[..], more, &["--quiet"]].concat())
    };
    let named =
        ["--control", "controlnet-canny-sd15", "--control-image", &image, "--control-preprocess", "canny"];
    refused(&run("named", &named), 3, &["instantstyle pull controlnet-canny-sd15"]);
    done(&machine.run(&["pull", "controlnet-canny-sd15", "--yes"]));
    done(&run("named", &named));
    done(&run("path", &[]));
    let bytes = |name: &str| std::fs::read(machine.at(name)).expect("latents");
    assert!(bytes("named") == bytes("path"));
}

#[test]
fn the_licence_comes_first() {
    let machine = Machine::with_models();
    let out = machine.run(&["pull", "lcm-lora-sd15"]);
    refused(&out, 2, &["--yes"]);
    let error = text(&out.stderr);
    for word in
        ["licence: CreativeML Open RAIL++-M", "https://huggingface.co/latent-consistency/lcm-lora-sdv1-5"]
    {
        assert!(error.contains(word), "{error}");
    }
    assert!(machine.hub.asked().iter().all(|a| a.method == "HEAD"), "nothing was fetched");
}

#[test]
fn the_list_says_what_is_here() {
    let machine = Machine::with_models();
    done(&machine.run(&["pull", "image-encoder-vit-h", "--yes"]));
    let list = text(&machine.run(&["pull", "--list"]).stdout);
    let line =
        |name: &str| list.lines().find(|l| l.contains(&format!(" {name} "))).expect("a line").to_owned();
    assert!(line("image-encoder-vit-h").starts_with("here ") && line("sd15").starts_with("- "), "{list}");
    machine.hub.asked();
    let json: Value =
        serde_json::from_slice(&machine.run(&["pull", "--list", "--json"]).stdout).expect("JSON");
    let rows = json["models"].as_array().expect("a list");
    assert!(rows.iter().all(|r| r["licence"].is_string() && r["page"].is_string()));
    assert_eq!(rows.iter().filter(|r| r["path"].is_string()).count(), 1);
    assert!(machine.hub.asked().is_empty(), "no network for a list");
}

#[test]
fn the_report_is_for_programs() {
    let machine = Machine::with_models();
    let report = |out: Output| -> Value { serde_json::from_slice(&out.stdout).expect("JSON") };
    let first = report(machine.run(&["pull", "ip-adapter-sd15", "--yes", "--json", "--quiet"]));
    let pulled = first["pulled"].as_array().expect("a list");
    assert_eq!(
        pulled.iter().map(|p| &p["name"]).collect::<Vec<_>>(),
        ["ip-adapter-sd15", "image-encoder-vit-h"]
    );
    assert!(Path::new(pulled[0]["path"].as_str().expect("a path")).is_file());
    assert_eq!(pulled[0]["files"][0]["fetched"], true);
    // Nothing to accept where nothing is fetched.
    let second = report(machine.run(&["pull", "ip-adapter-sd15", "--json"]));
    assert_eq!(second["pulled"][0]["fetched_bytes"], 0);
    let error = report(machine.run(&["pull", "sd51", "--json"]));
    assert_eq!(error["error"]["kind"], "request");
}

#[test]
fn each_fault_has_its_status() {
    let machine = Machine::with_models();
    refused(&machine.run(&["pull", "sd-15", "--yes"]), 2, &["did you mean sd15?"]);
    refused(&machine.run(&["pull", "sd15@nothing", "--yes"]), 3, &["no such revision"]);
    refused(&machine.run(&["pull", "sdxl-base", "--yes"]), 3, &["no such file or repository", "https://"]);
    machine.hub.fault("lora_weights.safetensors", Fault::Status(401, "GatedRepo"), 1);
    refused(&machine.run(&["pull", "lcm-lora-sd15", "--yes"]), 3, &["HF_TOKEN", "accept the licence"]);
    machine.hub.fault("lora_weights.safetensors", Fault::OtherBytes, 1);
    refused(&machine.run(&["pull", "lcm-lora-sd15", "--yes"]), 3, &["arrived damaged"]);
    let offline = machine.run_with(&["pull", "lcm-lora-sd15", "--yes"], &[("HF_HUB_OFFLINE", "1")]);
    refused(&offline, 3, &["HF_HUB_OFFLINE", "0 of the 1 files"]);
    let nowhere =
        machine.run_with(&["pull", "lcm-lora-sd15", "--yes"], &[("HF_ENDPOINT", "http://127.0.0.1:1")]);
    refused(&nowhere, 4, &["check the connection"]);
    done(&machine.run(&["pull", "lcm-lora-sd15", "--yes"]));
    done(&machine.run_with(&["pull", "lcm-lora-sd15"], &[("HF_HUB_OFFLINE", "1")]));
}

#[test]
fn fast_is_what_it_stands_for() {
    let machine = Machine::with_models();
    let run = |out: &str, more: &[&str]| {
        let latents = machine.at(out);
        let base = ["generate", "--model", "sd15", "--prompt", "a cat", "--width", "32", "--height", "32"];
        let files = ["--out", &machine.at("x.png"), "--save-latents", &latents, "--quiet"];
        machine.run(&[&base, more, &files].concat())
    };
    done(&machine.run(&["pull", "sd15", "--yes"]));
    refused(&run("a", &["--fast", "lcm"]), 3, &["instantstyle pull lcm-lora-sd15"]);
    refused(
        &run("a", &["--fast", "lightning-4"]),
        2,
        &["fast", "Stable Diffusion 1.5", "hyper-4, hyper-8, lcm"],
    );
    // A model that has the LoRA in it needs none.
    done(&run("merged", &["--fast", "lcm", "--lora", "lcm-lora-sd15", "--lora-weight", "0"]));
    done(&machine.run(&["pull", "lcm-lora-sd15", "--yes"]));
    done(&run("fast", &["--fast", "lcm"]));
    let settings = ["--steps", "4", "--guidance", "0", "--sampler", "lcm"];
    done(&run("alone", &settings));
    done(&run("settings", &[&settings[..], &["--lora", "lcm-lora-sd15"]].concat()));
    let bytes = |name: &str| std::fs::read(machine.at(name)).expect("latents");
    assert!(bytes("fast") == bytes("settings") && bytes("merged") == bytes("alone"));
    assert!(bytes("fast") != bytes("merged"), "the LoRA acts");
}

/// Python's own client, if there is one: it finds everything without asking anybody.
#[test]
fn huggingface_hub_finds_what_was_pulled() {
    let machine = Machine::with_models();
    done(&machine.run(&["pull", "sd15", "ip-adapter-sd15", "--yes"]));
    let script = "import huggingface_hub as h, sys\n\
        p = h.hf_hub_download('h94/IP-Adapter', 'models/ip-adapter_sd15.safetensors')\n\
        s = h.snapshot_download('stable-diffusion-v1-5/stable-diffusion-v1-5', allow_patterns=['unet/*'])\n\
        c = h.scan_cache_dir()\n\
        print(h.__version__, len(c.warnings), len(c.repos), open(p, 'rb').read(8).hex(), s)";
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let mut command = Command::new(python);
    command
        .env("HF_HOME", machine.home.path())
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_ENDPOINT", "http://127.0.0.1:1");
    command.env_remove("HF_HUB_CACHE").env_remove("HUGGINGFACE_HUB_CACHE");
    let out = match command.args(["-c", script]).output() {
        Ok(out) if !text(&out.stderr).contains("ModuleNotFoundError") => out,
        _ => {
            eprintln!("skipped: no Python with huggingface_hub (set PYTHON to one)");
            return;
        }
    };
    done(&out);
    let said = text(&out.stdout);
    let said: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(said[1..3], ["0", "2"], "no warnings, two repositories: {said:?}");
    assert_eq!(said[4].rsplit('/').next(), Some(COMMIT), "{said:?}");
}

#[test]
fn the_environment_says_where() {
    let machine = Machine::with_models();
    let there = machine.at("there");
    done(&machine.run_with(&["pull", "lcm-lora-sd15", "--yes"], &[("HF_HUB_CACHE", &there)]));
    assert!(Path::new(&there).join("models--latent-consistency--lcm-lora-sdv1-5/refs/main").is_file());
    let token = machine.run_with(&["pull", "lcm-lora-sd15", "--yes"], &[("HF_TOKEN", "hf_secret")]);
    done(&token);
    assert!(!text(&token.stderr).contains("hf_secret"));
    let asked = machine.hub.asked();
    assert!(asked.iter().any(|a| !a.storage && a.headers.contains_key("authorization")));
    assert!(asked.iter().all(|a| !a.storage || !a.headers.contains_key("authorization")));
}
