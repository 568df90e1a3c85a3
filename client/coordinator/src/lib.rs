//! The write and read paths: hash, code, place, send, seal; fetch, verify, decode
