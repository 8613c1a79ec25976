//! Which Redis to use.
