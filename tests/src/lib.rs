//! Real processes, real disasters
