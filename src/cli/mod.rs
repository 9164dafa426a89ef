//! The command lines.
mod args;
mod input;
mod table;
