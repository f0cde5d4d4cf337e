//! The catalogue: published models by short names.
//!
//! Repositories, files, sizes and licences are what the model pages said when this table was written, or what a row's
//! `unchecked` says; each row's page is [`Entry::page`]. The exact sizes and hashes come from the hub when something is downloaded.

/// What an entry is, and so where a request can name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A Diffusers folder: `model`.
    Model,
    /// An IP-Adapter's file: `adapter` of a reference.
    Adapter,
    /// The folder of a CLIP picture tower: `image_encoder` of a reference.
    ImageEncoder,
    /// The folder of a CLIP text tower: `text_encoder` of a reference, for subtraction.
    TextEncoder,
    /// The folder of a ControlNet.
    ControlNet,
    /// A LoRA's file.
    Lora,
}

impl Kind {
    /// In words, with an article.
    pub fn title(self) -> &'static str {
        match self {
            Kind::Model => "a model",
            Kind::Adapter => "an IP-Adapter",
            Kind::ImageEncoder => "an image encoder",
            Kind::TextEncoder => "a text encoder",
            Kind::ControlNet => "a ControlNet",
            Kind::Lora => "a LoRA",
        }
    }
}

/// One published model.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name in requests and for `pull`.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The family it is for, as `Family::name` of the engine; empty where it fits all.
    pub family: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// `owner/name` on the hub.
    pub repository: &'static str,
    /// What the name stands for inside the repository: a file, a folder, or everything (empty).
    pub root: &'static str,
    /// Files to fetch, by their paths in the repository.
    pub files: &'static [&'static str],
    /// About how much that is, in millions of bytes, as the model page shows it.
    pub megabytes: u64,
    /// The licence by the name that the page gives.
    pub licence: &'static str,
    /// Entries without which it cannot be used; fetched with it.
    pub needs: &'static [&'static str],
    /// Entries that some requests need as well.
    pub helps: &'static [&'static str],
    /// What could not be checked when the row was written; empty where the page was read.
    pub unchecked: &'static str,
}

impl Entry {
    /// The address of the model's page, where its licence is.
    pub fn page(&self) -> String {
        format!("{DEFAULT_ENDPOINT}/{}", self.repository)
    }
}

/// The hub's address unless `HF_ENDPOINT` says otherwise.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// The revision that is fetched unless a name says otherwise (`name@revision`).
pub const DEFAULT_REVISION: &str = "main";

const RAIL: &str = "CreativeML Open RAIL-M";
const RAIL_PLUS: &str = "CreativeML Open RAIL++-M";
const APACHE: &str = "Apache-2.0";
const LISTING: &str = "the list of files was not at hand: it is as in the base model's repository";

const SDXL_FILES: &[&str] = &[
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "text_encoder_2/config.json",
    "text_encoder_2/model.fp16.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "tokenizer_2/merges.txt",
    "tokenizer_2/special_tokens_map.json",
    "tokenizer_2/tokenizer_config.json",
    "tokenizer_2/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
];

const SD15_FILES: &[&str] = &[
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
];

const fn model(
    name: &'static str,
    family: &'static str,
    about: &'static str,
    repository: &'static str,
    files: &'static [&'static str],
    megabytes: u64,
    licence: &'static str,
) -> Entry {
    Entry {
        name,
        kind: Kind::Model,
        family,
        about,
        repository,
        root: "",
        files,
        megabytes,
        licence,
        needs: &[],
        helps: &[],
        unchecked: "",
    }
}

/// Where a single file is the whole entry, `files` must hold just that.
const fn adapter(
    name: &'static str,
    family: &'static str,
    about: &'static str,
    file: &'static [&'static str; 1],
    megabytes: u64,
    needs: &'static [&'static str],
    helps: &'static [&'static str],
) -> Entry {
    Entry {
        name,
        kind: Kind::Adapter,
        family,
        about,
        repository: "h94/IP-Adapter",
        root: file[0],
        files: file,
        megabytes,
        licence: APACHE,
        needs,
        helps,
        unchecked: "",
    }
}

const fn folder(
    name: &'static str,
    kind: Kind,
    about: &'static str,
    repository: &'static str,
    root: &'static str,
    files: &'static [&'static str],
    megabytes: u64,
    licence: &'static str,
) -> Entry {
    Entry {
        name,
        kind,
        family: "",
        about,
        repository,
        root,
        files,
        megabytes,
        licence,
        needs: &[],
        helps: &[],
        unchecked: "",
    }
}

const fn lora(
    name: &'static str,
    family: &'static str,
    about: &'static str,
    repository: &'static str,
    file: &'static [&'static str; 1],
    megabytes: u64,
    unchecked: &'static str,
) -> Entry {
    Entry {
        name,
        kind: Kind::Lora,
        family,
        about,
        repository,
        root: file[0],
        files: file,
        megabytes,
        licence: RAIL_PLUS,
        needs: &[],
        helps: &[],
        unchecked,
    }
}

