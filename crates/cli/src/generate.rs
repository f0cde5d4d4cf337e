//! `instantstyle generate`.

use crate::output::{self, Files};
use crate::progress::Progress;
use crate::{overrides, print, shown};
use clap::ArgMatches;
use instantstyle_engine::memory::{self, MemoryPlan};
use instantstyle_engine::picture::encode_png;
use instantstyle_engine::plan::Plan;
use instantstyle_engine::preview::Previews;
use instantstyle_engine::request::{PNG_KEYWORD, Request};
use instantstyle_engine::{Error, Output, Timings, generate_timed, parameters};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Runs the subcommand.
pub fn run(arguments: &ArgMatches, stop: Arc<AtomicBool>) -> Result<(), Error> {
    let plan = Plan::resolve_within(&request(arguments)?, memory_bytes(arguments)?)?;
    let preview: Option<&PathBuf> = arguments.get_one("preview");
    let previews = previews(arguments, preview.is_some())?;
    if arguments.get_flag("dry-run") {
        let memory = MemoryPlan::of(&plan, previews.as_ref())?;
        let text = if arguments.get_flag("json") {
            let mut json = plan.to_json();
            json["memory"] = memory.to_json();
            format!("{json:#}\n")
        } else {
            format!("{plan}{memory}")
        };
        return print(text.as_bytes());
    }
    let out: &PathBuf = arguments.get_one("out").expect("has a default");
    let latents: Option<&PathBuf> = arguments.get_one("save-latents");
    let pictures = output::names(out, plan.count());
    let maps = map_names(&plan, arguments.get_one("save-control-maps"))?;
    output::check_format("--out", out)?;
    let groups = [
        ("--out", &pictures[..]),
        ("--save-latents", latents.map_or(&[], std::slice::from_ref)),
        ("--save-control-maps", &maps[..]),
        ("--preview", preview.map_or(&[], std::slice::from_ref)),
    ];
    check(&plan, &groups)?;

    let mut progress = Progress::new(arguments.get_flag("quiet"), stop.clone());
    if let (Some(file), Some(previews)) = (preview, previews) {
        progress.preview(file.clone(), previews);
    }
    let (outputs, timings) = generate_timed(&plan, &mut progress)?;
    let calls_s = progress.calls_s().to_vec();
    let seen = progress.take_maps();
    drop(progress);
    let mut files = Files::default();
    for (i, (output, file)) in outputs.iter().zip(&pictures).enumerate() {
        files.add(file, &png(&plan, i, output)?)?;
    }
    if let Some(file) = latents {
        files.add(file, &latents_of(&outputs))?;
    }
    for (map, file) in seen.iter().zip(&maps) {
        files.add(file, &encode_png(map, &[]))?;
    }
    if stop.load(Ordering::Relaxed) {
        return Err(Error::Cancelled);
    }
    files.finish()?;

    if arguments.get_flag("json") {
        return print(
            format!("{:#}\n", report(&plan, &outputs, &pictures, latents, &timings, &calls_s)).as_bytes(),
        );
    }
    print(pictures.iter().map(|f| format!("{}\n", f.display())).collect::<String>().as_bytes())
}

/// Which previews are wanted.
fn previews(arguments: &ArgMatches, wanted: bool) -> Result<Option<Previews>, Error> {
    let given = ["preview-every", "preview-decoder"].iter().find(|n| arguments.contains_id(n));
    match given {
        Some(name) if !wanted => {
            Err(Error::request(format!("--{name}"), "belongs to --preview FILE; give that, too"))
        }
        _ => Ok(wanted.then(|| Previews {
            every: arguments.get_one::<u16>("preview-every").map_or(1, |n| usize::from(*n)),
            decoder: arguments.get_one::<PathBuf>("preview-decoder").cloned(),
        })),
    }
}

/// What may be taken: the flag, or what is free. None is not to be checked.
fn memory_bytes(arguments: &ArgMatches) -> Result<Option<u64>, Error> {
    match arguments.get_one::<f64>("memory-gib") {
        None => Ok(memory::available_bytes()),
        Some(0.0) => Ok(None),
        Some(gib) if *gib > 0.0 && *gib < 1e6 => Ok(Some((gib * f64::from(1 << 30)) as u64)),
        Some(gib) => Err(Error::request(
            "--memory-gib",
            format!("is {gib}, expected a number of GiB from 0, e.g. 6.5"),
        )),
    }
}

