//! Scenarios by name: what is done to the cluster, and what must hold.
