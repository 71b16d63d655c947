//! Memory that is neither the heap's nor a stack's: a guest's, and hugepages of our own.

pub mod far;
pub mod guest;
pub mod hugepage;
mod sigbus;
