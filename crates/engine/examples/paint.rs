//! A sentence in a picture's style, by the model inside the library:
//! `cargo run --release -p instantstyle-engine --example paint -- "a red house" style.png out.png`

use instantstyle_engine::picture::encode_png;
use instantstyle_engine::plan::Plan;
use instantstyle_engine::request::{Reference, Request};
use instantstyle_engine::{Error, Event, Observer, generate};

/// Says where it is; never stops the work.
struct Said;

impl Observer for Said {
    fn event(&mut self, event: Event) {
        match event {
            Event::Stage(stage) => eprintln!("{stage} …"),
            Event::Notice(notice) => eprintln!("note: {notice}"),
            _ => {}
        }
    }
}

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [prompt, style, out] = arguments.as_slice() else {
        eprintln!("paint PROMPT STYLE.png OUT.png");
        return Ok(());
    };
    let style = std::path::absolute(style).map_err(|e| Error::file(style, e.to_string()))?;
    let request = Request {
        prompt: prompt.clone(),
        seed: Some(7),
        references: vec![Reference::new(style)],
        ..Request::default()
    };
    let plan = Plan::resolve(&request)?;
    for output in generate(&plan, &mut Said)? {
        std::fs::write(out, encode_png(&output.picture, &[])).map_err(|e| Error::file(out, e.to_string()))?;
    }
    Ok(())
}
