//! The only entrance to building, testing and showing pacsvault.
fn main() {}
