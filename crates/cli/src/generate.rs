//! `instantstyle generate`.

use crate::output::{self, Files};
use crate::progress::Progress;
use crate::{overrides, print, shown};
use clap::ArgMatches;
use instantstyle_engine::memory::{self, MemoryPlan};
use instantstyle_engine::picture::encode_png;
use instantstyle_engine::plan::Plan;
use instantstyle_engine::request::{PNG_KEYWORD, Request};
use instantstyle_engine::{Error, Output, Timings, generate_timed, parameters};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Runs the subcommand.
pub fn run(arguments: &ArgMatches, stop: Arc<AtomicBool>) -> Result<(), Error> {
    let plan = Plan::resolve_within(&request(arguments)?, memory_bytes(arguments)?)?;
    if arguments.get_flag("dry-run") {
        let memory = MemoryPlan::of(&plan)?;
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
    check(&plan, out, &pictures, latents)?;

    let mut progress = Progress::new(arguments.get_flag("quiet"), stop.clone());
    let (outputs, timings) = generate_timed(&plan, &mut progress)?;
    let calls_s = progress.calls_s().to_vec();
    drop(progress);
    let mut files = Files::default();
    for (i, (output, file)) in outputs.iter().zip(&pictures).enumerate() {
        files.add(file, &png(&plan, i, output)?)?;
    }
    if let Some(file) = latents {
        files.add(file, &latents_of(&outputs))?;
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

/// What would go wrong only after the work.
fn check(plan: &Plan, out: &Path, pictures: &[PathBuf], latents: Option<&PathBuf>) -> Result<(), Error> {
    output::check_format(out)?;
    pictures.iter().chain(latents).try_for_each(|f| output::check(f))?;
    let real =
        |p: &Path| p.canonicalize().or_else(|_| std::path::absolute(p)).unwrap_or_else(|_| p.to_owned());
    let written: Vec<PathBuf> = pictures.iter().map(|p| real(p)).collect();
    if latents.is_some_and(|l| written.contains(&real(l))) {
        return Err(Error::request("--save-latents", "is the same file as --out; give it another name"));
    }
    for r in &plan.request().references {
        let mut inputs = [Some(&r.image), r.mask.as_ref(), r.adapter.as_ref()].into_iter().flatten();
        if let Some(input) =
            inputs.find(|p| p.is_file() && written.iter().chain(latents).any(|w| real(w) == real(p)))
        {
            let message =
                format!("would overwrite {}, which the request reads; give it another name", input.display());
            return Err(Error::request("--out", message));
        }
    }
    Ok(())
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
