//! `instantstyle generate`.

use crate::flags;
use crate::output;
use crate::progress::Progress;
use clap::ArgMatches;
use instantstyle_engine::picture::{write_atomic, write_png};
use instantstyle_engine::plan::Plan;
use instantstyle_engine::request::Request;
use instantstyle_engine::{Error, Output, Timings, generate_timed, parameters};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Runs the subcommand.
pub fn run(arguments: &ArgMatches, stop: Arc<AtomicBool>) -> Result<(), Error> {
    let plan = Plan::resolve(&request(arguments)?)?;
    if arguments.get_flag("dry-run") {
        let text =
            if arguments.get_flag("json") { format!("{:#}\n", plan.to_json()) } else { plan.to_string() };
        return crate::print(text.as_bytes());
    }
    let out: &PathBuf = arguments.get_one("out").expect("has a default");
    let files = output::names(out, plan.count());
    files.iter().try_for_each(|f| output::check(f))?;
    let latents: Option<&PathBuf> = arguments.get_one("save-latents");
    latents.map_or(Ok(()), |f| output::check(f))?;

    let mut progress = Progress::new(arguments.get_flag("quiet"), stop);
    let (outputs, timings) = generate_timed(&plan, &mut progress)?;
    drop(progress);
    for (i, (output, file)) in outputs.iter().zip(&files).enumerate() {
        write(&plan, i, output, file)?;
    }
    if let Some(file) = latents {
        save_latents(&outputs, file)?;
    }
    if arguments.get_flag("json") {
        return crate::print(
            format!("{:#}\n", report(&plan, &outputs, &files, latents, &timings)).as_bytes(),
        );
    }
    let lines: String = files.iter().map(|f| format!("{}\n", f.display())).collect();
    crate::print(lines.as_bytes())
}

/// The job, if one is given, with the flags over it.
fn request(arguments: &ArgMatches) -> Result<Request, Error> {
    let here = std::env::current_dir().map_err(|e| Error::Machine(format!("the current folder: {e}")))?;
    let mut fields = Map::new();
    if let Some(job) = arguments.get_one::<PathBuf>("job") {
        let job =
            serde_json::to_value(Request::from_file(job)?).map_err(|e| Error::Internal(e.to_string()))?;
        if let Value::Object(job) = job {
            fields = job;
        }
    }
    flags::apply(arguments, &mut fields);
    Request::from_json(&Value::Object(fields).to_string(), &here)
}

/// Writes a picture with the request that made it.
pub fn write(plan: &Plan, i: usize, output: &Output, file: &Path) -> Result<(), Error> {
    let request = plan.request_of(i);
    let json = serde_json::to_string(&request).map_err(|e| Error::Internal(e.to_string()))?;
    let text = parameters::a1111(&request, &plan.model_title());
    Ok(write_png(file, &output.picture, &[("parameters", &text), ("instantstyle", &json)])?)
}

fn save_latents(outputs: &[Output], file: &Path) -> Result<(), Error> {
    let [c, h, w] = outputs.first().map_or([0; 3], |o| o.latents_shape);
    let values: Vec<f32> = outputs.iter().flat_map(|o| o.latents.iter().copied()).collect();
    let shape = [outputs.len(), c, h, w];
    let bytes = instantstyle_engine::to_safetensors(&[("latents", &shape, &values)]);
    Ok(write_atomic(file, &bytes)?)
}

fn report(
    plan: &Plan,
    outputs: &[Output],
    files: &[PathBuf],
    latents: Option<&PathBuf>,
    t: &Timings,
) -> Value {
    let pictures: Vec<Value> =
        outputs.iter().zip(files).map(|(o, f)| json!({ "path": f, "seed": o.seed })).collect();
    json!({
        "pictures": pictures,
        "latents": latents,
        "seconds": { "encode": t.encode_s, "prepare": t.prepare_s, "denoise": t.denoise_s, "decode": t.decode_s },
        "plan": plan.to_json(),
    })
}
