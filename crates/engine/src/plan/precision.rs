//! Which number format is used, and whether the wished level of instructions is one.

use crate::error::Error;
use crate::model::Place;
use crate::request::{PRECISIONS, Precision, Request};
use instantstyle_nets::layers::Precision as Operands;
use instantstyle_nets::layers::level::{self, Refused};

/// Weights of a UNet from which `auto` is bf16. Below it the products are too small for bf16 to save time worth the digits: a picture of the
/// embedded model (10 million) takes a fifth of a second in f32, a little less in bf16. SD1.5 has 860 million.
const LARGE: usize = 100_000_000;

/// The format that a request stands for, on this machine.
pub(super) fn resolved(request: &Request, model: &Place) -> Result<Precision, Error> {
    match request.precision.unwrap_or(Precision::Auto) {
        Precision::Auto if level::bf16() => {
            let weights = model.join("unet").component()?;
            Ok(auto(weights.iter().map(|(_, t)| t.len()).sum(), true))
        }
        Precision::Auto => Ok(auto(0, false)),
        Precision::F16 => Err(Error::Machine(
            "precision: f16 arithmetic is not built in for the CPU; use bf16 (as small, and as fast where the processor has \
             it), f32 or int8 (weights stored in f16 stay so in the file)"
                .into(),
        )),
        other => Ok(other),
    }
}

/// What `auto` stands for, with a UNet of so many weights and with or without the instruction for bf16.
fn auto(weights: usize, bf16: bool) -> Precision {
    if bf16 && weights >= LARGE { Precision::Bf16 } else { Precision::F32 }
}

/// The format of the operands.
pub(super) fn operands(precision: Option<Precision>) -> Operands {
    match precision {
        Some(Precision::Bf16) => Operands::Bf16,
        Some(Precision::Int8) => Operands::Int8,
        _ => Operands::F32,
    }
}

/// The name of a format.
pub(super) fn name(precision: Option<Precision>) -> &'static str {
    PRECISIONS.iter().find(|p| Some(p.1) == precision).map_or("", |p| p.0)
}

/// Refuses a value of the switch for the level of instructions that is none, or none of this machine.
pub(super) fn check_level() -> Result<(), Error> {
    level::check().map_err(|refused| {
        let names = level::names().join(", ");
        match refused {
            Refused::Unknown(value) => {
                Error::request(level::SWITCH, format!("is \"{value}\", expected {names}, or leave it unset"))
            }
            Refused::Lacking(name) => Error::Machine(format!(
                "{}: {name} needs instructions that this processor lacks; use a lower one of {names}, or leave it unset",
                level::SWITCH
            )),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_is_bf16_for_large_networks_where_the_machine_has_it() {
        assert_eq!(auto(860_000_000, true), Precision::Bf16);
        assert_eq!(auto(860_000_000, false), Precision::F32);
        assert_eq!(auto(LARGE - 1, true), Precision::F32);
    }
}
