//! The inspector's page in a real browser, of two real nodes.
//!
//! This program is its own worker: started with [`URL`](node::URL) set, it is a node. Started
//! without, it runs the tests, one after another, in a headless Chromium; or says that they were
//! not run, where there is none.
//!
//! With `INSPECTOR_SCREENSHOT` set, it also makes the picture of the README.

#![allow(unreachable_pub)]

#[allow(dead_code)] // Its `main`, and what only that uses.
#[path = "../../examples/inspector.rs"]
mod example;
#[allow(dead_code)] // The seeds of other programs.
#[macro_use]
#[path = "../support/harness.rs"]
mod harness;
#[path = "../support/mod.rs"]
mod support;

mod everyone;
mod locks;
mod node;
mod screenshot;
mod stage;
mod strangers;
mod trouble;
mod webdriver;

use std::process::ExitCode;

use everyone::{
    a_phone_shows_all_without_scrolling_sideways, all_can_be_done_with_the_keyboard,
    all_controls_have_names_and_all_text_has_contrast,
};
use locks::a_lock_is_seen_being_taken_waited_for_handed_over_and_lost;
use screenshot::the_picture_of_the_readme;
use strangers::{another_site_cannot_take_a_lock, keys_of_strangers_are_text};
use trouble::the_page_says_when_its_node_is_gone_and_goes_on_when_it_is_back;

tests! {
    a_lock_is_seen_being_taken_waited_for_handed_over_and_lost
    all_can_be_done_with_the_keyboard
    all_controls_have_names_and_all_text_has_contrast
    a_phone_shows_all_without_scrolling_sideways
    another_site_cannot_take_a_lock
    keys_of_strangers_are_text
    the_page_says_when_its_node_is_gone_and_goes_on_when_it_is_back
    the_picture_of_the_readme
}

fn main() -> ExitCode {
    if let Ok(url) = std::env::var(node::URL) {
        return node::run(&url);
    }
    if let Err(why) = webdriver::is_installed() {
        println!("\nNOT RUN: the inspector in a browser: {why}");
        println!("  Install it (Debian: apt-get install chromium chromium-driver).\n");
        return ExitCode::SUCCESS;
    }
    harness::run(TESTS)
}
