//! The Rust client of pacsvault and its command line
