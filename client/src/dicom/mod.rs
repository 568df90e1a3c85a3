//! DICOM at the edge: what a Part 10 file says of itself, and synthetic studies to show and measure with.
//!
//! **Invariants.** Pixel data are never read into memory to learn a file's attributes. Values are for the catalog's index;
//! the file's own bytes are stored untouched.

pub mod attributes;
pub mod synthetic;
