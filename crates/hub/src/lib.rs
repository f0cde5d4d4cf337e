//! Published models: which there are ([`catalogue`]), where they lie on this machine ([`Cache`], the cache that Python's
//! `huggingface_hub` uses, so that files are shared with it), and downloads into it (`download`, a feature: looking
//! needs no network code).
//!
//! ```
//! use instantstyle_hub::{Cache, catalogue};
//! let (entry, revision) = catalogue::find("sdxl-base").expect("is in the catalogue");
//! assert_eq!((entry.repository, revision), ("stabilityai/stable-diffusion-xl-base-1.0", None));
//! match Cache::at("no-such-cache").find(entry, revision) {
//!     Some(place) => println!("{}", place.path.display()),
//!     None => println!("not here yet"),
//! }
//! ```

mod cache;
pub mod catalogue;
#[cfg(feature = "download")]
pub mod download;

pub use cache::{Cache, Found};