/// The job, if one is given, with the flags over it.
fn request(arguments: &ArgMatches) -> Result<Request, Error> {
    let here = std::env::current_dir().map_err(|e| Error::Machine(format!("the current folder: {e}")))?;
    let mut fields = Map::new();
    if let Some(job) = arguments.get_one::<PathBuf>("job") {
        // Its paths are absolute from here on.
        let job =
            serde_json::to_value(Request::from_file(job)?).map_err(|e| Error::Internal(e.to_string()))?;
        if let Value::Object(job) = job {
            fields = job;
        }
    }
    overrides::apply(arguments, &mut fields)?;
    Request::from_json(&Value::Object(fields).to_string(), &here)
}

/// The files of the ControlNets' maps; none where they are not asked for.
fn map_names(plan: &Plan, file: Option<&PathBuf>) -> Result<Vec<PathBuf>, Error> {
    let Some(file) = file else { return Ok(Vec::new()) };
    match plan.request().controls.len() {
        0 => Err(Error::request("--save-control-maps", "needs a ControlNet; give one with --control")),
        n => {
            output::check_format("--save-control-maps", file)?;
            Ok(output::names(file, n))
        }
    }
}

/// What would go wrong only after the work: the files that each flag writes.
fn check(plan: &Plan, groups: &[(&str, &[PathBuf])]) -> Result<(), Error> {
    groups.iter().flat_map(|g| g.1).try_for_each(|f| output::check(f))?;
    let real =
        |p: &Path| p.canonicalize().or_else(|_| std::path::absolute(p)).unwrap_or_else(|_| p.to_owned());
    let inputs: Vec<PathBuf> = inputs(plan.request()).filter(|p| p.is_file()).map(|p| real(p)).collect();
    let mut written: Vec<(&str, PathBuf)> = Vec::new();
    for (flag, file) in groups.iter().flat_map(|(flag, files)| files.iter().map(move |f| (*flag, f))) {
        let file = real(file);
        if let Some((other, _)) = written.iter().find(|(_, w)| *w == file) {
            return Err(Error::request(flag, format!("is the same file as {other}; give it another name")));
        }
        if inputs.contains(&file) {
            let message =
                format!("would overwrite {}, which the request reads; give it another name", file.display());
            return Err(Error::request(flag, message));
        }
        written.push((flag, file));
    }
    Ok(())
}

/// The files that a request names.
fn inputs(request: &Request) -> impl Iterator<Item = &PathBuf> {
    let references = request.references.iter();
    let references =
        references.flat_map(|r| [Some(&r.image), r.mask.as_ref(), r.adapter.as_ref()].into_iter().flatten());
    let controls = request.controls.iter().flat_map(|c| {
        let networks = [&c.preprocess_model, &c.preprocess_detector].into_iter().flatten();
        [&c.image, &c.model].into_iter().chain(networks)
    });
    let init = request.init.iter().flat_map(|i| [Some(&i.image), i.mask.as_ref()].into_iter().flatten());
    let loras = request.loras.iter().map(|l| &l.file);
    references.chain(controls).chain(init).chain(loras).chain(&request.vae)
}

/// The file of picture `i`: it carries the request that makes it again.
pub fn png(plan: &Plan, i: usize, output: &Output) -> Result<Vec<u8>, Error> {
    let request = plan.request_of(i);
    let json = serde_json::to_string(&request).map_err(|e| Error::Internal(e.to_string()))?;
    let sampler = plan.to_json()["sampler"].as_str().unwrap_or_default().to_owned();
    let text = parameters::a1111(&request, &plan.model_title(), &sampler);
    Ok(encode_png(&output.picture, &[("parameters", &text), (PNG_KEYWORD, &json)]))
}

fn latents_of(outputs: &[Output]) -> Vec<u8> {
    let [c, h, w] = outputs.first().map_or([0; 3], |o| o.latents_shape);
    let values: Vec<f32> = outputs.iter().flat_map(|o| o.latents.iter().copied()).collect();
    instantstyle_engine::to_safetensors(&[("latents", &[outputs.len(), c, h, w], &values)])
}

fn report(
    plan: &Plan,
    outputs: &[Output],
    pictures: &[PathBuf],
    latents: Option<&PathBuf>,
    t: &Timings,
    calls_s: &[f64],
) -> Value {
    let pictures: Vec<Value> =
        outputs.iter().zip(pictures).map(|(o, f)| json!({ "path": shown(f), "seed": o.seed })).collect();
    let total = t.encode_s + t.prepare_s + t.denoise_s + t.decode_s;
    json!({
        "pictures": pictures,
        "latents": latents.map(|l| shown(l)),
        "seconds": {
            "encode": t.encode_s, "prepare": t.prepare_s, "denoise": t.denoise_s, "decode": t.decode_s, "total": total,
            "calls": calls_s,
        },
        "plan": plan.to_json(),
    })
}
