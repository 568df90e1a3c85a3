//! The consensus facade over openraft; the only room that names it
