//! Lists the files of `models/embedded`, so that they become part of the program.

use std::path::{Path, PathBuf};

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/embedded");
    println!("cargo:rerun-if-changed={}", root.display());
    let mut files = Vec::new();
    collect(&root, &mut files);
    let mut rows: Vec<(String, PathBuf)> = files
        .into_iter()
        .map(|f| {
            let relative = f.strip_prefix(&root).expect("below the root");
            let parts: Vec<_> = relative.components().map(|c| c.as_os_str().to_string_lossy()).collect();
            (parts.join("/"), f.clone())
        })
        .collect();
    rows.sort();
    let mut code = String::from("static FILES: &[(&str, &[u8])] = &[\n");
    for (name, file) in rows {
        println!("cargo:rerun-if-changed={}", file.display());
        let file = file.canonicalize().expect("a listed file exists");
        code += &format!("    ({name:?}, include_bytes!({file:?})),\n");
    }
    code += "];\n";
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    std::fs::write(Path::new(&out).join("embedded.rs"), code).expect("OUT_DIR is writable");
}

/// All files that the program needs: weights, configurations, tokenizers, the card and reference pictures.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else if path
            .extension()
            .is_some_and(|e| ["json", "safetensors", "txt", "png"].iter().any(|k| e == *k))
        {
            files.push(path);
        }
    }
}
