//! picture/mod
