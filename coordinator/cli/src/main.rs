//! The muster binary: the only composition root.
fn main() {}