const LIGHTNING: &str = "ByteDance/SDXL-Lightning";
const HYPER: &str = "ByteDance/Hyper-SD";
/// Its first page named the licence, later ones name none.
const HYPER_LICENCE: &str = "the licence is that of the page's first version; later versions name none";

/// All entries.
pub static CATALOGUE: &[Entry] = &[
    Entry {
        unchecked: "only the folders unet and vae were read on the page; the others' files are as diffusers names them",
        ..model(
            "sdxl-base",
            "sdxl",
            "Stable Diffusion XL 1.0, the base model, in f16",
            "stabilityai/stable-diffusion-xl-base-1.0",
            SDXL_FILES,
            6940,
            RAIL_PLUS,
        )
    },
    Entry {
        unchecked: LISTING,
        ..model(
            "sdxl-turbo",
            "sdxl",
            "SDXL-Turbo: 1 to 4 steps at 512 x 512 (--fast turbo), in f16",
            "stabilityai/sdxl-turbo",
            SDXL_FILES,
            6940,
            "Stability AI community licence for research and non-commercial use (sai-nc-community)",
        )
    },
    Entry {
        unchecked: "the list of files is that of a copy of the repository",
        ..model(
            "sd15",
            "sd15",
            "Stable Diffusion 1.5, in f16",
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            SD15_FILES,
            2130,
            RAIL,
        )
    },
    adapter(
        "ip-adapter-sdxl",
        "sdxl",
        "IP-Adapter for SDXL, base, on bigG features: the one for subtraction",
        &["sdxl_models/ip-adapter_sdxl.safetensors"],
        703,
        &["image-encoder-bigg"],
        &[],
    ),
    adapter(
        "ip-adapter-sdxl-vit-h",
        "sdxl",
        "IP-Adapter for SDXL, base, on ViT-H features",
        &["sdxl_models/ip-adapter_sdxl_vit-h.safetensors"],
        698,
        &["image-encoder-vit-h"],
        &["text-encoder-vit-h"],
    ),
    adapter(
        "ip-adapter-plus-sdxl-vit-h",
        "sdxl",
        "IP-Adapter Plus for SDXL, on ViT-H patches: closer to the reference",
        &["sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors"],
        848,
        &["image-encoder-vit-h"],
        &[],
    ),
    adapter(
        "ip-adapter-sd15",
        "sd15",
        "IP-Adapter for SD1.5, base",
        &["models/ip-adapter_sd15.safetensors"],
        45,
        &["image-encoder-vit-h"],
        &["text-encoder-vit-h"],
    ),
    adapter(
        "ip-adapter-plus-sd15",
        "sd15",
        "IP-Adapter Plus for SD1.5: closer to the reference",
        &["models/ip-adapter-plus_sd15.safetensors"],
        98,
        &["image-encoder-vit-h"],
        &[],
    ),
    folder(
        "image-encoder-vit-h",
        Kind::ImageEncoder,
        "CLIP ViT-H, the picture tower of most adapters",
        "h94/IP-Adapter",
        "models/image_encoder",
        &["models/image_encoder/config.json", "models/image_encoder/model.safetensors"],
        2530,
        APACHE,
    ),
    folder(
        "image-encoder-bigg",
        Kind::ImageEncoder,
        "CLIP bigG, the picture tower of ip-adapter-sdxl",
        "h94/IP-Adapter",
        "sdxl_models/image_encoder",
        &["sdxl_models/image_encoder/config.json", "sdxl_models/image_encoder/model.safetensors"],
        3690,
        APACHE,
    ),
    Entry {
        unchecked: "the list of files and the size were not read on the page",
        ..folder(
            "text-encoder-vit-h",
            Kind::TextEncoder,
            "CLIP ViT-H with its text tower, for subtraction with ViT-H adapters",
            "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
            "",
            &[
                "config.json",
                "merges.txt",
                "model.safetensors",
                "special_tokens_map.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "vocab.json",
            ],
            3950,
            "MIT",
        )
    },
    Entry {
        unchecked: "the f16 file was seen in a copy of the repository",
        family: "sdxl",
        ..folder(
            "controlnet-canny-sdxl",
            Kind::ControlNet,
            "ControlNet for SDXL that follows canny edges, in f16",
            "diffusers/controlnet-canny-sdxl-1.0",
            "",
            &["config.json", "diffusion_pytorch_model.fp16.safetensors"],
            2500,
            RAIL_PLUS,
        )
    },
    Entry {
        family: "sd15",
        ..folder(
            "controlnet-canny-sd15",
            Kind::ControlNet,
            "ControlNet 1.1 for SD1.5 that follows canny edges, in f16",
            "lllyasviel/control_v11p_sd15_canny",
            "",
            &["config.json", "diffusion_pytorch_model.fp16.safetensors"],
            723,
            "Open RAIL",
        )
    },
    lora(
        "lightning-2-lora",
        "sdxl",
        "SDXL-Lightning in 2 steps (--fast lightning-2)",
        LIGHTNING,
        &["sdxl_lightning_2step_lora.safetensors"],
        394,
        "",
    ),
    lora(
        "lightning-4-lora",
        "sdxl",
        "SDXL-Lightning in 4 steps (--fast lightning-4)",
        LIGHTNING,
        &["sdxl_lightning_4step_lora.safetensors"],
        394,
        "",
    ),
    lora(
        "lightning-8-lora",
        "sdxl",
        "SDXL-Lightning in 8 steps (--fast lightning-8)",
        LIGHTNING,
        &["sdxl_lightning_8step_lora.safetensors"],
        394,
        "",
    ),
    lora(
        "hyper-2-lora-sdxl",
        "sdxl",
        "Hyper-SD for SDXL in 2 steps (--fast hyper-2)",
        HYPER,
        &["Hyper-SDXL-2steps-lora.safetensors"],
        787,
        HYPER_LICENCE,
    ),
    lora(
        "hyper-4-lora-sdxl",
        "sdxl",
        "Hyper-SD for SDXL in 4 steps (--fast hyper-4)",
        HYPER,
        &["Hyper-SDXL-4steps-lora.safetensors"],
        787,
        HYPER_LICENCE,
    ),
    lora(
        "hyper-8-lora-sdxl",
        "sdxl",
        "Hyper-SD for SDXL in 8 steps (--fast hyper-8)",
        HYPER,
        &["Hyper-SDXL-8steps-lora.safetensors"],
        787,
        HYPER_LICENCE,
    ),
    lora(
        "hyper-2-lora-sd15",
        "sd15",
        "Hyper-SD for SD1.5 in 2 steps (--fast hyper-2)",
        HYPER,
        &["Hyper-SD15-2steps-lora.safetensors"],
        269,
        HYPER_LICENCE,
    ),
    lora(
        "hyper-4-lora-sd15",
        "sd15",
        "Hyper-SD for SD1.5 in 4 steps (--fast hyper-4)",
        HYPER,
        &["Hyper-SD15-4steps-lora.safetensors"],
        269,
        HYPER_LICENCE,
    ),
    lora(
        "hyper-8-lora-sd15",
        "sd15",
        "Hyper-SD for SD1.5 in 8 steps (--fast hyper-8)",
        HYPER,
        &["Hyper-SD15-8steps-lora.safetensors"],
        269,
        HYPER_LICENCE,
    ),
    lora(
        "lcm-lora-sdxl",
        "sdxl",
        "LCM for SDXL: 2 to 8 steps (--fast lcm)",
        "latent-consistency/lcm-lora-sdxl",
        &["pytorch_lora_weights.safetensors"],
        394,
        "",
    ),
    lora(
        "lcm-lora-sd15",
        "sd15",
        "LCM for SD1.5: 2 to 8 steps (--fast lcm)",
        "latent-consistency/lcm-lora-sdv1-5",
        &["pytorch_lora_weights.safetensors"],
        135,
        "",
    ),
];

