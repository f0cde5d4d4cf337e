//! Progress on standard error: a bar with an estimate on a terminal, plain lines elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use instantstyle_engine::{Event, Observer};
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Shows one request's progress and passes Ctrl-C on.
pub struct Progress {
    bar: ProgressBar,
    quiet: bool,
    terminal: bool,
    stop: Arc<AtomicBool>,
    /// Progress that others show; only notices are printed.
    silent_steps: bool,
}

impl Progress {
    /// Progress of one request.
    pub fn new(quiet: bool, stop: Arc<AtomicBool>) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = if quiet || !terminal { ProgressBar::hidden() } else { ProgressBar::new(0) };
        let style = ProgressStyle::with_template("{msg:12} [{bar:40}] {pos}/{len} {elapsed} < {eta}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
        Progress { bar, quiet, terminal, stop, silent_steps: false }
    }

    /// Without steps and stages: a caller shows the progress of a whole series.
    pub fn inner(stop: Arc<AtomicBool>) -> Self {
        let mut progress = Progress::new(false, stop);
        progress.silent_steps = true;
        progress
    }
}

impl Observer for Progress {
    fn event(&mut self, event: Event) {
        match event {
            Event::Notice(text) if !self.quiet => self.bar.suspend(|| eprintln!("note: {text}")),
            _ if self.silent_steps || self.quiet => {}
            Event::Stage(stage) => {
                self.bar.set_message(stage.to_owned());
                if !self.terminal {
                    eprintln!("{stage} …");
                }
            }
            Event::Step { picture, pictures, step, steps } => {
                self.bar.set_length((pictures * steps) as u64);
                self.bar.set_position((picture * steps + step) as u64);
                if !self.terminal && step == steps {
                    eprintln!(
                        "picture {} of {pictures}: {steps} steps in {:.1} s",
                        picture + 1,
                        self.bar.elapsed().as_secs_f64()
                    );
                }
            }
            Event::Notice(_) => {}
        }
    }

    fn cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
