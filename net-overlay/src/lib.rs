//! net-overlay
