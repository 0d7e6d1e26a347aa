//! The daemon in network namespaces with real traffic. Root.
