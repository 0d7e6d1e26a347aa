//! That the tree is as ARCHITECTURE.md says.
