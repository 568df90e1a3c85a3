//! The node's loop: requests to consensus, volumes and catalog
