//! What a user types and sees: every test runs the binary in a fresh folder.
//!
//! Nothing here needs the network. Tests that compare with `../shared` (what the reference
//! implementation computed) say `skipped` where it is missing; in CI that is a failure.

#![allow(clippy::unwrap_used)] // a test that panics is a test that fails

mod cache;
mod commands;
mod compare;
mod determinism;
mod documented;
mod embed;
mod emit;
mod format;
mod golden;
mod help;
mod identity;
mod malformed;
mod output;
mod plan;
mod prune;
mod reproduce;
mod reviews;
mod search;
mod stopped;
mod support;
mod tiny;
mod tokens;
mod train;
mod vocab;
