//! The firefly document.
