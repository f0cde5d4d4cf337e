//! The demo's rows that start from a drawing, and those of LoRAs: what is kept of the drawing is measured and written beside.

use super::{Script, column, inside};
use crate::sheet::{Column, Part, Row};
use instantstyle_engine::Error;
use instantstyle_engine::control::{MAPS, edges_kept};
use instantstyle_engine::picture::Picture;
use instantstyle_engine::request::{Control, Init, Inject, LoraBlocks, LoraUse, Preset, Reference, Request};
use std::path::Path;

/// As of the figures in `guided.json`: more brings looks nearer to each other.
const GUIDANCE: f64 = 2.0;
/// Edges count as kept within so many pixels.
const REACH_PX: usize = 2;
/// The drawing that is restyled, and what it shows.
const DRAWING: (&str, &str) = ("drawings/tree.png", "a tree");
/// The drawing of which the right half is repainted, and what is to be there.
const PAIR: (&str, &str) = ("drawings/house-and-flower.png", "drawings/mask-right.png");
const REPAINTED: [&str; 3] = ["star", "heart", "moon"];
const LORAS: [(&str, &str, LoraBlocks, &str, &str); 3] = [
    ("lora", "woodcut", LoraBlocks::All, "LoRA", "a look that the prompt does not name"),
    ("b-lora-style", "flower-hatching", LoraBlocks::Style, "B-LoRA", "the style's block only"),
    (
        "b-lora-content",
        "flower-hatching",
        LoraBlocks::Content,
        "B-LoRA",
        "the content's block only, \"a picture\"",
    ),
];
/// What the B-LoRAs learnt.
const LEARNT: &str = "references/hatching-flower.png";

/// Paints a request under the name of its file.
type Paint<'a> = dyn FnMut(&str, &Request) -> Result<Picture, Error> + 'a;

/// How many pictures are painted.
pub(super) fn pictures(script: &Script) -> usize {
    script.shown.len() + REPAINTED.len() + LORAS.len()
}

/// Paints the rows.
pub(super) fn parts(script: &Script, paint: &mut Paint) -> Result<Vec<Part>, Error> {
    Ok(vec![restyled(script, paint)?, repainted(script, paint)?, loras(script, paint)?])
}

fn request(script: &Script, prompt: String) -> Request {
    Request { guidance: Some(GUIDANCE), ..super::plain(script, prompt) }
}

fn embedded(path: &str) -> std::path::PathBuf {
    Path::new("embedded").join(path)
}

/// A drawing in the style of each reference, its edges kept by a ControlNet.
fn restyled(script: &Script, paint: &mut Paint) -> Result<Part, Error> {
    let drawing = inside(DRAWING.0)?;
    let mut control = Control::new(embedded("controls/canny.safetensors"), embedded(DRAWING.0));
    control.preprocess = "canny".into();
    let canny = MAPS.iter().find(|m| m.name == control.preprocess);
    let map = canny.ok_or_else(|| Error::Internal("no canny maps".into()))?.make.map(&drawing, &control)?;
    let mut part = Part {
        title: format!("\"{}\", the drawing's edges kept, in the style of each reference", DRAWING.1),
        first: "drawing",
        columns: vec![column("its edges", "canny 50, 200")],
        rows: Vec::new(),
    };
    let mut pictures = vec![drawing, map.clone()];
    for shown in &script.shown {
        let mut request = request(script, DRAWING.1.to_owned());
        let mut reference = Reference::new(embedded(&shown.image));
        reference.inject = Inject::Preset(Preset::Style);
        request.references.push(reference);
        request.controls.push(control.clone());
        let picture = paint(&format!("{}-restyled", super::dashed(&shown.style)), &request)?;
        let kept = 100.0 * edges_kept(&map, &picture, REACH_PX);
        part.columns.push(column(&shown.style, &format!("edges kept: {kept:.0} %")));
        pictures.push(picture);
    }
    part.rows.push(Row { caption: "ControlNet and style injection".into(), pictures });
    Ok(part)
}

/// Half of a drawing repainted.
fn repainted(script: &Script, paint: &mut Paint) -> Result<Part, Error> {
    let (drawing, mask) = (inside(PAIR.0)?, inside(PAIR.1)?);
    let mut columns = vec![column("mask", "white is repainted")];
    let mut pictures = vec![drawing.clone(), mask.clone()];
    for content in REPAINTED {
        let mut request = request(script, format!("a house and a {content}, in flat style"));
        request.init = Some(Init {
            image: embedded(PAIR.0),
            mask: Some(embedded(PAIR.1)),
            strength: None,
            blend_px: Some(2.0),
        });
        let picture = paint(&format!("repainted-{content}"), &request)?;
        let values = picture.rgb.iter().zip(&drawing.rgb).zip(&mask.rgb);
        let changed = values.filter(|((now, then), mask)| **mask == 0 && now != then).count();
        columns.push(column(content, &format!("changed outside: {changed} values")));
        pictures.push(picture);
    }
    let rows = vec![Row { caption: "inpainting, 4 channels".into(), pictures }];
    let title = "\"a house and a ..., in flat style\", the right half repainted".to_owned();
    Ok(Part { title, first: "drawing", columns, rows })
}

/// A LoRA of a look, and the two parts of a B-LoRA.
fn loras(script: &Script, paint: &mut Paint) -> Result<Part, Error> {
    let (mut columns, mut pictures): (Vec<Column>, _) = (Vec::new(), vec![inside(LEARNT)?]);
    for (name, file, blocks, heading, about) in LORAS {
        let prompt = if blocks == LoraBlocks::Content { "a picture" } else { &script.prompt };
        let mut request = request(script, prompt.to_owned());
        let file = embedded(&format!("loras/{file}.safetensors"));
        request.loras.push(LoraUse { file, weight: 1.0, blocks });
        pictures.push(paint(name, &request)?);
        columns.push(column(heading, about));
    }
    let rows = vec![Row { caption: "what the B-LoRA learnt".into(), pictures }];
    Ok(Part { title: format!("\"{}\" with LoRAs", script.prompt), first: "picture", columns, rows })
}
