//! Progress on standard error: a bar with an estimate on a terminal, plain lines elsewhere.

use crate::output::Files;
use crate::say;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use instantstyle_engine::picture::{Picture, encode_png};
use instantstyle_engine::preview::Previews;
use instantstyle_engine::{Event, Observer};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Between two plain lines.
const EVERY: Duration = Duration::from_secs(10);

/// Shows one request's progress and passes Ctrl-C on.
pub struct Progress {
    bar: ProgressBar,
    quiet: bool,
    /// No terminal: lines instead of a bar.
    lines: bool,
    stop: Arc<AtomicBool>,
    /// Since denoising began, and of the last line.
    since: Instant,
    last: Instant,
    /// Since the last model call, and the seconds of every call.
    lap: Instant,
    calls_s: Vec<f64>,
    /// Where previews go, and which are wanted.
    preview: Option<(PathBuf, Previews)>,
    /// What ControlNets saw.
    maps: Vec<Picture>,
}

impl Progress {
    /// Progress of one request.
    pub fn new(quiet: bool, stop: Arc<AtomicBool>) -> Self {
        let lines = !std::io::stderr().is_terminal();
        let bar = bar(quiet || lines, 0, "{msg:10} [{bar:40}] {pos}/{len} {elapsed} < {eta}");
        let mut progress = Progress::inner(&bar, stop);
        progress.quiet = quiet;
        progress.lines = lines && !quiet;
        progress
    }

    /// Where a caller shows the progress of a whole series: only passes Ctrl-C on.
    pub fn inner(series: &ProgressBar, stop: Arc<AtomicBool>) -> Self {
        Progress {
            bar: series.clone(),
            quiet: true,
            lines: false,
            stop,
            since: Instant::now(),
            last: Instant::now(),
            lap: Instant::now(),
            calls_s: Vec::new(),
            preview: None,
            maps: Vec::new(),
        }
    }

    /// The maps that ControlNets saw, once they are made.
    pub fn take_maps(&mut self) -> Vec<Picture> {
        std::mem::take(&mut self.maps)
    }

    /// Writes previews to a file, which is whole at any time.
    pub fn preview(&mut self, file: PathBuf, wanted: Previews) {
        self.preview = Some((file, wanted));
    }

    /// One that cannot be written is no reason to stop: it says so once.
    fn write_preview(&mut self, picture: &Picture) {
        let Some((file, _)) = &self.preview else { return };
        let mut files = Files::default();
        if let Err(e) = files.add(file, &encode_png(picture, &[])).and_then(|()| files.finish()) {
            self.bar.suspend(|| say(&format!("note: no more previews: {e}")));
            self.preview = None;
        }
    }

    /// Seconds of each model call so far, the first with what is done once in it.
    pub fn calls_s(&self) -> &[f64] {
        &self.calls_s
    }

    fn step(&mut self, done: usize, all: usize, what: String) {
        self.bar.set_length(all as u64);
        self.bar.set_position(done as u64);
        if self.lines && (done == all || self.last.elapsed() >= EVERY) {
            self.last = Instant::now();
            let seconds = self.since.elapsed().as_secs_f64();
            let left = seconds / done as f64 * (all - done) as f64;
            let left = if done == all { String::new() } else { format!(", {left:.0} s left") };
            say(&format!("{what}, {seconds:.1} s{left}"));
        }
    }
}

/// A bar in the program's style.
pub fn bar(hidden: bool, length: u64, template: &str) -> ProgressBar {
    let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(length), target).with_style(style.progress_chars("=> "))
}

impl Observer for Progress {
    fn event(&mut self, event: Event) {
        match event {
            Event::Stage(_) => self.lap = Instant::now(),
            Event::Step { .. } => {
                self.calls_s.push(self.lap.elapsed().as_secs_f64());
                self.lap = Instant::now();
            }
            Event::Preview(picture) => self.write_preview(picture),
            Event::Maps(maps) => self.maps = maps.to_vec(),
            Event::Notice(_) => {}
        }
        if self.quiet {
            return;
        }
        match event {
            Event::Preview(_) | Event::Maps(_) => {}
            Event::Notice(text) => self.bar.suspend(|| say(&format!("note: {text}"))),
            Event::Stage(stage) => {
                self.bar.set_message(stage.to_owned());
                self.bar.reset_eta();
                (self.since, self.last) = (Instant::now(), Instant::now());
                if self.lines {
                    say(&format!("{stage} …"));
                }
            }
            Event::Step { picture, pictures, step, steps } => {
                let what = format!("picture {} of {pictures}, step {step} of {steps}", picture + 1);
                self.step(picture * steps + step, pictures * steps, what);
            }
        }
    }

    fn previews(&self) -> Option<Previews> {
        self.preview.as_ref().map(|(_, wanted)| wanted.clone())
    }

    fn cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if !self.quiet {
            self.bar.finish_and_clear();
        }
    }
}
