//! What the embedded companions do (`training/guided.py`): the canny Control-LoRA, the LoRAs, and repainting with the ordinary UNet.
//! `models/embedded/guided.json` has the figures over more pictures of the same series, seeds 5000 and on for the control, 6000 for
//! repainting, 7000 for LoRAs: `PICTURES=60 cargo test --release -p instantstyle-engine --test behaviour guided -- --nocapture`.

use super::judge::Judge;
use super::{Quiet, names, percent, place};
use instantstyle_engine::control::{MAPS, edges_kept};
use instantstyle_engine::picture::Picture;
use instantstyle_engine::plan::Plan;
use instantstyle_engine::request::{Control, Init, Inject, LoraBlocks, LoraUse, Preset, Reference, Request};
use instantstyle_engine::{embedded, generate};
use serde_json::Value;

/// Of every picture here, whatever the model's card sets for others.
const STEPS: usize = 12;
const GUIDANCE: f64 = 2.0;

/// What a series of pictures is judged by.
struct Series {
    judge: Judge,
    card: Value,
    figures: Value,
    contents: Vec<String>,
    styles: Vec<String>,
    pictures: usize,
}

impl Series {
    fn new() -> Self {
        let card = embedded::card();
        let figures = embedded::file("guided.json").expect("in the program");
        let asked = std::env::var("PICTURES").ok().and_then(|n| n.parse().ok());
        Series {
            judge: Judge::open(),
            contents: names(&card, "contents"),
            styles: names(&card, "styles"),
            figures: serde_json::from_slice(figures).expect("JSON"),
            card,
            pictures: asked.unwrap_or(12),
        }
    }

    /// Content `i` of the series.
    fn content(&self, i: usize) -> &str {
        &self.contents[i % self.contents.len()]
    }

    /// Prints rates and holds them to the figures: not lower than by three deviations of a share over so many pictures.
    fn at_least(&self, series: &str, rates: &[(&str, f64)]) {
        println!("{series}, {} pictures: {rates:.1?} %", self.pictures);
        for (what, got) in rates {
            let figure =
                self.figures[series][*what].as_f64().unwrap_or_else(|| panic!("{series}: no {what}"));
            let share = (figure / 100.0).clamp(0.05, 0.95);
            let margin = 300.0 * (share * (1.0 - share) / self.pictures as f64).sqrt();
            assert!(*got >= figure - margin, "{series}, {what}: {got:.1}, the figure is {figure}");
        }
    }
}

fn paint(prompt: &str, seed: usize, change: impl FnOnce(&mut Request)) -> Picture {
    let mut request = Request {
        prompt: prompt.into(),
        seed: Some(seed as u64),
        steps: Some(STEPS),
        guidance: Some(GUIDANCE),
        ..Request::default()
    };
    change(&mut request);
    let plan = Plan::resolve(&request).expect("a sound request");
    generate(&plan, &mut Quiet).expect("a picture").remove(0).picture
}

fn inside(path: &str) -> Picture {
    Picture::decode(embedded::file(path).expect("in the program"), path).expect("a PNG")
}

#[test]
fn a_drawing_is_restyled_with_its_edges_kept() {
    let s = Series::new();
    let references = s.card["demo"]["references"].as_array().expect("references");
    let canny = MAPS.iter().find(|m| m.name == "canny").expect("a row");
    let (mut kept, mut content, mut style) = ([0.0; 2], [0; 2], [0; 2]);
    for i in 0..s.pictures {
        let drawing = format!("drawings/{}.png", s.content(i));
        let mut control = Control::new("embedded/controls/canny.safetensors", format!("embedded/{drawing}"));
        control.preprocess = "canny".into();
        let map = canny.make.map(&inside(&drawing), &control).expect("made here");
        let r = &references[i % references.len()];
        let image = format!("embedded/{}", r["image"].as_str().expect("a path"));
        let wanted = place(&s.styles, r["style"].as_str().expect("a style"));
        for (n, controlled) in [true, false].into_iter().enumerate() {
            let picture = paint(&format!("a {}", s.content(i)), 5000 + i, |request| {
                let mut reference = Reference::new(&image);
                reference.inject = Inject::Preset(Preset::Style);
                request.references.push(reference);
                request.controls.extend(controlled.then(|| control.clone()));
            });
            let look = s.judge.look(&picture);
            kept[n] += 100.0 * edges_kept(&map, &picture, 2) / s.pictures as f64;
            content[n] += usize::from(look.content() == i % s.contents.len());
            style[n] += usize::from(look.style() == wanted);
        }
    }
    let of = |count: usize| percent(count, s.pictures);
    println!(
        "without control: edges {:.1}, content {:.1}, style {:.1}",
        kept[1],
        of(content[1]),
        of(style[1])
    );
    s.at_least("control", &[("edges", kept[0]), ("content", of(content[0])), ("style", of(style[0]))]);
    assert!(kept[0] > kept[1] + 15.0, "{kept:?}");
}