/// The entry of a name, with the revision that `name@revision` asks for.
pub fn find(text: &str) -> Option<(&'static Entry, Option<&str>)> {
    let (name, revision) = match text.split_once('@') {
        Some((name, revision)) if sound_revision(revision) => (name, Some(revision)),
        Some(_) => return None,
        None => (text, None),
    };
    CATALOGUE.iter().find(|e| e.name == name).map(|e| (e, revision))
}

/// Revisions become parts of paths and addresses.
pub(crate) fn sound_revision(revision: &str) -> bool {
    let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=100).contains(&revision.len()) && !revision.starts_with('.') && revision.chars().all(sound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sound() {
        for (i, e) in CATALOGUE.iter().enumerate() {
            assert!(CATALOGUE[..i].iter().all(|o| o.name != e.name), "{} twice", e.name);
            assert!(
                e.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'),
                "{}",
                e.name
            );
            assert_eq!(e.repository.split('/').filter(|p| !p.is_empty()).count(), 2, "{}", e.repository);
            assert!(!e.files.is_empty() && e.megabytes > 0 && !e.licence.is_empty(), "{}", e.name);
            for f in e.files {
                let inside = f.split('/').all(|p| !p.is_empty() && p != "." && p != "..");
                assert!(inside && !f.starts_with('/'), "{f}");
                assert!(e.root.is_empty() || *f == e.root || f.starts_with(&format!("{}/", e.root)), "{f}");
            }
            for other in e.needs.iter().chain(e.helps) {
                let (other, _) = find(other).unwrap_or_else(|| panic!("{}: {other} is no entry", e.name));
                assert!(other.needs.is_empty(), "companions are one level deep");
            }
        }
    }

    #[test]
    fn names_may_carry_a_revision() {
        assert_eq!(find("sd15").map(|(e, r)| (e.name, r)), Some(("sd15", None)));
        assert_eq!(find("sd15@v1.0").map(|(e, r)| (e.name, r)), Some(("sd15", Some("v1.0"))));
        for wrong in ["", "sd", "sd15@", "sd15@../x", "sd15@.", "sd15@a/b", "SD15"] {
            assert!(find(wrong).is_none(), "{wrong}");
        }
    }
}
