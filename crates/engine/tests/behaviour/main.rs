//! What the embedded model does, not only its shapes: pictures are painted and looked at by a judge that was trained
//! apart, on drawn pictures (`training/train.py judges`). The model's card has the figures over more pictures; here fewer
//! pictures must come near them, so that a fault in the engine that spoils pictures is found whatever the numbers say.

mod guided;
mod judge;

use instantstyle_engine::picture::Picture;
use instantstyle_engine::plan::Plan;
use instantstyle_engine::request::{Inject, Preset, Reference, Request};
use instantstyle_engine::{Event, Observer, embedded, generate};
use judge::Judge;
use serde_json::Value;

/// Steps of a picture, as in the card's figures.
const STEPS: usize = 12;
/// How many points below the card's figure of 500 pictures the figure of so much fewer may lie: three deviations of a
/// share of 90 % over 100 pictures.
const MARGIN: f64 = 9.0;

struct Quiet;

impl Observer for Quiet {
    fn event(&mut self, _: Event) {}
}

fn paint(prompt: &str, seed: u64, reference: Option<(&str, Preset)>) -> Picture {
    let mut request =
        Request { prompt: prompt.into(), seed: Some(seed), steps: Some(STEPS), ..Request::default() };
    if let Some((image, preset)) = reference {
        let mut reference = Reference::new(format!("embedded/{image}"));
        reference.inject = Inject::Preset(preset);
        request.references.push(reference);
    }
    let plan = Plan::resolve(&request).expect("a sound request");
    generate(&plan, &mut Quiet).expect("a picture").remove(0).picture
}

/// The names in a list of the card, in the judge's order.
fn names(card: &Value, list: &str) -> Vec<String> {
    let list = card[list].as_array().unwrap_or_else(|| panic!("{list} is not in the card"));
    list.iter().map(|v| v.as_str().expect("a name").to_owned()).collect()
}

fn place(names: &[String], name: &str) -> usize {
    names.iter().position(|n| n == name).unwrap_or_else(|| panic!("{name} is not in {names:?}"))
}

fn percent(share: usize, of: usize) -> f64 {
    100.0 * share as f64 / of as f64
}

#[test]
fn the_judge_answers_as_in_torch() {
    let (judge, card) = (Judge::open(), embedded::card());
    let (contents, styles) = (names(&card, "contents"), names(&card, "styles"));
    let references = card["demo"]["references"].as_array().expect("references");
    for r in references {
        let (content, style) =
            (r["content"].as_str().expect("a content"), r["style"].as_str().expect("a style"));
        let image = r["image"].as_str().expect("a path");
        let picture = Picture::decode(embedded::file(image).expect("in the program"), image).expect("a PNG");
        let seen = judge.look(&picture);
        let content = content.trim_start_matches("a ");
        for (got, what) in [(&seen.contents, "contents"), (&seen.style, "style")] {
            let d = testkit::distance(got, &judge.answer(style, content, what));
            assert!(d < 1e-4, "{image}: {what} differ by {d:.1e}");
        }
        assert_eq!(
            (seen.content(), seen.style()),
            (place(&contents, content), place(&styles, style)),
            "{image}"
        );
    }
    assert_eq!(references.len(), 6);
}

#[test]
fn prompts_that_name_content_and_style_get_both() {
    let (judge, card) = (Judge::open(), embedded::card());
    let (contents, styles) = (names(&card, "contents"), names(&card, "styles"));
    let (mut right_content, mut right_style, mut seen) = (0, 0, 0);
    for (c, content) in contents.iter().enumerate() {
        for (s, style) in styles.iter().enumerate() {
            let picture = paint(&format!("a {content}, in {style} style"), 100 + seen as u64, None);
            let look = judge.look(&picture);
            right_content += usize::from(look.content() == c);
            right_style += usize::from(look.style() == s);
            seen += 1;
        }
    }
    let (content, style) = (percent(right_content, seen), percent(right_style, seen));
    println!("named, {seen} pictures: content {content:.1} %, style {style:.1} %");
    let named = &card["figures"]["named"];
    for (what, got) in [("content", content), ("style", style)] {
        let figure = named[what].as_f64().expect("a figure");
        assert!(got >= figure - MARGIN, "{what}: {got:.1} %, the card says {figure} %");
    }
}

#[test]
fn style_injection_takes_the_style_and_leaves_the_content() {
    let (judge, card) = (Judge::open(), embedded::card());
    let (contents, styles) = (names(&card, "contents"), names(&card, "styles"));
    let mut rates = Vec::new();
    for preset in [Preset::Style, Preset::All] {
        let (mut right_content, mut right_style, mut leaks, mut seen) = (0, 0, 0, 0);
        for r in card["demo"]["references"].as_array().expect("references") {
            let shown = place(&contents, r["content"].as_str().expect("a content").trim_start_matches("a "));
            let style = place(&styles, r["style"].as_str().expect("a style"));
            for (c, content) in contents.iter().enumerate().filter(|(c, _)| *c != shown) {
                let image = r["image"].as_str().expect("a path");
                let look =
                    judge.look(&paint(&format!("a {content}"), 300 + seen as u64, Some((image, preset))));
                right_content += usize::from(look.content() == c);
                right_style += usize::from(look.style() == style);
                leaks += usize::from(look.shows(shown));
                seen += 1;
            }
        }
        rates.push([right_content, right_style, leaks].map(|n| percent(n, seen)));
        println!(
            "{preset:?}, {seen} pictures: [content, style, leak] {:.1?} %",
            rates.last().expect("pushed")
        );
    }
    // The plain adapter brings the reference's content along, style injection does not: what the method is for.
    let ([content, style, leak], [_, _, plain]) = (rates[0], rates[1]);
    assert!(leak * 3.0 < plain, "style injection leaks {leak:.1} %, the plain adapter {plain:.1} %");
    let figures = &card["figures"]["reference"]["style"];
    for (what, got) in [("content", content), ("style", style)] {
        let figure = figures[what].as_f64().expect("a figure");
        // Six references only: what one of them does counts for much.
        assert!(got >= figure - 2.0 * MARGIN, "{what}: {got:.1} %, the card says {figure} %");
    }
    let figure = figures["leak"].as_f64().expect("a figure");
    assert!(leak <= figure + MARGIN, "leaks {leak:.1} %, the card says {figure} %");
}