#[test]
fn half_of_a_drawing_is_repainted_and_the_rest_untouched() {
    let s = Series::new();
    let mask = inside("drawings/mask-right.png");
    let (mut new, mut old, mut gone) = (0, 0, 0);
    for i in 0..s.pictures {
        // Pairs of a content and the third after it; in its place another.
        let (left, right) = (2 * (i % 5), (2 * (i % 5) + 3) % 10);
        let other = (0..10).filter(|c| *c != left && *c != right).cycle().nth(i * 3).expect("endless");
        let drawing = format!("drawings/{}-and-{}.png", s.contents[left], s.contents[right]);
        let prompt = format!("a {} and a {}, in flat style", s.contents[left], s.contents[other]);
        let picture = paint(&prompt, 6000 + i, |request| {
            request.init = Some(Init {
                image: format!("embedded/{drawing}").into(),
                mask: Some("embedded/drawings/mask-right.png".into()),
                strength: None,
                blend_px: Some(2.0),
            });
        });
        let before = inside(&drawing);
        for (n, (now, then)) in picture.rgb.iter().zip(&before.rgb).enumerate() {
            assert!(mask.rgb[n] > 0 || now == then, "{drawing}: value {n} outside the mask has changed");
        }
        let look = s.judge.look(&picture);
        new += usize::from(look.shows(other));
        old += usize::from(look.shows(left));
        gone += usize::from(!look.shows(right));
    }
    let of = |count: usize| percent(count, s.pictures);
    s.at_least("inpainting", &[("new", of(new)), ("kept", of(old)), ("gone", of(gone))]);
}

/// How often a series of pictures shows what.
#[derive(Clone, Copy)]
struct Rates {
    /// The prompt's content.
    content: f64,
    /// The look of the style LoRA, that of the B-LoRAs' picture, and neon.
    styles: [f64; 3],
    /// The content of the B-LoRAs' picture, where the prompt names another or none.
    shown: f64,
}

impl Series {
    fn style(&self, lora: &str) -> usize {
        place(&self.styles, self.figures["loras"][lora]["style"].as_str().expect("a style"))
    }

    fn lora(&self, name: &str, blocks: LoraBlocks) -> Option<LoraUse> {
        let file = self.figures["loras"][name]["file"].as_str().expect("a file");
        Some(LoraUse { file: format!("embedded/loras/{file}").into(), weight: 1.0, blocks })
    }

    /// Pictures with a LoRA; of prompts that name a content, or a style alone.
    fn with(&self, lora: Option<LoraUse>, named: bool) -> Rates {
        let shown = self.figures["loras"]["parts"]["content"].as_str().expect("a content");
        let shown = place(&self.contents, shown);
        let styles = [self.style("look"), self.style("parts"), place(&self.styles, "neon")];
        let (mut content, mut styled, mut leaked, mut others) = (0, [0; 3], 0, 0);
        for i in 0..self.pictures {
            let prompt =
                if named { format!("a {}", self.content(i)) } else { "a picture, in neon style".into() };
            let picture = paint(&prompt, 7000 + i, |request| request.loras.extend(lora.clone()));
            let look = self.judge.look(&picture);
            content += usize::from(look.content() == i % self.contents.len());
            styled.iter_mut().zip(styles).for_each(|(n, style)| *n += usize::from(look.style() == style));
            if !named || i % self.contents.len() != shown {
                others += 1;
                leaked += usize::from(look.content() == shown);
            }
        }
        Rates {
            content: percent(content, self.pictures),
            styles: styled.map(|n| percent(n, self.pictures)),
            shown: percent(leaked, others),
        }
    }
}

#[test]
fn a_lora_brings_a_look_that_the_prompt_does_not_name() {
    let s = Series::new();
    let (with, without) = (s.with(s.lora("look", LoraBlocks::All), true), s.with(None, true));
    println!("without a LoRA: {:.1} %", without.styles[0]);
    s.at_least("look", &[("content", with.content), ("style", with.styles[0])]);
    assert!(without.styles[0] < 30.0);
}

#[test]
fn b_loras_bring_style_or_content() {
    let s = Series::new();
    let style = s.with(s.lora("parts", LoraBlocks::Style), true);
    println!("the style's part: the picture's content in {:.1} %", style.shown);
    s.at_least("style part", &[("content", style.content), ("style", style.styles[1])]);
    assert!(style.shown <= 15.0);
    let (with, without) = (s.with(s.lora("parts", LoraBlocks::Content), false), s.with(None, false));
    println!("without the content's part: {:.1} %", without.shown);
    s.at_least("content part", &[("content", with.shown), ("style", with.styles[2])]);
    // The look comes from the prompt: nothing of the picture's.
    assert!(without.shown < 30.0 && with.styles[1] <= 15.0);
}
