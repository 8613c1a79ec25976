//! The lock manager: its rules over memory and over Redis, and what only Redis can show.

mod accidents;
mod at_rest;
mod cancellation;
mod closing;
mod fencing;
mod frugality;
mod hand_offs;
mod jobs;
mod odd_keys;
mod rules;
mod runtimes;
mod settings;
mod several;
mod shared;
mod waiters;

use std::time::Duration;

use crate::support::PATIENCE;

const WAIT: Duration = PATIENCE;
