//! What a volume group holds, read from LVM's own on-disk metadata without an LVM process.
//!
//! [`header`] decodes the label and the metadata area headers, [`read`] fetches them and the texts from a
//! device, [`text`] parses LVM's configuration text, [`model`] gives it types, and [`assemble`] picks the
//! valid state of a group out of what its several copies say.
//!
//! Invariant: nothing here ever says "absent" for "could not be read", and nothing here writes.

pub mod assemble;
pub mod header;
mod import;
pub mod model;
mod place;
pub mod read;
pub mod text;
mod uuid;

pub use place::ModelError;
pub use uuid::{LvmUuid, UuidError};
