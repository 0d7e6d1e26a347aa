//! Configurations: goldens of every error, both dialects, the shipped file.
