//! The pacsvault storage node
